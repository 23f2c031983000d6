"""Compute the number of false alarms of U-Flow step by step, for comparison with the fast implementation.

The tree is labelled anew at every grey level and then pruned and merged literally, in turns, until nothing
changes. Nothing is shared with ``flowedge.runtime.nfa``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

FOUR_CONNECTED = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])


@dataclass(eq=False)
class Node:
    """One connected component of one upper level set, as a node of the tree."""

    pixels: NDArray[np.intp]
    level: float
    log_tail: float
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)


def direct_log_tail(energy: NDArray[np.float32], channels: int, *, upstream: bool) -> NDArray[np.float64]:
    """Return log10 of the tail of each pixel's region, ``(h, w)`` float64, 0 outside of the selected regions."""
    nodes = component_tree(energy / np.float32(channels), channels, guard=not upstream)
    root = nodes[-1]
    while True:
        root = prune(root)
        if not merge(root):
            break
    root = prune(root)

    leaves = sorted((node for node in reachable(root) if not node.children), key=lambda n: n.pixels[0])
    if upstream:
        leaves = list({leaf.log_tail: leaf for leaf in leaves}.values())
    result = np.zeros(energy.size)
    for leaf in leaves:
        result[leaf.pixels] = leaf.log_tail
    return result.reshape(energy.shape)


def component_tree(value: NDArray[np.float32], channels: int, *, guard: bool) -> list[Node]:
    """Return every distinct component of every upper level set, highest level first, so that the root is the last."""
    nodes: list[Node] = []
    flat = value.ravel()
    top = np.full(flat.size, -1)
    for level in np.unique(flat)[::-1]:
        labels = ndimage.label(value >= level, FOUR_CONNECTED)[0].ravel()
        for label in np.unique(labels[flat == level]):
            pixels = np.flatnonzero(labels == label)
            node = Node(pixels, float(level), log_tail(pixels.size, float(level), channels, guard=guard))
            node.children = [nodes[child] for child in np.unique(top[pixels]) if child >= 0]
            for child in node.children:
                child.parent = node
            top[pixels] = len(nodes)
            nodes.append(node)
    return nodes


def log_tail(area: int, x: float, channels: int, *, guard: bool) -> float:
    if guard and x <= 1:
        return 0.0
    if x == 0:
        return -math.inf
    return -area * (channels / 2) * (x - 1 - math.log(x)) / math.log(10)


def reachable(root: Node) -> list[Node]:
    found, waiting = [], [root]
    while waiting:
        node = waiting.pop()
        found.append(node)
        waiting += node.children
    return found


def prune(root: Node) -> Node:
    """Keep one node of each chain from a leaf up to the node before a branching, and return the root."""
    for leaf in [node for node in reachable(root) if not node.children]:
        chain = [leaf]
        while (above := chain[-1].parent) is not None and len(above.children) == 1:
            chain.append(above)
        kept = min(chain, key=lambda node: node.log_tail)
        kept.parent, kept.children = above, []
        if above is None:
            root = kept
        else:
            above.children[above.children.index(chain[-1])] = kept
    return root


def merge(root: Node) -> bool:
    """Delete children that are no more significant than their parent, and return True where there was one."""
    changed = False
    for node in sorted((n for n in reachable(root) if len(n.children) > 1), key=lambda n: n.level):
        if any(child.children for child in node.children):
            continue
        if node.log_tail <= min(child.log_tail for child in node.children):
            node.children = []
            changed = True
    return changed


def direct_tree_log_nfa(
    energies: Sequence[NDArray[np.float32]], channels: Sequence[int], size: tuple[int, int], *, upstream: bool
) -> NDArray[np.float64]:
    """Return log10 of the number of false alarms of each pixel, ``(H, W)`` float64."""
    maps = [
        interpolate(direct_log_tail(energy, depth, upstream=upstream), size)
        for energy, depth in zip(energies, channels, strict=True)
    ]
    logs = [
        math.log10(0.316915 * energy.size) + r * math.log10(4.062570) - math.log10(r)
        for energy in energies
        for r in range(1, energy.size + 1)
    ]
    highest = max(logs)
    log_tests = highest + math.log10(sum(10 ** (log - highest) for log in logs))
    log_nfa: NDArray[np.float64] = np.min(maps, axis=0) + log_tests
    return log_nfa


def interpolate(level: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Interpolate bilinearly with half-pixel centres, ``(H, W)`` float64."""
    rows, columns = (
        np.clip((np.arange(to) + 0.5) * of / to - 0.5, 0, of - 1)
        for of, to in zip(level.shape, size, strict=True)
    )
    grid = np.meshgrid(rows, columns, indexing="ij")
    resampled: NDArray[np.float64] = ndimage.map_coordinates(level, grid, order=1, mode="nearest")
    return resampled


def direct_counts(z: NDArray[np.float32], side: int, threshold: float) -> NDArray[np.int64]:
    """Count the latents of each window whose square reaches the threshold, ``(h, w)``."""
    half = side // 2
    padded = np.pad(z, ((0, 0), (half, half), (half, half)), mode="reflect")
    counts = np.zeros(z.shape[1:], np.int64)
    for row, column in np.ndindex(counts.shape):
        counts[row, column] = np.sum(padded[:, row : row + side, column : column + side] ** 2 >= threshold)
    return counts
