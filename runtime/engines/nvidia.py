"""Load an engine of TensorRT or of TensorRT for RTX from the device cache, and run it.

``trt`` is the library, which ``tensorrt`` and ``tensorrt_rtx`` beside this module import. Buffers are allocated once,
for the largest batch that the engine was built for. A run queues the copies and the engine on one stream and waits
once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import weakref
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import EngineNotBuiltError, EngineUnavailableError
from flowedge.runtime.device.device_cache import DeviceCache, device_cache
from flowedge.runtime.device.engine_file import IGNORED_FACTS, EngineFacts
from flowedge.runtime.engines import cuda
from flowedge.runtime.opening.contract import TensorSpec, check_contract
from flowedge.runtime.opening.engine_contract import Opening
from flowedge.runtime.protocols import Engine

RTX: Final = "tensorrt-rtx"

_LOG: Final = logging.getLogger(__name__)


def facts_of(
    trt: Any,
    opening: Opening,
    device: cuda.Device | None,
    *,
    batches: tuple[int, int, int] = (1, 1, 1),
    capability: str = "",
    options: tuple[str, ...] = (),
) -> EngineFacts:
    """Collect the facts that an engine depends on.

    An engine of TensorRT for RTX fits several devices, so ``device`` is None for it.
    """
    return EngineFacts(
        engine=opening.spec.listed,
        version=trt.__version__,
        graph=opening.source.sha256,
        precision=opening.precision,
        device="" if device is None else device.name,
        capability=capability if device is None else device.capability,
        driver="" if device is None else device.driver,
        batches=batches,
        options=options,
    )


def load(trt: Any, opening: Opening) -> Engine:
    """Load the engine that was built for this graph and device.

    Raises:
        EngineNotBuiltError: The cache has no such engine, or one that this library refuses. A refused one is deleted
            where no GPU could use it.
        EngineUnavailableError: There is no such GPU, the library does not support it, or it has not enough memory.
        BundleError: The engine is not what the manifest says.
    """
    device = cuda.device(opening.spec.index)
    cache = device_cache()
    is_rtx = opening.spec.listed == RTX
    if is_rtx:
        check_supported(trt, device)
    found = cache.find(
        facts_of(trt, opening, None if is_rtx else device, capability=device.capability),
        # An engine of TensorRT for RTX fits several devices, namely those of the capabilities it was built for.
        ignoring=(*IGNORED_FACTS, "capability") if is_rtx else IGNORED_FACTS,
        fits=lambda facts: not is_rtx or _is_built_for(facts, device),
    )
    if found.plan is None:
        raise _not_built(opening, found.reason)
    problem = validity_problem(trt, found.plan, device)
    if problem.reason and not problem.is_of_engine:
        raise EngineUnavailableError(
            f"{opening.spec.name} cannot use {found.path} on {device.name}: {problem.reason}"
        )
    engine, complaints = (None, problem.reason) if problem.reason else deserialized(trt, found.plan)
    if engine is None:
        cache.drop(found.path)
        raise _not_built(opening, f"{found.path} was refused and deleted: {complaints}")
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    specs = {name: tensor_spec(engine, name) for name in names}
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    check_contract(
        opening.source,
        {name: specs[name] for name in inputs},
        {name: specs[name] for name in outputs},
    )
    kernels = None
    if is_rtx:
        kernels = Kernels(cache, f"kernels/{found.facts.key}-{device.capability}-{device.driver}.cache")
    return Native(
        trt,
        engine,
        name=opening.spec.name,
        inputs=tuple(opening.source.inputs),
        outputs={name: specs[name] for name in outputs},
        kernels=kernels,
        graphs="dla" not in found.facts.options,
        device=device.index,
    )


def check_supported(trt: Any, device: cuda.Device) -> None:
    """Check that TensorRT for RTX computes on a GPU of this compute capability, before anything is built or loaded.

    Raises:
        EngineUnavailableError: The library lists other capabilities. The message names them.
    """
    supported = capabilities_of(trt)
    if device.capability not in supported:
        raise EngineUnavailableError(
            f"{RTX} {trt.__version__} does not support {device.name}, which has the compute capability "
            f"{device.capability}. It supports {', '.join(supported)}. Take tensorrt or onnxruntime-cuda."
        )


def capabilities_of(trt: Any) -> dict[str, Any]:
    """Return the compute capabilities that TensorRT for RTX supports, such as 8.9, with the library's constants."""
    members = trt.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": member for name, member in members.items() if name.startswith("SM")}


def _is_built_for(facts: EngineFacts, device: cuda.Device) -> bool:
    return not facts.capability or device.capability in facts.capability.split(",")


class Validity(NamedTuple):
    """The reason why a library would refuse an engine before it is loaded.

    Attributes:
        reason: The reason. The text is empty where nothing speaks against the engine.
        is_of_engine: True where the engine itself is at fault, so that no GPU of this machine can use it.
    """

    reason: str
    is_of_engine: bool


def validity_problem(trt: Any, plan: bytes, device: cuda.Device) -> Validity:
    """Ask the library whether an engine fits a GPU, where the library can tell (TensorRT for RTX can)."""
    runtime = trt.Runtime(log_of(trt))
    if not hasattr(runtime, "get_engine_validity"):
        return Validity("", is_of_engine=False)
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return Validity("", is_of_engine=False)
    found = int(diagnostics)
    kinds = trt.EngineInvalidityDiagnostics
    of_engine = {
        kinds.MALFORMED_ENGINE: "the engine is damaged",
        kinds.VERSION_MISMATCH: f"the engine is of another version than {trt.__version__}",
    }
    of_machine = {
        kinds.UNSUPPORTED_CC: f"it does not compute on the capability {device.capability}",
        kinds.OLD_CUDA_DRIVER: f"the driver, of CUDA {device.driver}, is too old",
        kinds.OLD_CUDA_RUNTIME: "the CUDA runtime is too old",
        kinds.INSUFFICIENT_GPU_MEMORY: f"the GPU has {device.free >> 20} MiB of free memory, which is too little",
        kinds.CUDA_ERROR: "CUDA reports an error. Check the GPU with nvidia-smi",
    }
    reasons = {kind: text for kind, text in (of_engine | of_machine).items() if found & int(kind)}
    return Validity(
        "; ".join(reasons.values()) or "the library gives no reason",
        is_of_engine=any(kind in of_engine for kind in reasons),
    )


class Kernels:
    """The kernels that TensorRT for RTX compiles when an engine starts, kept in the device cache for the next start."""

    def __init__(self, cache: DeviceCache, name: str) -> None:
        self._cache, self._name = cache, name
        self._stored = b""
        self._runtime_cache: Any = None

    def attach(self, config: Any) -> None:
        """Give a context the kernels of an earlier start. The library refuses those that do not fit."""
        self._runtime_cache = config.create_runtime_cache()
        self._stored = self._cache.read_extra(self._name)
        if self._stored:
            self._runtime_cache.deserialize(self._stored)
        config.set_runtime_cache(self._runtime_cache)

    def keep(self) -> None:
        """Store the kernels that the library compiled since the start in the device cache."""
        content = bytes(self._runtime_cache.serialize())
        if content != self._stored:
            self._cache.write_extra(self._name, content)
            self._stored = content


class Native:
    """An engine on the GPU, which infers for one thread at a time."""

    def __init__(
        self,
        trt: Any,
        engine: Any,
        *,
        name: str,
        inputs: tuple[str, ...],
        outputs: dict[str, TensorSpec],
        kernels: Kernels | None,
        graphs: bool,
        device: int = 0,
    ) -> None:
        """Allocate the buffers and the stream of a run.

        Args:
            trt: The library.
            engine: The deserialised engine.
            name: The name in ``ENGINES``.
            inputs: The names of the inputs, in the order in which a run takes them. All open the same batch.
            outputs: The outputs in order. An open dimension is the batch.
            kernels: The kept kernels of TensorRT for RTX. The kernels are None for TensorRT.
            graphs: True replays runs as a CUDA graph where the engine has one batch size only.
            device: The number of the GPU, which is the current one of the calling thread.

        Raises:
            EngineUnavailableError: The device has not enough memory, or the library refuses a buffer.
        """
        self.name = name
        self.output_names: tuple[str, ...] = tuple(outputs)
        self._inputs, self._kernels, self._device = inputs, kernels, device
        sizes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        batches = (1, 1)
        for tensor in inputs:
            shape = tuple(engine.get_tensor_shape(tensor))
            shapes = engine.get_tensor_profile_shape(tensor, 0) if -1 in shape else (shape, shape, shape)
            sizes[tensor] = (tuple(shapes[2]), np.dtype(_dtype(engine, tensor)))
            batches = int(shapes[0][0]), int(shapes[2][0])
        self.batches: tuple[int, int] | None = batches
        self._use_graph = graphs and kernels is None and batches[0] == batches[1]
        self._graph: Any = None
        self._has_run = False
        with contextlib.ExitStack() as stack:
            # The exit stack frees in reverse order: a captured graph, then the context, its buffers and the stream.
            context = _context(trt, engine, kernels)
            if context is None:
                raise EngineUnavailableError(
                    f"{name} cannot start the engine: {'; '.join(log_of(trt).lines)}. "
                    "Check how much memory of the GPU is free (nvidia-smi)."
                )
            self._stream = cuda.new_stream()
            stack.callback(cuda.destroy_stream, self._stream)
            self._buffers: dict[str, cuda.Buffer] = {}
            for output, spec in outputs.items():
                full = tuple(batches[1] if size is None else size for size in spec.shape)
                sizes[output] = (full, np.dtype(spec.dtype))
            for tensor, (full, dtype) in sizes.items():
                buffer = cuda.Buffer(full, dtype)
                stack.callback(buffer.free)
                self._buffers[tensor] = buffer
                if not context.set_tensor_address(tensor, buffer.device):
                    raise EngineUnavailableError(
                        f"{name} refuses the buffer of {tensor}: {'; '.join(log_of(trt).lines)}. "
                        "Build the engine again with: flowedge build"
                    )
            # Nothing else refers to the context and its engine, so that clearing this list destroys them.
            self._native = [context, engine]
            stack.callback(self._native.clear)
            self._resources = stack.pop_all()
        self._trt = trt
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _release, self._resources, os.getpid(), device)

    def infer(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        # There is one context, one stream and one buffer for each tensor. So a thread has all of them from the copy of
        # its inputs to the copies of its answers, and the next thread waits.
        with self._lock:
            return self._infer(inputs)

    def close(self) -> None:
        with self._lock:
            if self._finalizer.alive:
                if self._kernels is not None:
                    self._kernels.keep()
                self._finalizer()

    def _infer(self, inputs: tuple[NDArray[Any], ...]) -> dict[str, NDArray[np.float32]]:
        if not self._finalizer.alive:
            raise ValueError("the engine is closed")
        images = len(inputs[0])
        assert self.batches is not None
        smallest, largest = self.batches
        if not smallest <= images <= largest:
            raise EngineUnavailableError(
                f"the engine was built for {smallest} to {largest} images at a time, got {images}. "
                f"Build one for more with: flowedge build BUNDLE --engine {self.name} --batch 1,1,{images}"
            )
        # This thread may be another one than the thread that loaded the engine, and has a current GPU of its own.
        cuda.use(self._device)
        for name, array in zip(self._inputs, inputs, strict=True):
            self._buffers[name].host[:images] = array
        try:
            if self._graph is not None:
                cuda.launch(self._graph, self._stream)
            else:
                self._set_shapes(inputs)
                self._queue(inputs)
        except BaseException:
            # A copy that was queued before the failure still reads the host's buffer, which the next run overwrites.
            with contextlib.suppress(EngineUnavailableError):
                cuda.wait(self._stream)
            raise
        cuda.wait(self._stream)
        answers = {name: self._buffers[name].host[:images].copy() for name in self.output_names}
        # The first run has compiled the missing kernels, and has allocated what a capture may not allocate.
        if not self._has_run:
            self._has_run = True
            if self._kernels is not None:
                self._kernels.keep()
            if self._use_graph:
                self._capture(inputs)
        return answers

    def _set_shapes(self, inputs: tuple[NDArray[Any], ...]) -> None:
        context = self._native[0]
        for name, array in zip(self._inputs, inputs, strict=True):
            if not context.set_input_shape(name, array.shape):
                raise self._stopped(inputs)

    def _capture(self, inputs: tuple[NDArray[Any], ...]) -> None:
        """Capture the work of a run as a CUDA graph. Where that fails, runs go on without a graph."""
        try:
            self._graph = cuda.captured(self._stream, lambda: self._queue(inputs))
        except EngineUnavailableError as error:
            self._use_graph = False
            _LOG.warning("%s runs without a CUDA graph, which costs time: %s", self.name, error)
            return
        self._resources.callback(cuda.destroy_graph, self._graph)

    def _queue(self, inputs: tuple[NDArray[Any], ...]) -> None:
        images, context = len(inputs[0]), self._native[0]
        for name in self._inputs:
            self._buffers[name].to_device(images, self._stream)
        if not context.execute_async_v3(int(self._stream)):
            raise self._stopped(inputs)
        for name in self.output_names:
            self._buffers[name].to_host(images, self._stream)

    def _stopped(self, inputs: tuple[NDArray[Any], ...]) -> EngineUnavailableError:
        shapes = ", ".join(str(array.shape) for array in inputs)
        return EngineUnavailableError(
            f"{self.name} stopped on an input of {shapes}: {'; '.join(log_of(self._trt).lines)}. "
            "Try a smaller batch."
        )


def _release(resources: contextlib.ExitStack, process: int, device: int) -> None:
    """Free memory and streams, but not at the end of a forked process, where CUDA refuses every call."""
    if os.getpid() == process:
        with contextlib.suppress(EngineUnavailableError):
            cuda.use(device)
        resources.close()


def deserialized(trt: Any, plan: bytes) -> tuple[Any, str]:
    """Return the engine and the library's warnings. The engine is None where the library refuses the plan.

    An engine that carries code for the host (a "version compatible" one) is refused unless ``FLOWEDGE_HOST_CODE`` is
    ``allow``. FlowEdge builds none, and loading one runs the code that it carries.
    """
    log = log_of(trt)
    log.lines.clear()
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = os.environ.get("FLOWEDGE_HOST_CODE") == "allow"
    engine = runtime.deserialize_cuda_engine(plan)
    return engine, "; ".join(log.lines)


@functools.cache
def log_of(trt: Any) -> Any:
    """Return the one logger of the process, which keeps warnings and errors in ``lines``.

    The library warns of a second logger.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.lines.append(f"{severity.name.lower().replace('_', ' ')}: {' '.join(message.split())}")

    return Log()


def _context(trt: Any, engine: Any, kernels: Kernels | None) -> Any:
    log_of(trt).lines.clear()
    if kernels is None:
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    kernels.attach(config)
    return engine.create_execution_context(config)


def tensor_spec(engine: Any, name: str) -> TensorSpec:
    """Read the type of an engine's input or output. An open dimension is None."""
    shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
    return TensorSpec(_dtype(engine, name), shape)


def _dtype(engine: Any, name: str) -> str:
    """Return NumPy's name of a tensor's type, or the library's name of a type that no graph of a bundle may have."""
    own: str = engine.get_tensor_dtype(name).name
    return {"FLOAT": "float32", "UINT8": "uint8"}.get(own, own)


def _not_built(opening: Opening, reason: str) -> EngineNotBuiltError:
    return EngineNotBuiltError(
        f"{opening.spec.name} needs an engine compiled for this machine: {reason}. Build it with: "
        f"flowedge build {opening.source.owner} --engine {opening.spec.name} --precision {opening.precision}"
    )
