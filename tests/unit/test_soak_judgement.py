"""The judgement of a soak finds each fault that it is there for."""

from __future__ import annotations

import numpy as np
import pytest

from soak.judgement import WARM_UP_S, check_frames, check_journal, check_memory, check_receiver, slope_of
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


def line(growth: float, seconds: int) -> list[tuple[float, int]]:
    """Make samples of memory that grows by a number of MB a minute, after a start that is not part of the line."""
    times = np.arange(seconds)
    sizes = (350 + growth * times / 60 + 5 * np.random.default_rng(0).normal(size=seconds)) * 1e6
    sizes[:30] /= 2
    return [(float(time), int(size)) for time, size in zip(times, sizes, strict=True)]


@pytest.mark.parametrize(("growth", "kept"), [(0.0, True), (2.0, True), (5.0, False), (9.8, False)])
def test_memory_that_grows_is_found(growth: float, kept: bool) -> None:
    slope = slope_of(line(growth, 400), WARM_UP_S)
    assert slope is not None
    assert slope.mb_per_minute == pytest.approx(growth, abs=0.5)
    check = check_memory(slope)
    assert check.name == "the memory is flat"
    assert check.kept is kept


@pytest.mark.parametrize(("growth", "kept"), [(79.0, True), (600.0, False)])
def test_a_short_run_does_not_call_its_memory_flat(growth: float, kept: bool) -> None:
    check = check_memory(slope_of(line(growth, 60), 30))
    assert check.name == "the memory of a short run grows by less than 30 %"
    assert check.kept is kept


def test_too_few_samples_show_no_memory() -> None:
    assert slope_of([(0.0, 1)] * 5, 0) is None
    assert not check_memory(None).kept
