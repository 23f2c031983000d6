"""``flowedge build`` compiles an engine for this machine ahead of the first image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowedge.bundle import Bundle, open_bundle
from flowedge.cli import completion
from flowedge.cli.output import (
    RESULTS,
    Json,
    PrecisionOption,
    number,
    print_json,
    table,
)
from flowedge.cli.places import check_bundle
from flowedge.cli.progress import progress_bar
from flowedge.errors import FlowEdgeError
from flowedge.progress import Prefixed

if TYPE_CHECKING:
    from flowedge.runtime.opening.choice import Choice
    from flowedge.runtime.opening.engine_contract import BuildOptions, Built

NAME = "build"


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle. It is not changed.", show_default=False)],
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            autocompletion=completion.compiled_engines,
            help="The engine to compile: tensorrt, tensorrt-rtx or onnxruntime-tensorrt.",
            show_default=False,
        ),
    ],
    precision: PrecisionOption = "fp32",
    batch: Annotated[
        str,
        typer.Option(
            "--batch", help="The smallest, the usual and the largest number of images in one inference."
        ),
    ] = "1,1,8",
    dla: Annotated[
        bool,
        typer.Option(
            "--dla", help="Run the backbone on the DLA accelerator as far as it can (tensorrt on a Jetson)."
        ),
    ] = False,
    capability: Annotated[
        list[str] | None,
        typer.Option(
            "--capability",
            help="A compute capability to build for, such as 8.9 (tensorrt-rtx). May be repeated.",
            show_default="all from Ampere on",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compile one graph of a bundle for this machine and keep it in the device cache."""
    check_bundle(bundle)
    from flowedge.runtime.opening.auto import fastest_precision, precisions_on
    from flowedge.runtime.opening.engine import AUTO
    from flowedge.runtime.opening.engine_contract import BuildOptions

    options = BuildOptions(batches=_batches(batch), dla=dla, capabilities=tuple(capability or ()))
    opened = open_bundle(bundle)
    if precision != AUTO:
        built = build_with_bar(opened, engine, precision, options)
        if json:
            print_json(built)
        else:
            _print(built)
        return
    every = [build_with_bar(opened, engine, name, options) for name in precisions_on(opened, engine)]
    if not json:
        for built in every:  # printed before the measuring, which needs the device and may fail
            _print(built)
    choice = fastest_precision(opened, engine)
    if json:
        print_json({"built": every, "choice": choice})
    else:
        print_choice(choice)


def _print(built: Built) -> None:
    for note in built.notes:
        RESULTS.print(note)
    size = f"{built.file.size / 1e6:.1f} MB"
    what = f"built in {built.seconds:.1f} s" if built.was_built else "was in the cache already"
    RESULTS.print(f"{built.file.path}: {size}, {what}", soft_wrap=True)


def print_choice(choice: Choice) -> None:
    """Print the combinations that were measured, and mark the one that ``auto`` takes."""
    rows = table("engine", "precision", ">ms per image", "")
    for one in choice.measured:
        is_chosen = (one.engine, one.precision) == (choice.engine, choice.precision)
        rows.add_row(one.engine, one.precision, number(one.median_ms), "auto" if is_chosen else one.problem)
    for one in choice.other_threads:
        mark = "auto" if one.threads == choice.threads else ""
        rows.add_row(
            one.engine, f"{one.precision}, {one.threads or 'its own'} threads", number(one.median_ms), mark
        )
    RESULTS.print(rows)


def build_with_bar(bundle: Bundle, engine: str, precision: str, options: BuildOptions) -> Built:
    """Build an engine with `build_engine` and show the builder's progress on stderr."""
    from flowedge.runtime.opening.building import build_engine

    with progress_bar() as reports:
        told = Prefixed(reports, f"{engine} {precision}")
        return build_engine(bundle, engine, precision, options=options, reports=told)


def build_first(bundle: Path, engine: str | None, precision: str) -> None:
    """Build the graphs that ``--build`` asks for before a bundle is loaded. Engines that need no build are skipped."""
    from flowedge.runtime.opening.auto import precisions_on
    from flowedge.runtime.opening.engine import AUTO, engine_spec
    from flowedge.runtime.opening.engine_contract import BuildOptions

    if engine is not None and engine_spec(engine).compiled:
        opened = open_bundle(bundle)
        for name in precisions_on(opened, engine) if precision == AUTO else (precision,):
            build_with_bar(opened, engine, name, BuildOptions())


def _batches(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise FlowEdgeError(f"--batch takes three numbers such as 1,1,8, got {text!r}.")
    smallest, usual, largest = (int(part) for part in parts)
    if not 1 <= smallest <= usual <= largest:
        raise FlowEdgeError(
            f"--batch takes three numbers from 1 that do not fall, such as 1,1,8, got {text!r}."
        )
    return smallest, usual, largest
