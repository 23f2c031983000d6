"""The judgement of a soak finds each fault that it is there for."""

from __future__ import annotations

import numpy as np
import pytest

from soak.judgement import check_frames, check_journal, check_memory, check_receiver, slope_of
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


@pytest.mark.parametrize(("growth", "kept"), [(0.0, True), (20.0, False)])
def test_memory_that_grows_is_found(growth: float, kept: bool) -> None:
    times = np.arange(300)
    sizes = (150 + growth * times / 60 + np.random.default_rng(0).normal(size=300)) * 1e6
    sizes[:30] *= 2  # the start is not part of the line
    slope = slope_of([(float(time), int(size)) for time, size in zip(times, sizes, strict=True)], 60)
    assert slope is not None
    assert slope.mb_per_minute == pytest.approx(growth, abs=0.2)
    assert check_memory(slope).kept is kept
    assert slope_of([(0.0, 1)] * 5, 0) is None
