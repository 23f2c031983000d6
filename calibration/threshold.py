"""Fit the thresholds of images and pixels. A value strictly above its threshold is anomalous.

There are three methods:

- ``quantile`` takes the empirical quantile of the good images' scores, rounded up to the next score (NumPy's method
  ``"higher"``). So no more of them are above than the quantile allows.
- ``target-fpr`` takes the smallest threshold that leaves at most the given share of the good images above it.
- ``f1`` takes the threshold with the largest F1 on labelled images.

The pixel threshold is fitted by the same methods on the pixels of good images' anomaly maps. A map has many pixels, and
neighbours move together. With a rate of 0.001, 65 pixels of a 256x256 map are above on average, in few images and in
clumps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from flowedge.calibration.intervals import rate_interval
from flowedge.calibration.metrics import Curve, ValueHistogram, curve_from_scores
from flowedge.errors import CalibrationError
from flowedge.manifest import Threshold

FittedMethod: TypeAlias = Literal["quantile", "target-fpr", "f1"]
GoodMethod: TypeAlias = Literal["quantile", "target-fpr"]

_LARGEST_SHARE: Final = 0.5

FEW_IMAGES: Final = 5
"""A pixel threshold with marked pixels in fewer good images than this gets a note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdRequest:
    """Names the thresholds that a calibration fits.

    Attributes:
        method: The method, which the module describes. ``f1`` needs labelled images.
        image: The quantile of the good images, or their largest share above the threshold. The number is None for
            ``f1``.
        pixel: The quantile of the good images' pixels, or their largest share above the threshold. The value is None to
            fit no pixel threshold. With ``f1`` a pixel threshold is fitted where every class of defects has masks.

    Raises:
        CalibrationError: The method is unknown, or a number does not fit it. The defaults are those of ``quantile``.

    Examples:
        >>> request = ThresholdRequest(method="target-fpr", image=0.01, pixel=0.0005)
    """

    method: FittedMethod = "quantile"
    image: float | None = 0.99
    pixel: float | None = 0.9995

    def __post_init__(self) -> None:
        for name, number in {"image": self.image, "pixel": self.pixel}.items():
            if name == "pixel" and number is None:
                continue
            try:
                _check_parameter(self.method, number)
            except ValueError as error:
                raise CalibrationError(f"{name}={number} of a threshold request: {error}") from error
            # A quantile in the place of a share would call nearly every good part anomalous.
            if self.method == "target-fpr" and number is not None and number > _LARGEST_SHARE:
                raise CalibrationError(
                    f"{name}={number} of a threshold request: target-fpr takes the largest share of the good ones that "
                    f"may be above the threshold, which is at most {_LARGEST_SHARE}. Give {name}={1 - number:.6g}, or "
                    "take the method quantile."
                )


class FittedThreshold(NamedTuple):
    """A threshold, and a sentence on its weakness, which is empty where the threshold has none."""

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
        scores: ``(n,)`` image scores. A larger score is more anomalous.
        method: The method, which the module describes.
        parameter: The quantile, in 0..1 (both excluded), or the largest share of good images that may be
            called anomalous, in 0..1 (1 excluded). ``f1`` has none.
        labels: ``(n,)`` booleans, true for anomalous. ``f1`` needs them. The other methods use the good images
            only, and take all images for good without labels.
        names: ``(n,)`` names of the images for messages. By default a message gives the index.

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
        method: The method, which the module describes.
        parameter: The quantile of the pixels, or their largest share above the threshold.
        images: The number of images that the pixels belong to.

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
        curve: The curve of the image scores or of the pixels.
        images: The number of images in the curve.

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
            raise ValueError(f"f1 takes no parameter, got {parameter}. Give None.")
    elif method not in ("quantile", "target-fpr"):
        raise ValueError(f"method must be quantile, target-fpr or f1, got {method!r}")
    elif parameter is None or not 0 <= parameter < 1 or (method == "quantile" and parameter == 0):
        raise ValueError(
            f"{method} takes a parameter in 0..1, got {parameter}. For the largest good score use target-fpr 0."
        )


def _rank(method: GoodMethod, parameter: float, count: int) -> int:
    """Return the ascending rank of the threshold among ``count`` good values."""
    if method == "quantile":
        return math.ceil(parameter * (count - 1))
    allowed = int(parameter * count) + 1
    while allowed / count > parameter:  # A floor would fail for 0.29 * 100.
        allowed -= 1
    return count - 1 - allowed


def pixel_note(
    threshold: Threshold, largest: Sequence[float], *, method: GoodMethod, parameter: float
) -> str:
    """Return why so few images cannot support the pixel threshold, or an empty text.

    The pixels of one image move together, so the number of images counts, and not that of the pixels.

    Args:
        threshold: The fitted pixel threshold.
        largest: The largest value of each good image's map.
        method: The method of the fit.
        parameter: The quantile of the pixels, or their largest share above the threshold.
    """
    above = sum(value > threshold.value for value in largest)
    if above >= FEW_IMAGES:
        return ""
    low, high = rate_interval(above, len(largest))
    return (
        f"the pixels above the pixel threshold lie in only {above} of {len(largest)} good images, and their share of "
        f"{_rate(method, parameter):.2g} rests on these few. Between {percent(low)} and {percent(high)} of good images "
        "may show such pixels (95 % confidence). Give more images."
    )


def percent(rate: float) -> str:
    """Return a rate in 0..1 as text in percent with two digits, such as ``"9.5 %"``."""
    return f"{float(f'{100 * rate:.2g}'):g} %"


def _rate(method: GoodMethod, parameter: float) -> float:
    """Return the share of good values above the threshold that a fit asks for."""
    return 1 - parameter if method == "quantile" else parameter


def _note(method: GoodMethod, parameter: float, count: int, noun: str = "image") -> str:
    """Return why so few values cannot support the wanted rate, or an empty text."""
    if _rank(method, parameter, count) < count - 1:
        return ""
    rate = _rate(method, parameter)
    # There is no false alarm among these values. The limit is that of the table of thresholds to choose from.
    shown = rate_interval(0, count)[1]
    wanted = (
        f"a quantile of {parameter:g}" if method == "quantile" else f"a false-alarm rate of {parameter:g}"
    )
    least = math.ceil(1 / rate - 1e-9) + (method == "quantile") if rate > 1e-12 else 0
    needed = f" Give at least {least}." if least else ""
    return (
        f"{count} good {noun}s are too few for {wanted}: the {noun} threshold is their largest value, and the "
        f"false-alarm rate may be up to {percent(shown)} (95 % confidence) instead of {percent(rate)}.{needed}"
    )
