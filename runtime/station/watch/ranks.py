"""Compute ranks and their correlation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ranks_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value, 1 for the smallest. Equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Return Spearman's correlation of two series, None where one of them does not vary."""
    if len(first) < 2:
        return None
    one, other = (ranks - ranks.mean() for ranks in (ranks_of(first), ranks_of(second)))
    size = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / size if size else None
