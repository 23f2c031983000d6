"""OpenVINO: Intel's CPUs, and by name its GPUs and NPUs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.frontend import FrontEndManager, OpConversionFailure

from flowedge.errors import BundleError, EngineUnavailableError
from flowedge.runtime.denormals import flushing_denormals
from flowedge.runtime.engine import Engine, EngineSpec, Opening, TensorSpec, check_contract
from flowedge.runtime.engine_cache import engine_cache

# Left to itself, OpenVINO computes in bfloat16 on CPUs that have it and in float16 on GPUs, whatever the graph says.
# An NPU has nothing but float16.
_PRECISION: Final = {"CPU": "f32", "GPU": "f32", "NPU": "f16"}

_ADVICE: Final = {
    "CPU": "Take another precision, or install a newer openvino.",
    "GPU": "It needs Intel's GPU driver: sudo apt install intel-opencl-icd",
    "NPU": "It needs Intel's NPU driver: https://github.com/intel/linux-npu-driver/releases",
}


def load(opening: Opening) -> Engine:
    """Load a graph, with its external data from the graph's folder.

    Raises:
        BundleError: The graph is damaged or is not what the manifest says.
        EngineUnavailableError: The device is not there, cannot run the graph, or not in its precision.
    """
    graph, manifest, device = opening.graph, opening.bundle.manifest, _device(opening.spec)
    if device == "NPU" and opening.precision == "fp32":
        raise EngineUnavailableError(
            f"{opening.spec.name} computes in float16, got the precision fp32. Take --precision fp16."
        )
    model = _model(graph)
    check_contract(graph, manifest, _specs(model.inputs), _specs(model.outputs))
    if device == "NPU":
        model.reshape([1, *model.input(0).partial_shape[1:]])
    return _OpenVino(opening.spec.name, _compiled(model, device, opening.threads), one_by_one=device == "NPU")


def probe(spec: EngineSpec, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a graph with one input and one output of the same shape.

    Raises:
        EngineUnavailableError: The device is not there or cannot run it.
    """
    try:
        model = _model(io.BytesIO(graph))
    except BundleError as error:
        raise EngineUnavailableError(str(error)) from error
    request = _compiled(model, _device(spec), threads=1).create_infer_request()
    (answer,) = _run(request, x)
    return answer


class _OpenVino:
    def __init__(self, name: str, compiled: ov.CompiledModel, *, one_by_one: bool) -> None:
        self.name = name
        self.reason = ""
        self.precision = ""
        self.output_names: tuple[str, ...] = tuple(output.get_any_name() for output in compiled.outputs)
        self._one_by_one = one_by_one
        self._request: ov.InferRequest | None = compiled.create_infer_request()

    def infer(self, image: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        if self._request is None:
            raise ValueError("the engine is closed")
        if self._one_by_one:
            singles = [_run(self._request, image[n : n + 1]) for n in range(len(image))]
            answers = [np.concatenate(parts) for parts in zip(*singles, strict=True)]
        else:
            answers = _run(self._request, image)
        return dict(zip(self.output_names, answers, strict=True))

    def close(self) -> None:
        self._request = None


def _device(spec: EngineSpec) -> str:
    return spec.name.partition(":")[2] or "CPU"


def _model(graph: Path | io.BytesIO) -> ov.Model:
    """Read with the ONNX front end alone: ``read_model`` would try every format that OpenVINO knows."""
    front_end = FrontEndManager().load_by_framework("onnx")
    where = "the probe graph" if isinstance(graph, io.BytesIO) else str(graph)
    try:
        model: ov.Model = front_end.convert(front_end.load(str(graph) if isinstance(graph, Path) else graph))
    except OpConversionFailure as error:
        raise EngineUnavailableError(
            f"OpenVINO {_VERSION} cannot run {where}: {_one_line(error)}. "
            "Take another precision, or install a newer openvino."
        ) from error
    except Exception as error:  # its failures have no base class of their own
        raise BundleError(
            f"OpenVINO {_VERSION} cannot read {where}: {_one_line(error)}. Export the bundle again."
        ) from error
    return model


def _compiled(model: ov.Model, device: str, threads: int | None) -> ov.CompiledModel:
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _PRECISION[device], "PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        options["CPU_DENORMALS_OPTIMIZATION"] = True
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
    else:  # what a GPU or an NPU compiles takes long, and OpenVINO itself knows what it fits
        options["CACHE_DIR"] = str(engine_cache().folder / "openvino")
    try:
        with (
            flushing_denormals()
        ):  # the option changes the calling thread's mode, which goes back to what it was
            return ov.Core().compile_model(model, device, options)
    except RuntimeError as error:
        raise EngineUnavailableError(
            f"OpenVINO {_VERSION} cannot compile the graph for the device {device}: {_one_line(error)}. "
            f"{_ADVICE[device]}"
        ) from error


def _run(request: ov.InferRequest, x: NDArray[Any]) -> list[NDArray[np.float32]]:
    try:
        with flushing_denormals():
            answers = request.infer({0: x}, share_inputs=True)
    except RuntimeError as error:
        raise EngineUnavailableError(
            f"OpenVINO {_VERSION} stopped on an input of {x.shape}: {_one_line(error)}. Try a smaller batch."
        ) from error
    return [answers[number] for number in range(len(answers))]


def _specs(ports: list[Any]) -> dict[str, TensorSpec]:
    return {
        port.get_any_name(): TensorSpec(
            str(port.element_type.to_dtype()),
            tuple(size.get_length() if size.is_static else None for size in port.partial_shape),
        )
        for port in ports
    }


def _one_line(error: BaseException) -> str:
    """The reason, without the places in OpenVINO's source that it came by."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Exception from", "Check '")))


_VERSION: Final = ov.__version__.partition("-")[0]
