"""From the values that a tensor took to the range that eight bits are spent on.

Each method chooses a limit on the magnitude; what lies beyond it is clipped. A wide range clips nothing and rounds
coarsely, a narrow one clips the outliers and rounds finely. ``levels`` is how many steps there are from zero to the
limit: 127 for signed numbers, 255 where none is negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.precision.ranges import TensorRange

CalibratorName: TypeAlias = Literal["min-max", "percentile", "entropy", "mse"]
PERCENTILE: Final = 99.99
_LINEAR_BINS: Final = 2048
_ENTROPY_STEP: Final = 16
_MSE_CANDIDATES: Final = 0.97 ** np.arange(100)  # down to a twentieth of the largest magnitude


def magnitude_limit(
    values: TensorRange, calibrator: CalibratorName, *, levels: int, percentile: float = PERCENTILE
) -> float:
    """The magnitude to clip at, in the tensor's units; 0 for a tensor that is always zero.

    Args:
        values: What the tensor took.
        calibrator: ``min-max``: the largest magnitude. ``percentile``: that share of all values is within.
            ``mse``: the smallest mean squared error of clipping and rounding together. ``entropy``: the smallest
            Kullback-Leibler divergence of the rounded histogram from the true one (Migacz, GTC 2017).
        levels: Steps from zero to the limit.
        percentile: In percent.
    """
    numbers, counts = values.histogram()
    magnitudes, order = np.unique(np.abs(numbers), return_inverse=True)
    weights: NDArray[np.float64] = np.bincount(order, weights=counts.astype(np.float64)).astype(np.float64)
    largest = values.largest_magnitude
    if largest == 0.0:
        return 0.0
    return min(largest, _METHODS[calibrator](magnitudes, weights, largest, levels, percentile))


def _min_max(m: NDArray[np.float64], w: NDArray[np.float64], largest: float, levels: int, p: float) -> float:
    return largest


def _percentile(
    m: NDArray[np.float64], w: NDArray[np.float64], largest: float, levels: int, p: float
) -> float:
    cumulative = np.cumsum(w)
    index = int(np.searchsorted(cumulative, cumulative[-1] * p / 100))
    limit = float(m[min(index, m.size - 1)])
    return limit if limit > 0 else largest


def _mse(m: NDArray[np.float64], w: NDArray[np.float64], largest: float, levels: int, p: float) -> float:
    limits = largest * _MSE_CANDIDATES
    steps = (limits / levels)[:, None]
    rounded = np.minimum(np.rint(m[None] / steps), levels) * steps
    return float(limits[int((np.square(rounded - m) @ w).argmin())])


def _entropy(m: NDArray[np.float64], w: NDArray[np.float64], largest: float, levels: int, p: float) -> float:
    bins = np.minimum((m / largest * _LINEAR_BINS).astype(np.int64), _LINEAR_BINS - 1)
    counts: NDArray[np.float64] = np.bincount(bins, weights=w, minlength=_LINEAR_BINS).astype(np.float64)
    counts[0] = 0.0  # zero is exact in every range
    if not counts.any():
        return largest
    ends = range(_LINEAR_BINS, levels, -_ENTROPY_STEP)  # the whole range is one of them
    divergences = [_divergence(counts, end, levels + 1) for end in ends]
    return ends[int(np.argmin(divergences))] / _LINEAR_BINS * largest


def _divergence(counts: NDArray[np.float64], end: int, levels: int) -> float:
    """Of the first ``end`` bins, with the rest clipped into the last, from the same in ``levels`` steps."""
    true = counts[:end].copy()
    true[-1] += counts[end:].sum()
    groups = np.arange(end) * levels // end
    filled = counts[:end] > 0
    sums = np.bincount(groups, weights=counts[:end], minlength=levels)
    members = np.bincount(groups, weights=filled, minlength=levels)
    share = np.divide(sums, members, out=np.zeros(levels), where=members > 0)
    rounded = np.where(filled, share[groups], 0.0)
    if not rounded.any():
        return np.inf
    p, q = true / true.sum(), rounded / rounded.sum()
    both = (p > 0) & (q > 0)
    # What the steps cannot express at all weighs as much as if it were one part in a million.
    lost = p[(p > 0) & (q == 0)]
    return float((p[both] * np.log(p[both] / q[both])).sum() + (lost * np.log(lost / 1e-6)).sum())


_METHODS: Final[
    Mapping[str, Callable[[NDArray[np.float64], NDArray[np.float64], float, int, float], float]]
] = MappingProxyType({"min-max": _min_max, "percentile": _percentile, "mse": _mse, "entropy": _entropy})
CALIBRATORS: Final = tuple(_METHODS)
