"""Turn a report into rows of words, for the terminal, Markdown and HTML."""

from __future__ import annotations

import html
from typing import NamedTuple

from flowedge.runtime.bench.timing_report import Environment, Report, Row

COLUMNS: tuple[str, ...] = (
    "what",
    "answers",
    ">worst error",
    ">map corr.",
    ">p50 ms",
    ">p90 ms",
    ">p99 ms",
    ">images/s",
    ">cold start ms",
    ">load ms",
    ">first ms",
    ">overhead ms",
    ">peak MB",
    ">mJ/image",
    ">of peak",
    ">of bandwidth",
)
"""The columns of the main table. Columns that start with ``>`` hold numbers."""

TERMINAL_COLUMNS: tuple[str, ...] = (
    "what",
    "answers",
    ">map corr.",
    ">p50 ms",
    ">cold start ms",
    ">overhead ms",
    ">peak MB",
)
"""The columns that fit into a terminal."""

_STAGE_COLUMNS: tuple[str, ...] = (
    "what",
    "frame",
    ">decode ms",
    ">preprocess ms",
    ">infer ms",
    ">decide ms",
    ">overhead ms",
)

NOT_REPORTED = "not reported"


class Table(NamedTuple):
    """A table of a report, for every form in which reports are shown.

    Attributes:
        title: The heading above the table.
        columns: The names of the columns. Columns that start with ``>`` hold numbers.
        rows: The cells of each row.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def further_tables(report: Report) -> list[Table]:
    """Return the tables that follow the main table, without those that have no row."""
    tables = [
        Table("Images per second", _batch_columns(report), _batch_rows(report)),
        Table(
            "Frames per second of threads that share one detector",
            _shared_columns(report),
            _shared_rows(report),
        ),
        Table("Where the time of one frame goes", _STAGE_COLUMNS, _stage_rows(report)),
    ]
    return [one for one in tables if one.rows]


def cells_of(row: Row) -> tuple[str, ...]:
    """Return one cell for each of `COLUMNS`, at the first batch that was measured."""
    timing, parity = row.first_timing, row.parity
    energy = None if timing is None else timing.energy_mj
    return (
        _name(row),
        _verdict(row),
        "-" if parity is None or parity.worst_error is None else f"{parity.worst_error:.1e}",
        _number(row.own_correlation if parity is None else parity.correlation, 5),
        *map(_ms, _latencies(row)),
        _number(None if timing is None else timing.images_per_s, 1),
        _number(row.cold_start_ms, 0),
        _number(row.load_ms, 0),
        _number(row.first_ms, 0),
        _ms(None if row.stages is None else row.stages.overhead_ms),
        _memory(row),
        "-" if row.problem else NOT_REPORTED if energy is None else f"{energy:.1f}",
        _share(row.peak_share),
        _share(row.bandwidth_share),
    )


def _stage_rows(report: Report) -> list[tuple[str, ...]]:
    """Return one row of `_STAGE_COLUMNS` for each bundle that ran."""
    return [
        (
            _name(row),
            "x".join(map(str, row.stages.frame_size)),
            *map(
                _ms,
                (
                    row.stages.decode_ms,
                    row.stages.preprocess_ms,
                    row.stages.infer_ms,
                    row.stages.decide_ms,
                    row.stages.overhead_ms,
                ),
            ),
        )
        for row in report.rows
        if row.stages is not None
    ]


def _batch_columns(report: Report) -> tuple[str, ...]:
    """Name the columns of `_batch_rows`."""
    return ("what", *(f">batch {batch}" for batch in _batches(report)))


def _batch_rows(report: Report) -> list[tuple[str, ...]]:
    """Return the images per second of each row, by batch."""
    found: list[tuple[str, ...]] = []
    for row in report.rows:
        # A row without any speed would be a line of dashes.
        rates = {timing.batch: timing.images_per_s for timing in row.timings}
        if any(rates.values()):
            found.append((_name(row), *(_number(rates.get(batch), 1) for batch in _batches(report))))
    return found


def _shared_columns(report: Report) -> tuple[str, ...]:
    """Name the columns of `_shared_rows`."""
    return ("what", *(f">{count} thread{'s' * (count > 1)}" for count in _shared_by(report)))


def _shared_rows(report: Report) -> list[tuple[str, ...]]:
    """Return the frames per second of the threads that share one detector, by their number."""
    found: list[tuple[str, ...]] = []
    for row in report.rows:
        speeds = {one.threads: one.frames_per_s for one in row.shared}
        if speeds:
            found.append((_name(row), *(_number(speeds.get(count), 1) for count in _shared_by(report))))
    return found


def remarks_of(report: Report) -> list[str]:
    """List the rows that did not run, the wrong rows, and the times that were not steady."""
    remarks: list[str] = []
    for row in report.rows:
        if row.problem:
            remarks.append(f"{row.label}: not measured: {row.problem}")
        if row.is_wrong and row.parity is not None:
            remarks.append(f"{row.label}: WRONG: {'; '.join(row.parity.failed)}")
        if row.parity_problem:
            remarks.append(f"{row.label}: not compared: {row.parity_problem}")
        for timing in row.timings:
            if timing.problem:
                remarks.append(f"{row.label}, batch {timing.batch}: {timing.problem}")
            elif not timing.settled:
                remarks.append(
                    f"{row.label}, batch {timing.batch}: never settled; the machine was busy, or its clock changed"
                )
        remarks += [f"{row.label}: {note}" for note in row.notes]
    return remarks


def environment_line(machine: Environment) -> str:
    """Describe the machine in one line."""
    speed = ""
    if machine.gflops is not None and machine.copy_gb_s is not None:
        speed = f", {machine.gflops:.0f} GFLOP/s in a float32 matrix product, {machine.copy_gb_s:.1f} GB/s in a copy"
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:.1f} GB, {machine.platform}, "
        f"Python {machine.python}{speed}"
    )


def markdown_of(report: Report) -> str:
    """Return the report as Markdown. Names and errors are escaped."""
    threads = next(
        (f"{row.threads} threads" for row in report.rows if row.threads), "threads as the engines like"
    )
    parts = [
        "# FlowEdge bench",
        "",
        f"{report.date}, FlowEdge {report.flowedge_version}, "
        f"{threads}. {_plain(environment_line(report.machine))}.",
        "",
        f"Command: {_plain(report.command)}",
        "",
        *_markdown_table(COLUMNS, [cells_of(row) for row in report.rows]),
        "",
        *(
            line
            for one in further_tables(report)
            for line in (f"## {one.title}", "", *_markdown_table(one.columns, one.rows), "")
        ),
        *(f"- {_plain(remark)}" for remark in remarks_of(report)),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _markdown_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    heads = [column.lstrip(">") for column in columns]
    rules = ["---:" if column.startswith(">") else "---" for column in columns]
    lines = [heads, rules, *([_plain(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _plain(text: str) -> str:
    """Escape text, so that Markdown shows it as it is: no tag, no link and no end of a cell."""
    # Names and errors come from files. A backslash makes Markdown show a character that would start a link or a cell.
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{one}" if one in "\\`*_[]|#!" else one for one in escaped)


def _name(row: Row) -> str:
    version = row.version.partition("-")[0]
    return " ".join(part for part in (row.label, version) if part)


def _latencies(row: Row) -> tuple[float | None, ...]:
    timing = row.first_timing
    return (None,) * 3 if timing is None else (timing.p50_ms, timing.p90_ms, timing.p99_ms)


def _batches(report: Report) -> list[int]:
    return list(dict.fromkeys(timing.batch for row in report.rows for timing in row.timings))


def _shared_by(report: Report) -> list[int]:
    return sorted({one.threads for row in report.rows for one in row.shared})


def _memory(row: Row) -> str:
    resident = _number(row.peak_resident_mb, 0)
    return (
        resident if row.device_memory_mb is None else f"{resident} + {row.device_memory_mb:.0f} on the device"
    )


def _verdict(row: Row) -> str:
    if row.problem:
        return "did not run"
    if row.parity is None:
        return "not compared"
    return "right" if row.parity.is_right else "WRONG"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _ms(value: float | None) -> str:
    return _number(value, 2)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
