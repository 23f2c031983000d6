"""The component-tree form of U-Flow's unsupervised threshold.

Tailanian, Pardo and Musé, "U-Flow: A U-shaped Normalizing Flow for Anomaly Detection with Unsupervised
Threshold", JMIV 2024 (arXiv 2211.12353): every connected region of every upper level set is a candidate, its
energy is tested against a chi-square law, and the tree of the candidates is pruned to the ones that say most.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.packages import pip_install
from flowedge.runtime.nfa.levels import Compat, bilinear, check_levels

logger = logging.getLogger(__name__)

# The number of 4-connected regions of r pixels is about A * B**r / r (counts of polyominoes).
_POLYOMINOES_A: Final = 0.316915
_POLYOMINOES_B: Final = 4.062570


def number_of_tests(sizes: Sequence[tuple[int, int]]) -> float:
    """Log10 of the number of candidate regions over all levels.

    ``N = sum_l n_l sum_{r=1..n_l} A B^r / r`` with ``n_l`` the pixels of level l; N itself overflows float64
    from a level of 23x23 on, so the sum is taken over logarithms.

    Args:
        sizes: Per level, height and width in pixels.
    """
    return float(np.logaddexp.reduce([_log_tests(height * width) for height, width in sizes])) / math.log(10)


def tree_log_nfa(
    energies: Sequence[NDArray[np.float32]],
    channels: Sequence[int],
    size: tuple[int, int],
    *,
    compat: Compat = "corrected",
) -> NDArray[np.float64]:
    """Log10 of the number of false alarms of each pixel, by the component tree.

    Args:
        energies: Per level, ``(h, w)`` float32 sum of z squared over the channels; a graph's ``level_*`` (the
            channel mean) times the channels.
        channels: Per level, the number of channels of z.
        size: Height and width of the result in pixels.
        compat: ``"corrected"`` takes a region as evidence only when its energy is above the expectation of
            one per channel. ``"upstream"`` does as the official implementation: regions of too little
            energy count as well, and of two regions with exactly equal values one is lost (the one whose
            first pixel comes first in raster order).

    Returns:
        ``(H, W)`` float64, owned by the caller. Negative: less than one such region is expected by chance
        in an image, so the pixel is detected. The official score is its negative.

    Raises:
        ValueError: A shape, a channel count, a size or ``compat`` is wrong, or an energy is negative.
        NotInspectedError: An energy is NaN or infinite.
    """
    check_levels(energies, channels, compat)
    result = np.zeros(size)
    for energy, depth in zip(energies, channels, strict=True):
        # In place, level by level: fresh maps cost more than the arithmetic on them. No tail is above 0.
        np.minimum(result, bilinear(level_log_tail(energy, depth, compat), size), out=result)
    result += number_of_tests([(energy.shape[0], energy.shape[1]) for energy in energies])
    return result


def level_log_tail(energy: NDArray[np.float32], channels: int, compat: Compat) -> NDArray[np.float64]:
    """Log10 of the chance of each pixel's region on one level, before it is multiplied by the tests.

    A region of n pixels whose least energy per channel is x has ``-n C/2 (x - 1 - ln x) / ln 10``, Chernoff's
    bound on the upper tail of a chi-square law of C degrees of freedom, to the power of n.

    Returns:
        ``(h, w)`` float64, at most 0; 0 where the pixel is in no selected region.
    """
    per_channel = np.pad(energy.astype(np.float32) / np.float32(channels), 1)
    value = per_channel.ravel()
    inside = np.pad(np.ones(energy.shape, bool), 1).ravel()
    # Below the expectation the upper tail is no evidence: its bound is 1. Such a region can neither improve
    # a chain nor absorb its children, so the tree need not be grown that far down.
    candidates = np.flatnonzero(inside & (value > 1) if compat == "corrected" else inside)
    order = candidates[np.argsort(-value[candidates], kind="stable")]
    x = value.astype(np.float64)
    with np.errstate(divide="ignore"):
        log_tail = -(channels / 2) * (x - 1 - np.log(x)) / math.log(10)

    region, tail = _selected(order, value, log_tail, per_channel.shape[1])
    if compat == "upstream":
        _lose_equals(region, tail)
    chosen = np.where(region >= 0, tail[region], 0.0)
    return chosen.reshape(per_channel.shape)[1:-1, 1:-1]


def warm_up() -> bool:
    """Compile the tree now instead of at the first image; about a second, once per process.

    Returns:
        Whether Numba is there. Without it the same code runs as plain Python and gives the same answers.
    """
    return _compiled_select() is not None


@functools.cache
def _log_tests(pixels: int) -> float:
    """Natural logarithm of the number of regions on a level."""
    area = np.arange(1, pixels + 1)
    logs = math.log(_POLYOMINOES_A * pixels) + area * math.log(_POLYOMINOES_B) - np.log(area)
    return float(np.logaddexp.reduce(logs))


def _selected(
    order: NDArray[np.intp], value: NDArray[np.float32], log_tail: NDArray[np.float64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Per pixel the region it is in (named by one of its pixels, or -1), and the regions' log tails."""
    n = value.size
    region, best = np.full(n, -1, np.int64), np.full(n, np.inf)
    parent, root = np.arange(n, dtype=np.int64), np.full(n, -1, np.int64)
    area, children, split = np.ones(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.bool_)
    arrays = order.astype(np.int64), value, log_tail, region, best, parent, root, area, children, split
    if (select := _compiled_select()) is not None:
        select(width, *arrays)
        return region, best
    # Plain Python walks lists several times as fast as arrays.
    lists = [array.tolist() for array in arrays]
    _select(width, *lists)
    return np.array(lists[3]), np.array(lists[4])


@functools.cache
def _compiled_select() -> Callable[..., None] | None:
    try:
        numba = importlib.import_module("numba")
    except ImportError as error:
        logger.info("the NFA tree runs as plain Python: %s. %s makes it faster.", error, pip_install("nfa"))
        return None
    # No cache=True: it writes next to this file, or where the user did not ask, and fails where it can do
    # neither. Compiling ahead, in warm_up, costs a second and never fails that way.
    compiled: Callable[..., None] = numba.njit(_SIGNATURE)(_select)
    return compiled


_SIGNATURE: Final = (
    "void(int64, int64[::1], float32[::1], float64[::1], int64[::1], float64[::1], "
    "int64[::1], int64[::1], int64[::1], int64[::1], boolean[::1])"
)


def _select(
    width: Any,
    order: Any,
    value: Any,
    log_tail: Any,
    region: Any,
    best: Any,
    parent: Any,
    root: Any,
    area: Any,
    children: Any,
    split: Any,
) -> None:
    """Grow the component tree of the upper level sets and select its regions; Numba's subset of Python.

    All sequences are flat over a map with a border of one pixel that ``order`` leaves out. ``order`` goes
    from the highest value to the lowest. ``region`` and ``best`` are the results.

    The tree is Najman and Couprie's union-find: a component is named by its pixel that came last, so pixels
    of one value that hang together form a chain of which the last stands for the node. Path halving bounds
    the whole by O(n log n), whatever the map.
    """
    for p in order:
        root[p] = p
        for q in (p - width, p - 1, p + 1, p + width):
            r = root[q]
            if r >= 0:
                while root[r] != r:
                    root[r] = root[root[r]]
                    r = root[r]
                if r != p:
                    root[r] = p
                    parent[r] = p
                    area[p] += area[r]

    # Leaves to roots. While no branching below p was kept (not split), best[p] is the most telling region of
    # the only branch that is left, or the most telling child's. A node with one child takes its place only
    # when it says more; with several it absorbs them when it says as much, else they stay apart for good.
    # In one pass this is the fixed point of the paper's alternating pruning and merging.
    for p in order:
        q = parent[p]
        is_node = q == p or value[q] != value[p]
        if is_node and not split[p]:
            tail = area[p] * log_tail[p]
            if children[p] == 0 or tail < best[p] or (children[p] > 1 and tail == best[p]):
                best[p] = tail
                region[p] = p
            elif children[p] > 1:
                split[p] = True
        if q != p:
            children[q] += 1 if is_node else children[p]
            best[q] = min(best[q], best[p])
            split[q] = split[q] or split[p]

    # Roots to leaves: the topmost region wins.
    for p in order[::-1]:
        if region[parent[p]] >= 0:
            region[p] = region[parent[p]]


def _lose_equals(region: NDArray[np.int64], tail: NDArray[np.float64]) -> None:
    """Of regions with exactly equal tails keep the one that starts last in raster order, in place."""
    names, first_pixel = np.unique(region, return_index=True)
    last_first = names[np.argsort(-first_pixel)]
    last_first = last_first[last_first >= 0]
    _, kept = np.unique(tail[last_first], return_index=True)
    is_kept = np.zeros(region.size, np.bool_)
    is_kept[last_first[kept]] = True
    region[~is_kept[region]] = -1
