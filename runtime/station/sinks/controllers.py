"""Decide what a controller is shown of a record, and wait for its acknowledgement."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from flowedge.runtime.station.record import Record
from flowedge.runtime.station.sinks import StationLink

_MS_PER_NS: Final = 1e-6


class Shown:
    """The record that a controller sees at the moment.

    Attributes:
        record: The record.
        sequence: The record's number as a controller of 16 bits sees it, 1 to 65535 and then 1 again.
    """

    def __init__(self, record: Record, link: StationLink, stale_after_s: float) -> None:
        self.record, self._link, self._stale_after_s = record, link, stale_after_s
        self.sequence = (record.number - 1) % 65535 + 1

    @property
    def age_ms(self) -> float:
        """The time since the frame was taken, in ms. The time is infinite for a frame of an earlier run."""
        # The clock of an earlier run may have begun anew with the machine.
        if self.record.run != self._link.run:
            return float("inf")
        return max((time.monotonic_ns() - self.record.monotonic_ns) * _MS_PER_NS, 0.0)

    @property
    def is_stale(self) -> bool:
        """True where the frame is too old for its verdict to be used."""
        return self.age_ms > 1000 * self._stale_after_s

    @property
    def is_ok(self) -> bool:
        """True where the part may pass: its signal is ``ok``, it is fresh, and no stage of the station hangs."""
        return self.record.signal == "ok" and not self.is_stale and self._link.alive()


class Acknowledgement:
    """The number that a controller has acknowledged last. 0 stands for none."""

    def __init__(self) -> None:
        self._changed, self._number = threading.Condition(), 0

    def set(self, number: int) -> None:
        """Note a number that the controller has acknowledged, or 0 before the next record is shown."""
        with self._changed:
            self._number = number
            self._changed.notify_all()

    def has(self, number: int) -> bool:
        """Return True where this number was acknowledged last."""
        return self._number == number

    def wait(self, number: int, timeout_s: float, every_s: float, beat: Callable[[], None]) -> bool:
        """Wait for the acknowledgement of a number, and return False where it did not come in time.

        Args:
            number: The number.
            timeout_s: The longest time to wait, in seconds.
            every_s: The time in seconds between two calls of ``beat``.
            beat: A function that shows a sign of life.
        """
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            with self._changed:
                if self._changed.wait_for(lambda: self._number == number, min(left, every_s)):
                    return True
            beat()
        return False
