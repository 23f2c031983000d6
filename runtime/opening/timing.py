"""Time repeated runs of the same work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LEAST_RUNS: Final = 3
"""The runs of even the shortest window, unless they take long."""

_LONG_S: Final = 5.0  # no run begins later in a short window


def window_of(work: Callable[[], object], seconds: float) -> tuple[float, ...]:
    """Time runs one after the other for a while, at least `LEAST_RUNS` unless those take long.

    Args:
        work: The work of one run.
        seconds: The shortest time that the whole window takes.

    Returns:
        The milliseconds of each run, in order.
    """
    taken: list[float] = []
    began = time.perf_counter()
    while True:
        start = time.perf_counter()
        work()
        done = time.perf_counter()
        taken.append(1000 * (done - start))
        if done - began >= (seconds if len(taken) >= LEAST_RUNS else max(seconds, _LONG_S)):
            return tuple(taken)
