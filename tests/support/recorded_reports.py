"""Record the progress that work reports."""

from __future__ import annotations


class RecordedReports:
    """Reports that keep all that they were told.

    Attributes:
        steps: The names of the steps.
        notes: The sentences.
        counts: After each advance, how many units of the step are done, and of how many.
    """

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []
        self.counts: list[tuple[int, int]] = []
        self._done, self._total = 0, 0

    def step(self, name: str, total: int | None = None) -> None:
        self.steps.append(name)
        self._done, self._total = 0, total or 0

    def advance(self, count: int = 1) -> None:
        self._done += count
        self.counts.append((self._done, self._total))

    def note(self, text: str) -> None:
        self.notes.append(text)
