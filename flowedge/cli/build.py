"""``flowedge build``: compile an engine for this machine, ahead of the first image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowedge.bundle import Bundle, open_bundle
from flowedge.cli.output import (
    RESULTS,
    Json,
    PrecisionOption,
    number,
    print_json,
    table,
)
from flowedge.cli.progress import progress_bar
from flowedge.errors import FlowEdgeError
from flowedge.progress import Prefixed

if TYPE_CHECKING:
    from flowedge.runtime.auto import Choice
    from flowedge.runtime.engine_contract import BuildOptions, Built

NAME = "build"


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle; it is not changed.", show_default=False)],
    engine: Annotated[
        str,
        typer.Option("--engine", help="tensorrt, tensorrt-rtx or onnxruntime-tensorrt.", show_default=False),
    ],
    precision: PrecisionOption = "fp32",
    batch: Annotated[
        str,
        typer.Option("--batch", help="The smallest, usual and largest number of images of a run."),
    ] = "1,1,8",
    dla: Annotated[
        bool,
        typer.Option("--dla", help="tensorrt on a Jetson: run the backbone on the accelerator where it can."),
    ] = False,
    capability: Annotated[
        list[str] | None,
        typer.Option(
            "--capability",
            help="tensorrt-rtx: a compute capability to build for, such as 8.9; may be repeated.",
            show_default="all from Ampere on",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compile one graph of a bundle for this machine and keep it in the engine cache."""
    from flowedge.runtime.auto import fastest_precision, precisions_on
    from flowedge.runtime.engine import AUTO
    from flowedge.runtime.engine_contract import BuildOptions

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
        for built in every:  # said before they are measured, which needs the device
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
    """What ``auto`` means here, and what it was measured against."""
    rows = table("engine", "precision", ">ms per image", "")
    for one in choice.measured:
        is_chosen = (one.engine, one.precision) == (choice.engine, choice.precision)
        rows.add_row(one.engine, one.precision, number(one.median_ms), "auto" if is_chosen else one.problem)
    RESULTS.print(rows)


def build_with_bar(bundle: Bundle, engine: str, precision: str, options: BuildOptions) -> Built:
    """As ``build_engine``, with the builder's own progress on stderr."""
    from flowedge.runtime.building import build_engine

    with progress_bar() as reports:
        told = Prefixed(reports, f"{engine} {precision}")
        return build_engine(bundle, engine, precision, options=options, reports=told)


def build_first(bundle: Path, engine: str | None, precision: str) -> None:
    """What ``--build`` does before a bundle is loaded: nothing where the named engine needs none."""
    from flowedge.runtime.auto import precisions_on
    from flowedge.runtime.engine import AUTO, engine_spec
    from flowedge.runtime.engine_contract import BuildOptions

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
        raise FlowEdgeError(f"--batch takes min <= opt <= max, from 1 on, got {text!r}.")
    return smallest, usual, largest
