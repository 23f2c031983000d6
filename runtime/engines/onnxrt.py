"""ONNX Runtime."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors  # pyright: ignore[reportAttributeAccessIssue]

from flowedge.errors import BundleError, EngineUnavailableError
from flowedge.manifest import Manifest
from flowedge.runtime.engine import Engine, TensorSpec, check_contract

_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}

# C99's <fenv.h>. The bits that flush denormals are FTZ and DAZ of x86-64's MXCSR and FZ of AArch64's FPCR; the
# offsets are those of Linux's fenv_t. Elsewhere no bit is set, and only the caller's mode is kept.
_LIBM: Final = ctypes.CDLL(None)
_FENV_BYTES: Final = 64
_FLUSH_OFFSET, _FLUSH_BITS = {
    ("linux", "x86_64"): (28, 0x8040),
    ("linux", "aarch64"): (0, 1 << 24),
}.get((sys.platform, platform.machine()), (0, 0))

# The graph asks for an operator or a type that this build lacks, or the machine has not enough of something.
_CANNOT_RUN = (
    ort_errors.NotImplemented,
    ort_errors.EPFail,
    ort_errors.RuntimeException,
    ort_errors.EngineError,
    MemoryError,
)
_BROKEN_GRAPH = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
)


def load(graph: Path, manifest: Manifest, *, threads: int | None) -> Engine:
    """Load a graph on the CPU, with its external data from the graph's folder.

    Raises:
        BundleError: The graph is damaged or is not what the manifest says.
        EngineUnavailableError: This ONNX Runtime cannot run the graph.
    """
    session = _session(str(graph), threads=threads, where=str(graph))
    check_contract(graph, manifest, _specs(session.get_inputs()), _specs(session.get_outputs()))  # pyright: ignore[reportArgumentType]
    return _OnnxRuntime(session)


def probe(graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a graph with one input and one output of the same shape.

    Raises:
        EngineUnavailableError: This ONNX Runtime cannot run it.
    """
    try:
        session = _session(graph, threads=1, where="the probe graph")
    except BundleError as error:
        raise EngineUnavailableError(str(error)) from error
    (answer,) = _run(session, None, {session.get_inputs()[0].name: x})
    return answer


class _OnnxRuntime:
    name = "onnxruntime-cpu"

    def __init__(self, session: ort.InferenceSession) -> None:
        (self._input,) = (node.name for node in session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(output.name for output in session.get_outputs())
        self._session: ort.InferenceSession | None = session

    def infer(self, image: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        if self._session is None:
            raise ValueError("the engine is closed")
        answers = _run(self._session, self.output_names, {self._input: image})
        return dict(zip(self.output_names, answers, strict=True))

    def close(self) -> None:
        self._session = None


def _session(model: str | bytes, *, threads: int | None, where: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only; what matters comes as an exception
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        with _flushing_denormals():
            return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except _BROKEN_GRAPH as error:
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot read {where}: {_one_line(error)}. "
            "Export the bundle again (with a lower --opset, if the reason names the opset)."
        ) from error
    except _CANNOT_RUN as error:
        raise EngineUnavailableError(
            f"ONNX Runtime {ort.__version__} cannot run {where}: {_one_line(error)}. "
            "Take another precision, or install a newer onnxruntime."
        ) from error


def _run(
    session: ort.InferenceSession, names: tuple[str, ...] | None, feed: dict[str, NDArray[Any]]
) -> list[NDArray[np.float32]]:
    try:
        with _flushing_denormals():
            answers: list[NDArray[np.float32]] = session.run(names, feed)  # pyright: ignore[reportAssignmentType]
    except (*_CANNOT_RUN, *_BROKEN_GRAPH) as error:
        shapes = ", ".join(str(array.shape) for array in feed.values())
        raise EngineUnavailableError(
            f"ONNX Runtime {ort.__version__} stopped on an input of {shapes}: {_one_line(error)}. "
            "Try a smaller batch."
        ) from error
    return answers


@contextlib.contextmanager
def _flushing_denormals() -> Iterator[None]:
    """Flush denormal floats to zero in this thread for a while, then go back to the caller's mode.

    exp() of unlikely positions is denormal, and denormals slow a CPU down many times. ``set_denormal_as_zero``
    does this for ONNX Runtime's own threads; for the calling thread, which computes as well, it does so only
    from the first session of the process on, and then for everything else that the thread computes, for good.
    """
    callers = ctypes.create_string_buffer(_FENV_BYTES)
    _LIBM.fegetenv(callers)
    flushing = ctypes.create_string_buffer(callers.raw, _FENV_BYTES)
    (word,) = struct.unpack_from("<I", flushing, _FLUSH_OFFSET)
    struct.pack_into("<I", flushing, _FLUSH_OFFSET, word | _FLUSH_BITS)
    _LIBM.fesetenv(flushing)
    try:
        yield
    finally:
        _LIBM.fesetenv(callers)


def _specs(nodes: list[Any]) -> dict[str, TensorSpec]:
    return {
        node.name: TensorSpec(
            _DTYPES.get(node.type, node.type),  # pyright: ignore[reportArgumentType]
            tuple(size if isinstance(size, int) else None for size in node.shape),
        )
        for node in nodes
    }


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
