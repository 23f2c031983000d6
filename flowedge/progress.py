"""The two functions that long work calls to report its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Functions that are told of the progress of work in several steps, such as those of a display.

    Attributes:
        begin: A function that gets the name of the step that begins.
        advance: A function that gets the number of units done of the present step, and the number of all its units.
    """

    begin: Callable[[str], None] = lambda what: None
    advance: Callable[[int, int], None] = lambda done, total: None
