"""Show on stderr that a command is still at work: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Final

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from flowedge.cli.output import MESSAGES, PROBLEMS, RESULTS
from flowedge.cli.signals import EndedBySignal, raise_if_ended
from flowedge.progress import Step
from flowedge.text import printable

SECONDS_BETWEEN_LINES: Final = 5.0
"""The time from one plain line to the next. A command that is done earlier prints none."""

_ASCII_SPINNER: Final = "line"  # every terminal has its characters


class Display:
    """Reports that nobody sees but for notes. The subclasses show the present step.

    Each report is also the moment to end where a signal came inside a library that caught it.
    """

    def __init__(self) -> None:
        self._step: Step | None = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        """Take away what is shown."""

    def step(self, name: str, total: int | None = None) -> None:
        raise_if_ended()
        self._step = Step(printable(name), total)
        self._show(self._step, at_once=True)

    def advance(self, count: int = 1) -> None:
        raise_if_ended()
        if self._step is not None:
            self._step.done += count
            self._show(self._step)

    def note(self, text: str) -> None:
        raise_if_ended()
        MESSAGES.print(text, soft_wrap=True)

    def print_result(self, line: Text) -> None:
        """Print a line of the result on stdout while the work goes on. The text must be printable."""
        if sys.stdout.isatty():
            RESULTS.print(line, soft_wrap=True)
            return
        # A console that a signal interrupts in the middle of a line prints the line once more with the next one.
        sys.stdout.write(f"{line.plain}\n")
        sys.stdout.flush()

    def print_problem(self, line: str) -> None:
        """Print a line on stderr that nothing leaves out."""
        PROBLEMS.print(line, soft_wrap=True)

    def reached(self) -> str:
        """Return a sentence on how far a counted step came, or an empty string where nothing was counted yet."""
        step = self._step
        return f"{step.name}: {step.done} of {step.total} done." if step and step.done and step.total else ""

    def _show(self, step: Step, *, at_once: bool = False) -> None:
        """Show the step as it is now, or with the next of a few updates each second."""


class _Bar(Display):
    """One bar at the bottom of a terminal. All other lines are printed above the bar."""

    def __init__(self) -> None:
        super().__init__()
        self._progress = Progress(
            SpinnerColumn(_ASCII_SPINNER),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[counted]}", markup=False),
            TimeElapsedColumn(),
            console=MESSAGES,
            transient=True,
            redirect_stdout=False,  # standard output may be a file, whatever standard error is
        )
        self._task = self._progress.add_task("starting", total=None, counted="")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def print_result(self, line: Text) -> None:
        if not sys.stdout.isatty():
            super().print_result(line)
            return
        # The console of the bar alone knows how to print above the bar. Where both streams are terminals, the line
        # appears in the same place whichever of them carries the line.
        MESSAGES.print(line, soft_wrap=True)

    def print_problem(self, line: str) -> None:
        MESSAGES.print(line, soft_wrap=True)

    def _show(self, step: Step, *, at_once: bool = False) -> None:
        self._progress.update(
            self._task,
            description=step.name,
            completed=step.done,
            total=step.total,
            counted=step.counted,
            refresh=at_once,
        )


class _Lines(Display):
    """A plain line every few seconds, for a log or a pipe."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = threading.Event()
        # A thread of its own prints also while one call works for minutes.
        self._thread = threading.Thread(target=self._print_lines, name="flowedge-progress", daemon=True)

    def __enter__(self) -> Display:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _print_lines(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LINES):
            if self._step is not None:
                MESSAGES.print(str(self._step), soft_wrap=True)


@contextlib.contextmanager
def progress_bar(*, is_shown: bool = True) -> Iterator[Display]:
    """Show the progress of a command on stderr.

    A terminal has a bar, which goes away when the work is done. Elsewhere a plain line is printed every few seconds.
    Where a signal ends the work, one line says how far the present step came.

    Args:
        is_shown: False shows nothing but notes, as the option for quiet commands does.
    """
    if MESSAGES.quiet or not is_shown:
        display = Display()
    elif MESSAGES.file.isatty() and MESSAGES.is_terminal and not MESSAGES.is_dumb_terminal:
        display = _Bar()
    else:
        display = _Lines()
    with display:
        try:
            yield display
        except EndedBySignal:
            if display.reached():
                PROBLEMS.print(display.reached())
            raise
