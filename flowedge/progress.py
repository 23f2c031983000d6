"""Report the progress of long work: its steps, how much of a step is done, and sentences worth keeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol


class Reports(Protocol):
    """The methods that long work calls to report its progress, such as those of a display.

    Each method may raise an exception to end the work. Work has one step at a time.
    """

    def step(self, name: str, total: int | None = None) -> None:
        """Begin a step.

        Args:
            name: A few words that name the step.
            total: The number of units of the step, or None where the number is not known.
        """

    def advance(self, count: int = 1) -> None:
        """Report that ``count`` more units of the present step are done."""

    def note(self, text: str) -> None:
        """Report a sentence that the user should still see after the work, such as why an engine is built."""


class _Silent:
    """Reports that nobody sees."""

    def step(self, name: str, total: int | None = None) -> None:
        pass

    def advance(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


SILENT: Final[Reports] = _Silent()


@dataclass(frozen=True, slots=True)
class Prefixed:
    """Reports whose steps begin with the name of the subject, such as a precision.

    Attributes:
        reports: The reports that everything is passed on to.
        prefix: The subject's name.
    """

    reports: Reports
    prefix: str

    def step(self, name: str, total: int | None = None) -> None:
        """Begin a step of the subject."""
        self.reports.step(f"{self.prefix}: {name}", total)

    def advance(self, count: int = 1) -> None:
        """Pass the number of units on."""
        self.reports.advance(count)

    def note(self, text: str) -> None:
        """Pass the sentence on."""
        self.reports.note(text)


class Step:
    """One step of long work, with the time that it takes.

    Attributes:
        name: A few words that name the step.
        total: The number of units, or None where nobody knows the number.
        done: The number of units that are done.
    """

    def __init__(
        self, name: str, total: int | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin the step.

        Args:
            name: A few words that name the step.
            total: The number of units, or None where nobody knows the number.
            clock: A function that gives the time in seconds.
        """
        self.name, self.total, self.done = name, total, 0
        self._clock = clock
        self._begun = clock()

    @property
    def seconds(self) -> float:
        """The time since the step began, in seconds."""
        return self._clock() - self._begun

    @property
    def rate(self) -> float | None:
        """The units per second since the step began. The rate is None before the first unit is done."""
        return self.done / self.seconds if self.done and self.seconds > 0 else None

    def __str__(self) -> str:
        """Describe the step as ``inspecting: 120/240, 11.8/s, 10 s left``, or by its time where nothing is counted."""
        return f"{self.name}: {self.counted or duration(self.seconds)}"

    @property
    def counted(self) -> str:
        """The count, the rate and the remaining time as text, as far as they are known."""
        if self.total is None and not self.done:
            return ""
        parts = [f"{self.done}" if self.total is None else f"{self.done}/{self.total}"]
        rate = self.rate
        if rate is not None:
            # A unit of many seconds is easier to read as a time than as a small rate.
            parts.append(f"{rate:.1f}/s" if rate >= 0.1 else f"{duration(1 / rate)} each")
            if self.total is not None:
                parts.append(f"{duration(max(0, self.total - self.done) / rate)} left")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a time as text of at most two units, such as ``8 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
