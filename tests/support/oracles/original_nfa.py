"""Compute U-Flow's number of false alarms as the original implementations do, with their quirks.

The product corrects three quirks. The originals count regions of too little energy as evidence. The originals lose one
of two regions with exactly equal tails. The originals take the chance of more than ``floor(x)`` exceedances per
channel, which is 0 for a full window. Everything else is the product's own code, so a comparison with recorded answers
checks that code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.nfa import number_of_tests, tree, windows
from flowedge.runtime.nfa.levels import bicubic, bilinear


def original_tree_log_nfa(
    energies: Sequence[NDArray[np.float32]], channels: Sequence[int], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the official ``(H, W)`` float64 map of log10 NFA by the component tree."""
    tails = [
        bilinear(original_level_log_tail(energy, depth), size)
        for energy, depth in zip(energies, channels, strict=True)
    ]
    lowest = np.minimum(0.0, np.min(tails, axis=0))
    return np.asarray(lowest + number_of_tests([(one.shape[0], one.shape[1]) for one in energies]))


def original_level_log_tail(energy: NDArray[np.float32], channels: int) -> NDArray[np.float64]:
    """Return the official ``(h, w)`` float64 log10 tail of each pixel's region on one level."""
    per_channel = np.pad(energy.astype(np.float32) / np.float32(channels), 1)
    value = per_channel.ravel()
    candidates = np.flatnonzero(np.pad(np.ones(energy.shape, np.bool_), 1))
    order = candidates[np.argsort(-value[candidates], kind="stable")]
    region, tail = tree._selected(order, value, tree._log_tail(value, channels), per_channel.shape[1])
    _lose_equals(region, tail)
    chosen = np.where(region >= 0, tail[region], 0.0)
    return chosen.reshape(per_channel.shape)[1:-1, 1:-1]


def _lose_equals(region: NDArray[np.int64], tail: NDArray[np.float64]) -> None:
    """Keep, in place, the last region in raster order of all regions with exactly equal tails."""
    names, first_pixel = np.unique(region, return_index=True)
    last_first = names[np.argsort(-first_pixel)]
    last_first = last_first[last_first >= 0]
    _, kept = np.unique(tail[last_first], return_index=True)
    is_kept = np.zeros(region.size, np.bool_)
    is_kept[last_first[kept]] = True
    region[~is_kept[region]] = -1


def original_block_log_nfa(
    counts: Sequence[NDArray[np.int64]],
    channels: Sequence[int],
    sides: Sequence[int],
    probability: float,
    size: tuple[int, int],
) -> NDArray[np.float64]:
    """Return the official ``(H, W)`` float64 map of log10 NFA by windows. A full window makes infinities and NaN."""
    total = np.full(size, math.log10(sum(count.size for count in counts)))
    for count, depth, side in zip(counts, channels, sides, strict=True):
        tail = np.append(windows._binomial_log_tail(side**2, 1 - probability), -np.inf)
        with np.errstate(invalid="ignore"):
            total += bicubic(tail[count // depth + 1], size)
    return total
