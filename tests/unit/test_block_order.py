"""Blocks are reverted for the quantity that is furthest beyond its limit, and their number is expected beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from flowedge.calibration.precision.block_order import (
    bearable_score_noise,
    expected_reversions,
    order_of_reverting,
    score_noise,
    share_of,
)

SCORES = np.random.default_rng(3).lognormal(size=60)


def test_the_quantity_that_is_furthest_beyond_its_limit_decides_which_block_is_next() -> None:
    shares = {
        "harms the map": (0.9, 0.0, 0.0),
        "harms the scores": (0.1, 3.0, 0.0),
        "harms both": (0.8, 2.0, 0.0),
        "harmless": (0.0, 0.0, 0.0),
    }
    order = order_of_reverting(shares)
    assert order == ["harms the scores", "harms both", "harms the map", "harmless"]
    assert expected_reversions([shares[name][:2] for name in order]) == 2
    assert expected_reversions([shares[name][:1] for name in order]) == 2, "0.9 and 0.8 are 1.2 together"


def test_an_endless_error_comes_first_and_equal_shares_are_told_apart_by_their_last_number() -> None:
    shares = {"a": (0.0, 1.0), "b": (0.0, 2.0), "c": (math.inf, 0.0)}
    assert order_of_reverting(shares) == ["c", "b", "a"]
    assert order_of_reverting({}) == []
    assert expected_reversions([(math.inf,), (0.0,)]) == 1


@pytest.mark.parametrize("limit", [0.9, 0.98, 0.995])
def test_noise_of_the_bearable_size_leaves_the_rank_correlation_at_its_limit(limit: float) -> None:
    noise = bearable_score_noise(list(SCORES), limit)
    rng = np.random.default_rng(11)
    found = [spearmanr(SCORES, SCORES + rng.normal(0, noise, SCORES.size))[0] for _ in range(300)]
    assert 1 - np.mean(found) == pytest.approx(1 - limit, rel=0.15)


def test_scores_without_an_order_and_limits_of_zero_bear_everything() -> None:
    assert bearable_score_noise([], 0.98) == math.inf
    assert bearable_score_noise([1.0, 1.0, 1.0], 0.98) == math.inf
    assert bearable_score_noise([1.0, 2.0, 3.0], 0.0) == math.inf
    assert bearable_score_noise([1.0, 2.0, 3.0], 1.0) < 1.0


def test_an_endless_error_is_nothing_where_everything_is_borne() -> None:
    assert share_of(math.inf, math.inf) == 0
    assert share_of(math.inf, 0.1) == math.inf
    assert share_of(0.2, 0.1) == 2
    assert share_of(0.0, 0.0) == 0


def test_a_line_through_the_scores_is_no_noise() -> None:
    noise = np.random.default_rng(5).normal(0, 0.01, SCORES.size)
    assert score_noise(SCORES, 1.1 * SCORES - 0.4) == pytest.approx(0, abs=1e-12)
    assert score_noise(SCORES, 1.1 * SCORES - 0.4 + noise) == pytest.approx(0.01, rel=0.3)
    assert score_noise(SCORES[:2], noise[:2]) == 0, "two scores lie on a line"
    assert score_noise(np.ones(3), np.array([1.0, 1.0, 2.0])) > 0
    assert score_noise(SCORES[:3], np.array([1.0, math.nan, 2.0])) == math.inf
