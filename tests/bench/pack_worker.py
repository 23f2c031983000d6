"""Measure one process that inspects many products, with their bundles or with their pack, and print JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import flowedge

SECONDS = 2.0
THREADS = 1  # more threads also wait actively, which the time of the processor would count


def pss_mb() -> float:
    """Return the memory of this process in MB, with its share of what other processes map too."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def seconds_of(work: Callable[[int], object]) -> float:
    """Call some work again and again for a while, and return the lower quartile of the processor's time.

    This time does not count while other programs compute.
    """
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(taken) < 5:
        start = time.process_time()
        work(len(taken))
        taken.append(time.process_time() - start)
    return float(np.quantile(taken, 0.25))


def load(path: str) -> Any:
    return flowedge.load(path, engine="onnxruntime-cpu", threads=THREADS)


def main(form: str, *paths: str) -> dict[str, float]:
    """Measure bundles (``bundles A B ...``) or a pack (``pack PACK``)."""
    frame = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    before, start = pss_mb(), time.process_time()
    if form == "bundles":
        loaded = {path: load(path) for path in paths}
        names = list(loaded)
        loading = time.process_time() - start

        def inspect(name: str) -> Any:
            return loaded[name](frame)

        def inspect_all(names: list[str]) -> Any:
            return [loaded[name](frame) for name in names]

    else:
        line = load(paths[0])
        names = list(line.products)
        loading = time.process_time() - start

        def inspect(name: str) -> Any:
            return line(frame, product=name)

        def inspect_all(names: list[str]) -> Any:
            return line.detect_products(frame, names)

    for name in names:
        inspect(name)
    found = {"memory_mb": pss_mb() - before, "load_s": loading}
    found["same_ms"] = 1000 * seconds_of(lambda _: inspect(names[0]))
    found["alternate_ms"] = 1000 * seconds_of(lambda turn: inspect(names[turn % len(names)]))
    found["eight_ms"] = 1000 * seconds_of(lambda _: inspect_all(names[:8]))
    if form == "bundles":
        # The other way to change the product: one bundle in memory at a time.
        def change(turn: int) -> None:
            with load(names[turn % len(names)]) as detector:
                detector(frame)

        found["reload_ms"] = 1000 * seconds_of(change)
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
