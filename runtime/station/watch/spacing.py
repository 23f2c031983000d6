"""Choose how many frames lie between two watched ones, so that neighbouring values hardly depend on each other.

The bound on false alarms holds for exchangeable values. Frames that follow each other on a line are often alike, for
instance since the lamp warms up, or since parts come in lots. The correlation of neighbouring values is therefore
measured on the first frames, and the spacing is doubled until it is small. A dependence over longer times than the
largest spacing stays, and so does a slow wander: the bound does not hold for these, and the smallest shift that raises
an alarm is what protects from them.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.station.watch.ranks import ranks_of

LARGEST_SPACING: Final = 64
"""The largest factor by which the spacing grows."""

_CORRELATION: Final = 0.15
_STANDARD_ERRORS: Final = 3.0  # with 13 quantities, chance exceeds them in one case of 50


def autocorrelation(values: NDArray[np.float64]) -> float:
    """Return the rank correlation of neighbouring values, 0 where all are equal.

    Args:
        values: ``(n,)``. Values that are NaN are left out.
    """
    values = values[np.isfinite(values)]
    if len(values) < 3:
        return 0.0
    # Ranks are used since a few outliers would otherwise hide the correlation of the others.
    ranks = ranks_of(values)
    ranks = ranks - ranks.mean()
    square = float((ranks**2).sum())
    return float((ranks[1:] * ranks[:-1]).sum()) / square if square else 0.0


def largest_autocorrelation(rows: NDArray[np.float64]) -> float:
    """Return the largest correlation of neighbouring values among the quantities of ``(n, Q)`` rows."""
    return max(autocorrelation(column) for column in rows.T)


def is_independent(rows: NDArray[np.float64]) -> bool:
    """Return True where no quantity of ``(n, Q)`` rows shows more correlation of neighbours than chance explains."""
    return largest_autocorrelation(rows) <= max(_CORRELATION, _STANDARD_ERRORS / math.sqrt(len(rows)))
