"""Intervals of rates are those of SciPy, and contain the true rate as often as they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from flowedge.calibration.intervals import beta_quantile, fitted_rate_interval, rate_interval

TOTALS = (1, 2, 3, 10, 30, 100, 240, 1000, 65_536, 1_000_000)


def hits_of(total: int) -> list[int]:
    return sorted({0, 1, total // 100, total // 3, total // 2, total - 1, total} & set(range(total + 1)))


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("total", TOTALS)
def test_a_rate_has_scipys_exact_interval(total: int, confidence: float) -> None:
    for hits in hits_of(total):
        interval = rate_interval(hits, total, confidence)
        expected = stats.binomtest(hits, total).proportion_ci(confidence, method="exact")
        # SciPy searches this interval to about 1e-12, so small limits are compared with its Beta quantiles too.
        assert interval == pytest.approx((expected.low, expected.high), rel=1e-7, abs=1e-11)
        tail = (1 - confidence) / 2
        low = stats.beta.ppf(tail, hits, total - hits + 1) if hits else 0.0
        high = stats.beta.isf(tail, hits + 1, total - hits) if hits < total else 1.0
        assert interval == pytest.approx((low, high), rel=1e-7)


@pytest.mark.parametrize("total", TOTALS)
def test_the_rate_of_a_fitted_threshold_has_scipys_beta_interval(total: int) -> None:
    for above in hits_of(total - 1):
        expected = stats.beta(above + 1, total - above).interval(0.95)
        assert fitted_rate_interval(above, total) == pytest.approx(expected, rel=1e-7, abs=1e-14)


@pytest.mark.parametrize("probability", [1e-6, 0.025, 0.5, 0.975, 1 - 1e-6])
def test_beta_quantiles_are_scipys(probability: float) -> None:
    for a, b in [(1, 1), (1, 500), (500, 1), (2.5, 7.25), (4000, 3), (1e6, 2e6)]:
        assert beta_quantile(probability, a, b) == pytest.approx(stats.beta.ppf(probability, a, b), rel=1e-7)


def test_without_images_nothing_is_known() -> None:
    assert rate_interval(0, 0) == (0.0, 1.0)


def test_no_hit_and_only_hits_reach_the_ends() -> None:
    assert rate_interval(0, 10)[0] == 0.0
    assert rate_interval(10, 10)[1] == 1.0


@pytest.mark.parametrize(("hits", "total"), [(-1, 5), (6, 5), (0, -1)])
def test_counts_that_cannot_be_are_refused(hits: int, total: int) -> None:
    with pytest.raises(ValueError, match="hits must be in"):
        rate_interval(hits, total)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 2.0])
def test_a_confidence_outside_of_0_to_1_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        rate_interval(1, 2, confidence)


def test_a_threshold_above_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="above must be in"):
        fitted_rate_interval(5, 5)


@pytest.mark.parametrize("above", [0, 1, 10])
def test_the_interval_holds_the_true_rate_of_fitted_thresholds_as_often_as_promised(above: int) -> None:
    rng = np.random.default_rng(above)
    scores = np.sort(rng.random((4000, 100)), axis=1)
    true_rates = 1 - scores[:, 99 - above]
    low, high = fitted_rate_interval(above, 100)
    covered = np.mean((true_rates >= low) & (true_rates <= high))
    assert covered == pytest.approx(0.95, abs=0.012)
