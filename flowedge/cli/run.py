"""``flowedge run`` inspects images."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowedge.cli.build import build_first
from flowedge.cli.output import (
    MESSAGES,
    PROBLEMS,
    RESULTS,
    Build,
    EngineName,
    Json,
    PrecisionOption,
    Threads,
    number,
    print_json,
    table,
)
from flowedge.cli.signals import EndedBySignal
from flowedge.errors import FlowEdgeError, ImageError
from flowedge.text import printable

if TYPE_CHECKING:
    from flowedge.runtime.detector import Detector
    from flowedge.runtime.protocols import Sink
    from flowedge.runtime.record import Inspection

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
    json: Json = False,
) -> None:
    """Inspect images and print a verdict for each. With --json each image gives one line of JSON.

    The exit status is 1 when an image was not inspected or a picture could not be written, and 2 when the only image
    cannot be read.
    """
    import flowedge
    from flowedge.runtime.frames.finding import find_images
    from flowedge.runtime.inspection import inspect_images

    if style != "overlay" and out is None:
        raise FlowEdgeError(f"--style {style} draws no picture without a folder. Add --out FOLDER.")
    images, others = find_images(source)
    if others:
        MESSAGES.print(f"left out, since these files are no images: {_names(others)}", soft_wrap=True)
    inspected: list[Inspection] = []
    if build:
        build_first(bundle, engine, precision)
    with (
        flowedge.load(
            bundle,
            engine=engine,
            precision=precision,
            threads=threads,
            source_scale=source_scale,
            build=build,
        ) as detector,
        contextlib.ExitStack() as stack,
    ):
        # Each file that an option names is a sink. All of them are closed also where a signal ends the command.
        sinks: list[Sink] = []
        for sink in sinks:
            stack.callback(sink.close)
        try:
            for inspection in inspect_images(detector, images, out=out, style=style, sinks=sinks):
                if json:
                    print_json(inspection)
                # An only image that cannot be read is an error of the command, not one missing result of many.
                if inspection.latency_ms is None and len(images) == 1:
                    raise ImageError(inspection.problem)
                inspected.append(inspection)
                if inspection.problem:
                    seen = "not inspected" if inspection.verdict == "not_inspected" else "inspected"
                    PROBLEMS.print(f"{seen}: {inspection.problem}", soft_wrap=True)
        except EndedBySignal:
            if not json:
                _print_table(inspected, detector)
            PROBLEMS.print(f"{len(inspected)} of {len(images)} images were inspected.")
            raise
    if not json:
        _print_table(inspected, detector)
    verdicts = {inspection.verdict for inspection in inspected}
    if "unknown" in verdicts:
        MESSAGES.print("No threshold is set: run flowedge calibrate to get verdicts.")
    raise typer.Exit(1 if any(inspection.problem for inspection in inspected) else 0)


def _print_table(inspected: Sequence[Inspection], detector: Detector) -> None:
    """Print a row for each image, the number of each verdict, and the engine that computed them."""
    by_nfa = detector.thresholds.nfa is not None
    rows = table("image", ">score", *([">log NFA"] if by_nfa else []), "verdict", ">ms", title=None)
    for inspection in inspected:
        rows.add_row(
            inspection.image,
            number(inspection.score),
            *([number(inspection.log_nfa, 1)] if by_nfa else []),
            inspection.verdict,
            number(inspection.latency_ms, 1),
        )
    RESULTS.print(rows)
    verdicts = Counter(inspection.verdict for inspection in inspected)
    RESULTS.print(", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())))
    RESULTS.print(f"precision {detector.precision}", soft_wrap=True)
    RESULTS.print(f"engine {detector.engine.name}: {detector.engine.reason}", soft_wrap=True)


def _names(paths: Sequence[Path]) -> str:
    """Name a few files and count the rest."""
    named = ", ".join(printable(path.name) for path in sorted(paths)[:_NAMED])
    return f"{named} and {len(paths) - _NAMED} more" if len(paths) > _NAMED else named
