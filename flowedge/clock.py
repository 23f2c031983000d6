"""Read the clock for records. A wrong clock stops nothing, however wrong it is."""

from __future__ import annotations

import datetime
import time
from typing import Final

_LAST_NANOSECOND: Final = (1 << 63) - 1  # since 1970, in the year 2262; Python's own clocks raise beyond it


def utc_now() -> datetime.datetime:
    """Return the present moment in UTC, to the second, or the nearest that a date can have (years 1 to 9999)."""
    return utc_moment().replace(microsecond=0)


def utc_moment() -> datetime.datetime:
    """Return the present moment in UTC, to the microsecond, or the nearest that a date can have (years 1 to 9999)."""
    seconds = time.clock_gettime(time.CLOCK_REALTIME)
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    except (OverflowError, ValueError, OSError):
        nearest = datetime.datetime.max if seconds > 0 else datetime.datetime.min
        return nearest.replace(tzinfo=datetime.timezone.utc)


def local_minute(seconds: float) -> str:
    """Return a file's time as local date and minute, or a dash where no date can be that far away."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "-"


def bear_late_clock() -> None:
    """Let ``time.time`` answer its last moment where the clock is beyond it, for this whole process.

    Python raises OverflowError there, and the standard library's ``logging`` cannot even be imported.
    """
    try:
        time.time()
    except OverflowError:
        time.time_ns = lambda: _LAST_NANOSECOND
        time.time = lambda: _LAST_NANOSECOND / 1e9
