"""Run a graph on OpenVINO: on Intel's CPUs, and on its GPUs and NPUs where they are named."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.frontend import FrontEndManager, OpConversionFailure

from flowedge.errors import BundleError, EngineCacheError, EngineUnavailableError
from flowedge.manifest import FLOAT32_PRECISIONS
from flowedge.runtime.device.cores import fast_cpus_for
from flowedge.runtime.device.denormals import flushing_denormals
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.device.engine_file import EngineFacts
from flowedge.runtime.device.machine import cpu_extensions, overflows_in_eight_bits
from flowedge.runtime.engines.openvino_activations import replace_functions_of_eight_bits
from flowedge.runtime.engines.openvino_cache import (
    COMPILING,
    facts_of_compiled,
    find_compiled,
    store_compiled,
)
from flowedge.runtime.engines.openvino_fast_convolutions import use_fast_convolutions
from flowedge.runtime.engines.openvino_forms import (
    join_signed_quantisation,
    replace_gathers,
    unround_swish,
)
from flowedge.runtime.lanes import lanes_beside
from flowedge.runtime.opening.contract import TensorSpec, check_contract
from flowedge.runtime.opening.engine_contract import EngineSpec, Opening
from flowedge.runtime.protocols import Engine

# By default OpenVINO computes in bfloat16 on CPUs that have it and in float16 on GPUs, whatever the graph's types are.
# An NPU has only float16.
_PRECISION: Final = {"CPU": "f32", "GPU": "f32", "NPU": "f16"}

# Values of oneDNN's ONEDNN_MAX_CPU_ISA that forbid VNNI, whatever the processor has.
_WITHOUT_VNNI: Final = frozenset({"SSE41", "AVX", "AVX2", "AVX512_CORE"})

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
    if device == "NPU" and opening.precision in FLOAT32_PRECISIONS:
        raise EngineUnavailableError(
            f"{opening.spec.name} computes in float16, got the precision {opening.precision}. Take --precision fp16."
        )
    source = _Graph(opening, device)
    try:
        inputs, outputs = source.specs()
    except (UnicodeDecodeError, RuntimeError) as error:  # a name that is no text, or none at all
        raise BundleError(
            f"the inputs and outputs of {graph} cannot be read: {_one_line(error)}. Export the bundle again."
        ) from error
    check_contract(opening.source, inputs, outputs)
    return _OpenVino(opening.spec.name, source, tuple(opening.source.inputs), device)


def probe(spec: EngineSpec, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Try OpenVINO by running a graph with one input and one output of one shape.

    Raises:
        EngineUnavailableError: The device is not there or cannot run it.
    """
    try:
        model = _model(io.BytesIO(graph))
    except BundleError as error:
        raise EngineUnavailableError(str(error)) from error
    request = _compiled(model, _device(spec), _options(_device(spec), threads=1)).create_infer_request()
    (answer,) = _run(request, {0: x})
    return answer


class _Graph:
    """The graph on disk, which is read only where the device cache does not hold it compiled.

    Attributes:
        lanes: The number of inferences that run at once, or None where one inference fills all cores.
    """

    def __init__(self, opening: Opening, device: str) -> None:
        self._opening, self._device = opening, device
        self._options = _options(device, opening.threads)
        self.lanes = None if opening.threads is None or device != "CPU" else lanes_beside(opening.threads)
        self._stored = self._find(1)

    def specs(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        """Return the types of the inputs and outputs. The number of images is open in both."""
        if self._stored is None:
            return _specs(self._model.inputs), _specs(self._model.outputs)
        return _of_any_batch(_specs(self._stored.inputs)), _of_any_batch(_specs(self._stored.outputs))

    def compiled(self, batch: int) -> ov.CompiledModel:
        """Return the graph compiled for a number of images, from the device cache where it is there.

        Raises:
            BundleError: The graph is damaged.
            EngineUnavailableError: The device cannot run the graph.
        """
        stored, self._stored = (self._stored, None) if batch == 1 else (None, self._stored)
        if stored is None:
            stored = self._find(batch)
        if stored is not None:
            return stored
        compiled = _compiled(self._of_size(batch), self._device, self._options)
        if self._device == "CPU":
            store_compiled(self._facts(batch), compiled)
        return compiled

    @functools.cached_property
    def _model(self) -> ov.Model:
        return _model(self._opening.graph)

    def _find(self, batch: int) -> ov.CompiledModel | None:
        # On a GPU or an NPU, OpenVINO keeps compiled graphs itself, and checks which device they fit.
        return find_compiled(self._facts(batch), self._options) if self._device == "CPU" else None

    def _facts(self, batch: int) -> EngineFacts:
        return facts_of_compiled(self._opening, self._options, batch)

    def _of_size(self, batch: int) -> ov.Model:
        model = self._model
        try:
            sized = model.clone()
            inputs = self._opening.source.inputs
            sized.reshape({name: [batch, *model.input(name).partial_shape[1:]] for name in inputs})
            if self._device == "CPU":
                bring_into_forms_for_cpus(sized)
        except Exception as error:  # its failures have no base class of their own
            raise EngineUnavailableError(
                f"OpenVINO {_VERSION} cannot run the graph with {batch} images: {_one_line(error)}. "
                "Export the bundle again, or take another engine."
            ) from error
        return sized


class _Sized:
    """The graph compiled for one batch size, with a pool of requests for the threads.

    Where an inference leaves cores free, each of the requests that run at once has a compiled graph of its own.
    """

    def __init__(self, compiled: Callable[[], ov.CompiledModel], lanes: int | None) -> None:
        """Compile the graph.

        Args:
            compiled: Compiles the graph, or loads it compiled.
            lanes: The number of requests that run at once. The value is None where one inference fills all cores.
        """
        self._make_compiled, self._lanes = compiled, lanes
        self._compiled = compiled()
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
        """Take an idle request, or make one. Where there are as many as may be already, wait for one."""
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        with self._making:
            if self._made < (self._lanes or _MOST_REQUESTS):
                if self._lanes is not None and self._made:
                    self._compiled = self._make_compiled()
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

    def __init__(self, name: str, graph: _Graph, inputs: tuple[str, ...], device: str) -> None:
        self.name = name
        self.output_names: tuple[str, ...] = tuple(graph.specs()[1])
        self.batches: tuple[int, int] | None = None
        self._graph: _Graph | None = graph
        self._inputs, self._device = inputs, device
        self._sizes: dict[int, _Sized] = {}  # by batch size, in the order of their last use
        self._lock = threading.Lock()  # guards the graph and the sizes
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
            self._graph = None
            self._sizes.clear()  # a thread that infers holds its graph until it has the answer

    def _sized(self, batch: int) -> _Sized:
        """Return the graph that is compiled for a batch size, or compile it while other threads wait.

        The graph for single images is always kept. The other sizes keep the `_SIZES_KEPT` graphs that were used last.
        """
        with self._lock:
            if self._graph is None:
                raise ValueError("the engine is closed")
            graph = self._graph
            sized = self._sizes.pop(batch, None) or _Sized(partial(graph.compiled, batch), graph.lanes)
            self._sizes[batch] = sized
            others = [size for size in self._sizes if size != 1]
            for size in others[:-_SIZES_KEPT]:
                del self._sizes[size]
            return sized


def _device(spec: EngineSpec) -> str:
    return spec.name.partition(":")[2] or "CPU"


def _model(graph: Path | io.BytesIO) -> ov.Model:
    """Read with the ONNX front end alone: ``read_model`` would try every format that OpenVINO knows."""
    front_end = FrontEndManager().load_by_framework("onnx")
    where = "the probe graph" if isinstance(graph, io.BytesIO) else str(graph)
    try:
        model: ov.Model = front_end.convert(front_end.load(str(graph) if isinstance(graph, Path) else graph))
        join_signed_quantisation(model)
        unround_swish(model)
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


def bring_into_forms_for_cpus(model: ov.Model) -> None:
    """Bring a graph of one size of batch into forms that OpenVINO computes quickly on a CPU."""
    replace_gathers(model)
    use_fast_convolutions(model)
    replace_functions_of_eight_bits(model)


def _overflows_in_eight_bits() -> bool:
    """Return True where 8-bit products overflow, on this processor with the instructions that oneDNN may use."""
    allowed = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if allowed in _WITHOUT_VNNI:
        return True
    if allowed.startswith("AVX2_VNNI"):
        return "avx_vnni" not in cpu_extensions()
    return overflows_in_eight_bits()


def _options(device: str, threads: int | None) -> dict[str, Any]:
    """Return the options of a compilation for a device."""
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _PRECISION[device], "PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        options["CPU_DENORMALS_OPTIMIZATION"] = True
        if _overflows_in_eight_bits():
            # Quantised values are then multiplied in float, which is slower and right.
            options["LP_TRANSFORMS_MODE"] = "NO"
        if threads is not None:
            # OpenVINO 2026.4 makes the kernels of several streams at once. Where quantised values are computed in
            # float, one graph in thirty then gave wrong answers. So each lane has a graph of its own, with one stream.
            options |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
            if lanes_beside(threads) > 1:
                # OpenVINO binds the threads of every compiled graph to the first cores, so that the graphs of all lanes
                # would take turns on the same cores.
                options["ENABLE_CPU_PINNING"] = False
            if fast_cpus_for(threads * lanes_beside(threads)):
                # Otherwise all threads of an inference wait for the one that is on a slow core.
                options["SCHEDULING_CORE_TYPE"] = "PCORE_ONLY"
    else:
        # Compiling for a GPU or an NPU takes long. OpenVINO itself checks which device a stored graph fits.
        with contextlib.suppress(EngineCacheError):  # without a cache, OpenVINO compiles every time
            options["CACHE_DIR"] = str(device_cache().make_folder("openvino"))
    return options


def _compiled(model: ov.Model, device: str, options: dict[str, Any]) -> ov.CompiledModel:
    try:
        # The option for denormals changes the mode of the calling thread. The context restores that mode.
        with COMPILING, flushing_denormals():
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


def _of_any_batch(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Open the first dimension of the tensors of a graph that was compiled for one number of images."""
    return {name: TensorSpec(spec.dtype, (None, *spec.shape[1:])) for name, spec in specs.items()}


def _one_line(error: BaseException) -> str:
    """Return the reason of an error in one line, without places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Exception from", "Check '")))


_VERSION: Final = ov.__version__.partition("-")[0]
