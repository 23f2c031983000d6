"""``flowedge verify``: does the bundle give here the answers it gave where it was exported?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flowedge.bundle import open_bundle
from flowedge.cli.output import RESULTS, EngineName, Json, PrecisionOption, print_json, steps, table
from flowedge.cli.packages import explain_missing
from flowedge.errors import FlowEdgeError
from flowedge.runtime.images import find_images
from flowedge.runtime.verify import Check, verify_bundle

NAME = "verify"


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option("--against", help="The checkpoint: compare with the original network itself."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Images for --against; the self-test's frames otherwise.")
    ] = None,
    backbone_weights: Annotated[
        Path | None, typer.Option("--backbone-weights", help="As for export; with --against.")
    ] = None,
    engine: EngineName = None,
    precision: PrecisionOption = "fp32",
    json: Json = False,
) -> None:
    """Replay the bundle's self-test on this machine; exit status 1 when a check fails."""
    if data is not None and against is None:
        raise FlowEdgeError("--data goes with --against CKPT: the self-test has frames of its own.")
    if backbone_weights is not None and against is None:
        raise FlowEdgeError("--backbone-weights goes with --against CKPT: the self-test needs no checkpoint.")
    opened = open_bundle(bundle)
    with steps() as on_step:
        on_step("replaying the self-test")
        checks = verify_bundle(opened, engine=engine, precision=precision)
        if against is not None:
            on_step("comparing with the checkpoint")
            with explain_missing("export"):
                from flowedge.export.parity import compare_with_checkpoint
            images = None if data is None else find_images(data)
            checks += compare_with_checkpoint(
                opened,
                against,
                images=images,
                engine=engine,
                precision=precision,
                backbone_weights=backbone_weights,
            )
    passed = all(check.passed for check in checks)
    if json:
        print_json(
            {"bundle": str(bundle), "precision": precision, "passed": passed, "checks": as_rows(checks)}
        )
    else:
        print_checks(checks, f"{bundle}, {precision}")
    raise typer.Exit(0 if passed else 1)


def print_checks(checks: Sequence[Check], title: str) -> None:
    """A table of the comparisons."""
    rows = table("check", ">worst relative difference", ">limit", "", title=title)
    for check in checks:
        rows.add_row(
            check.name, f"{check.value:.1e}", f"{check.limit:.0e}", "ok" if check.passed else "FAILED"
        )
    RESULTS.print(rows)


def as_rows(checks: Sequence[Check]) -> list[dict[str, object]]:
    """The comparisons for JSON."""
    return [{"name": c.name, "value": c.value, "limit": c.limit, "passed": c.passed} for c in checks]
