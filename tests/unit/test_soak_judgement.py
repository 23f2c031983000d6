"""The judgement of a soak finds each fault that it is there for."""

from __future__ import annotations

import pytest

from soak.judgement import check_frames, check_journal, check_memory, check_receiver, level_between
from soak.receiver import Received, received

JOURNAL = [received(f'{{"id": "j-{number}", "number": {number}}}'.encode()) for number in range(1, 8)]


def broken(arrived: list[Received]) -> list[str]:
    return [check.name for check in check_receiver("mqtt", JOURNAL, arrived) if not check.kept]


def test_a_whole_delivery_with_repeats_is_good() -> None:
    assert broken(JOURNAL) == []
    assert broken(JOURNAL[:5] + JOURNAL[3:]) == []


@pytest.mark.parametrize(
    ("arrived", "fault"),
    [
        (JOURNAL[:3] + JOURNAL[4:], "mqtt lost no verdict"),
        ([*JOURNAL, Received("j-9", 9, b"")], "mqtt got no verdict that the journal has not"),
        (JOURNAL[:2] + JOURNAL[3:5] + JOURNAL[2:3] + JOURNAL[5:], "mqtt got the verdicts in order"),
        ([*JOURNAL, JOURNAL[6]._replace(digest=b"other")], "mqtt got repeats with their id alone"),
    ],
)
def test_a_fault_of_a_delivery_is_found(arrived: list[Received], fault: str) -> None:
    assert broken(arrived) == [fault]


def test_a_gap_and_a_repeated_id_of_the_journal_are_found() -> None:
    assert all(check.kept for check in check_journal(JOURNAL))
    assert not check_journal(JOURNAL[:2] + JOURNAL[3:])[0].kept
    assert not check_journal([*JOURNAL, Received("j-1", 8, b"")])[1].kept
    assert not check_journal([])[0].kept


@pytest.mark.parametrize(
    ("judged", "kept"), [([1, 2, 3], True), ([1, 3], False), ([1, 2, 2, 3], False), ([2, 1, 3], False)]
)
def test_each_frame_of_a_file_is_wanted_once(judged: list[int], kept: bool) -> None:
    assert check_frames(3, [f"/x/video#1.mp4#{number}" for number in judged]).kept is kept


def test_the_level_of_a_quiet_time_is_the_median_of_its_samples() -> None:
    samples = [(0.0, 1_000_000), (1.0, 300_000_000), (2.0, 310_000_000), (3.0, 900_000_000), (4.0, 1)]
    assert level_between(samples, 1, 3) == 310
    assert level_between(samples, 5, 9) is None


@pytest.mark.parametrize(("after", "kept"), [(360.0, True), (375.0, True), (377.0, False), (300.0, True)])
def test_memory_that_grows_from_one_round_of_faults_to_the_next_is_found(after: float, kept: bool) -> None:
    check = check_memory([360.0, after], 240)
    assert check.name == "the memory is flat"
    assert check.kept is kept


@pytest.mark.parametrize(("after", "kept"), [(460.0, True), (480.0, False)])
def test_a_short_run_does_not_call_its_memory_flat(after: float, kept: bool) -> None:
    check = check_memory([360.0, after], 24)
    assert check.name == "the memory of a short run grows by less than 30 %"
    assert check.kept is kept


def test_a_process_that_was_not_measured_after_both_rounds_shows_no_memory() -> None:
    assert not check_memory([None, 300.0], 240).kept
    assert not check_memory([300.0], 240).kept
