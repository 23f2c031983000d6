"""Limit how often something happens."""

from __future__ import annotations

import time


class Throttle:
    """Lets something happen at most once in a time, so that a fault does not fill the journal with events."""

    def __init__(self, seconds: float) -> None:
        """Take the shortest time in seconds that lies between two times."""
        self._seconds = seconds
        self._last = -float("inf")

    def __call__(self) -> bool:
        """Return True where the time has passed since this last returned True."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True
