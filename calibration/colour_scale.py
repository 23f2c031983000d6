"""Fit the colour scale of pictures on the anomaly maps of good images."""

from __future__ import annotations

from typing import Final

from flowedge.calibration.metrics import ValueHistogram
from flowedge.manifest import ColourScale
from flowedge.manifest_bounds import LARGEST_FLOAT32

SURE: Final = 0.9995
"""The quantile of the good pixels that lies in the middle of the scale, where the default pixel threshold lies too."""


def fit_colour_scale(pixels: ValueHistogram) -> ColourScale | None:
    """Fit the colour scale of a graph, from the median of good pixels to as far above their 0.9995 quantile.

    Args:
        pixels: The values of the good images' anomaly maps.

    Returns:
        The scale. The value is None without pixels, and where the two quantiles are equal.
    """
    last = int(pixels.total) - 1
    if last < 0:
        return None
    low, middle = pixels.value_at(round(0.5 * last)), pixels.value_at(round(SURE * last))
    high = min(middle + (middle - low), LARGEST_FLOAT32)
    return ColourScale(low=low, high=high) if low < high else None
