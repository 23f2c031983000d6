"""Compute anomalib's normalised score and map, from 0 to 1, and its label, by the formulas of each version.

With v a value (the image score, or the map at a pixel), t its threshold and n the normalised value:

``0.x-1.x``
    n = clip((v - t) / (max - min) + 1/2, 0, 1), anomalous where v >= t.
``0.x-cdf``
    A score's n = P(s - t) with s = (ln v - mean) / std and P the standard normal distribution function. A map's is
    P(P(s - t) - t), with the mean of the image scores and the standard deviation of the pixels. The thresholds
    are those of s, so anomalous is s >= t.
``2.0-2.6``, ``2.7``
    n = clip((v - t) / (max - min) + 1/2, 0, 1), with (min + max) / 2 for a t that was not fitted, and anomalous where
    n > 1 - sensitivity. For max = min, 2.7 has n = 1, 1/2 or 0 for v above, at or below t. The older ones have NaN for
    v = t.

A value whose range was never fitted is not changed. Everything is computed in float32, as anomalib does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.manifest import ColourScale, PartScale, SourceScale, Threshold, Thresholds

Array: TypeAlias = NDArray[np.float32]

_HALF: Final = np.float32(0.5)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scaled:
    """Values on anomalib's scale.

    Attributes:
        value: float32 of the shape given, from 0 to 1 where a range was fitted. A value is NaN where the formula has no
            value.
        is_anomalous: bool of the same shape. The value is None where anomalib has no threshold.
    """

    value: Array
    is_anomalous: NDArray[np.bool_] | None


def scaled_score(score: Array, scale: SourceScale) -> Scaled:
    """Convert image scores, float32 of any shape as the graph gives them, to anomalib's scale."""
    with _as_ieee_754():
        if scale.rule != "0.x-cdf":
            return _by_range(score, scale.image, scale)
        standard = _standardised(score, scale, scale.image)
        threshold = _threshold(scale.image)
        return Scaled(value=_normal_cdf(standard - threshold), is_anomalous=standard >= threshold)


def scaled_map(anomaly_map: Array, scale: SourceScale) -> Scaled:
    """Convert an anomaly map, float32 of any shape as the graph gives it, to anomalib's scale."""
    with _as_ieee_754():
        if scale.rule != "0.x-cdf":
            return _by_range(anomaly_map, scale.pixel, scale)
        standard = _standardised(anomaly_map, scale, scale.pixel)
        threshold = _threshold(scale.pixel)
        once = _normal_cdf(standard - threshold)
        return Scaled(value=_normal_cdf(once - threshold), is_anomalous=standard >= threshold)


def _as_ieee_754() -> np.errstate:
    """Let overflow, a logarithm of 0 and a quotient of zeros give infinity and NaN, as in torch, without a warning."""
    return np.errstate(all="ignore")


def source_thresholds(scale: SourceScale) -> Thresholds:
    """Give the thresholds on anomalib's scale. A value above its threshold is anomalous.

    The versions before 2.0 count equality as anomalous, so their limit is the float32 below the threshold.
    """
    at_image: Array | None
    at_pixel: Array | None
    match scale.rule:
        case "0.x-cdf":
            at_image, at_pixel = np.array(_HALF), _normal_cdf(_HALF - _threshold(scale.pixel))
        case "0.x-1.x":
            at_image, at_pixel = _threshold_by_range(scale.image), _threshold_by_range(scale.pixel)
        case _:
            return Thresholds(image=_allowed(scale.image), pixel=_allowed(scale.pixel))
    return Thresholds(image=_below(at_image), pixel=_below(at_pixel))


def source_colours(scale: SourceScale) -> ColourScale | None:
    """Give the colour scale of maps on anomalib's scale, which is 0 to 1. A map without a range keeps its own unit."""
    has_range = scale.pixel.minimum is not None and scale.pixel.maximum is not None
    return ColourScale(low=0.0, high=1.0) if has_range or scale.rule == "0.x-cdf" else None


def _by_range(values: Array, part: PartScale, scale: SourceScale) -> Scaled:
    normalised = values
    if part.minimum is not None and part.maximum is not None:
        low, high = np.float32(part.minimum), np.float32(part.maximum)
        threshold = (high + low) / np.float32(2) if part.threshold is None else _threshold(part)
        if scale.rule == "2.7" and high == low:
            normalised = np.heaviside(values - threshold, _HALF)
        else:
            normalised = np.clip((values - threshold) / (high - low) + _HALF, 0, 1)
    is_anomalous: NDArray[np.bool_] | None = None
    if scale.rule == "0.x-1.x":
        if part.threshold is not None:
            is_anomalous = values >= _threshold(part)
    elif part.sensitivity is not None:
        is_anomalous = normalised > np.float32(1) - np.float32(part.sensitivity)
    return Scaled(value=np.asarray(normalised, np.float32), is_anomalous=is_anomalous)


def _threshold(part: PartScale) -> np.float32:
    assert part.threshold is not None, "the manifest was checked"
    return np.float32(part.threshold)


def _standardised(values: Array, scale: SourceScale, part: PartScale) -> Array:
    assert scale.image.log_mean is not None, "the manifest was checked"
    assert part.log_std is not None, "the manifest was checked"
    centred = np.log(values) - np.float32(scale.image.log_mean)  # a map's 0 becomes -inf, whose P is 0
    return np.asarray(centred / np.float32(part.log_std), np.float32)


def _normal_cdf(values: Array | np.float32) -> Array:
    """Compute the standard normal distribution function. NumPy has no erf, and a device has no SciPy."""
    return np.asarray(_ERFC(np.asarray(values, np.float64) * -math.sqrt(0.5)) / 2, np.float32)


_ERFC: Final = np.vectorize(math.erfc, otypes=[np.float64])


def _threshold_by_range(part: PartScale) -> Array | None:
    if part.threshold is None:
        return None
    has_range = part.minimum is not None and part.maximum is not None
    return np.array(_HALF if has_range else _threshold(part))


def _allowed(part: PartScale) -> Threshold | None:
    if part.sensitivity is None:
        return None
    return Threshold(value=float(np.float32(1) - np.float32(part.sensitivity)), method="source")


def _below(value: Array | None) -> Threshold | None:
    if value is None:
        return None
    return Threshold(value=float(np.nextafter(value, np.float32(-np.inf))), method="source")
