"""Compare streamed correlations with those that SciPy and NumPy compute of all numbers at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from flowedge.calibration.agreement import PairMoments, rank_correlation


def pairs_of(seed: int, count: int, centre: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    first = centre + rng.normal(size=count)
    return first, 3 * first + rng.normal(size=count)


@settings(max_examples=40)
@given(
    st.integers(0, 1000), st.lists(st.integers(1, 90), min_size=1, max_size=8), st.sampled_from([0.0, 1e6])
)
def test_parts_give_what_the_whole_gives(seed: int, parts: list[int], centre: float) -> None:
    first, second = pairs_of(seed, sum(parts) + 3, centre)
    pairs = PairMoments()
    for one, other in zip(np.split(first, np.cumsum(parts)), np.split(second, np.cumsum(parts)), strict=True):
        pairs.add(one, other)
    assert pairs.correlation() == pytest.approx(
        np.corrcoef(first - centre, second - 3 * centre)[0, 1], abs=1e-9
    )
    assert pairs.first_deviation() == pytest.approx(first.std(), rel=1e-9)


def test_what_never_varies_agrees_with_itself_only() -> None:
    flat = np.full(1000, np.float32(0.1))
    varied = np.arange(1000, dtype=np.float32)
    for first, second, wanted in ((flat, flat + 1, 1.0), (flat, varied, 0.0), (varied, flat, 0.0)):
        pairs = PairMoments()
        pairs.add(first, second)
        pairs.add(first, second)
        assert pairs.correlation() == wanted


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=40))
def test_ranks_with_ties_agree_with_scipy(values: list[tuple[int, int]]) -> None:
    first, second = np.array(values, float).T
    if np.ptp(first) and np.ptp(second):  # SciPy's answer is NaN without
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
