"""Time one ONNX graph in this process, or the machine's float32 matrix peak: ``bench_cflow`` starts one per round.

python tests/bench/time_onnx.py GRAPH INPUT.npy        prints {"ms": ..., "runs": ...}
python tests/bench/time_onnx.py --peak                 prints {"gflops": ...}
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

THREADS = 2
WARM_UP = 5
MIN_RUNS = 15
MIN_SECONDS = 3.0
PEAK_SIDE = 2048


def session_of(graph: str) -> Any:
    """The graph on ONNX Runtime's CPU, set up alike for both sides: the way FlowEdge sets it up."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def seconds_of(work: Callable[[], object]) -> list[float]:
    """Wall-clock seconds of each run, after the warm-up."""
    for _ in range(WARM_UP):
        work()
    taken: list[float] = []
    while len(taken) < MIN_RUNS or sum(taken) < MIN_SECONDS:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def time_graph(graph: str, feed: str) -> dict[str, float]:
    """The median of many runs at batch 1."""
    session, image = session_of(graph), np.load(feed)
    (entry,) = session.get_inputs()
    taken = seconds_of(lambda: session.run(None, {entry.name: image}))
    return {"ms": 1000 * statistics.median(taken), "runs": len(taken)}


def time_peak() -> dict[str, float]:
    """The best of many products of two square float32 matrices, in 10^9 operations a second."""
    import torch

    torch.set_num_threads(THREADS)
    a, b = torch.rand(2, PEAK_SIDE, PEAK_SIDE)
    return {"gflops": 2e-9 * PEAK_SIDE**3 / min(seconds_of(lambda: a @ b))}


if __name__ == "__main__":
    print(json.dumps(time_peak() if sys.argv[1] == "--peak" else time_graph(*sys.argv[1:3])))
