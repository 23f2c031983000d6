"""Fit decision limits. A value strictly above its threshold is anomalous.

``quantile``: the empirical quantile of the good images' scores, rounded up to the next score (NumPy's method
``"higher"``), so that no more of them are above than was asked for.

``target-fpr``: the smallest threshold that leaves at most the given share of the good images above it.

``f1``: the threshold with the largest F1 on labelled images.

The pixel threshold is fitted alike, on the pixels of good images' anomaly maps. Mind that a map has many
pixels and that neighbours move together: with a rate of 0.001, 65 pixels of a 256x256 map are above on
average, in few images and in clumps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from flowedge.calibration.metrics import Curve, ValueHistogram, curve_from_scores
from flowedge.errors import CalibrationError
from flowedge.manifest import Threshold

FittedMethod: TypeAlias = Literal["quantile", "target-fpr", "f1"]
GoodMethod: TypeAlias = Literal["quantile", "target-fpr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdRequest:
    """The thresholds that a calibration fits.

    Attributes:
        method: The method, which the module describes. ``f1`` needs labelled images.
        image: The quantile of the good images, or their largest share above the threshold. It is None for ``f1``.
        pixel: The quantile of the good images' pixels, or their largest share above the threshold. None fits no pixel
            threshold, except with ``f1``, which fits one wherever the dataset has masks.

    Examples:
        >>> request = ThresholdRequest(method="target-fpr", image=0.01, pixel=0.0005)
    """

    method: FittedMethod = "quantile"
    image: float | None = 0.99
    pixel: float | None = 0.9995


class FittedThreshold(NamedTuple):
    """A threshold, and what its user should know about it (an empty string when there is nothing)."""

    threshold: Threshold
    note: str


def fit_threshold(
    scores: ArrayLike,
    *,
    method: FittedMethod,
    parameter: float | None = None,
    labels: ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> FittedThreshold:
    """Fit the image threshold.

    Args:
        scores: ``(n,)`` image scores; larger is more anomalous.
        method: See the module.
        parameter: The quantile, in 0..1 (both excluded), or the largest share of good images that may be
            called anomalous, in 0..1 (1 excluded); ``f1`` has none.
        labels: ``(n,)`` booleans, true for anomalous. ``f1`` needs them; the other methods use the good images
            only, and take all for good without labels.
        names: ``(n,)`` what to call the images in an error; their index by default.

    Returns:
        The threshold, and a note when the images are too few for the parameter.

    Raises:
        CalibrationError: A score is NaN or infinite, no good image, or ``f1`` without both classes.
        ValueError: The parameter does not fit the method, or the lengths differ.
    """
    values = np.asarray(scores, np.float64)
    anomalous = np.zeros(values.shape, np.bool_) if labels is None else np.asarray(labels, np.bool_)
    if (
        values.ndim != 1
        or anomalous.shape != values.shape
        or (names is not None and len(names) != values.size)
    ):
        raise ValueError(f"need one label and one name for each of the scores, which are {values.shape}")
    _check_parameter(method, parameter)
    if values.size == 0:
        raise CalibrationError("a threshold needs at least one image, got none.")
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise CalibrationError(
            f"the score of {f'image {index}' if names is None else names[index]} is {values[index]}, not a "
            "finite number. Remove the image, or run flowedge verify to see whether the precision is the cause."
        )
    if method == "f1":
        return fit_f1_threshold(curve_from_scores(values, anomalous), images=values.size)
    good = np.sort(values[~anomalous])
    if good.size == 0:
        raise CalibrationError(
            f"no good image among {values.size}. A {method} threshold is fitted on good ones."
        )
    assert parameter is not None
    return FittedThreshold(
        Threshold(
            value=float(good[_rank(method, parameter, good.size)]),
            method=method,
            parameter=parameter,
            images=good.size,
        ),
        _note(method, parameter, good.size),
    )


def fit_pixel_threshold(
    pixels: ValueHistogram, *, method: GoodMethod, parameter: float, images: int
) -> FittedThreshold:
    """Fit the pixel threshold on the anomaly maps of good images.

    Args:
        pixels: The values of the maps' pixels. Where its bins were widened, the threshold is the upper edge
            of the value's bin, so no more pixels are above than was asked for.
        method: See the module.
        parameter: As in ``fit_threshold``, as a share of the pixels.
        images: How many images the pixels are of.

    Raises:
        CalibrationError: There is no pixel.
        ValueError: The parameter does not fit the method.
    """
    _check_parameter(method, parameter)
    count = int(pixels.total)
    if count == 0:
        raise CalibrationError(f"no pixel of a good image. A {method} threshold is fitted on good images.")
    value = pixels.value_at(_rank(method, parameter, count))
    threshold = Threshold(value=value, method=method, parameter=parameter, images=images)
    return FittedThreshold(threshold, _note(method, parameter, count, "pixel"))


def fit_f1_threshold(curve: Curve, *, images: int) -> FittedThreshold:
    """Fit an image or a pixel threshold to the largest F1 of a labelled dataset.

    Args:
        curve: Of the image scores or of the pixels.
        images: How many images it is of.

    Raises:
        CalibrationError: One class is missing.
    """
    best = curve.best_f1()
    if best is None:
        raise CalibrationError(
            f"F1 needs normal and anomalous values, got {curve.negatives[0]:.0f} and {curve.positives[0]:.0f}. "
            "Give a labelled dataset, or fit a quantile or a target false-alarm rate on good images."
        )
    return FittedThreshold(Threshold(value=best[1], method="f1", images=images), "")


def _check_parameter(method: str, parameter: float | None) -> None:
    if method == "f1":
        if parameter is not None:
            raise ValueError(f"f1 takes no parameter, got {parameter}")
    elif method not in ("quantile", "target-fpr"):
        raise ValueError(f"method must be quantile, target-fpr or f1, got {method!r}")
    elif parameter is None or not 0 <= parameter < 1 or (method == "quantile" and parameter == 0):
        raise ValueError(
            f"{method} takes a parameter in 0..1, got {parameter}. For the largest good score use target-fpr 0."
        )


def _rank(method: GoodMethod, parameter: float, count: int) -> int:
    """The ascending rank, among ``count`` good values, of the one that is the threshold."""
    if method == "quantile":
        return math.ceil(parameter * (count - 1))
    allowed = int(parameter * count) + 1
    while allowed / count > parameter:  # rather than a floor, which 0.29 * 100 fails
        allowed -= 1
    return count - 1 - allowed


def _note(method: GoodMethod, parameter: float, count: int, noun: str = "image") -> str:
    """Why so few values cannot support the rate that was asked for, or an empty string."""
    rate = 1 - parameter if method == "quantile" else parameter
    if count * rate >= 1 - 1e-9:
        return ""
    # No false alarm among n: rates above this would have shown one with 95 % probability.
    shown = 1 - 0.05 ** (1 / count)
    needed = f"; give at least {math.ceil(1 / rate - 1e-9)}" if rate > 1e-12 else ""
    return (
        f"the threshold is the largest of {count} good {noun}s, which shows a false-alarm rate below "
        f"{shown:.2g} (95 % confidence) and not {rate:.2g}{needed}."
    )
