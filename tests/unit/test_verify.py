"""A bundle is compared with its checkpoint on any number of photographs."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowedge.bundle import open_bundle
from flowedge.export.checkpoint_parity import compare_with_checkpoint
from flowedge.runtime.verify import WorstDifference
from support.command_line import flowedge
from support.oracles.relative_difference import relative_difference
from support.recorded_reports import RecordedReports

SIDE = 512


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    noise = np.random.default_rng(0)
    files = [folder / f"{number}.png" for number in range(16)]
    for file in files:
        cv2.imwrite(str(file), noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    return files


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_pieces_give_what_the_whole_gives(size: int, pieces: int, seed: int) -> None:
    expected, error = np.random.default_rng(seed).normal(size=(2, 12, size)).astype(np.float32)
    got = expected + np.float32(1e-3) * error
    worst = WorstDifference()
    for part in np.array_split(np.arange(12), pieces):
        worst.add(got[part], expected[part])
    assert worst.relative == relative_difference(got, expected) > 0


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("side", ["got", "expected"])
def test_one_nan_among_many_never_passes(place: int, side: str) -> None:
    arrays = {"got": np.ones((3, 4), np.float32), "expected": np.ones((3, 4), np.float32)}
    arrays[side][place, 1] = np.nan
    worst = WorstDifference()
    for got, expected in zip(arrays["got"], arrays["expected"], strict=True):
        worst.add(got, expected)
    assert not worst.relative <= np.inf


def test_memory_does_not_grow_with_the_photographs(
    small_bundle: Path, small_checkpoint: Path, photographs: list[Path]
) -> None:
    bundle = open_bundle(small_bundle)
    peaks: list[int] = []
    for count in (1, 2, len(photographs)):  # the first call imports
        reports = RecordedReports()
        tracemalloc.start()
        checks = compare_with_checkpoint(
            bundle, small_checkpoint, images=photographs[:count], reports=reports
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert reports.counts == [(done + 1, count) for done in range(count)]
        assert all(check.passed and f"{count} images" in check.name for check in checks)
    assert peaks[2] < peaks[1] + 2 * SIDE**2 * 3


def test_an_answer_is_measured_by_its_own_size_however_small() -> None:
    expected = np.full((2, 3), 1e-23, np.float32)
    worst = WorstDifference()
    worst.add(expected * np.float32(2), expected)
    assert worst.relative == pytest.approx(1, rel=1e-5)
    nothing = WorstDifference()
    nothing.add(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    assert nothing.relative == 0


def test_verify_takes_threads_and_photographs(
    small_bundle: Path, small_checkpoint: Path, photographs: list[Path]
) -> None:
    options = ("--against", small_checkpoint, "--data", photographs[0].parent, "--threads", "1", "--json")
    done = flowedge("verify", small_bundle, *options)
    assert done.status == 0, done.stderr
    names = [check["name"] for check in json.loads(done.stdout)["checks"]]
    assert {f"{name} against the checkpoint, 16 images" for name in ("level 0", "anomaly_map", "score")} <= {
        *names
    }
    assert flowedge("verify", small_bundle, "--threads", "0").status == 2
