"""Compute the component-tree form of U-Flow's unsupervised threshold.

Source: Tailanian, Pardo and Musé, "U-Flow: A U-shaped Normalizing Flow for Anomaly Detection with Unsupervised
Threshold", JMIV 2024 (arXiv 2211.12353). Every connected region of every upper level set is a candidate. The energy of
each candidate is tested against a chi-square law, and the tree of the candidates is pruned to the most significant
ones.

This module departs from the official implementation in two places. A region counts as evidence only when its energy is
above the expectation of one per channel. Two regions with exactly equal tails both stay. The official implementation
loses one of them, the one with the first pixel in raster order.
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
from flowedge.runtime.nfa.levels import bilinear, check_levels

logger = logging.getLogger(__name__)

# The number of 4-connected regions of r pixels is about A * B**r / r (counts of polyominoes).
_POLYOMINOES_A: Final = 0.316915
_POLYOMINOES_B: Final = 4.062570


def number_of_tests(sizes: Sequence[tuple[int, int]]) -> float:
    """Return log10 of the number of candidate regions over all levels.

    The number is ``N = sum_l n_l sum_{r=1..n_l} A B^r / r`` with ``n_l`` as the pixels of level l. N itself overflows
    float64 from a level of 23x23 on, so the sum is taken over logarithms.

    Args:
        sizes: Per level, the height and width in pixels.

    Examples:
        >>> round(number_of_tests([(28, 28), (14, 14)]), 4)
        476.9237
    """
    return float(np.logaddexp.reduce([_log_tests(height * width) for height, width in sizes])) / math.log(10)


def tree_log_nfa(
    energies: Sequence[NDArray[np.float32]],
    channels: Sequence[int],
    size: tuple[int, int],
) -> NDArray[np.float64]:
    """Return log10 of the number of false alarms of each pixel, by the component tree.

    Args:
        energies: Per level, the ``(h, w)`` float32 sum of z squared over the channels. The sum is a graph's ``level_*``
            (the channel mean) times the channels.
        channels: Per level, the number of channels of z.
        size: The height and width of the result in pixels.

    Returns:
        ``(H, W)`` float64, owned by the caller. A negative value marks a detected pixel, because chance alone gives
        less than one such region in an image. The official score is the negative of this map.

    Raises:
        ValueError: A shape, a channel count or a size is wrong, or an energy is negative.
        NotInspectedError: An energy is NaN or infinite.
    """
    check_levels(energies, channels)
    result = np.zeros(size)
    for energy, depth in zip(energies, channels, strict=True):
        # A pixel takes its most significant level. No tail is above 0, so the map may begin with 0. It is updated in
        # place, because a fresh map costs more than the arithmetic on it.
        np.minimum(result, bilinear(level_log_tail(energy, depth), size), out=result)
    result += number_of_tests([(energy.shape[0], energy.shape[1]) for energy in energies])
    return result


def level_log_tail(energy: NDArray[np.float32], channels: int) -> NDArray[np.float64]:
    """Return log10 of the probability that chance alone gives the region of each pixel, for one level.

    A region of n pixels, with x as its smallest energy per channel and C channels, has the value
    ``-n C/2 (x - 1 - ln x) / ln 10``. The formula is Chernoff's bound on the upper tail of a chi-square law of C
    degrees of freedom, to the power of n. The number of tests is not part of it.

    Returns:
        ``(h, w)`` float64, at most 0. The value is 0 where the pixel is in no selected region.
    """
    # The tree looks at four neighbours without a test for the border, so the map gets a border that is no candidate.
    per_channel = np.pad(energy.astype(np.float32) / np.float32(channels), 1)
    value = per_channel.ravel()
    # At or below the expectation the upper tail is no evidence, because its bound is 1. Such a region can neither
    # improve a chain nor absorb its children, so the tree does not grow that far down.
    candidates = np.flatnonzero(value > 1)
    # The stable sort keeps pixels of one value in raster order, with Numba and without.
    order = candidates[np.argsort(-value[candidates], kind="stable")]
    region, tail = _selected(order, value, _log_tail(value, channels), per_channel.shape[1])
    chosen = np.where(region >= 0, tail[region], 0.0)
    return chosen.reshape(per_channel.shape)[1:-1, 1:-1]


def warm_up() -> bool:
    """Compile the code of the component tree now, and not at the first image.

    The compilation takes about a second, once per process.

    Returns:
        True where Numba is installed. Without Numba the same code runs as plain Python and gives the same answers.
    """
    return _compiled_select() is not None


def _log_tail(value: NDArray[np.float32], channels: int) -> NDArray[np.float64]:
    """Return log10 of the probability that one pixel's energy per channel is ``value`` or more, elementwise."""
    x = value.astype(np.float64)
    with np.errstate(divide="ignore"):  # The border has no energy.
        return -(channels / 2) * (x - 1 - np.log(x)) / math.log(10)


@functools.cache
def _log_tests(pixels: int) -> float:
    """Return the natural logarithm of the number of candidate regions on a level."""
    area = np.arange(1, pixels + 1)
    logs = math.log(_POLYOMINOES_A * pixels) + area * math.log(_POLYOMINOES_B) - np.log(area)
    return float(np.logaddexp.reduce(logs))


def _selected(
    order: NDArray[np.intp], value: NDArray[np.float32], log_tail: NDArray[np.float64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Select the most significant regions of a level, by compiled code where Numba is installed.

    Returns:
        Two arrays with a value per pixel of the padded map. The first array has the region that holds the pixel, named
        by one of the region's pixels, or -1. The second array has the log tail of the region that the pixel names.
    """
    n = value.size
    region, best = np.full(n, -1, np.int64), np.full(n, np.inf)
    parent, root = np.arange(n, dtype=np.int64), np.full(n, -1, np.int64)
    area, children, split = np.ones(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.bool_)
    arrays = order.astype(np.int64), value, log_tail, region, best, parent, root, area, children, split
    if (select := _compiled_select()) is not None:
        select(width, *arrays)
        return region, best
    # Plain Python walks lists several times as fast as arrays. The lists are new, so the results are read from them.
    lists = [array.tolist() for array in arrays]
    _select(width, *lists)
    return np.array(lists[3]), np.array(lists[4])


@functools.cache
def _compiled_select() -> Callable[..., None] | None:
    """Compile the selection of regions, and return None where Numba is not installed."""
    try:
        numba = importlib.import_module("numba")
    except ImportError as error:
        logger.info("the NFA tree runs as plain Python: %s. %s makes it faster.", error, pip_install("nfa"))
        return None
    # Numba's cache=True writes next to this file or elsewhere unasked, and fails where it can do neither. Compiling
    # ahead, in warm_up, costs a second and never fails that way.
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
    """Build the tree of a level's connected upper level sets and select its most significant regions.

    The code keeps to the part of Python that Numba compiles. All sequences are flat over a map with a border of one
    pixel. ``order`` lists the pixels inside of the border, from the highest value to the lowest. ``region`` and
    ``best`` are the results.

    The tree is Najman and Couprie's union-find. A component is named by its pixel that came last, so connected pixels
    of one value form a chain, and the last pixel of the chain stands for the node. Path halving bounds
    the whole by O(n log n), whatever the map.
    """
    # First pass: add the pixels from the highest value down. Each pixel becomes the parent and the root of the
    # components that it touches.
    for p in order:
        root[p] = p
        for q in (p - width, p - 1, p + 1, p + width):
            r = root[q]
            if r >= 0:  # The neighbour was added before.
                # Path halving: every second pixel on the way to the root is moved closer to the root.
                while root[r] != r:
                    root[r] = root[root[r]]
                    r = root[r]
                if r != p:
                    root[r] = p
                    parent[r] = p
                    area[p] += area[r]

    # Second pass, from the leaves to the roots: decide whether a node replaces the regions below it. ``best`` is the
    # lowest tail that is selected below the node, and ``split`` says that a branching below it was kept.
    #   1. A node without children is selected.
    #   2. A node with one child replaces the child's region when its tail is lower than ``best``. On a tie the child's
    #      region stays, because it is the smaller one.
    #   3. A node with several children replaces their regions when its tail is lower than or equal to ``best``.
    #      Otherwise the children stay apart, and no node above may join them (``split``).
    # One pass reaches the fixed point of the paper's alternating pruning and merging.
    for p in order:
        q = parent[p]
        # A pixel whose parent has the same value is only a link in the chain of its node.
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

    # Third pass, from the roots to the leaves: a pixel takes the topmost selected region above it.
    for p in order[::-1]:
        if region[parent[p]] >= 0:
            region[p] = region[parent[p]]
