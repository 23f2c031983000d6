"""Time each node of a graph with the profilers of ONNX Runtime and OpenVINO, on the settings of FlowEdge's engines."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import openvino as ov
from numpy.typing import NDArray

from flowedge.runtime.device.denormals import flushing_denormals
from flowedge.runtime.engines import onnxrt_session, openvino

_PRODUCTS: Final = ("conv", "gemm", "matmul", "fullyconnected")
_CPU: Final = "CPUExecutionProvider"

Run = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTime:
    """The time of one node of the graph that an engine made of the file.

    Attributes:
        name: The engine's name of the node.
        kind: The node's type and, in OpenVINO, the kernel that ran.
        ms: The shortest of the runs, in milliseconds, because other work on the machine only adds time.
    """

    name: str
    kind: str
    ms: float

    @property
    def is_product(self) -> bool:
        """True for convolutions and matrix products."""
        operation = self.kind.partition(" ")[0].lower()  # without OpenVINO's kernel, such as reorder_brgemm
        return any(word in operation for word in _PRODUCTS)


def onnxruntime_run(graph: Path, image: NDArray[np.float32], threads: int) -> Run:
    """Return a function that runs a graph on ONNX Runtime."""
    session = _session(graph, onnxrt_session.session_options([(_CPU, {})], threads))
    return lambda: _infer(session, image)


def openvino_run(graph: Path, image: NDArray[np.float32], threads: int) -> Run:
    """Return a function that runs a graph on OpenVINO."""
    request = _compiled(graph, image, threads, {}).create_infer_request()

    def run() -> object:
        with flushing_denormals():
            return request.infer({0: image}, share_inputs=True)

    return run


def onnxruntime_nodes(graph: Path, image: NDArray[np.float32], threads: int, runs: int) -> list[NodeTime]:
    """Return the time of each node on ONNX Runtime, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxrt_session.session_options([(_CPU, {})], threads)
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        session = _session(graph, options)
        for _ in range(runs):
            _infer(session, image)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    taken: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            node = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
            taken.setdefault(node, []).append(event["dur"] / 1000)
    return _nodes(taken)


def openvino_nodes(graph: Path, image: NDArray[np.float32], threads: int, runs: int) -> list[NodeTime]:
    """Return the time of each node on OpenVINO, the longest first."""
    request = _compiled(graph, image, threads, {"PERF_COUNT": True}).create_infer_request()
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(runs):
        with flushing_denormals():
            request.infer({0: image}, share_inputs=True)
        for node in request.get_profiling_info():
            if node.status == ov.ProfilingInfo.Status.EXECUTED:
                kind = f"{node.node_type} ({node.exec_type})"
                taken.setdefault((node.node_name, kind), []).append(node.real_time.total_seconds() * 1000)
    return _nodes(taken)


RUNS: Final[Mapping[str, Callable[[Path, NDArray[np.float32], int], Run]]] = MappingProxyType(
    {"onnxruntime-cpu": onnxruntime_run, "openvino": openvino_run}
)
NODES: Final[Mapping[str, Callable[[Path, NDArray[np.float32], int, int], list[NodeTime]]]] = (
    MappingProxyType({"onnxruntime-cpu": onnxruntime_nodes, "openvino": openvino_nodes})
)


def _nodes(taken: Mapping[tuple[str, str], list[float]]) -> list[NodeTime]:
    found = [NodeTime(name=name, kind=kind, ms=min(times)) for (name, kind), times in taken.items()]
    return sorted(found, key=lambda node: -node.ms)


def _session(graph: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    with flushing_denormals():
        return ort.InferenceSession(
            str(graph), options, providers=[_CPU], disabled_optimizers=onnxrt_session.DISABLED
        )


def _infer(session: ort.InferenceSession, image: NDArray[np.float32]) -> object:
    with flushing_denormals():
        return session.run(None, {session.get_inputs()[0].name: image})


def _compiled(
    graph: Path, image: NDArray[np.float32], threads: int, more: dict[str, Any]
) -> ov.CompiledModel:
    model = openvino._model(graph)
    model.reshape(list(image.shape))
    openvino.bring_into_forms_for_cpus(model)
    return openvino._compiled(model, "CPU", {**openvino._options("CPU", threads), **more})
