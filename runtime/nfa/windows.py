"""Compute the block form of U-Flow's unsupervised threshold, a binomial test in a window around each pixel.

Source: Tailanian, Pardo and Musé, "U-Flow: A U-shaped Normalizing Flow for Anomaly Detection with Unsupervised
Threshold", JMIV 2024 (arXiv 2211.12353). The paper's first version has this form, and anomalib computes it.

The originals take the chance of more than ``floor(x)`` exceedances, where x is the count per channel. This module takes
the chance of x or more. The two differ only where x is a whole number. In a full window, the originals' chance is 0,
and its logarithm spoils the whole neighbourhood with infinities and NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.nfa.levels import bicubic, check_levels


def window_sides(window: int, levels: int) -> tuple[int, ...]:
    """Return the side of the test's window on each level, fine to coarse, in pixels of that level, odd and at least 3.

    Args:
        window: The side on the finest level. The side is 5 in the official implementation and 7 in anomalib.
        levels: The number of levels.

    Examples:
        >>> window_sides(5, levels=3)
        (5, 3, 3)
    """
    return tuple(2 * max(window // 2**level // 2, 1) + 1 for level in range(levels))


def exceedance_threshold(probability: float) -> float:
    """Return the value that the square of a standard normal latent stays below with the given probability.

    The returned value is a quantile of the chi-square law of one degree of freedom.

    Args:
        probability: A probability in (0, 1), which is 0.9 in the official implementation and 0.5 in anomalib.

    Raises:
        ValueError: The probability is outside of (0, 1).

    Examples:
        >>> round(exceedance_threshold(0.9), 3)
        2.706
    """
    _check_probability(probability)
    return NormalDist().inv_cdf((1 + probability) / 2) ** 2


def exceedance_counts(z: NDArray[np.float32], side: int, probability: float) -> NDArray[np.int64]:
    """Count the latents whose square exceeds the threshold, in a window around each pixel.

    An exported graph computes the same counts in its outputs ``count_*``.

    Args:
        z: ``(C, h, w)`` float32 latent of one level.
        side: The odd side of the window in pixels. The map is continued by reflection.
        probability: The argument of `exceedance_threshold`.

    Returns:
        ``(h, w)`` int64, from 0 to ``C * side**2``, exact.

    Raises:
        ValueError: ``z`` is not 3-D, or the side is even or reaches beyond the reflected map.
    """
    half = side // 2
    if side % 2 != 1 or side < 1:
        raise ValueError(f"a window's side must be odd and positive, got {side}")
    if z.ndim != 3 or min(z.shape[1:]) <= half:
        raise ValueError(f"z must be (C, h, w) with h and w above {half} for a side of {side}, got {z.shape}")
    hits = np.count_nonzero(np.square(z) >= np.float32(exceedance_threshold(probability)), axis=0)
    # A cumulative sum over both axes gives every window's sum in two subtractions, whatever the side.
    sums = np.pad(np.pad(hits, half, mode="reflect").cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows = sums[side:] - sums[:-side]
    counts: NDArray[np.int64] = rows[:, side:] - rows[:, :-side]
    return counts


def block_log_nfa(
    counts: Sequence[NDArray[np.int64]],
    channels: Sequence[int],
    windows: Sequence[int],
    probability: float,
    size: tuple[int, int],
) -> NDArray[np.float64]:
    """Return log10 of the number of false alarms of each pixel, by a binomial test in windows around the pixel.

    With x as the count per channel and n as the window's pixels, the chance of a window is ``P(Bin(n, 1-p) >= x)``.

    Args:
        counts: Per level, ``(h, w)`` integers. Each is the number of exceedances in the window around the pixel, over
            all channels.
        channels: Per level, the number of channels of z.
        windows: Per level, the odd side of the window in pixels. `window_sides` gives them.
        probability: The probability in (0, 1) with which a latent stays below the threshold.
        size: The height and width of the result in pixels.

    Returns:
        ``(H, W)`` float64, owned by the caller. A negative value marks a detected pixel. The official score is the
        negative of this map, and anomalib's ``compute_anomaly_mask`` marks the pixels that are not detected.

    Raises:
        ValueError: A shape, a channel count, a window, a size or the probability is wrong, or a count is not an integer
            in ``[0, C * side**2]``.
    """
    check_levels(counts, channels)
    _check_probability(probability)
    if len(windows) != len(counts):
        raise ValueError(f"need one window per level, got {len(windows)} for {len(counts)} levels")
    total = np.zeros(size)
    for index, (count, depth, side) in enumerate(zip(counts, channels, windows, strict=True)):
        if not np.issubdtype(count.dtype, np.integer) or count.max() > depth * side**2:
            raise ValueError(
                f"counts of level {index} must be integers up to {depth} channels x {side}x{side} = "
                f"{depth * side**2}, got {count.dtype} up to {count.max()}"
            )
        # The negated floor division is ceil(x), because Bin >= x and Bin >= ceil(x) are one event. The cast comes
        # first, because the negative of an unsigned count would wrap.
        at_least = -(-count.astype(np.int64) // depth)
        total += bicubic(_binomial_log_tail(side**2, 1 - probability)[at_least], size)
    # The number of tests is the number of windows, one around each pixel of each level.
    total += math.log10(sum(count.size for count in counts))
    return total


def _check_probability(probability: float) -> None:
    if not 0 < probability < 1:
        raise ValueError(f"probability must be between 0 and 1, both excluded, got {probability}")


@functools.cache
def _binomial_log_tail(n: int, chance: float) -> NDArray[np.float64]:
    """Return ``log10 P(Bin(n, chance) >= k)`` for k = 0 … n as ``(n + 1,)`` float64, read-only."""
    log_pmf = np.array(
        [
            math.log(math.comb(n, k)) + k * math.log(chance) + (n - k) * math.log1p(-chance)
            for k in range(n + 1)
        ]
    )
    # The sums run from the smallest chance to the largest one and stay logarithms, so that no tail rounds to 0.
    tail = np.asarray(np.logaddexp.accumulate(log_pmf[::-1])[::-1] / math.log(10))
    tail[0] = 0.0
    tail.flags.writeable = False
    return tail
