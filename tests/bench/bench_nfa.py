"""Compare the speed of the component-tree NFA with its direct implementation, in one run.

    PYTHONPATH=tests python tests/bench/bench_nfa.py        prints the table
    pytest -m bench tests/bench/bench_nfa.py                holds the limits

The slow side is ``support.direct_nfa``, which labels every level set and prunes and merges step by step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from flowedge.runtime.nfa import tree, tree_log_nfa, warm_up
from support.direct_nfa import direct_tree_log_nfa

SIDES = {"28²+14²": (28, 14), "64²+32²+16²": (64, 32, 16)}
CHANNELS = (84, 80, 128)
SIZE = (256, 256)
MAX_MS = 10.0
MIN_SPEED_UP = 50.0


def image(sides: Sequence[int]) -> list[NDArray[np.float32]]:
    """Make ``(side, side)`` energies of each level: chi-square noise, and one defect of three times the energy."""
    rng = np.random.default_rng(7)
    levels = []
    for side, depth in zip(sides, CHANNELS, strict=False):
        energy = rng.chisquare(depth, (side, side))
        energy[side // 4 : side // 2, side // 4 : side // 3 + 2] *= 3
        levels.append(energy.astype(np.float32))
    return levels


def adversarial(side: int) -> dict[str, NDArray[np.float32]]:
    """Make ``(side, side)`` energies for 84 channels whose trees are deep, wide or slow to merge."""
    raster = np.arange(side * side).reshape(side, side)
    snake = raster.copy()
    snake[1::2] = snake[1::2, ::-1]
    rows, columns = np.indices((side, side))
    maps = {
        "noise": np.random.default_rng(3).chisquare(84, (side, side)) / 84,
        "staircase": 1.01 + raster / raster.size,
        "snake": 1.01 + snake / raster.size,
        "comb": np.where(columns % 2 == 0, 3.0, 1.1) + raster / raster.size,
        "cone": 3 - np.hypot(rows - side / 2, columns - side / 2) / side,
        "checkerboard": 1.5 + (rows + columns) % 2,
        "constant": np.full((side, side), 2.0),
        "permutation": 1.01 + np.random.default_rng(5).permutation(raster.size).reshape(side, side) / 1000,
    }
    return {name: (84 * value).astype(np.float32) for name, value in maps.items()}


def median_ms(energies: list[NDArray[np.float32]], channels: Sequence[int], repeats: int) -> float:
    """Return the milliseconds of ``tree_log_nfa`` per image, after one call that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        tree_log_nfa(energies, channels, SIZE)
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[1:])


@contextmanager
def plain_python() -> Iterator[None]:
    """Run as if Numba were not installed."""
    with mock.patch.object(tree, "_compiled_select", return_value=None):
        yield


def against_direct(sides: Sequence[int]) -> tuple[float, float, float]:
    """Return the milliseconds per image of our code, of our code in plain Python, and of the direct code."""
    energies, channels = image(sides), CHANNELS[: len(sides)]
    warm_up()
    ours = median_ms(energies, channels, repeats=21)
    with plain_python():
        plain = median_ms(energies, channels, repeats=11)
    start = time.perf_counter()
    direct_tree_log_nfa(energies, channels, SIZE, upstream=False)
    return ours, plain, (time.perf_counter() - start) * 1000


@pytest.mark.bench
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES.keys())
def test_the_tree_keeps_its_promised_speed(sides: tuple[int, ...]) -> None:
    ours, _, direct = against_direct(sides)
    assert ours <= MAX_MS
    assert direct / ours >= MIN_SPEED_UP


def main() -> None:
    start = time.perf_counter()
    compiled = warm_up()
    how = f"Numba, compiled in {time.perf_counter() - start:.1f} s" if compiled else "plain Python, no Numba"
    print(f"ours: {how}; map of 256x256; milliseconds per image, medians (direct: one run)")
    print(f"{'levels':<14}{'ours':>8}{'plain':>8}{'direct':>10}{'direct/ours':>13}{'direct/plain':>14}")
    for name, sides in SIDES.items():
        ours, plain, direct = against_direct(sides)
        print(f"{name:<14}{ours:8.2f}{plain:8.2f}{direct:10.0f}{direct / ours:12.0f}x{direct / plain:13.0f}x")
    print("\none level of 128x128 (C = 84)")
    for name, energy in adversarial(128).items():
        ours = median_ms([energy], [84], repeats=11)
        with plain_python():
            plain = median_ms([energy], [84], repeats=3)
        print(f"{name:<14}{ours:8.2f}{plain:8.2f}")


if __name__ == "__main__":
    main()
