"""Define the option that tells which verdicts end a command with a status that is not 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import typer

from flowedge.errors import FlowEdgeError

FOUND_ANOMALOUS: Final = 4
"""The exit status where an image is anomalous and ``--fail-on anomalous`` was given."""

FailOn: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="VERDICT",
        help="Let anomalous images end the command with status 4 (anomalous), or let images that were not "
        "inspected not end it with status 1 (none). May be repeated.",
        show_default="not_inspected",
    ),
]


class Failing(NamedTuple):
    """Which verdicts end the command with a status that is not 0."""

    anomalous: bool = False
    not_inspected: bool = True

    def status(self, verdicts: Mapping[Any, int], *, file_problems: int = 0) -> int:
        """Return the exit status. An anomalous image is certain, so it counts more than one that was not inspected.

        Args:
            verdicts: The number of images by verdict.
            file_problems: The number of files that could not be written.
        """
        if self.anomalous and verdicts.get("anomalous"):
            return FOUND_ANOMALOUS
        if file_problems or (self.not_inspected and verdicts.get("not_inspected")):
            return 1
        return 0


def failing_from(words: Sequence[str] | None) -> Failing:
    """Read the values of ``--fail-on``, each of which may hold several with commas between them.

    Raises:
        FlowEdgeError: A value is unknown, or ``none`` is not alone.
    """
    asked = [one.strip() for word in words or () for one in word.split(",")]
    unknown = [one for one in asked if one not in ("anomalous", "not_inspected", "none")]
    if unknown:
        raise FlowEdgeError(f"--fail-on takes anomalous, not_inspected or none, got {unknown[0]!r}.")
    if "none" in asked and len(set(asked)) > 1:
        raise FlowEdgeError("--fail-on none excludes the other values. Give it alone.")
    # An image that was not inspected may be anomalous, so a script that asks for one wants to know of the other.
    return Failing(anomalous="anomalous" in asked, not_inspected="none" not in asked)
