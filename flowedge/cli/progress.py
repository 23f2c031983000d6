"""Show on stderr that a command is still at work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from flowedge.cli.output import MESSAGES, PROBLEMS
from flowedge.cli.signals import EndedBySignal, raise_if_ended
from flowedge.progress import Reports
from flowedge.text import printable

_ASCII_SPINNER: Final = "line"  # every terminal has its characters


class _Bar:
    """Reports that are shown as one bar with the name of the step.

    Each report is also the moment to end where a signal came inside a library that caught it.
    """

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._task = display.add_task("starting", total=None, counted="")
        self._name, self._done, self._total = "", 0, 0

    def step(self, name: str, total: int | None = None) -> None:
        raise_if_ended()
        self._name, self._done, self._total = name, 0, total or 0
        self._display.update(
            self._task, description=printable(name), completed=0, total=total, counted=self._counted()
        )

    def advance(self, count: int = 1) -> None:
        raise_if_ended()
        self._done += count
        self._display.update(self._task, completed=self._done, counted=self._counted())

    def note(self, text: str) -> None:
        raise_if_ended()
        MESSAGES.print(text, soft_wrap=True)

    def reached(self) -> str:
        """Return a sentence on how far a counted step came, or an empty string where nothing was counted yet."""
        return f"{self._name}: {self._done} of {self._total} done." if self._done and self._total else ""

    def _counted(self) -> str:
        return f"{self._done}/{self._total}" if self._total else ""


@contextlib.contextmanager
def progress_bar() -> Iterator[Reports]:
    """Show a bar on stderr. The bar goes away when the work is done, and nothing of it is written outside a terminal.

    Where a signal ends the work, one line says how far the present step came.
    """
    columns = (
        SpinnerColumn(_ASCII_SPINNER),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[counted]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=MESSAGES, transient=True, disable=MESSAGES.quiet or not MESSAGES.is_terminal
    ) as display:
        bar = _Bar(display)
        try:
            yield bar
        except EndedBySignal:
            if bar.reached():
                PROBLEMS.print(bar.reached())
            raise
