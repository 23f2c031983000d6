"""Progress reaches the bar on stderr, and nothing of it stays but notes."""

from __future__ import annotations

import io

import pytest

from flowedge.cli import progress
from flowedge.cli.output import EscapingConsole
from flowedge.progress import SILENT, Prefixed
from support.recorded_reports import RecordedReports


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal that the bar is drawn on."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    console, drawn = EscapingConsole(width=120), io.StringIO()
    console.file = drawn
    monkeypatch.setattr(progress, "MESSAGES", console)
    return drawn


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


def test_the_bar_shows_the_step_and_its_count(screen: io.StringIO) -> None:
    with progress.progress_bar() as reports:
        reports.step("evaluating\x1b[2J", 20)
        reports.advance(7)
        reports._display.refresh()  # type: ignore[attr-defined]
    shown = screen.getvalue()
    assert "evaluating\\x1b[2J" in shown
    assert "7/20" in shown


def test_a_step_begins_its_own_count(screen: io.StringIO) -> None:
    with progress.progress_bar() as reports:
        reports.step("reading", 20)
        reports.advance(20)
        reports.step("writing")
        reports._display.refresh()  # type: ignore[attr-defined]
    assert "/" not in screen.getvalue().rpartition("writing")[2]


def test_outside_a_terminal_only_notes_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar() as reports:
        reports.step("building", 2)
        reports.advance()
        reports.note("no engine is cached")
    assert capsys.readouterr().err == "no engine is cached\n"


def test_silent_reports_take_everything() -> None:
    SILENT.step("working", 2)
    SILENT.advance()
    SILENT.note("a note")
