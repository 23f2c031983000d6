"""Measure the peak speeds of an engine's device: a chain of matrix products, and a chain of copies.

Both chains are graphs that the engine's own library runs, with the engine's provider and options, in the precision of
the measured graph. One number goes in and one comes out, so that no transfer counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import EngineUnavailableError, MissingPackageError
from flowedge.packages import pip_install
from flowedge.runtime.bench.protocol import Peak
from flowedge.runtime.opening.engine import engine_module
from flowedge.runtime.opening.engine_contract import EngineSpec

_PRODUCTS: Final = 8  # in one run, so that the start of a run does not count
_COPIES: Final = 8
# A matrix of a CPU stays in its caches. The numbers of a copy lie outside of the caches of a CPU and of a GPU.
_SIDE_ON_A_CPU, _SIDE_ON_A_GPU = 512, 4096
_COPIED_ON_A_CPU, _COPIED_ON_A_GPU = 8 << 20, 64 << 20


def device_peak(spec: EngineSpec, precision: str, seconds: float, *, threads: int | None = None) -> Peak:
    """Measure the matrix products and the copies of the device of an engine.

    Args:
        spec: The engine.
        precision: The precision of the measured graph. INT8 graphs are compared with products of float16, and on a CPU
            every graph with products of float32.
        seconds: The time of the measurement. Each chain runs at least twice, the first time unmeasured.
        threads: The number of CPU threads.

    Raises:
        EngineUnavailableError: The engine runs no graph of its own making, or the device cannot run the chains.
        MissingPackageError: The onnx package is not installed.
    """
    repeatable = getattr(engine_module(spec), "repeatable", None)
    if repeatable is None or spec.compiled:
        raise EngineUnavailableError(f"the peak speeds of the device cannot be measured with {spec.name}.")
    on_cpu = spec.device == "cpu"
    side = _SIDE_ON_A_CPU if on_cpu else _SIDE_ON_A_GPU
    numbers = _COPIED_ON_A_CPU if on_cpu else _COPIED_ON_A_GPU
    kind = "FLOAT" if on_cpu or precision == "fp32" else "BFLOAT16" if precision == "bf16" else "FLOAT16"

    def fastest(graph: bytes, x: float) -> float:
        return _fastest(repeatable(spec, graph, np.full((1, 1), x, np.float32), threads=threads), seconds / 2)

    product = fastest(_chain("MatMul", _PRODUCTS, (side, side), kind), 1 / side)
    copy = fastest(_chain("Add", _COPIES, (numbers // side, side), "FLOAT"), 1.0)
    # The chain of copies writes its first array, reads and writes one for each addition, and reads the last one.
    copied = 4 * numbers * (2 * _COPIES + 2)
    return Peak(gflops=2e-9 * _PRODUCTS * side**3 / product, copy_gb_s=1e-9 * copied / copy)


def _fastest(run: Callable[[], NDArray[np.float32]], seconds: float) -> float:
    """Return the time of the fastest run in seconds."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)


def _chain(op: str, count: int, shape: Sequence[int], kind: str) -> bytes:
    """Return a graph that spreads its input over a matrix, applies an operator again and again, and gives the maximum.

    Each ``MatMul`` multiplies by the first matrix. All of its numbers are one over its side, so that the products keep
    this value. Each ``Add`` adds the input.
    """
    try:
        from onnx import TensorProto, helper
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"measuring the peak of a device needs the package onnx. Install it with: {pip_install('calibrate')}"
        ) from error
    tensor: Any = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["x"], ["one"], to=getattr(TensorProto, kind)),
        helper.make_node("Expand", ["one", "shape"], ["t0"]),
        *(
            helper.make_node(op, [f"t{number}", "t0" if op == "MatMul" else "one"], [f"t{number + 1}"])
            for number in range(count)
        ),
        helper.make_node("Cast", [f"t{count}"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["wide"], ["y"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "peak",
        [tensor("x", TensorProto.FLOAT, [1, 1])],
        [tensor("y", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor("shape", TensorProto.INT64, [2], shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    encoded: bytes = model.SerializeToString()
    return encoded
