"""Time one graph in this process, or the machine's float32 matrix peak: ``turns`` starts one per graph.

python tests/bench/time_onnx.py GRAPH INPUT.npy        prints {"ms": ...} for each line that it reads
python tests/bench/time_onnx.py --peak                 prints {"gflops": ...}

GRAPH is an ONNX file for ONNX Runtime, a file of OpenVINO (.xml), or a bundle, whose fp32 graph runs on OpenVINO.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

THREADS = 2
TURN = 7  # runs in a turn at most, after one that wakes the threads
TURN_SECONDS = 3.0  # and no run begins after these: a large model answers once a turn
PEAK_SIDE = 2048
PEAK_RUNS = 20


def session_of(graph: str) -> Any:
    """Open the graph on ONNX Runtime's CPU with FlowEdge's settings, for both sides of a comparison."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def seconds_of(work: Callable[[], object], runs: int, at_most: float = math.inf) -> list[float]:
    """Return the wall-clock seconds of each run, after an uncounted one. No run begins after ``at_most`` seconds."""
    work()
    taken: list[float] = []
    while len(taken) < runs and sum(taken) < at_most:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def serve_turns(graph: str, feed: str) -> None:
    """Do a turn of runs at batch 1 for each line of the standard input, and print their median."""
    work = work_of(graph, np.load(feed))
    print("{}", flush=True)
    for _ in sys.stdin:
        taken = seconds_of(work, TURN, TURN_SECONDS)
        print(json.dumps({"ms": 1000 * statistics.median(taken)}), flush=True)


def work_of(graph: str, image: Any) -> Callable[[], object]:
    """Load a graph, and return a function that runs it once."""
    if graph.endswith(".onnx"):
        session = session_of(graph)
        (entry,) = session.get_inputs()
        return lambda: session.run(None, {entry.name: image})
    if graph.endswith(".xml"):
        from flowedge.runtime.bench.peers import peer_of
        from flowedge.runtime.bench.protocol import Job

        return peer_of(
            Job(kind="peer", path=graph, engine="openvino", precision="fp32", threads=THREADS)
        ).work(1)
    from flowedge.bundle import open_bundle
    from flowedge.runtime.opening.unproven import open_unproven

    engine = open_unproven("openvino", open_bundle(graph), "fp32", threads=THREADS)
    return lambda: engine.infer(image)


def time_peak() -> dict[str, float]:
    """Return the best speed of many products of two square float32 matrices, in 10^9 operations a second.

    By PyTorch (MKL) and by NumPy (OpenBLAS): on AMD's processors MKL stays a tenth or more below OpenBLAS.
    """
    import torch

    torch.set_num_threads(THREADS)
    a, b = torch.rand(2, PEAK_SIDE, PEAK_SIDE)
    x, y = a.numpy(), b.numpy()
    fastest = min(seconds_of(lambda: a @ b, PEAK_RUNS) + seconds_of(lambda: x @ y, PEAK_RUNS))
    return {"gflops": 2e-9 * PEAK_SIDE**3 / fastest}


if __name__ == "__main__":
    if sys.argv[1] == "--peak":
        print(json.dumps(time_peak()))
    else:
        serve_turns(*sys.argv[1:3])
