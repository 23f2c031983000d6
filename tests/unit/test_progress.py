"""Progress reaches a bar on a terminal and a plain line elsewhere, and a bar leaves nothing but notes."""

from __future__ import annotations

import io
import re
import sys

import pytest
from rich.text import Text

from flowedge.cli import progress
from flowedge.cli.output import MESSAGES, EscapingConsole
from flowedge.cli.verbosity import QUIET
from flowedge.progress import SILENT, Prefixed, Step, duration
from support.recorded_reports import RecordedReports

ERASE_LINE = "\x1b[2K"


class Screen(io.StringIO):
    """Keeps what is drawn on it, as a terminal does."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Draw the bar on a terminal that keeps what is drawn."""
    monkeypatch.setenv("TERM", "xterm")
    console, drawn = EscapingConsole(width=120), Screen()
    console.file, console.is_interactive = drawn, True
    monkeypatch.setattr(progress, "MESSAGES", console)
    return drawn


class Clock:
    """Stands still until it is set, in place of a clock."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_prefix_stands_before_steps_and_not_before_notes() -> None:
    reports = RecordedReports()
    told = Prefixed(reports, "int8")
    told.step("comparing with fp32", 3)
    told.advance()
    told.advance(2)
    told.note("a note")
    assert reports.steps == ["int8: comparing with fp32"]
    assert reports.counts == [(1, 3), (3, 3)]
    assert reports.notes == ["a note"]


def test_the_bar_shows_the_step_and_its_count(screen: Screen) -> None:
    with progress.progress_bar() as reports:
        reports.step("evaluating\x1b[2J", 20)
        reports.advance(7)
        reports._progress.refresh()  # type: ignore[attr-defined]
    shown = screen.getvalue()
    assert "evaluating\\x1b[2J" in shown
    assert "7/20" in shown


def test_a_step_begins_its_own_count(screen: Screen) -> None:
    with progress.progress_bar() as reports:
        reports.step("reading", 20)
        reports.advance(20)
        reports.step("writing")
        reports._progress.refresh()  # type: ignore[attr-defined]
    assert "/" not in screen.getvalue().rpartition("writing")[2]


def test_a_line_of_the_result_is_printed_above_the_bar(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Screen())
    with progress.progress_bar() as reports:
        reports.step("inspecting", 3)
        before = len(screen.getvalue())
        reports.print_result(Text("ok  0.5  a.png"))
    drawn = screen.getvalue()[before:]
    row = drawn.index("ok  0.5  a.png")
    assert ERASE_LINE in drawn[:row], "the bar goes away before the row"
    assert "inspecting" in drawn[row:], "the bar comes back below the row"


def test_a_result_in_a_file_is_not_mixed_with_the_bar(
    screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress_bar() as reports:
        reports.step("inspecting", 3)
        reports.print_result(Text("ok  0.5  a.png"))
    assert capsys.readouterr().out == "ok  0.5  a.png\n"
    assert "a.png" not in screen.getvalue()


def test_outside_a_terminal_a_plain_line_comes_also_while_one_call_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    shown = ""
    with progress.progress_bar() as reports:
        reports.step("inspecting", 240)
        reports.advance(120)
        while "\n" not in shown:  # the display has a thread of its own
            shown += capsys.readouterr().err
    assert re.match(r"inspecting: 120/240, [\d.]+/s, \d+ s left\n", shown)
    assert "\x1b" not in shown


def test_outside_a_terminal_a_short_command_prints_notes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar() as reports:
        reports.step("building", 2)
        reports.advance()
        reports.note("no engine is cached")
    assert capsys.readouterr().err == "no engine is cached\n"


def test_a_quiet_command_shows_no_progress(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flowedge.cli.verbosity._State.level", QUIET)
    monkeypatch.setattr(progress, "MESSAGES", MESSAGES)
    with progress.progress_bar() as reports:
        reports.step("inspecting", 2)
        reports.print_result(Text("ok"))
        reports.print_problem("a.png is damaged")
    assert screen.getvalue() == ""
    assert capsys.readouterr() == ("ok\n", "a.png is damaged\n")


@pytest.mark.parametrize(
    ("total", "done", "seconds", "text"),
    [
        (240, 120, 12.0, "inspecting: 120/240, 10.0/s, 12 s left"),
        (240, 0, 7.4, "inspecting: 0/240"),
        (None, 30, 60.0, "inspecting: 30, 0.5/s"),
        (None, 0, 95.0, "inspecting: 1 min 35 s"),
        (5, 2, 240.0, "inspecting: 2/5, 2 min 0 s each, 6 min 0 s left"),
        (3, 3, 1.5, "inspecting: 3/3, 2.0/s, 0 s left"),
    ],
)
def test_a_step_is_described_by_its_count_rate_and_remaining_time(
    total: int | None, done: int, seconds: float, text: str
) -> None:
    clock = Clock()
    step = Step("inspecting", total, clock=clock)
    step.done = done
    clock.now += seconds
    assert str(step) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.9, "1 h 0 min"), (93_784, "26 h 3 min")],
)
def test_a_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_silent_reports_take_everything() -> None:
    SILENT.step("working", 2)
    SILENT.advance()
    SILENT.note("a note")
