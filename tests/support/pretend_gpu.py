"""Pretend CUDA and TensorRT on the host, for tests of memory, streams, order and CUDA graphs.

The classes have the names and arguments of the real ones, which ``tests/contract/test_nvidia_names.py`` checks against
the real packages. The classes count what is held. Freed addresses and shapes outside of the profile are refused, as by
the real libraries. The engine is that of ``support.tiny_bundle``.
"""

# ruff: noqa: N802, N815

from __future__ import annotations

import contextlib
import ctypes
import enum
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from support.tiny_bundle import IMAGE_SIZE, tiny_answer

Success = SimpleNamespace(name="cudaSuccess")
OutOfMemory = SimpleNamespace(name="cudaErrorMemoryAllocation")
NoDevice = SimpleNamespace(name="cudaErrorNoDevice")


class PretendGraph(list[Callable[[], None]]):
    """Stands for ``cudaGraph_t``, whose number is 0 where CUDA gave no graph."""

    def __int__(self) -> int:
        return 7


class Kind(enum.Enum):
    """Stands for ``cudaMemcpyKind``."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


@dataclass
class PretendCuda:
    """Stands for the used part of ``cuda.bindings.runtime``.

    Attributes:
        room: The number of allocations that succeed.
        captures: False where an engine refuses to run while a graph is captured.
        fails: True where an engine refuses every run.
        refused: The tensor whose buffer the context refuses.
        captured: The number of captured graphs that are held and not instantiated.
        current: The current device of each thread, by the number of the thread.
        used: The devices on which memory was allocated or work was queued.
        order: The names of the calls that free something, and of contexts that end, in their order.
    """

    room: int = 1000
    driver: int = 12060
    devices: int = 1
    held: dict[int, Any] = field(default_factory=dict)
    streams: int = 0
    graphs: int = 0
    launches: int = 0
    capturing: PretendGraph | None = None
    queued: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    made_streams: int = 0

    captures: bool = True
    fails: bool = False
    refused: str = ""
    captured: int = 0
    current: dict[int, int] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    order: list[str] = field(default_factory=list)

    cudaError_t = SimpleNamespace(cudaSuccess=Success, cudaErrorNoDevice=NoDevice)
    cudaMemcpyKind = Kind
    cudaStreamNonBlocking = 1
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def put(self, work: Callable[[], None], stream: int) -> None:
        """Put work onto a stream, or into the CUDA graph that is being captured."""
        self.used.add(self.current.get(threading.get_ident(), 0))
        (self.queued[stream] if self.capturing is None else self.capturing).append(work)

    def cudaGetErrorString(self, status: Any) -> tuple[Any, bytes]:
        return Success, status.name.encode()

    def cudaDriverGetVersion(self) -> tuple[Any, int]:
        return Success, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, int]:
        return Success, 12060

    def cudaGetDeviceCount(self) -> tuple[Any, int | None]:
        return (Success, self.devices) if self.devices else (NoDevice, None)

    def cudaSetDevice(self, device: int) -> tuple[Any]:
        assert 0 <= device < self.devices
        self.current[threading.get_ident()] = device
        return (Success,)

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return Success, 4 << 30, 8 << 30

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, Any]:
        assert 0 <= device < self.devices
        return Success, SimpleNamespace(name=b"Orin" + bytes(60), major=8, minor=7)

    def _allocated(self, size: int) -> tuple[Any, ...]:
        if self.room == 0:
            return OutOfMemory, None
        self.room -= 1
        self.used.add(self.current.get(threading.get_ident(), 0))
        memory = ctypes.create_string_buffer(b"\xff" * size, size)  # NaN, as nobody promises zeros
        self.held[ctypes.addressof(memory)] = memory
        return Success, ctypes.addressof(memory)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocated(size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocated(size)

    def cudaFree(self, address: int) -> tuple[Any]:
        del self.held[address]
        self.order.append("free")
        return (Success,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Kind, stream: int) -> tuple[Any]:
        assert isinstance(kind, Kind)
        assert size <= min(len(self.held[target]), len(self.held[source]))

        def copy() -> None:
            ctypes.memmove(target, source, size)

        self.put(copy, stream)
        return (Success,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        self.streams += 1
        self.made_streams += 1
        self.queued[self.made_streams] = []
        return Success, self.made_streams

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        self.streams -= 1
        assert not self.queued.pop(stream), "work was queued on a stream that is destroyed"
        self.order.append("stream")
        return (Success,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        for work in self.queued[stream]:
            work()
        self.queued[stream].clear()
        return (Success,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any]:
        assert not self.queued[stream], "what is queued would not be in the graph"
        self.capturing = PretendGraph()
        return (Success,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, Any]:
        graph, self.capturing = self.capturing, None
        self.captured += 1
        return Success, graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, Any]:
        self.graphs += 1
        return Success, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any]:
        self.captured -= 1
        return (Success,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any]:
        self.graphs -= 1
        self.order.append("graph")
        return (Success,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Any]:
        self.launches += 1
        self.queued[stream].extend(graph)
        return (Success,)


SHAPES = {
    "image": (3, *IMAGE_SIZE),
    "score": (),
    "anomaly_map": (1, *IMAGE_SIZE),
    "level_0": (1, IMAGE_SIZE[0] // 2, IMAGE_SIZE[1] // 2),
    "level_1": (1, IMAGE_SIZE[0] // 4, IMAGE_SIZE[1] // 4),
}


class PretendContext:
    """Stands for ``IExecutionContext``."""

    def __init__(self, cuda: PretendCuda, batches: tuple[int, int]) -> None:
        self.cuda, self.batches = cuda, batches
        self.addresses: dict[str, int] = {}
        self.images = 0
        weakref.finalize(self, cuda.order.append, "context")

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory in self.cuda.held and name != self.cuda.refused

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert (name, shape[1:]) == ("image", SHAPES["image"])
        self.images = shape[0]
        return self.batches[0] <= self.images <= self.batches[1]

    def execute_async_v3(self, stream_handle: int) -> bool:
        images = self.images
        if self.cuda.fails or (self.cuda.capturing is not None and not self.cuda.captures):
            return False
        # As on a GPU, work that is queued or captured does not keep the context alive.
        cuda, addresses = self.cuda, dict(self.addresses)
        self.cuda.put(lambda: compute(cuda, addresses, images), stream_handle)
        return self.addresses.keys() == SHAPES.keys()


def compute(cuda: PretendCuda, addresses: dict[str, int], images: int) -> None:
    """Write the answers of the tiny graph into the buffers of the outputs."""

    def tensor(name: str) -> np.ndarray[Any, Any]:
        memory = cuda.held[addresses[name]]
        shape = (images, *SHAPES[name])
        return np.frombuffer(memory, np.float32, count=int(np.prod(shape))).reshape(shape)

    for name, value in tiny_answer(tensor("image")).items():
        tensor(name)[...] = value


class PretendEngine:
    """Stands for ``ICudaEngine`` of the tiny graph, with an open or a fixed batch."""

    num_io_tensors = len(SHAPES)

    def __init__(self, cuda: PretendCuda, batches: tuple[int, int]) -> None:
        self.cuda, self.batches = cuda, batches
        self.kernels = PretendKernels()

    def get_tensor_name(self, number: int) -> str:
        return list(SHAPES)[number]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "image" else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *SHAPES[name])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        smallest, largest = self.batches
        return [(batch, *SHAPES[name]) for batch in (smallest, smallest, largest)]

    def create_execution_context(self, runtime_config: Any = None) -> PretendContext:
        return PretendContext(self.cuda, self.batches)

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(
            create_runtime_cache=lambda: self.kernels, set_runtime_cache=lambda cache: None
        )


class PretendKernels:
    """Stands for ``IRuntimeCache``, whose content is one word."""

    def __init__(self) -> None:
        self.content = b"compiled"

    def deserialize(self, blob: bytes) -> bool:
        self.content = blob
        return True

    def serialize(self) -> bytes:
        return self.content


class PretendTrt:
    """Stands for the library ``tensorrt``. A plan is ``b"MIN MAX"``, perhaps after ``b"host code"``."""

    ComputeCapability = SimpleNamespace(
        __members__={"NONE": 0, "CURRENT": 1, "SM86": 86, "SM87": 87, "SM120": 120}
    )

    __name__ = "tensorrt"
    __version__ = "10.3.0"
    TensorIOMode = SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE=1)

    class ILogger:
        WARNING = 2

        def __init__(self) -> None:
            self.lines: list[str] = []

    def __init__(self, cuda: PretendCuda) -> None:
        self.cuda = cuda

    def Runtime(self, logger: Any) -> Any:
        def deserialize(plan: bytes) -> PretendEngine | None:
            if plan.startswith(b"host code"):
                if not runtime.engine_host_code_allowed:
                    logger.lines.append("error: Engine host code is not allowed")
                    return None
                plan = plan.removeprefix(b"host code")
            try:
                smallest, largest = (int(part) for part in plan.split())
            except ValueError:
                logger.lines.append("error: Magic tag does not match")
                return None
            return PretendEngine(self.cuda, (smallest, largest))

        runtime = SimpleNamespace(deserialize_cuda_engine=deserialize, engine_host_code_allowed=True)
        return runtime


class Validity(enum.Enum):
    """Stands for ``EngineValidity``."""

    VALID = 0
    INVALID = 2


class Invalidity(enum.IntFlag):
    """Stands for ``EngineInvalidityDiagnostics``."""

    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class PretendRtx(PretendTrt):
    """Stands for the library ``tensorrt_rtx``, which can tell whether an engine fits. ``invalid`` is its answer."""

    __name__ = "tensorrt_rtx"
    EngineValidity = Validity
    EngineInvalidityDiagnostics = Invalidity

    def __init__(self, cuda: PretendCuda, invalid: int = 0) -> None:
        super().__init__(cuda)
        self.invalid = invalid

    def Runtime(self, logger: Any) -> Any:
        runtime = super().Runtime(logger)
        answer = (Validity.INVALID if self.invalid else Validity.VALID), self.invalid
        runtime.get_engine_validity = lambda plan: answer
        return runtime


@contextlib.contextmanager
def onnxruntime_on_pretended_cuda(
    cuda_module: Any,
    onnxrt_module: Any,
    wrapped: Callable[[Callable[[], Any], dict[str, str]], Any] = lambda opened, _: opened(),
) -> Iterator[PretendCuda]:
    """Let the engines of ONNX Runtime for NVIDIA GPUs run on ONNX Runtime's CPU, with a pretended CUDA.

    The memory of the pretended GPU is memory of the host, so ONNX Runtime computes on it as it computes on a GPU.

    Args:
        cuda_module: The module of FlowEdge that calls CUDA.
        onnxrt_module: The module of FlowEdge's engine.
        wrapped: Takes a function that opens a session and the options of its provider, and returns the session.
    """
    import onnxruntime

    made, real = PretendCuda(devices=2), onnxrt_module.open_session
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def session(model: Any, providers: Any, **others: Any) -> Any:
        return wrapped(lambda: real(model, [("CPUExecutionProvider", {})], **others), providers[0][1])

    def device(index: int = 0) -> Any:
        return cuda_module.Device(
            index=index, name="pretended", capability="9.0", driver="13.0", free=4 << 30, total=8 << 30
        )

    with (
        mock.patch.object(cuda_module, "cudart", made),
        mock.patch.object(cuda_module, "device", device),
        mock.patch.object(onnxrt_module, "_MEMORY", "cpu"),
        mock.patch.object(onnxrt_module, "open_session", session),
        mock.patch.object(onnxruntime, "get_available_providers", return_value=names),
    ):
        yield made
