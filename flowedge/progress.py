"""Report the progress of long work: its steps, how much of a step is done, and sentences worth keeping."""

from __future__ import annotations

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
