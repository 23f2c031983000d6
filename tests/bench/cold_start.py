"""Time the start of an engine: first with an empty device cache, then with what the first start left there.

    python tests/bench/cold_start.py BUNDLE [ENGINE ...]

Each start is a process of its own. The time is that of `flowedge.load`, after the imports of FlowEdge and of the
engine's library. The smallest of several starts counts, and the starts of all engines take turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from flowedge.runtime.device.machine import cpu_name

ROUNDS = 5
START = """
import importlib, sys, time
import flowedge
from flowedge.runtime.opening.engine import engine_module, engine_spec
engine_module(engine_spec(sys.argv[2]))
import flowedge.runtime.detector, flowedge.runtime.from_path
begun = time.perf_counter()
detector = flowedge.load(sys.argv[1], engine=sys.argv[2])
print(time.perf_counter() - begun)
"""


def seconds_of_start(bundle: str, engine: str, cache: Path) -> float:
    """Return the seconds of one start in a new process."""
    environment = os.environ | {"FLOWEDGE_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", START, bundle, engine]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    bundle, *engines = sys.argv[1:]
    engines = engines or ["onnxruntime-cpu", "openvino"]
    first: dict[str, list[float]] = {engine: [] for engine in engines}
    later: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(ROUNDS):
        for engine in engines:
            with tempfile.TemporaryDirectory() as folder:
                first[engine].append(seconds_of_start(bundle, engine, Path(folder)))
                later[engine].append(seconds_of_start(bundle, engine, Path(folder)))
    print(f"{cpu_name()}, the smallest of {ROUNDS} starts in turns, seconds\n")
    print("| engine | empty cache | next start |")
    print("|---|---|---|")
    for engine in engines:
        print(f"| {engine} | {min(first[engine]):.2f} | {min(later[engine]):.2f} |")


if __name__ == "__main__":
    main()
