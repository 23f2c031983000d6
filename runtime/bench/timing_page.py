"""Draw a benchmark's report as one HTML page that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flowedge.runtime.bench.table import COLUMNS, cells_of, environment_line, further_tables, remarks_of
from flowedge.runtime.bench.timing_report import Report, Row
from flowedge.runtime.report import shell
from flowedge.runtime.report.charts import Bar, Series, bars, charts, key, lines, points
from flowedge.runtime.report.markup import EMPTY, Markup, element, joined
from flowedge.runtime.report.shell import list_of, notice, paragraph, section
from flowedge.runtime.report.tables import table

_COLOURS: Final = 8
_WRONG: Final = "wrong"
_SPEED: Final = (
    *("what", "answers", ">p50 ms", ">p90 ms", ">p99 ms"),
    *(">images/s", ">overhead ms", ">of peak", ">of bandwidth"),
)
_COST: Final = (
    *("what", ">worst error", ">map corr.", ">cold start ms"),
    *(">load ms", ">first ms", ">peak MB", ">mJ/image"),
)
_ABOUT_SPEED: Final = (
    "A latency is the time of one inference at the first batch. The overhead is the time that FlowEdge takes beside "
    'the engine\'s call. "Of peak" is the speed of the multiply-accumulates, divided by the speed of the fastest '
    'float32 matrix product that was seen. "Of bandwidth" is the share of the machine\'s bandwidth that reading each '
    "weight once takes."
)
_ABOUT_COST: Final = (
    "The worst error compares the levels of the self-test with those that the fp32 graph gave at export."
)
_SMALLEST_ERROR: Final = 1e-9


def page_of(report: Report) -> str:
    """Return the HTML of the page."""
    sections = [
        notice("Wrong answers: ", ", ".join(report.wrong), ".") if report.wrong else EMPTY,
        section(
            "Speed",
            _part(report, "Times of each combination", _SPEED),
            paragraph(_ABOUT_SPEED, soft=True),
        ),
        section(
            "Correctness, start and memory",
            _part(report, "Errors and costs of each combination", _COST),
            paragraph(_ABOUT_COST, soft=True),
        ),
        _charts(report),
        *(
            section(one.title, table(one.title, one.columns, one.rows, sortable=True))
            for one in further_tables(report)
        ),
    ]
    remarks = remarks_of(report)
    if remarks:
        sections.append(section("Remarks", list_of(remarks)))
    lead = joined(
        paragraph(f"{report.date}, FlowEdge {report.flowedge_version}. {environment_line(report.machine)}."),
        paragraph(element("code", report.command)),
    )
    return shell.page_of("FlowEdge bench", sections, lead=lead)


def _part(report: Report, caption: str, columns: Sequence[str]) -> Markup:
    """Return the main table with some of its columns."""
    chosen = [COLUMNS.index(column) for column in columns]
    cells = [cells_of(row) for row in report.rows]
    styles = [_WRONG if row.is_wrong else "absent" if row.problem else "" for row in report.rows]
    return table(caption, columns, [[row[n] for n in chosen] for row in cells], styles=styles, sortable=True)


def _charts(report: Report) -> Markup:
    rows = [row for row in report.rows if row.first_timing is not None]
    if not rows:
        return EMPTY
    return section(
        "Charts",
        key([(_style(row, rows), row.label) for row in rows]),
        charts(_latencies(rows), _throughput(rows), _accuracy(rows)),
    )


def _latencies(rows: Sequence[Row]) -> Markup:
    entries = []
    for row in rows:
        timing = row.first_timing
        assert timing is not None
        p = timing.percentiles_ms
        entries.append(
            Bar(
                name=row.label,
                value=p[50],
                shown=f"{p[50]:.2f} ms",
                style=_style(row, rows),
                spread=(p[1], p[10], p[90], p[99]),
                is_wrong=row.is_wrong,
            )
        )
    words = "line from the 1st to the 99th percentile, box from the 10th to the 90th, stroke at the median"
    return bars("Latency", entries, "ms of one inference", words)


def _throughput(rows: Sequence[Row]) -> Markup:
    series = []
    for row in rows:
        measured = [(timing.batch, timing.images_per_s) for timing in row.timings if timing.images_per_s]
        if measured:
            batches, rates = zip(*measured, strict=True)
            series.append(Series(name=row.label, style=_style(row, rows), x=batches, y=rates))
    return lines(
        "Throughput over batch",
        series,
        "images in a batch",
        "images per second",
        x_top=max(max(one.x) for one in series),
        y_top=max(max(one.y) for one in series),
        has_legend=False,
        has_points=True,
    )


def _accuracy(rows: Sequence[Row]) -> Markup:
    compared = [row for row in rows if row.parity is not None]
    errors = [row.parity.worst_error for row in compared if row.parity is not None]
    known = [error for error in errors if error is not None]
    if not known:
        return EMPTY
    # An error that is not a number is drawn beside the worst.
    worst = max(known)
    series, names = [], []
    for row in compared:
        timing, parity = row.first_timing, row.parity
        assert timing is not None
        assert parity is not None
        error = max(worst if parity.worst_error is None else parity.worst_error, _SMALLEST_ERROR)
        series.append(Series(name=row.label, style=_style(row, rows), x=[timing.p50_ms or 0.0], y=[error]))
        names.append([row.label])
    return points(
        "Accuracy over latency",
        series,
        "median in ms",
        "worst error of the levels",
        is_log=True,
        names=names,
        has_legend=False,
    )


def _style(row: Row, rows: Sequence[Row]) -> str:
    """Return the CSS class of a row's colour, which is the same in every chart."""
    if row.is_wrong:
        return _WRONG
    return f"c{next(n for n, one in enumerate(rows) if one is row) % _COLOURS}"
