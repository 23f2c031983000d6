"""``flowedge run`` inspects images."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowedge.cli.build import build_first
from flowedge.cli.output import (
    MESSAGES,
    Build,
    EngineName,
    Json,
    PrecisionOption,
    Threads,
    print_json,
)
from flowedge.cli.places import check_bundle, check_images
from flowedge.cli.progress import progress_bar
from flowedge.cli.rows import Rows, Totals
from flowedge.cli.signals import EndedBySignal
from flowedge.errors import FlowEdgeError, ImageError
from flowedge.text import printable

if TYPE_CHECKING:
    from flowedge.runtime.protocols import Sink

NAME = "run"

_NAMED = 5


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle.", show_default=False)],
    source: Annotated[
        str,
        typer.Argument(help="An image, a folder of images, or a quoted glob pattern.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="A folder for pictures of the findings and masks, named after the images."
        ),
    ] = None,
    style: Annotated[
        Literal["overlay", "side-by-side", "mask"],
        typer.Option(
            "--style",
            help="The pictures of --out: findings on the frame, the bare frame beside them, or the mask alone.",
        ),
    ] = "overlay",
    engine: EngineName = None,
    precision: PrecisionOption = "fp32",
    threads: Threads = None,
    build: Build = False,
    source_scale: Annotated[
        bool,
        typer.Option(
            "--source-scale",
            help="Report the normalised score, map and verdict of anomalib instead of FlowEdge's own.",
        ),
    ] = False,
    min_region: Annotated[
        int,
        typer.Option(
            "--min-region",
            min=1,
            help="The pixels below which a region is not listed. Verdict, score and mask do not depend on it.",
        ),
    ] = 1,
    json: Json = False,
) -> None:
    """Inspect images and print a verdict for each. With --json each image gives one line of JSON.

    The exit status is 1 when an image was not inspected or a picture could not be written, and 2 when the only image
    cannot be read.
    """
    check_bundle(bundle, source)
    check_images(source)
    import flowedge
    from flowedge.runtime.frames.finding import find_images
    from flowedge.runtime.inspection import inspect_images

    if style != "overlay" and out is None:
        raise FlowEdgeError(f"--style {style} draws no picture without a folder. Add --out FOLDER.")
    images, others = find_images(source)
    if others:
        MESSAGES.print(f"left out, since these files are no images: {_names(others)}", soft_wrap=True)
    if build:
        build_first(bundle, engine, precision)
    totals = Totals()
    with (
        flowedge.load(
            bundle,
            engine=engine,
            precision=precision,
            threads=threads,
            source_scale=source_scale,
            build=build,
            min_region_px=min_region,
        ) as detector,
        contextlib.ExitStack() as stack,
    ):
        # Each file that an option names is a sink. All of them are closed also where a signal ends the command.
        sinks: list[Sink] = []
        for sink in sinks:
            stack.callback(sink.close)
        try:
            # JSON on a terminal stays as whole as in a file: no bar is drawn below it.
            with progress_bar(is_shown=not (json and sys.stdout.isatty())) as display:
                rows = Rows(display, by_nfa=detector.thresholds.nfa is not None)
                display.step("inspecting", len(images))
                for inspection in inspect_images(detector, images, out=out, style=style, sinks=sinks):
                    if json:
                        print_json(inspection)
                    # An only image that cannot be read is an error of the command, not one missing result of many.
                    if inspection.latency_ms is None and len(images) == 1:
                        raise ImageError(inspection.problem)
                    # Counted first: a reader who ends the command after a row finds the row in the totals.
                    totals.add(inspection)
                    display.advance()
                    if not json:
                        rows.add(inspection)
                    if inspection.problem:
                        seen = "not inspected" if inspection.verdict == "not_inspected" else "inspected"
                        display.print_problem(f"{seen}: {inspection.problem}")
        except EndedBySignal:
            if not json:
                totals.print(detector)
            raise
        if not json:
            totals.print(detector)
    if totals.verdicts["unknown"]:
        MESSAGES.print("No threshold is set: run flowedge calibrate to get verdicts.")
    raise typer.Exit(1 if totals.problems else 0)


def _names(paths: Sequence[Path]) -> str:
    """Name a few files and count the rest."""
    named = ", ".join(printable(path.name) for path in sorted(paths)[:_NAMED])
    return f"{named} and {len(paths) - _NAMED} more" if len(paths) > _NAMED else named
