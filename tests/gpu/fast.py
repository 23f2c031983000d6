"""Check the fast path of ONNX Runtime on a GPU: CUDA graphs, bound buffers, two frames in flight, a folder end to end.

    python -m gpu.fast CHECK DEVICE BUNDLE [FOLDER]

prints a line of JSON. On a CPU the same code runs with a pretended CUDA, whose memory is the host's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

import flowedge
from flowedge.bundle import Bundle, open_bundle
from flowedge.runtime.engines import cuda, onnxrt
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.image_files import ImageFiles
from flowedge.runtime.inspection import inspect_source
from flowedge.runtime.lanes import lanes_of, readers_beside
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.timing import window_of
from flowedge.runtime.opening.unproven import open_unproven
from gpu.models import precisions_of
from support.pretend_gpu import onnxruntime_on_pretended_cuda

ENGINE: Final = "onnxruntime-cuda"
BATCHES: Final = (1, 3, 8)
SECONDS: Final = 0.3
RUNS: Final = 200  # of all threads together


def bound(device: str, bundle: Bundle) -> dict[str, Any]:
    """Compare CUDA graphs with ordinary runs on the same buffers, for each precision and size of batch."""
    rows: list[dict[str, Any]] = []
    for precision in _precisions(device, bundle):
        heard = _Warnings()
        with heard:
            with_graphs = open_unproven(ENGINE, bundle, precision)
            without = open_unproven(ENGINE, bundle, precision)
            without.engine._runs._graphs = False  # type: ignore[attr-defined]
            for batch in BATCHES:
                image = _image(bundle, batch)
                expected = without.infer(image)
                # The first run captures, and the later ones replay.
                worst = float(np.max([_difference(with_graphs.infer(image), expected) for _ in range(3)]))
                ms = {
                    name: statistics.median(window_of(partial(one.infer, image), SECONDS))
                    for name, one in {"with graphs": with_graphs, "without": without}.items()
                }
                rows.append(
                    {
                        "precision": precision,
                        "batch": batch,
                        "wrong": int(not worst <= 1e-3),
                        "worst": worst,
                        "ms": ms,
                    }
                )
            captured = with_graphs.engine._runs._graphs  # type: ignore[attr-defined]
        rows.append({"precision": precision, "captured": captured, "warnings": heard.lines})
        with_graphs.close()
        without.close()
    return {"pretended": device == "cpu", "rows": rows}


def in_flight(device: str, bundle: Bundle) -> dict[str, Any]:
    """Let one, two and eight threads infer on one engine, and compare each answer with the one alone."""
    found: dict[str, Any] = {"pretended": device == "cpu", "wrong": 0}
    for precision in [one for one in ("fp32", "fp16") if one in _precisions(device, bundle)]:
        opened = open_unproven(ENGINE, bundle, precision)
        images = [_image(bundle, 1, seed) for seed in range(8)]
        alone = [opened.infer(image) for image in images]

        def work(number: int, opened: Opened = opened, images: Any = images, alone: Any = alone) -> int:
            place = number % len(images)
            return int(not _difference(opened.infer(images[place]), alone[place]) <= 1e-3)

        for count in (1, 2, 8):
            with ThreadPoolExecutor(count) as threads:
                begun = time.perf_counter()
                found["wrong"] += sum(threads.map(work, range(_runs(device))))
                rate = _runs(device) / (time.perf_counter() - begun)
            found[f"{precision}, {count} threads, inferences/s"] = round(rate, 1)
        opened.close()
    return found


def folder(device: str, bundle: Bundle, pictures: Sequence[Path]) -> dict[str, Any]:
    """Inspect a folder of JPEGs from the files to the verdicts, without the start of a process."""
    found: dict[str, Any] = {"pretended": device == "cpu"}
    for precision in [one for one in ("fp32", "fp16") if one in _precisions(device, bundle)]:
        with flowedge.load(bundle.path, engine=ENGINE, precision=precision, levels=False) as detector:
            height, width, _ = read_image(pictures[0]).shape
            for batch in (1, 8):
                detector.warm_up((height, width), batch=batch)
                begun = time.perf_counter()
                done = inspect_source(
                    detector,
                    ImageFiles(pictures, None, readers=readers_beside(detector.engine)),
                    pictures,
                    batch=batch,
                    lanes=lanes_of(detector.engine),
                )
                verdicts = [one.verdict for one in done]
                rate = len(verdicts) / (time.perf_counter() - begun)
                found[f"{precision}, batches of {batch}, images/s"] = round(rate, 1)
                found["wrong"] = found.get("wrong", 0) + verdicts.count("not_inspected")
    return found


class _Warnings(logging.Handler):
    """Keeps the warnings of FlowEdge while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage()[-300:])

    def __enter__(self) -> None:
        logging.getLogger("flowedge").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("flowedge").removeHandler(self)


def _precisions(device: str, bundle: Bundle) -> list[str]:
    """Return the precisions for a GPU. On a CPU fp32 is enough to try the code."""
    return precisions_of(bundle.path) if device == "cuda" else ["fp32"]


def _runs(device: str) -> int:
    return RUNS if device == "cuda" else 16


def _image(bundle: Bundle, batch: int, seed: int = 0) -> Any:
    size = (batch, 3, *bundle.manifest.image_size)
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the worst difference of the outputs, relative to the largest magnitude of each, or NaN where one is."""
    shares = [
        np.abs(found[name] - value).max() / max(np.abs(value).max(), 1e-9) for name, value in expected.items()
    ]
    return float(np.max(shares))


@contextlib.contextmanager
def _device(device: str) -> Iterator[None]:
    with onnxruntime_on_pretended_cuda(cuda, onnxrt) if device == "cpu" else contextlib.nullcontext():
        yield


def main() -> None:
    name, device, place, *more = sys.argv[1:]
    checks = {"bound": bound, "in_flight": in_flight, "folder": folder}
    pictures = [sorted(Path(one).glob("*.jpg")) for one in more]
    with _device(device):
        found: dict[str, Any] = checks[name](device, open_bundle(place), *pictures)  # type: ignore[operator]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
