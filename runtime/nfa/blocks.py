"""The block form of U-Flow's unsupervised threshold: a binomial test in a window around each pixel.

Tailanian, Pardo and Musé, "U-Flow: A U-shaped Normalizing Flow for Anomaly Detection with Unsupervised
Threshold", JMIV 2024 (arXiv 2211.12353); its first version, and what anomalib computes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.nfa.levels import Compat, bicubic, check_levels


def window_sides(window: int, levels: int) -> tuple[int, ...]:
    """Side of the window on each level, fine to coarse, in pixels of that level; odd, at least 3.

    Args:
        window: Side on the finest level: 5 in the official implementation, 7 in anomalib.
        levels: How many levels.
    """
    return tuple(2 * max(window // 2**level // 2, 1) + 1 for level in range(levels))


def exceedance_threshold(probability: float) -> float:
    """The value that z squared stays below with the given probability: a chi-square quantile, 1 degree.

    Args:
        probability: In (0, 1): 0.9 in the official implementation, 0.5 in anomalib.
    """
    _check_probability(probability)
    return NormalDist().inv_cdf((1 + probability) / 2) ** 2


def exceedance_counts(z: NDArray[np.float32], side: int, probability: float) -> NDArray[np.int64]:
    """How many latents of each window are beyond the threshold; what the graph counts when it is asked to.

    Args:
        z: ``(C, h, w)`` float32 latent of one level.
        side: Side of the window in pixels, odd. The map is continued by reflection.
        probability: As for ``exceedance_threshold``.

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
    *,
    compat: Compat = "corrected",
) -> NDArray[np.float64]:
    """Log10 of the number of false alarms of each pixel, by a binomial test in its windows.

    Args:
        counts: Per level, ``(h, w)`` integers: exceedances in the window around the pixel, over all channels.
        channels: Per level, the number of channels of z.
        windows: Per level, the side of the window in pixels, odd; see ``window_sides``.
        probability: With which a latent stays below the threshold, in (0, 1).
        size: Height and width of the result in pixels.
        compat: With x the count per channel and n the window's pixels, ``"corrected"`` takes the chance of x
            or more, ``P(Bin(n, 1-p) >= x)``, which is never 0. ``"upstream"`` takes ``P(... > floor(x))``
            as SciPy does; the two differ only where x is a whole number, and where x = n upstream is -inf,
            which the bicubic resampling spreads over the neighbourhood as infinities and NaN.

    Returns:
        ``(H, W)`` float64, owned by the caller. Negative: detected. The official score is its negative;
        anomalib's ``compute_anomaly_mask`` marks the pixels that are not detected.

    Raises:
        ValueError: A shape, a channel count, a window, a size, the probability or ``compat`` is wrong, or a
            count is not an integer in ``[0, C * side**2]``.
    """
    check_levels(counts, channels, compat)
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
        tail = _binomial_log_tail(side**2, 1 - probability)
        # x or more is ceil(x) or more; more than floor(x) is floor(x) + 1 or more.
        count = count.astype(np.int64)
        at_least = -(-count // depth) if compat == "corrected" else count // depth + 1
        with np.errstate(invalid="ignore"):
            total += bicubic(tail[at_least], size)
    total += math.log10(sum(count.size for count in counts))
    return total


def _check_probability(probability: float) -> None:
    if not 0 < probability < 1:
        raise ValueError(f"probability must be between 0 and 1, both excluded, got {probability}")


@functools.cache
def _binomial_log_tail(n: int, chance: float) -> NDArray[np.float64]:
    """``log10 P(Bin(n, chance) >= k)`` for k = 0 … n + 1, ``(n + 2,)`` float64, read-only; the last is -inf."""
    log_pmf = np.array(
        [
            math.log(math.comb(n, k)) + k * math.log(chance) + (n - k) * math.log1p(-chance)
            for k in range(n + 1)
        ]
    )
    tail = np.append(np.logaddexp.accumulate(log_pmf[::-1])[::-1], -np.inf) / math.log(10)
    tail[0] = 0.0
    tail.flags.writeable = False
    return tail
