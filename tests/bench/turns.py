"""Time several ONNX graphs in turns, each in its own process, so that other work slows all alike."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.time_onnx import THREADS

_TIMER: Final = Path(__file__).resolve().parent / "time_onnx.py"


def times_in_turns(feeds: dict[Path, Path], rounds: int) -> dict[Path, list[float]]:
    """Return the milliseconds of each turn, by graph.

    Args:
        feeds: Graph to ``.npy`` file with its input.
        rounds: The number of turns of each graph.
    """
    workers = {
        graph: subprocess.Popen(
            [sys.executable, str(_TIMER), str(graph), str(feed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for graph, feed in feeds.items()
    }
    try:
        for worker in workers.values():
            _answer_of(worker)
        taken: dict[Path, list[float]] = {graph: [] for graph in workers}
        for _ in range(rounds):
            for graph, worker in workers.items():
                assert worker.stdin is not None
                worker.stdin.write("turn\n")
                worker.stdin.flush()
                taken[graph].append(_answer_of(worker)["ms"])
        return taken
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()


def _answer_of(worker: subprocess.Popen[str]) -> dict[str, float]:
    assert worker.stdout is not None
    answer: dict[str, float] = json.loads(worker.stdout.readline())
    return answer


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Return how many times faster one graph is, as the median of the turns' ratios."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def peak_gflops() -> float:
    """Return the machine's float32 matrix peak in 10^9 operations a second, the best of three processes."""
    command = [sys.executable, str(_TIMER), "--peak"]
    as_many = {**os.environ, "OPENBLAS_NUM_THREADS": str(THREADS)}  # read once, when NumPy is imported
    runs = [
        subprocess.run(command, check=True, capture_output=True, text=True, env=as_many) for _ in range(3)
    ]
    return max(float(json.loads(run.stdout.splitlines()[-1])["gflops"]) for run in runs)


def processor() -> str:
    """Return the processor's name, as Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
