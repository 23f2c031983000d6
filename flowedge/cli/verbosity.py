"""Hold how much a command prints beside its results and its errors."""

from __future__ import annotations

from typing import Final

QUIET: Final = -1
"""No progress and no notes: results and errors alone (``-q``)."""

NORMAL: Final = 0
"""Progress, notes and warnings."""

INFO: Final = 1
"""Each step in the log: files read and written, engines tried, timings (``-v``)."""

DEBUG: Final = 2
"""Every detail in the log (``-vv``)."""


class _State:
    """Hold the level of this process's command."""

    level = NORMAL


def verbosity() -> int:
    """Return the level that the options ``-q`` and ``-v`` set: ``QUIET``, ``NORMAL``, ``INFO`` or ``DEBUG``."""
    return _State.level


def set_verbosity(level: int) -> None:
    """Set the level for the command of this process, to ``QUIET``, ``NORMAL``, ``INFO`` or ``DEBUG``."""
    _State.level = level


def is_quiet() -> bool:
    """Return True when neither progress nor notes are to be shown."""
    return _State.level <= QUIET
