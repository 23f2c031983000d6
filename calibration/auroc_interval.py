"""Compute the confidence interval of an AUROC that was measured on few images."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_QUANTILE = 1.959963984540054  # of the normal distribution, for 95 %


def auroc_interval(good: ArrayLike, anomalous: ArrayLike) -> tuple[float, float] | None:
    """Return the interval of 95 % confidence of the AUROC of two groups of scores.

    The variance is that of E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, "Comparing the Areas under Two or More
    Correlated Receiver Operating Characteristic Curves", Biometrics 44 (1988). The interval is symmetric around the
    logit of the AUROC, so that it stays within 0..1.

    Args:
        good: The finite scores of the good images.
        anomalous: The finite scores of the anomalous images.

    Returns:
        The limits in 0..1. The value is None with fewer than two images of a class, and where the scores separate the
        classes fully, because their spread then says nothing about the AUROC.
    """
    lower, upper = np.sort(np.asarray(good, np.float64)), np.sort(np.asarray(anomalous, np.float64))
    if lower.size < 2 or upper.size < 2:
        return None
    # The share of the other class that each image is on the right side of. Ties count half.
    of_anomalous = _below(lower, upper) / lower.size
    of_good = 1 - _below(upper, lower) / upper.size
    area = float(of_anomalous.mean())
    variance = float(of_anomalous.var(ddof=1) / upper.size + of_good.var(ddof=1) / lower.size)
    if not 0 < area < 1:
        return None
    logit, reach = math.log(area / (1 - area)), _QUANTILE * math.sqrt(variance) / (area * (1 - area))
    return 1 / (1 + math.exp(reach - logit)), 1 / (1 + math.exp(-reach - logit))


def _below(ordered: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many of the ordered numbers are below each value, where an equal number counts half."""
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
