"""Build and run a model on TensorRT or on TensorRT for RTX, where the library is installed: a row for each precision.

python -m gpu.compiled ENGINE BUNDLE     prints a line of JSON

TensorRT for RTX builds without a GPU too. A row never claims more than what was seen: it tells where an engine was
built and not run, and where the library does not support the GPU, by the library's own list.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from flowedge.bundle import Bundle, open_bundle
from flowedge.errors import EngineUnavailableError
from flowedge.runtime.opening.building import build_engine
from flowedge.runtime.opening.engine import engine_module, engine_spec, library_version
from flowedge.runtime.opening.engine_contract import BuildOptions, Opened
from flowedge.runtime.opening.timing import window_of
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.verify import replay_selftest

ENGINES: Final = ("tensorrt", "tensorrt-rtx")
BATCHES: Final = (1, 3, 8)
SECONDS: Final = 0.5
NO_GPU: Final = "no GPU"


def compiled(engine: str, bundle: Bundle, precisions: list[str]) -> dict[str, Any]:
    """Build every precision on an engine, run it where a GPU is there, and compare its answers with the CPU's fp32.

    Args:
        engine: A name of ``ENGINES``.
        bundle: The bundle.
        precisions: The precisions to build.

    Returns:
        The version of the library, the GPU and a row for each precision, or why the library cannot be had.
    """
    spec = engine_spec(engine)
    try:
        engine_module(spec)
    except EngineUnavailableError as error:
        return {"not installed": str(error)}
    from flowedge.runtime.engines import cuda

    gpu: Any = None
    try:
        gpu = cuda.device(0)
        name = f"{gpu.name}, capability {gpu.capability}"
    except EngineUnavailableError as error:
        name = f"none: {error}"
    rows = [row(engine, bundle, precision, gpu) for precision in precisions]
    return {"library": library_version(spec), "gpu": name, "rows": rows}


def row(engine: str, bundle: Bundle, precision: str, gpu: Any) -> dict[str, Any]:
    """Build and run one precision.

    Args:
        engine: A name of ``ENGINES``.
        bundle: The bundle.
        precision: The precision.
        gpu: The GPU, or None where CUDA shows none.
    """
    found: dict[str, Any] = {"engine": engine, "precision": precision}
    if reason := not_buildable(engine, gpu):
        return found | {"state": f"not built: {reason}"}
    try:
        built = build_engine(bundle, engine, precision, options=BuildOptions(batches=(1, 1, max(BATCHES))))
        seconds = round(built.seconds, 1) if built.was_built else "kept"
        found |= {"build s": seconds, "MiB": round(built.file.size / (1 << 20), 1)}
        if gpu is None:
            return found | {"state": f"not run: {NO_GPU}"}
        return found | ran(open_unproven(engine, bundle, precision), bundle)
    except Exception as error:
        return found | {"failed": f"{type(error).__name__}: {error}"[-600:]}


def not_buildable(engine: str, gpu: Any) -> str:
    """Return why an engine cannot be built for the GPU of this machine. The text is empty where it can."""
    from flowedge.runtime.engines import nvidia

    if engine != nvidia.RTX:
        return NO_GPU if gpu is None else ""
    if gpu is not None:
        try:
            nvidia.check_supported(importlib.import_module(engine_spec(engine).needs), gpu)
        except EngineUnavailableError as error:
            return str(error)
    return ""


def ran(opened: Opened, bundle: Bundle) -> dict[str, Any]:
    """Compare an engine's answers with the CPU's fp32 for every batch size, time a batch of one, and close it.

    The checks of the self-test that fail, by the limits of the precision, are counted as wrong answers.
    """
    expected = open_unproven("onnxruntime-cpu", bundle, "fp32")
    try:
        wrong = sum(not one.passed for one in replay_selftest(bundle, opened))
        worst = 0.0
        for batch in BATCHES:
            rng = np.random.default_rng(batch)
            image = rng.standard_normal((batch, 3, *bundle.manifest.image_size), dtype=np.float32)
            answers = opened.infer(image)
            for name, value in expected.infer(image).items():
                share = float(np.abs(answers[name] - value).max() / max(np.abs(value).max(), 1e-9))
                worst = float(np.maximum(worst, share))  # which keeps a NaN
        one = np.zeros((1, 3, *bundle.manifest.image_size), np.float32)
        times = window_of(lambda: opened.infer(one), SECONDS)
    finally:
        expected.close()
        opened.close()
    return {"worst": worst, "wrong": wrong, "ms": statistics.median(times), "state": "ran"}


def main() -> None:
    from gpu.models import precisions_of

    engine, folder = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(compiled(engine, open_bundle(folder), precisions_of(folder))))


if __name__ == "__main__":
    main()
