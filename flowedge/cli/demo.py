"""``flowedge demo`` trains, exports, calibrates and runs a detector on bundled photographs, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowedge.cli.output import RESULTS, Force, Json, print_json
from flowedge.cli.progress import progress_bar
from flowedge.packages import explain_missing
from flowedge.targets import check_demo_target

NAME = "demo"


def command(
    out: Annotated[
        Path, typer.Option("--out", help="The folder for all results. It is made where it does not exist.")
    ] = Path("demo-out"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Train a small CFLOW on real photographs, export, verify, calibrate and run it, and write a report."""
    check_demo_target(out, force=force)
    with explain_missing("demo"):
        from flowedge.export.demo.end_to_end import run_demo

        with progress_bar() as reports:
            result = run_demo(out, force=force, reports=reports)
    if json:
        print_json(result)
    else:
        RESULTS.print(f"report: {result.report}")
