"""``flowedge bench``: how fast, how large and how right is a bundle on this machine?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowedge.cli.output import MESSAGES, RESULTS, WIDEST, EscapingConsole, Threads, size_from, table
from flowedge.cli.progress import progress_bar
from flowedge.errors import FlowEdgeError
from flowedge.files import write_whole_file

if TYPE_CHECKING:
    from rich.table import Table

    from flowedge.runtime.bench.timing_report import Report

NAME = "bench"


def command(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="The bundles.", metavar="BUNDLE...", show_default=False)
    ] = None,
    engines: Annotated[
        str | None, typer.Option("--engines", metavar="A,B", help="Which engines; all by default.")
    ] = None,
    precisions: Annotated[
        str | None, typer.Option("--precisions", metavar="A,B", help="Which graphs; all by default.")
    ] = None,
    batch: Annotated[str, typer.Option("--batch", metavar="N,M", help="Images of one inference.")] = "1,4,8",
    frame_size: Annotated[
        str | None,
        typer.Option(
            "--frame-size", metavar="HxW", help="Of the synthetic source frames.", show_default="1024x1024"
        ),
    ] = None,
    peers: Annotated[
        list[Path] | None,
        typer.Option("--peer", metavar="FILE", help="A foreign ONNX file to time beside; repeatable."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="The first bundle's checkpoint, to time in PyTorch beside it."),
    ] = None,
    backbone_weights: Annotated[
        Path | None, typer.Option("--backbone-weights", help="As for export; with --against.")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="How long each combination is timed, per batch.")
    ] = 3.0,
    threads: Threads = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page.")] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write tables.")] = None,
) -> None:
    """Time bundles on every engine and precision in turns, each in its own process, and check their answers.

    Exit status 1 when one answers wrongly, or when nothing could be measured.
    """
    from flowedge.runtime.bench.measure import run_bench
    from flowedge.runtime.bench.plan import BenchOptions
    from flowedge.runtime.bench.table import markdown_of
    from flowedge.runtime.bench.timing_page import page_of
    from flowedge.runtime.bench.timing_report import json_from_report
    from flowedge.text import printable

    if not bundles and not peers:
        raise FlowEdgeError("name a bundle, or a foreign ONNX file with --peer.")
    if against is not None and not bundles:
        raise FlowEdgeError("--against is the first bundle's checkpoint, and no bundle is named.")
    if backbone_weights is not None and against is None:
        raise FlowEdgeError("--backbone-weights goes with --against CKPT.")
    options = BenchOptions(
        engines=_words("--engines", engines),
        precisions=_words("--precisions", precisions),
        batches=_batches(batch),
        frame_size=None if frame_size is None else size_from("--frame-size", frame_size),
        peers=tuple(peers or ()),
        checkpoint=against,
        backbone_weights=backbone_weights,
        threads=threads,
        seconds=seconds,
        command=printable(shlex.join(["flowedge", *sys.argv[1:]])),
    )
    with progress_bar() as reports:
        report = run_bench(tuple(bundles or ()), options, reports=reports)
    _print(report)
    if html is not None:
        _write(html, page_of(report).encode())
    if json is not None:
        _write(json, json_from_report(report))
    if markdown is not None:
        _write(markdown, markdown_of(report).encode())
    if report.wrong or all(row.first_timing is None for row in report.rows):
        raise typer.Exit(1)


def _print(report: Report) -> None:
    from flowedge.runtime.bench.table import (
        COLUMNS,
        STAGE_COLUMNS,
        TERMINAL_COLUMNS,
        batch_columns,
        batch_rows,
        cells_of,
        environment_line,
        remarks_of,
        shared_columns,
        shared_rows,
        stage_rows,
    )

    shown = [COLUMNS.index(column) for column in TERMINAL_COLUMNS]
    cells = [cells_of(row) for row in report.rows]
    styles = ["bold red" if row.is_wrong else "dim" if row.problem else None for row in report.rows]
    _print_whole(_table(TERMINAL_COLUMNS, [[row[n] for n in shown] for row in cells], styles))
    for title, columns, body in (
        ("Images per second", batch_columns(report), batch_rows(report)),
        (
            "Frames per second of threads that share one detector",
            shared_columns(report),
            shared_rows(report),
        ),
        ("Where the time of one frame goes", STAGE_COLUMNS, stage_rows(report)),
    ):
        if body:
            RESULTS.print()
            _print_whole(_table(columns, body, [None] * len(body), title))
    RESULTS.print()
    RESULTS.print(environment_line(report.machine), soft_wrap=True)
    for remark in remarks_of(report):
        MESSAGES.print(remark, soft_wrap=True)


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    styles: Sequence[str | None],
    title: str | None = None,
) -> Table:
    """Where the terminal is narrow, the first column is folded and no other."""
    made = table(*columns, title=title)
    for number, column in enumerate(made.columns[1:], start=1):
        words = str(column.header).split() + [row[number] for row in rows]
        column.min_width = max(len(word) for word in words) + 1
    for row, style in zip(rows, styles, strict=True):
        made.add_row(*row, style=style)
    return made


def _print_whole(made: Table) -> None:
    """No number is cut: lines are longer than a terminal that is too narrow even with the first column folded."""
    from rich.measure import Measurement

    size = Measurement.get(RESULTS, RESULTS.options.update(width=WIDEST, max_width=WIDEST), made)
    if RESULTS.width >= size.maximum:
        RESULTS.print(made)
        return
    for column in made.columns[1:]:
        column.width = column.min_width  # else rich takes from all alike
    EscapingConsole(width=max(RESULTS.width, size.minimum)).print(made)


def _words(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(","))
    if not all(words) or len(set(words)) < len(words):
        raise FlowEdgeError(f"{option} takes different names with commas between, got {text!r}.")
    return words


def _batches(text: str) -> tuple[int, ...]:
    words = _words("--batch", text) or ()
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise FlowEdgeError(f"--batch takes whole numbers from 1 with commas between, got {text!r}.")
    return tuple(int(word) for word in words)


def _write(file: Path, content: bytes) -> None:
    try:
        write_whole_file(file, content)
    except OSError as error:
        raise FlowEdgeError(f"cannot write {file}: {error.strerror}. Name another file.") from error
    MESSAGES.print(f"wrote {file}", soft_wrap=True)
