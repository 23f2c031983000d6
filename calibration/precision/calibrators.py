"""Choose the range of values that eight bits express for a tensor, from the values that the tensor took on images.

Each method chooses a limit of the magnitude. Values beyond the limit are clipped. A wide range clips nothing and rounds
coarsely. A narrow range clips the outliers and rounds finely. ``steps`` is the number of steps from zero to the limit:
127 for signed numbers, 255 where no number is negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.precision.ranges import TensorRange

CalibratorName: TypeAlias = Literal["min-max", "percentile", "entropy", "mse"]
AUTO: Final = "auto"
"""The word for a method that the planning chooses by the answers of the graph."""
PERCENTILE: Final = 99.99
_LINEAR_BINS: Final = 2048
_ENTROPY_STEP: Final = 16
_MSE_CANDIDATES: Final = 0.97 ** np.arange(100)  # Shares of the largest magnitude, from 1 to a twentieth.


def magnitude_limit(
    values: TensorRange, calibrator: CalibratorName, *, steps: int, percentile: float = PERCENTILE
) -> float:
    """Return the magnitude to clip at, in the tensor's units.

    Args:
        values: The values that the tensor took.
        calibrator: The method. ``min-max`` takes the largest magnitude. ``percentile`` takes the limit within which
            this share of all values lies. ``mse`` takes the limit with the smallest mean squared error of clipping and
            rounding together. ``entropy`` takes the limit with the smallest Kullback-Leibler divergence of the
            rounded histogram from the true one (Migacz, GTC 2017).
        steps: The number of steps from zero to the limit.
        percentile: The share for ``percentile``, in percent.

    Returns:
        The limit, or 0 for a tensor that is always zero.
    """
    # A symmetric range clips both signs alike, so a value and its negative count as one magnitude.
    numbers, counts = values.histogram()
    magnitudes, order = np.unique(np.abs(numbers), return_inverse=True)
    weights: NDArray[np.float64] = np.bincount(order, weights=counts.astype(np.float64)).astype(np.float64)
    largest = values.largest_magnitude
    if largest == 0.0:
        return 0.0
    return min(largest, _METHODS[calibrator](magnitudes, weights, largest, steps, percentile))


def _min_max(m: NDArray[np.float64], w: NDArray[np.float64], largest: float, steps: int, p: float) -> float:
    return largest


def _percentile(
    m: NDArray[np.float64], w: NDArray[np.float64], largest: float, steps: int, p: float
) -> float:
    cumulative = np.cumsum(w)
    index = int(np.searchsorted(cumulative, cumulative[-1] * p / 100))
    limit = float(m[min(index, m.size - 1)])
    return limit if limit > 0 else largest


def _mse(m: NDArray[np.float64], w: NDArray[np.float64], largest: float, steps: int, p: float) -> float:
    limits = largest * _MSE_CANDIDATES
    step = (limits / steps)[:, None]
    rounded = np.minimum(np.rint(m[None] / step), steps) * step
    return float(limits[int((np.square(rounded - m) @ w).argmin())])


def _entropy(m: NDArray[np.float64], w: NDArray[np.float64], largest: float, steps: int, p: float) -> float:
    bins = np.minimum((m / largest * _LINEAR_BINS).astype(np.int64), _LINEAR_BINS - 1)
    counts: NDArray[np.float64] = np.bincount(bins, weights=w, minlength=_LINEAR_BINS).astype(np.float64)
    counts[0] = 0.0  # Every range expresses zero exactly.
    if not counts.any():
        return largest
    ends = range(_LINEAR_BINS, steps, -_ENTROPY_STEP)  # The first candidate is the whole range.
    divergences = [_divergence(counts, end, steps + 1) for end in ends]
    return ends[int(np.argmin(divergences))] / _LINEAR_BINS * largest


def _divergence(counts: NDArray[np.float64], end: int, steps: int) -> float:
    """Return the Kullback-Leibler divergence of a histogram, cut at a bin, from its own form in fewer steps.

    Args:
        counts: The histogram ``(n,)``.
        end: The number of bins that are kept. Values beyond them count in the last one, where they are clipped to.
        steps: The number of different values that the quantised tensor can have.
    """
    true = counts[:end].copy()
    true[-1] += counts[end:].sum()
    # Each step spreads its count evenly over those of its bins that are not empty.
    groups = np.arange(end) * steps // end
    filled = counts[:end] > 0
    sums = np.bincount(groups, weights=counts[:end], minlength=steps)
    members = np.bincount(groups, weights=filled, minlength=steps)
    share = np.divide(sums, members, out=np.zeros(steps), where=members > 0)
    rounded = np.where(filled, share[groups], 0.0)
    if not rounded.any():
        return np.inf
    p, q = true / true.sum(), rounded / rounded.sum()
    both = (p > 0) & (q > 0)
    # Values that fall in no step get the probability 1e-6, so that the divergence stays finite.
    lost = p[(p > 0) & (q == 0)]
    return float((p[both] * np.log(p[both] / q[both])).sum() + (lost * np.log(lost / 1e-6)).sum())


_METHODS: Final[
    Mapping[str, Callable[[NDArray[np.float64], NDArray[np.float64], float, int, float], float]]
] = MappingProxyType({"min-max": _min_max, "percentile": _percentile, "mse": _mse, "entropy": _entropy})
CALIBRATORS: Final = tuple(_METHODS)
