"""Compare the processor time of one inference between a bundle and another project's ONNX file, on one thread.

    PYTHONPATH=tests python tests/bench/processor_time.py BUNDLE PEER.onnx [--images DIR --peer-python PYTHON]

Other work on the machine makes a clock useless, and hardly changes how long a processor computes. So every engine and
precision takes one run at a time in turns, on one thread, and the time is that of this process on the processor. With
``--images`` the file also runs in the INT8 that NNCF makes of it. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.turns import processor
from flowedge.bundle import Bundle, open_bundle
from flowedge.runtime.bench.peer_int8 import peer_int8
from flowedge.runtime.bench.peers import has_bfloat16, peer_of
from flowedge.runtime.bench.protocol import Job
from flowedge.runtime.frames.finding import find_images
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.opening.selftest import read_selftest
from flowedge.runtime.opening.unproven import open_unproven


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--images", type=Path, help="good images for NNCF")
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-peer/bin/python"))
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    works = own_works(bundle)
    peers = [("onnxruntime-cpu", "", ""), ("openvino", "fp32", "")]
    peers += [("openvino", "bf16", "")] if has_bfloat16() else []
    with tempfile.TemporaryDirectory() as folder:
        if options.images is not None:
            frames = read_selftest(bundle).frames
            images = find_images(options.images).images
            made = peer_int8(
                options.peer, images, frames, python=options.peer_python, folder=Path(folder, "int8")
            )
            print(f"{made.note}; map correlation {made.correlation}")
            peers.append(("openvino", "int8", str(made.file)))
        for engine, precision, graph in peers:
            job = Job(
                kind="peer",
                path=str(options.peer),
                graph=graph,
                engine=engine,
                precision=precision,
                threads=1,
            )
            works[f"peer, {engine} {precision}".rstrip()] = peer_of(job).work(1)
    print(f"{processor()}, {options.rounds} rounds, one thread")
    print("| what | fastest, ms | median, ms |\n|---|---|---|")
    for name, taken in in_turns(works, options.rounds).items():
        print(f"| {name} | {min(taken):.1f} | {statistics.median(taken):.1f} |")


def own_works(bundle: Bundle) -> dict[str, Callable[[], object]]:
    """Open each graph of the bundle for CPUs on each engine that runs it."""
    image = GraphInput(bundle.manifest)(read_selftest(bundle).frames[:1])
    works: dict[str, Callable[[], object]] = {}
    for graph in bundle.manifest.graphs:
        for engine in ("onnxruntime-cpu", "openvino"):
            if graph.precision == "int8-gpu" or (graph.precision == "bf16" and engine == "onnxruntime-cpu"):
                continue
            session = open_unproven(engine, bundle, graph.precision, threads=1)
            works[f"{engine} {graph.precision}"] = lambda session=session: session.infer(image)  # type: ignore[misc]
    return works


def in_turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds on the processor of each run, after two runs that are not counted."""
    for work in works.values():
        work()
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            work()
            taken[name].append(1000 * (time.process_time() - start))
    return taken


if __name__ == "__main__":
    main()
