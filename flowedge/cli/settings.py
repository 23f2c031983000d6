"""Read and print the values that a checkpoint does not hold, for the commands that read a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from flowedge.cli.output import RESULTS, listed, table
from flowedge.errors import FlowEdgeError
from flowedge.manifest import Assumed

TransformFrom: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--transform-from",
        metavar="FILE",
        help="A file of the same training that holds the transform of its images, such as anomalib's model.pt.",
        show_default=False,
    ),
]


def settings_from(assignments: list[str]) -> dict[str, str]:
    """Read ``name=value`` words into a mapping.

    Raises:
        FlowEdgeError: A word has no equals sign, or a name is given twice.
    """
    settings: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise FlowEdgeError(f"--set takes NAME=VALUE, got {assignment!r}.")
        if name in settings:
            raise FlowEdgeError(f"--set {name} is given twice.")
        settings[name] = value
    return settings


def print_assumed(assumed: Sequence[Assumed]) -> None:
    """Print a table of the values that the checkpoint does not hold, and nothing where it holds all of them."""
    if not assumed:
        return
    rows = table("assumed", "value", "by", "why", title="Values that the checkpoint does not hold")
    for one in assumed:
        rows.add_row(one.name, listed(one.value), "you" if one.given else "default", one.why)
    RESULTS.print(rows)
