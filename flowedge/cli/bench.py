"""``flowedge bench`` measures how fast and how large bundles are on this machine, and checks their answers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flowedge.cli.output import (
    MESSAGES,
    RESULTS,
    WIDEST,
    EscapingConsole,
    Force,
    Json,
    Threads,
    print_json_bytes,
    size_from,
    table,
)
from flowedge.cli.places import check_bundle, check_file, check_images
from flowedge.cli.progress import progress_bar
from flowedge.errors import FlowEdgeError
from flowedge.files import write_whole_file
from flowedge.targets import PAGE_MARK, check_file_target, check_separate_targets
from flowedge.text import printable

if TYPE_CHECKING:
    from rich.table import Table

    from flowedge.runtime.bench.timing_report import Report

NAME = "bench"

_MARKDOWN_MARK: Final = b"# FlowEdge bench"


def command(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(help="The bundles to measure.", metavar="BUNDLE...", show_default=False),
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option("--engines", metavar="A,B", help="The engines to measure. By default all are tried."),
    ] = None,
    precisions: Annotated[
        str | None,
        typer.Option(
            "--precisions", metavar="A,B", help="The precisions to measure. By default all of the bundle are."
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option("--batch", metavar="N,M", help="The numbers of images in one inference.")
    ] = "1,4,8",
    frame_size: Annotated[
        str | None,
        typer.Option(
            "--frame-size",
            metavar="HxW",
            help="Height and width of the synthetic source frames in pixels.",
            show_default="1024x1024",
        ),
    ] = None,
    peers: Annotated[
        list[Path] | None,
        typer.Option(
            "--peer",
            metavar="FILE",
            help="An ONNX file of another project to time as well, on ONNX Runtime and OpenVINO. May be repeated.",
        ),
    ] = None,
    peer_images: Annotated[
        Path | None,
        typer.Option(
            "--peer-images",
            metavar="DIR",
            help="Good images, to time each --peer in INT8 as well, as NNCF quantises it for OpenVINO.",
        ),
    ] = None,
    peer_python: Annotated[
        Path | None,
        typer.Option(
            "--peer-python",
            metavar="PYTHON",
            help="The Python that has NNCF and OpenVINO for --peer-images.",
            show_default="this one",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            help="The checkpoint of the first bundle, to time its original network in PyTorch as well.",
        ),
    ] = None,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            "--backbone-weights",
            help="The state dict of the feature extractor for --against, as for flowedge export.",
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", min=0, help="The seconds for which each combination is timed, for each batch size."
        ),
    ] = 3.0,
    threads: Threads = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as an HTML page.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables as Markdown.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Time bundles on every engine and precision in turns, each in its own process, and check their answers.

    The exit status is 1 when a combination answers wrongly or when nothing could be measured.
    """
    if not bundles and not peers:
        raise FlowEdgeError("name a bundle, or an ONNX file of another project with --peer.")
    if against is not None and not bundles:
        raise FlowEdgeError("--against is the first bundle's checkpoint, and no bundle is named.")
    if backbone_weights is not None and against is None:
        raise FlowEdgeError("--backbone-weights goes with --against CKPT.")
    if peer_images is not None and not peers:
        raise FlowEdgeError("--peer-images goes with --peer FILE, which NNCF quantises on them.")
    if peer_python is not None and peer_images is None:
        raise FlowEdgeError("--peer-python goes with --peer-images DIR.")
    for bundle in bundles or ():
        _check_bundle(bundle)
    for file in (*(peers or ()), against, backbone_weights, peer_python):
        check_file(file)
    check_images(peer_images)
    check_separate_targets(html, markdown)
    for target, mark in ((html, PAGE_MARK), (markdown, _MARKDOWN_MARK)):
        if target is not None:
            check_file_target(target, force=force, mark=mark)
    from flowedge.runtime.bench.measure import run_bench
    from flowedge.runtime.bench.plan import BenchOptions
    from flowedge.runtime.bench.table import markdown_of
    from flowedge.runtime.bench.timing_page import page_of
    from flowedge.runtime.bench.timing_report import json_from_report
    from flowedge.runtime.frames.finding import find_images

    options = BenchOptions(
        engines=_words("--engines", engines),
        precisions=_words("--precisions", precisions),
        batches=_batches(batch),
        frame_size=None if frame_size is None else size_from("--frame-size", frame_size),
        peers=tuple(peers or ()),
        peer_images=() if peer_images is None else tuple(find_images(peer_images).images),
        peer_python=peer_python,
        checkpoint=against,
        backbone_weights=backbone_weights,
        threads=threads,
        seconds=seconds,
        command=printable(shlex.join(["flowedge", *sys.argv[1:]])),
    )
    with progress_bar() as reports:
        report = run_bench(tuple(bundles or ()), options, reports=reports)
    if json:
        print_json_bytes(json_from_report(report))
    else:
        print_report(report)
    if html is not None:
        _write(html, page_of(report).encode())
    if markdown is not None:
        _write(markdown, markdown_of(report).encode())
    if report.wrong or all(row.first_timing is None for row in report.rows):
        raise typer.Exit(1)


def _check_bundle(bundle: Path) -> None:
    """Refuse a path that is no bundle, and name the option where a file has an end of another one's."""
    if bundle.suffix == ".onnx":
        raise FlowEdgeError(f"{bundle} is not a bundle. To time an ONNX file of another project, add --peer.")
    if bundle.suffix == ".json" and not bundle.is_dir():
        raise FlowEdgeError(f"{bundle} is not a bundle. To write the numbers to a file: --json > {bundle}")
    check_bundle(bundle)


def print_report(report: Report) -> None:
    """Print the tables of a report, and its remarks."""
    from flowedge.runtime.bench.table import (
        COLUMNS,
        TERMINAL_COLUMNS,
        cells_of,
        environment_line,
        further_tables,
        remarks_of,
    )

    shown = [COLUMNS.index(column) for column in TERMINAL_COLUMNS]
    cells = [cells_of(row) for row in report.rows]
    styles = ["bold red" if row.is_wrong else "dim" if row.problem else None for row in report.rows]
    _print_whole(_table(TERMINAL_COLUMNS, [[row[n] for n in shown] for row in cells], styles))
    for one in further_tables(report):
        RESULTS.print()
        _print_whole(_table(one.columns, one.rows, [None] * len(one.rows), one.title))
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
    """Make a table whose first column alone is folded where the terminal is narrow."""
    made = table(*columns, title=title)
    for number, column in enumerate(made.columns[1:], start=1):
        words = str(column.header).split() + [row[number] for row in rows]
        column.min_width = max(len(word) for word in words) + 1
    for row, style in zip(rows, styles, strict=True):
        made.add_row(*row, style=style)
    return made


def _print_whole(made: Table) -> None:
    """Print a table without cutting any number, with lines longer than a terminal that is too narrow for it."""
    from rich.measure import Measurement

    size = Measurement.get(RESULTS, RESULTS.options.update(width=WIDEST, max_width=WIDEST), made)
    if RESULTS.width >= size.maximum:
        RESULTS.print(made)
        return
    for column in made.columns[1:]:
        column.width = column.min_width  # otherwise rich makes all columns narrower
    EscapingConsole(width=max(RESULTS.width, size.minimum)).print(made)


def _words(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(","))
    if not all(words) or len(set(words)) < len(words):
        raise FlowEdgeError(f"{option} takes different names with commas between them, got {text!r}.")
    return words


def _batches(text: str) -> tuple[int, ...]:
    words = _words("--batch", text) or ()
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise FlowEdgeError(f"--batch takes whole numbers from 1 with commas between them, got {text!r}.")
    return tuple(int(word) for word in words)


def _write(file: Path, content: bytes) -> None:
    try:
        write_whole_file(file, content)
    except OSError as error:
        raise FlowEdgeError(f"cannot write {file}: {error.strerror}. Name another file.") from error
    MESSAGES.print(f"wrote {file}", soft_wrap=True)
