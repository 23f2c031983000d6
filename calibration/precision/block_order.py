"""Order blocks for reverting, and expect how many of them must be reverted.

A block alone moves several quantities of the gate: the map, the order of the scores, and the self-test. Each of these
errors is known in units of what the limit of its quantity bears. The errors of the blocks are taken for independent, so
their squares add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.agreement import rank_correlation

_TINY: Final = 1e-12  # A limit of 1 for a correlation bears nothing.
_DRAWS: Final = 32  # Draws of noise, whose rank correlations are averaged.
_HALVINGS: Final = 40
_FEWEST_SCORES: Final = 3  # The ranks of two scores tell nothing about noise, and a line explains both.
_LARGEST_NOISE: Final = 10.0  # In standard deviations of the scores. More noise leaves no correlation.


def order_of_reverting(shares: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the blocks in the order in which they are reverted.

    At each step the quantity decides that is furthest beyond its limit, and the block that moves it most is next.

    Args:
        shares: For each block its error in each quantity, as a share of what the limit bears. The last number of a
            block only decides between equal shares.
    """
    names = list(shares)
    if not names:
        return []
    table = np.array([shares[name] for name in names], np.float64)
    ties = table[:, -1]
    with np.errstate(over="ignore"):
        squares = np.square(table[:, :-1])
    order: list[str] = []
    left = np.arange(len(names))
    while left.size:
        furthest = squares[left].sum(0).argmax()
        next_one = max(left, key=lambda n: (squares[n, furthest], ties[n]))
        order.append(names[next_one])
        left = left[left != next_one]
    return order


def expected_reversions(shares: Sequence[Sequence[float]]) -> int:
    """Return how many blocks must be reverted until every quantity is expected to be within its limit.

    Args:
        shares: The errors of the blocks as shares of what the limits bear, in the order of reverting.
    """
    with np.errstate(over="ignore"):
        squares = np.square(np.array(shares, np.float64))
    left = (n for n in range(len(squares)) if squares[n:].sum(0).max() <= 1)
    return next(left, len(squares))


def share_of(error: float, bearable: float) -> float:
    """Return an error in units of what a limit bears. The value is 0 where the limit bears any error."""
    return 0.0 if math.isinf(bearable) else error / max(bearable, _TINY)


def bearable_score_noise(scores: Sequence[float], rank_agreement: float) -> float:
    """Return the standard deviation of independent errors of the scores with which their ranks agree just enough.

    Args:
        scores: The scores of all frames.
        rank_agreement: The smallest rank correlation of scores with and without the errors.

    Returns:
        The standard deviation in the unit of the scores, or infinity where the scores or the limit demand nothing.
    """
    values = np.asarray(scores, np.float64)
    spread = float(values.std()) if values.size else 0.0
    if values.size < _FEWEST_SCORES or spread == 0 or rank_agreement <= 0:
        return float("inf")
    noise = np.random.default_rng(0).standard_normal((_DRAWS, values.size))
    low, high = 0.0, _LARGEST_NOISE * spread
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = np.mean([rank_correlation(values, values + middle * one) for one in noise])
        low, high = (middle, high) if expected >= rank_agreement else (low, middle)
    return low


def score_noise(fp32: NDArray[np.float64], changed: NDArray[np.float64]) -> float:
    """Return the standard deviation of the changes of scores that no line explains.

    A line leaves all ranks as they are, so only the rest can move them.

    Args:
        fp32: The fp32 scores of some frames, ``(n,)``.
        changed: The scores of the same frames in a lower precision.

    Returns:
        The standard deviation in the unit of the scores. The value is 0 for fewer than three frames, and infinite where
        a score is not finite.
    """
    if fp32.size < _FEWEST_SCORES:
        return 0.0
    if not np.isfinite(changed).all():
        return float("inf")
    around, change = fp32 - fp32.mean(), changed - fp32
    change = change - change.mean()
    squares = float(around @ around)
    slope = float(change @ around) / squares if squares > 0 else 0.0
    return float(np.sqrt(np.square(change - slope * around).sum() / (fp32.size - 2)))
