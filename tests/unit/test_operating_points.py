"""Operating points: each threshold gives on the images exactly the counts that are shown beside it."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]
from sklearn.metrics import f1_score

from flowedge.calibration.metrics import curve_from_scores
from flowedge.calibration.operating_points import (
    BEST_F1,
    NOW,
    OperatingPoint,
    nfa_operating_points,
    operating_points,
    with_commands,
)
from flowedge.calibration.threshold import FittedMethod, fit_threshold

SCORES = st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.booleans()), min_size=1, max_size=60)


def points_of(
    scores: NDArray[np.float64],
    labels: NDArray[np.bool_],
    now: float | None = None,
    *,
    fitted: FittedMethod | None = None,
) -> dict[str, OperatingPoint]:
    points = operating_points(curve_from_scores(scores, labels), now, fitted_by=fitted)
    return {point.name: point for point in points}


@pytest.fixture
def scores() -> NDArray[np.float64]:
    """The scores of 200 good and of 50 anomalous images."""
    rng = np.random.default_rng(5)
    return np.concatenate([rng.normal(0, 1, 200), rng.normal(2, 1, 50)]).astype(np.float32).astype(np.float64)


@pytest.fixture
def labels() -> NDArray[np.bool_]:
    return np.arange(250) >= 200


@given(SCORES, st.floats(-1e6, 1e6))
def test_every_point_counts_what_its_threshold_gives(scored: list[tuple[float, bool]], now: float) -> None:
    scores = np.array([score for score, _ in scored])
    labels = np.array([label for _, label in scored])
    for point in points_of(scores, labels, now).values():
        assert point.threshold is not None
        above = scores > point.threshold
        assert point.false_alarms.hits == np.sum(above & ~labels)
        assert point.false_alarms.total == np.sum(~labels)
        if point.detections is None:
            assert not labels.any()
        else:
            assert point.detections.hits == np.sum(above & labels)
            assert point.detections.total == np.sum(labels)


@given(SCORES)
def test_the_points_at_a_rate_are_those_of_a_target_fpr(scored: list[tuple[float, bool]]) -> None:
    scores = np.array([score for score, _ in scored])
    labels = np.array([label for _, label in scored])
    points = points_of(scores, labels)
    for rate in (0.01, 0.05):
        name = f"{100 * rate:g} % false alarms"
        good = int(np.sum(~labels))
        if good * rate < 1:
            assert name not in points
            name = "no false alarm"
        if good == 0:
            assert name not in points
            continue
        fitted = fit_threshold(scores, method="target-fpr", parameter=rate, labels=labels).threshold.value
        value = points[name].threshold
        assert value is not None
        assert (scores > value).tolist() == (scores > fitted).tolist()


def test_the_best_f1_is_that_of_scikit_learn(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> None:
    value = points_of(scores, labels)[BEST_F1].threshold
    assert value is not None
    best = max(f1_score(labels, scores > threshold) for threshold in scores)
    assert f1_score(labels, scores > value) == pytest.approx(best)


def test_the_chosen_thresholds_are_short_numbers(
    scores: NDArray[np.float64], labels: NDArray[np.bool_]
) -> None:
    for point in points_of(scores, labels).values():
        assert len(repr(point.threshold).strip("-0.").replace(".", "")) <= 8


def test_intervals_are_exact_where_the_images_are_new_and_those_of_an_order_statistic_where_they_were_fitted(
    scores: NDArray[np.float64], labels: NDArray[np.bool_]
) -> None:
    fitted = fit_threshold(scores[:200], method="quantile", parameter=0.98).threshold.value
    new, seen = (points_of(scores, labels, fitted, fitted=known)[NOW] for known in (None, "quantile"))
    assert new.false_alarms.hits == seen.false_alarms.hits == 3
    exact = stats.binomtest(3, 200).proportion_ci(0.95, method="exact")
    assert (new.false_alarms.low, new.false_alarms.high) == pytest.approx((exact.low, exact.high))
    assert (seen.false_alarms.low, seen.false_alarms.high) == pytest.approx(stats.beta(4, 197).interval(0.95))
    assert (new.chosen_here, seen.chosen_here) == (False, True)
    assert new.detections is not None
    found = stats.binomtest(new.detections.hits, 50).proportion_ci(0.95, method="exact")
    assert (new.detections.low, new.detections.high) == pytest.approx((found.low, found.high))


def test_one_class_alone_gives_the_points_that_it_defines() -> None:
    good = points_of(np.arange(100.0), np.zeros(100, np.bool_), 98.0)
    assert list(good) == [NOW, "1 % false alarms", "5 % false alarms"]
    assert [point.detections for point in good.values()] == [None] * 3
    anomalous = points_of(np.arange(100.0), np.ones(100, np.bool_), 98.0)
    assert list(anomalous) == [NOW]
    assert anomalous[NOW].false_alarms.rate is None
    assert (anomalous[NOW].false_alarms.low, anomalous[NOW].false_alarms.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("good", "names"),
    [
        (1, ["no false alarm"]),
        (19, ["no false alarm"]),
        (20, ["no false alarm", "5 % false alarms"]),
        (99, ["no false alarm", "5 % false alarms"]),
        (100, ["1 % false alarms", "5 % false alarms"]),
    ],
)
def test_a_rate_that_the_good_images_cannot_show_is_not_offered(good: int, names: list[str]) -> None:
    points = points_of(np.arange(float(good)), np.zeros(good, np.bool_))
    assert list(points) == names
    assert points[names[0]].false_alarms.hits == (good == 100)
    for point in with_commands(list(points.values()), Path("b"), "fp32", "photos"):
        assert f"{point.name} on {good} image" in point.command


def test_a_threshold_below_all_scores_calls_every_image_anomalous() -> None:
    point = points_of(np.arange(3.0), np.zeros(3, np.bool_), -5.0, fitted="quantile")[NOW]
    assert (point.false_alarms.hits, point.false_alarms.high) == (3, 1.0)


def test_limits_of_log_nfa_count_what_is_below_them(
    scores: NDArray[np.float64], labels: NDArray[np.bool_]
) -> None:
    log_nfas = np.append(-scores, -np.inf)
    truth = np.append(labels, True)
    points = nfa_operating_points(log_nfas, truth, -2.0)
    assert [point.name for point in points] == [NOW, "1 % false alarms", "5 % false alarms", BEST_F1]
    for point in points:
        assert point.threshold is None
        assert point.log_nfa is not None
        below = log_nfas < point.log_nfa
        assert point.detections is not None
        assert point.false_alarms.hits == np.sum(below & ~truth)
        assert point.detections.hits == np.sum(below & truth)


def test_each_point_but_the_present_one_has_the_command_that_sets_it(
    scores: NDArray[np.float64], labels: NDArray[np.bool_]
) -> None:
    points = operating_points(curve_from_scores(scores, labels), 1.5)
    now, one, *_ = with_commands(points, Path("my bottle.flowedge"), "int8-cpu", "images of bottles")
    assert now.command == ""
    assert shlex.split(one.command) == [
        *("flowedge", "threshold", "set", "my bottle.flowedge", "--image", repr(one.threshold)),
        *("--precision", "int8-cpu", "--reason", "1 % false alarms on 250 images of images of bottles"),
    ]
    (limit, *_) = with_commands(nfa_operating_points(-scores, labels, 0.0)[1:], Path("b"), "fp32", "c")
    assert f"--log-nfa {limit.log_nfa!r} " in limit.command
