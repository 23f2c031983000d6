"""Compare the choice of a range with NumPy, with brute force and with a divergence in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from flowedge.calibration.precision.calibrators import CALIBRATORS, CalibratorName, magnitude_limit
from flowedge.calibration.precision.qdq import CPU, GPU, Layout, scale_and_zero
from flowedge.calibration.precision.ranges import TensorRange

Values = NDArray[np.float32]
ARRAYS = arrays(np.float32, st.integers(1, 80), elements=st.floats(-1e4, 1e4, width=32))
BIN = 2.0**-7  # the relative width of a bin


def range_of(values: Values) -> TensorRange:
    found = TensorRange()
    found.add(values)
    return found


def on_the_bins(values: Values) -> Values:
    """Move each value to the middle of its bin, so that a histogram loses nothing."""
    return ((values.view(np.uint32) & np.uint32(0xFFFF0000)) | np.uint32(0x8000)).view(np.float32)


def bell(seed: int, outlier: float | None = None, count: int = 20_000) -> Values:
    values = np.random.default_rng(seed).normal(size=count).astype(np.float32)
    if outlier is not None:
        values[0] = outlier
    return values


@given(ARRAYS, st.sampled_from(CALIBRATORS), st.sampled_from([127, 200, 255]))
@settings(max_examples=150)
def test_a_limit_is_within_what_was_seen(values: Values, calibrator: CalibratorName, levels: int) -> None:
    limit = magnitude_limit(range_of(values), calibrator, steps=levels)
    largest = float(np.abs(values).max())
    assert (limit == 0) == (largest == 0)
    assert 0 <= limit <= largest
    if calibrator == "min-max":
        assert limit == largest


@given(ARRAYS, st.floats(50, 100))
@settings(max_examples=150)
def test_percentile_is_numpys_within_a_bin(values: Values, percent: float) -> None:
    expected = float(np.percentile(np.abs(values).astype(np.float64), percent, method="inverted_cdf"))
    found = magnitude_limit(range_of(values), "percentile", steps=127, percentile=percent)
    if expected < 2.0**-126:
        return  # nothing but zeros: the largest is taken, so that the others are not lost
    share = percent / 100 * values.size
    if abs(share - round(share)) > 1e-9:  # on the edge between two values either is right
        assert found == pytest.approx(expected, rel=BIN)


@pytest.mark.parametrize("levels", [127, 255])
@pytest.mark.parametrize("outlier", [None, 12.0, 60.0])
def test_mse_is_as_good_as_brute_force_on_the_values(levels: int, outlier: float | None) -> None:
    values = bell(3, outlier)

    def error(limit: float) -> float:
        step = limit / levels
        rounded = np.clip(np.rint(values.astype(np.float64) / step), -levels, levels) * step
        return float(np.square(rounded - values).mean())

    found = magnitude_limit(range_of(values), "mse", steps=levels)
    best = min(error(limit) for limit in np.geomspace(0.05, 1, 150) * np.abs(values).max())
    assert error(found) <= 1.05 * best


def direct_divergence(counts: list[float], end: int, steps: int) -> float:
    """Compute the divergence of Migacz's talk bin by bin. A bin that no step reaches gets probability 1e-6."""
    true = counts[:end]
    sums, filled = [0.0] * steps, [0] * steps
    for n, count in enumerate(true):
        sums[n * steps // end] += count
        filled[n * steps // end] += count > 0
    rounded = [
        sums[n * steps // end] / filled[n * steps // end] if count else 0.0 for n, count in enumerate(true)
    ]
    true[-1] += sum(counts[end:])
    divergence = 0.0
    for p, q in zip(true, rounded, strict=True):
        if p > 0:
            share = p / sum(true)
            divergence += share * math.log(share / (q / sum(rounded) if q else 1e-6))
    return divergence


@pytest.mark.parametrize(("seed", "outlier", "levels"), [(0, None, 127), (1, 9.0, 127), (2, 7.0, 200)])
def test_entropy_has_the_smallest_divergence(seed: int, outlier: float | None, levels: int) -> None:
    values = on_the_bins(bell(seed, outlier, 4000))
    largest = float(np.abs(values).max())
    counts = [0.0] * 2048
    for value in np.abs(values.astype(np.float64)):
        counts[min(int(value / largest * 2048), 2047)] += 1
    counts[0] = 0.0
    found = magnitude_limit(range_of(values), "entropy", steps=levels)
    ends = range(2048, levels, -16 * 8)  # every eighth of its candidates, and the one it took
    divergences = [direct_divergence(counts, end, levels + 1) for end in ends]
    taken = round(found / largest * 2048)
    assert direct_divergence(counts, taken, levels + 1) <= min(divergences) + 1e-9


@pytest.mark.parametrize("chosen", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_values_within_the_limit_lose_half_a_step(calibrator: CalibratorName, chosen: Layout) -> None:
    for values in (bell(0), np.abs(bell(1)), bell(2) - 3, -np.abs(bell(4)), np.zeros(9, np.float32)):
        scale, zero = scale_and_zero(range_of(values), calibrator, chosen)
        assert zero.dtype == (np.uint8 if chosen is CPU else np.int8)
        if chosen is GPU or not (values < 0).any():
            assert zero == 0
        limits = np.iinfo(np.uint8 if chosen is CPU else np.int8)
        whole = np.clip(np.rint(values / scale) + zero.astype(np.int64), limits.min, limits.max)
        back = (whole - zero.astype(np.int64)) * scale
        inside = (whole > limits.min) & (whole < limits.max)
        assert np.abs(back - values)[inside].max(initial=0) <= scale / 2 * (1 + 1e-4)
        if calibrator == "min-max":
            assert np.abs(back - values).max() <= scale * (1 + 1e-4)


def test_an_outlier_widens_min_max_alone() -> None:
    plain, spoilt = range_of(bell(5)), range_of(bell(5, 300.0))
    assert magnitude_limit(spoilt, "min-max", steps=127) == 300
    assert magnitude_limit(spoilt, "entropy", steps=127) < 60
    assert magnitude_limit(range_of(bell(5, 12.0)), "mse", steps=127) < 11.5
    assert magnitude_limit(spoilt, "percentile", steps=127) == pytest.approx(
        magnitude_limit(plain, "percentile", steps=127), rel=0.1
    )
