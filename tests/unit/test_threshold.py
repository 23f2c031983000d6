"""Thresholds keep their promises about the good images that they were fitted on."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from flowedge.calibration.intervals import rate_interval
from flowedge.calibration.metrics import ValueHistogram, curve_from_scores
from flowedge.calibration.threshold import (
    FittedMethod,
    GoodMethod,
    ThresholdRequest,
    fit_f1_threshold,
    fit_pixel_threshold,
    fit_threshold,
    pixel_note,
)
from flowedge.errors import CalibrationError
from flowedge.manifest import Threshold

SCORES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=80)
RATES = st.floats(0, 1, exclude_max=True)


@given(SCORES, RATES)
def test_at_most_the_target_share_of_good_images_is_above(scores: list[float], rate: float) -> None:
    value = fit_threshold(scores, method="target-fpr", parameter=rate).threshold.value
    assert np.mean(np.array(scores) > value) <= rate


@given(SCORES, RATES)
def test_no_smaller_threshold_meets_the_target(scores: list[float], rate: float) -> None:
    value = fit_threshold(scores, method="target-fpr", parameter=rate).threshold.value
    assert np.mean(np.array(scores) > np.nextafter(value, -np.inf)) > rate


@settings(max_examples=40)
@given(SCORES, RATES, RATES)
def test_allowing_more_false_alarms_never_raises_the_threshold(
    scores: list[float], a: float, b: float
) -> None:
    strict = fit_threshold(scores, method="target-fpr", parameter=min(a, b)).threshold.value
    lenient = fit_threshold(scores, method="target-fpr", parameter=max(a, b)).threshold.value
    assert lenient <= strict


@given(SCORES, st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_quantile_is_numpys_higher_one(scores: list[float], q: float) -> None:
    fitted = fit_threshold(scores, method="quantile", parameter=q).threshold
    assert fitted.value == np.quantile(scores, q, method="higher")
    assert np.mean(np.array(scores) > fitted.value) <= 1 - q + 1e-12


@pytest.mark.parametrize(
    ("rate", "above"), [(0.0, 0), (0.009, 0), (0.01, 1), (0.29, 29), (0.57, 57), (0.999, 99)]
)
def test_the_target_share_is_used_up_to_the_last_image(rate: float, above: int) -> None:
    value = fit_threshold(np.arange(100.0), method="target-fpr", parameter=rate).threshold.value
    assert np.sum(np.arange(100.0) > value) == above


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=30))
def test_no_threshold_has_a_larger_f1(values: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([v for v, _ in values]), np.array([b for _, b in values])
    if labels.all() or not labels.any():
        with pytest.raises(CalibrationError, match="needs normal and anomalous"):
            fit_threshold(scores, method="f1", labels=labels)
        return
    value = fit_threshold(scores, method="f1", labels=labels).threshold.value
    reached = f1_score(labels, scores > value)
    others = [f1_score(labels, scores > limit, zero_division=0) for limit in range(-1, 9)]
    assert reached == pytest.approx(max(others))


def test_f1_may_call_everything_anomalous_in_float32_as_well() -> None:
    scores = np.array([0.1, 0.2, 0.3], np.float32)
    fitted = fit_threshold(scores, method="f1", labels=[True, False, True])
    assert (scores > fitted.threshold.value).all()


def test_only_the_good_images_of_a_labelled_set_count() -> None:
    fitted = fit_threshold(
        [1, 2, 3, 90], method="target-fpr", parameter=0, labels=[False, False, False, True]
    )
    assert (fitted.threshold.value, fitted.threshold.images) == (3.0, 3)


def test_the_threshold_says_how_it_was_fitted() -> None:
    quantile = fit_threshold(np.arange(100), method="quantile", parameter=0.95).threshold
    f1 = fit_threshold([1, 2], method="f1", labels=[False, True]).threshold
    assert (quantile.method, quantile.parameter, quantile.images) == ("quantile", 0.95, 100)
    assert (f1.method, f1.parameter, f1.images) == ("f1", None, 2)


@pytest.mark.parametrize(
    ("method", "parameter", "images", "note"),
    [
        ("quantile", 0.99, 101, None),
        ("quantile", 0.99, 100, "100 good images are too few for a quantile of 0.99.* at least 101"),
        ("quantile", 0.99, 30, r"image threshold is their largest .* up to 12 % .* instead of 1 %"),
        ("target-fpr", 0.001, 1000, None),
        ("target-fpr", 0.001, 60, r"rate of 0\.001: .* up to 6 % .* of 0\.1 %\. Give at least 1000"),
        ("target-fpr", 0.0, 1000, r"up to 0\.37 % .* instead of 0 %\.$"),
    ],
)
def test_too_few_images_for_the_rate_are_noted(
    method: GoodMethod, parameter: float, images: int, note: str | None
) -> None:
    fitted = fit_threshold(np.arange(images), method=method, parameter=parameter)
    if note is None:
        assert fitted.note == ""
    else:
        assert pytest.raises(AssertionError, match=note).matches(AssertionError(fitted.note))


@pytest.mark.parametrize("method", ["quantile", "target-fpr"])
@pytest.mark.parametrize("parameter", [0.5, 0.9, 0.95, 0.99])
def test_the_note_names_the_smallest_number_of_images_without_one(
    method: GoodMethod, parameter: float
) -> None:
    rate = round(1 - parameter, 6) if method == "target-fpr" else parameter
    few = fit_threshold(np.arange(2), method=method, parameter=rate)
    found = re.search(r"at least (\d+)\.$", few.note)
    least = int(found[1]) if found else 2
    assert fit_threshold(np.arange(least), method=method, parameter=rate).note == ""
    fewer = fit_threshold(np.arange(least - 1), method=method, parameter=rate)
    assert fewer.note or least == 2
    assert fewer.threshold.value == least - 2, "which is the largest score"


def test_pixels_above_the_threshold_in_few_images_are_noted() -> None:
    threshold = Threshold(value=1.0, method="quantile", parameter=0.9995, images=60)
    few = pixel_note(threshold, [0.5] * 57 + [2.0] * 3, method="quantile", parameter=0.9995)
    low, high = rate_interval(3, 60)
    assert "in only 3 of 60 good images, and their share of 0.0005 rests" in few
    assert f"Between {100 * low:.2g} % and {100 * high:.2g} % of good images" in few
    assert pixel_note(threshold, [0.5] * 55 + [2.0] * 5, method="quantile", parameter=0.9995) == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["quantile", "target-fpr", "f1"])
def test_a_score_that_is_not_finite_is_refused_by_its_images_name(value: float, method: FittedMethod) -> None:
    parameter = None if method == "f1" else 0.5
    scores, labels = [1.0, value, 2.0], [False, False, True]
    with pytest.raises(CalibrationError, match=r"the score of b\.png is -?(nan|inf)"):
        fit_threshold(
            scores, method=method, parameter=parameter, labels=labels, names=["a.png", "b.png", "c.png"]
        )
    with pytest.raises(CalibrationError, match="the score of image 1"):
        fit_threshold(scores, method=method, parameter=parameter, labels=labels)


def test_no_good_image_is_refused() -> None:
    with pytest.raises(CalibrationError, match="at least one image"):
        fit_threshold([], method="quantile", parameter=0.9)
    with pytest.raises(CalibrationError, match="no good image among 1"):
        fit_threshold([1.0], method="quantile", parameter=0.9, labels=[True])
    with pytest.raises(CalibrationError, match="no pixel"):
        fit_pixel_threshold(ValueHistogram(), method="quantile", parameter=0.9, images=0)


@pytest.mark.parametrize(
    ("method", "parameter"),
    [
        ("quantile", 0.0),
        ("quantile", 1.0),
        ("quantile", None),
        ("target-fpr", 1.0),
        ("target-fpr", -0.1),
        ("f1", 0.5),
    ],
)
def test_a_parameter_that_does_not_fit_the_method_is_a_value_error(
    method: FittedMethod, parameter: float | None
) -> None:
    with pytest.raises(ValueError, match="parameter"):
        fit_threshold([1.0, 2.0], method=method, parameter=parameter, labels=[False, True])


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        # The defaults are quantiles. Taken for shares, they would call nearly every good part anomalous.
        ({"method": "target-fpr"}, r"image=0\.99 .* Give image=0\.01,"),
        ({"method": "target-fpr", "image": 0.01}, r"pixel=0\.9995 .* Give pixel=0\.0005,"),
        ({"method": "f1"}, r"image=0\.99 .* f1 takes no parameter"),
        ({"method": "f1", "image": None}, r"pixel=0\.9995 .* f1 takes no parameter"),
        ({"image": 1.0}, r"quantile takes a parameter in 0\.\.1"),
        ({"image": None}, r"quantile takes a parameter"),
        ({"method": "nfa"}, r"method must be"),
    ],
)
def test_a_request_with_numbers_of_another_method_is_refused_before_any_image(
    request_of: dict[str, Any], message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        ThresholdRequest(**request_of)
    ThresholdRequest(method="target-fpr", image=0.01, pixel=None)
    ThresholdRequest(method="f1", image=None, pixel=None)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="one label and one name"):
        fit_threshold([1.0, 2.0], method="f1", labels=[True])
    with pytest.raises(ValueError, match="one label and one name"):
        fit_threshold([1.0, 2.0], method="quantile", parameter=0.5, names=["a"])


@settings(max_examples=40)
@given(SCORES, RATES, st.integers(1, 12))
def test_a_pixel_threshold_keeps_its_promise_however_wide_the_bins(
    values: list[float], rate: float, max_bins: int
) -> None:
    pixels = ValueHistogram(max_bins)
    for value in values:
        pixels.add(value)
    fitted = fit_pixel_threshold(pixels, method="target-fpr", parameter=rate, images=1).threshold
    exact = fit_threshold(values, method="target-fpr", parameter=rate).threshold.value
    assert exact <= fitted.value <= max(values)
    assert np.mean(np.array(values) > fitted.value) <= rate


def test_a_pixel_threshold_is_exact_on_few_values() -> None:
    rng = np.random.default_rng(5)
    maps = rng.normal(size=(20, 32, 32)).astype(np.float32)
    pixels = ValueHistogram()
    for anomaly_map in maps:
        pixels.add(anomaly_map)
    fitted = fit_pixel_threshold(pixels, method="quantile", parameter=0.999, images=20)
    assert fitted.threshold.value == np.quantile(maps, 0.999, method="higher")
    assert (fitted.threshold.images, fitted.note) == (20, "")


def test_an_f1_threshold_of_pixels_needs_both_classes() -> None:
    with pytest.raises(CalibrationError, match="got 2 and 0"):
        fit_f1_threshold(curve_from_scores([1.0, 2.0], [False, False]), images=2)
