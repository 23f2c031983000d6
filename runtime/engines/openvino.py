"""Run a graph on OpenVINO: on Intel's CPUs, and on its GPUs and NPUs where they are named."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13
from openvino.frontend import FrontEndManager, OpConversionFailure

from flowedge.errors import BundleError, EngineCacheError, EngineUnavailableError
from flowedge.runtime.device.denormals import flushing_denormals
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.device.machine import cpu_extensions, overflows_in_eight_bits
from flowedge.runtime.opening.contract import TensorSpec, check_contract
from flowedge.runtime.opening.engine_contract import EngineSpec, Opening
from flowedge.runtime.protocols import Engine

# By default OpenVINO computes in bfloat16 on CPUs that have it and in float16 on GPUs, whatever the graph's types are.
# An NPU has only float16.
_PRECISION: Final = {"CPU": "f32", "GPU": "f32", "NPU": "f16"}

# Values of oneDNN's ONEDNN_MAX_CPU_ISA that forbid VNNI, whatever the processor has.
_WITHOUT_VNNI: Final = frozenset({"SSE41", "AVX", "AVX2", "AVX512_CORE"})

# Up to this number of channels a product with a matrix costs less than the two changes of layout around a gather:
# 0.2 ms instead of 1 ms for 64 channels of 64x64.
_MOST_CHANNELS: Final = 64

# The most requests of one compiled graph. Further threads wait for one. OpenVINO runs the requests one after the other
# on the same cores, so that two or three keep it busy. Each request holds the inputs and outputs of its batch.
_MOST_REQUESTS: Final = 8

# The number of batch sizes, beside single images, whose compiled graphs are kept. Each graph holds the weights once
# more, but compiling takes as long as many inferences, and threads may alternate between two sizes.
_SIZES_KEPT: Final = 2

_ADVICE: Final = {
    "CPU": "Take another precision, or install a newer openvino.",
    "GPU": "It needs Intel's GPU driver: sudo apt install intel-opencl-icd",
    "NPU": "It needs Intel's NPU driver: https://github.com/intel/linux-npu-driver/releases",
}


def load(opening: Opening) -> Engine:
    """Load a graph, with its external data from the graph's folder.

    Raises:
        BundleError: The graph is damaged or is not what the manifest says.
        EngineUnavailableError: The device is not there, or cannot run the graph in its precision.
    """
    graph, device = opening.graph, _device(opening.spec)
    if device == "NPU" and opening.precision == "fp32":
        raise EngineUnavailableError(
            f"{opening.spec.name} computes in float16, got the precision fp32. Take --precision fp16."
        )
    model = _model(graph)
    try:
        inputs, outputs = _specs(model.inputs), _specs(model.outputs)
    except (UnicodeDecodeError, RuntimeError) as error:  # a name that is no text, or none at all
        raise BundleError(
            f"the inputs and outputs of {graph} cannot be read: {_one_line(error)}. Export the bundle again."
        ) from error
    check_contract(opening.source, inputs, outputs)
    taken = tuple(opening.source.inputs)
    return _OpenVino(opening.spec.name, model, taken, device, opening.threads)


def probe(spec: EngineSpec, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Try OpenVINO by running a graph with one input and one output of one shape.

    Raises:
        EngineUnavailableError: The device is not there or cannot run it.
    """
    try:
        model = _model(io.BytesIO(graph))
    except BundleError as error:
        raise EngineUnavailableError(str(error)) from error
    request = _compiled(model, _device(spec), threads=1).create_infer_request()
    (answer,) = _run(request, {0: x})
    return answer


class _Sized:
    """The graph compiled for one batch size, with a pool of requests for the threads."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._compiled = compiled
        self._idle: queue.LifoQueue[ov.InferRequest] = queue.LifoQueue()
        self._made = 0
        self._making = threading.Lock()

    def infer(self, feed: Mapping[Any, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Run on a request that no other thread has. The outputs are copied before the request returns to the pool."""
        request = self._taken()
        try:
            return _run(request, feed)
        finally:
            self._idle.put(request)

    def _taken(self) -> ov.InferRequest:
        """Take an idle request, or make one. Where there are `_MOST_REQUESTS` already, wait for one."""
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        with self._making:
            if self._made < _MOST_REQUESTS:
                try:
                    request = self._compiled.create_infer_request()
                except RuntimeError as error:
                    raise EngineUnavailableError(
                        f"OpenVINO {_VERSION} cannot make another request: {_one_line(error)}. Use fewer threads."
                    ) from error
                self._made += 1
                return request
        return self._idle.get()


class _OpenVino:
    """A graph that is compiled for each batch size separately.

    An open batch costs a fifth more at every size, and in OpenVINO 2026.4 a graph that had run with a batch of three
    then gave wrong answers for one image.
    """

    def __init__(
        self, name: str, model: ov.Model, inputs: tuple[str, ...], device: str, threads: int | None
    ) -> None:
        self.name = name
        self.output_names: tuple[str, ...] = tuple(output.get_any_name() for output in model.outputs)
        self.batches: tuple[int, int] | None = None
        self._model: ov.Model | None = model
        self._inputs = inputs
        self._device, self._threads = device, threads
        self._sizes: dict[int, _Sized] = {}  # by batch size, in the order of their last use
        self._lock = threading.Lock()  # guards the model and the sizes
        self._sized(1)

    def infer(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        images, feed = len(inputs[0]), dict(zip(self._inputs, inputs, strict=True))
        if self._device == "NPU":  # which takes one image only
            one = self._sized(1)
            singles = [
                one.infer({name: array[n : n + 1] for name, array in feed.items()}) for n in range(images)
            ]
            answers = [np.concatenate(parts) for parts in zip(*singles, strict=True)]
        else:
            answers = self._sized(images).infer(feed)
        return dict(zip(self.output_names, answers, strict=True))

    def close(self) -> None:
        with self._lock:
            self._model = None
            self._sizes.clear()  # a thread that infers holds its graph until it has the answer

    def _sized(self, batch: int) -> _Sized:
        """Return the graph that is compiled for a batch size, or compile it while other threads wait.

        The graph for single images is always kept. The other sizes keep the `_SIZES_KEPT` graphs that were used last.
        """
        with self._lock:
            if self._model is None:
                raise ValueError("the engine is closed")
            sized = self._sizes.pop(batch, None) or self._compiled_for(self._model, batch)
            self._sizes[batch] = sized
            others = [size for size in self._sizes if size != 1]
            for size in others[:-_SIZES_KEPT]:
                del self._sizes[size]
            return sized

    def _compiled_for(self, model: ov.Model, batch: int) -> _Sized:
        try:
            sized = model.clone()
            sized.reshape({name: [batch, *model.input(name).partial_shape[1:]] for name in self._inputs})
            if self._device == "CPU":
                _multiply_small_permutations(sized)
        except Exception as error:  # its failures have no base class of their own
            raise EngineUnavailableError(
                f"OpenVINO {_VERSION} cannot run the graph with {batch} images: {_one_line(error)}. "
                "Export the bundle again, or take another engine."
            ) from error
        return _Sized(_compiled(sized, self._device, self._threads))


def _join_signed_quantisation(model: ov.Model) -> None:
    """Replace each signed quantisation and its dequantisation by one FakeQuantize, which gives the same values.

    OpenVINO 2026.4 moves a quantisation that follows a Concat in front of the Concat, and is wrong where the integers
    are signed: the Concat then holds the tensor's values rounded to whole numbers and clipped to -128..127, as if the
    step were 1. A Concat of dequantised tensors is wrong for the same reason. A FakeQuantize, which OpenVINO's own
    tools write, is moved rightly, and its convolutions still run in eight bits.
    """
    for node in model.get_ordered_ops():
        found = _signed_steps(node)
        if found is None:
            continue
        steps, zero, step = found
        ends = [(steps.input_value(place).get_node().data - zero) * step for place in (3, 4)]
        joined = opset13.fake_quantize(
            *(steps.input_value(place) for place in (0, 1, 2)),
            *(opset13.constant(end.astype(np.float32)) for end in ends),
            steps.get_attributes()["levels"],
        )
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(joined.output(0))


def _signed_steps(node: ov.Node) -> tuple[ov.Node, float, float] | None:
    """Return the FakeQuantize, the zero and the step of a dequantisation of signed integers.

    Args:
        node: The last node of FakeQuantize, Convert to int8, Convert, Subtract of the zero (there may be none),
            Multiply by the step. Any other node gives None.
    """
    if node.get_type_name() != "Multiply":
        return None
    step, source, zero = _scalar(node.input_value(1)), node.input_value(0).get_node(), 0.0
    if source.get_type_name() == "Subtract":
        subtracted, source = _scalar(source.input_value(1)), source.input_value(0).get_node()
        zero = np.nan if subtracted is None else subtracted
    if step is None or np.isnan(zero) or source.get_type_name() != "Convert":
        return None
    integers = source.input_value(0)
    if integers.get_node().get_type_name() != "Convert" or integers.get_element_type() != ov.Type.i8:
        return None
    steps = integers.get_node().input_value(0).get_node()
    ends = steps.get_type_name() == "FakeQuantize" and all(
        steps.input_value(place).get_node().get_type_name() == "Constant" for place in (3, 4)
    )
    return (steps, zero, step) if ends else None


def _scalar(output: ov.Output) -> float | None:
    """Return the value of a constant with one element, converted or not, and None for any other output."""
    node = output.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return float(node.data.item()) if node.get_type_name() == "Constant" and node.data.size == 1 else None


def _multiply_small_permutations(model: ov.Model) -> None:
    """Replace each gather of few channels by a product with zeros and ones, which gives exactly the same values.

    The CPU keeps maps with their channels last around a convolution, and gathers from channels first.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        source = node.input_value(0)
        chosen, axis = (node.input_value(place).get_node() for place in (1, 2))
        shape = source.get_partial_shape()
        constants = chosen.get_type_name() == axis.get_type_name() == "Constant"
        if not constants or len(shape) != 4 or source.get_element_type() != ov.Type.f32:
            continue
        channels = shape[1].get_length()
        if axis.data.ravel().tolist() != [1] or chosen.data.ndim != 1 or channels > _MOST_CHANNELS:
            continue
        ones = np.eye(channels, dtype=np.float32)[chosen.data][:, :, None, None]
        product = opset13.convolution(source, opset13.constant(ones), [1, 1], [0, 0], [0, 0], [1, 1])
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(product.output(0))


def _device(spec: EngineSpec) -> str:
    return spec.name.partition(":")[2] or "CPU"


def _model(graph: Path | io.BytesIO) -> ov.Model:
    """Read with the ONNX front end alone: ``read_model`` would try every format that OpenVINO knows."""
    front_end = FrontEndManager().load_by_framework("onnx")
    where = "the probe graph" if isinstance(graph, io.BytesIO) else str(graph)
    try:
        model: ov.Model = front_end.convert(front_end.load(str(graph) if isinstance(graph, Path) else graph))
        _join_signed_quantisation(model)
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


def _overflows_in_eight_bits() -> bool:
    """Return True where 8-bit products overflow, on this processor with the instructions that oneDNN may use."""
    allowed = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if allowed in _WITHOUT_VNNI:
        return True
    if allowed.startswith("AVX2_VNNI"):
        return "avx_vnni" not in cpu_extensions()
    return overflows_in_eight_bits()


def _compiled(model: ov.Model, device: str, threads: int | None) -> ov.CompiledModel:
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _PRECISION[device], "PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        options["CPU_DENORMALS_OPTIMIZATION"] = True
        if _overflows_in_eight_bits():
            # Quantised values are then multiplied in float, which is slower and right.
            options["LP_TRANSFORMS_MODE"] = "NO"
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
    else:
        # Compiling for a GPU or an NPU takes long. OpenVINO itself checks which device a stored graph fits.
        with contextlib.suppress(EngineCacheError):  # without a cache, OpenVINO compiles every time
            options["CACHE_DIR"] = str(device_cache().make_folder("openvino"))
    try:
        # The option for denormals changes the mode of the calling thread. The context restores that mode.
        with flushing_denormals():
            return ov.Core().compile_model(model, device, options)
    except RuntimeError as error:
        raise EngineUnavailableError(
            f"OpenVINO {_VERSION} cannot compile the graph for the device {device}: {_one_line(error)}. "
            f"{_ADVICE[device]}"
        ) from error


def _run(request: ov.InferRequest, feed: Mapping[Any, NDArray[Any]]) -> list[NDArray[np.float32]]:
    try:
        with flushing_denormals():
            answers = request.infer(feed, share_inputs=True)
    except RuntimeError as error:
        shapes = ", ".join(str(array.shape) for array in feed.values())
        raise EngineUnavailableError(
            f"OpenVINO {_VERSION} stopped on an input of {shapes}: {_one_line(error)}. Try a smaller batch."
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
    """Return the reason of an error in one line, without places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Exception from", "Check '")))


_VERSION: Final = ov.__version__.partition("-")[0]
