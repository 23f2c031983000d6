"""Pretend CUDA and TensorRT on the host, for tests of memory, streams, order and CUDA graphs.

The classes have the names and arguments of the real ones, which ``tests/contract/test_nvidia_names.py`` checks against
the real packages. The classes count what is held. Freed addresses and shapes outside of the profile are refused, as by
the real libraries. The engine is that of ``support.tiny_bundle``.
"""

# ruff: noqa: N802, N815

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from support.tiny_bundle import IMAGE_SIZE, tiny_answer

Success = SimpleNamespace(name="cudaSuccess")
OutOfMemory = SimpleNamespace(name="cudaErrorMemoryAllocation")


class Kind(enum.Enum):
    """Stands for ``cudaMemcpyKind``."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


@dataclass
class PretendCuda:
    """Stands for the used part of ``cuda.bindings.runtime``. ``room`` is the number of allocations that succeed."""

    room: int = 1000
    driver: int = 12060
    devices: int = 1
    held: dict[int, Any] = field(default_factory=dict)
    streams: int = 0
    graphs: int = 0
    launches: int = 0
    capturing: list[Callable[[], None]] | None = None
    queued: list[Callable[[], None]] = field(default_factory=list)

    cudaError_t = SimpleNamespace(cudaSuccess=Success)
    cudaMemcpyKind = Kind
    cudaStreamNonBlocking = 1
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def put(self, work: Callable[[], None]) -> None:
        """Put work onto the stream, or into the CUDA graph that is being captured."""
        (self.queued if self.capturing is None else self.capturing).append(work)

    def cudaGetErrorString(self, status: Any) -> tuple[Any, bytes]:
        return Success, status.name.encode()

    def cudaDriverGetVersion(self) -> tuple[Any, int]:
        return Success, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, int]:
        return Success, 12060

    def cudaGetDeviceCount(self) -> tuple[Any, int]:
        return Success, self.devices

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return Success, 4 << 30, 8 << 30

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, Any]:
        return Success, SimpleNamespace(name=b"Orin" + bytes(60), major=8, minor=7)

    def _allocated(self, size: int) -> tuple[Any, ...]:
        if self.room == 0:
            return OutOfMemory, None
        self.room -= 1
        memory = ctypes.create_string_buffer(b"\xff" * size, size)  # NaN, as nobody promises zeros
        self.held[ctypes.addressof(memory)] = memory
        return Success, ctypes.addressof(memory)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocated(size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocated(size)

    def cudaFree(self, address: int) -> tuple[Any]:
        del self.held[address]
        return (Success,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Kind, stream: int) -> tuple[Any]:
        assert isinstance(kind, Kind)
        assert size <= min(len(self.held[target]), len(self.held[source]))

        def copy() -> None:
            ctypes.memmove(target, source, size)

        self.put(copy)
        return (Success,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        self.streams += 1
        return Success, 5

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        self.streams -= 1
        return (Success,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        for work in self.queued:
            work()
        self.queued.clear()
        return (Success,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any]:
        assert not self.queued, "what is queued would not be in the graph"
        self.capturing = []
        return (Success,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, Any]:
        graph, self.capturing = self.capturing, None
        return Success, graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, Any]:
        self.graphs += 1
        return Success, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any]:
        return (Success,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any]:
        self.graphs -= 1
        return (Success,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Any]:
        self.launches += 1
        self.queued.extend(graph)
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

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory in self.cuda.held

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert (name, shape[1:]) == ("image", SHAPES["image"])
        self.images = shape[0]
        return self.batches[0] <= self.images <= self.batches[1]

    def execute_async_v3(self, stream_handle: int) -> bool:
        images = self.images
        self.cuda.put(lambda: self._compute(images))
        return self.addresses.keys() == SHAPES.keys()

    def _compute(self, images: int) -> None:
        def tensor(name: str) -> np.ndarray[Any, Any]:
            memory = self.cuda.held[self.addresses[name]]
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
