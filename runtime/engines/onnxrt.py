"""ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors  # pyright: ignore[reportAttributeAccessIssue]

from flowedge.errors import BundleError, EngineUnavailableError
from flowedge.runtime.denormals import flushing_denormals
from flowedge.runtime.engine import Engine, EngineSpec, Opening, TensorSpec, check_contract

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}

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


def load(opening: Opening) -> Engine:
    """Load a graph, with its external data from the graph's folder.

    Raises:
        BundleError: The graph is damaged or is not what the manifest says.
        EngineUnavailableError: This ONNX Runtime cannot run the graph.
    """
    graph = opening.graph
    session = _session(str(graph), threads=opening.threads, where=str(graph))
    inputs, outputs = _specs(session.get_inputs()), _specs(session.get_outputs())  # pyright: ignore[reportArgumentType]
    check_contract(graph, opening.bundle.manifest, inputs, outputs)
    return _OnnxRuntime(opening.spec.name, session)


def probe(spec: EngineSpec, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
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
    def __init__(self, name: str, session: ort.InferenceSession) -> None:
        self.name = name
        self.reason = ""
        self.output_names: tuple[str, ...] = tuple(output.name for output in session.get_outputs())
        self._input = session.get_inputs()[0].name
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
        with flushing_denormals():
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
        with flushing_denormals():
            answers: list[NDArray[np.float32]] = session.run(names, feed)  # pyright: ignore[reportAssignmentType]
    except (*_CANNOT_RUN, *_BROKEN_GRAPH) as error:
        shapes = ", ".join(str(array.shape) for array in feed.values())
        raise EngineUnavailableError(
            f"ONNX Runtime {ort.__version__} stopped on an input of {shapes}: {_one_line(error)}. "
            "Try a smaller batch."
        ) from error
    return answers


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
