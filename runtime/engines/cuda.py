"""Call CUDA's runtime for the memory, streams and graphs that a TensorRT engine needs, by CUDA's Python binding."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart  # pyright: ignore[reportAttributeAccessIssue]
from numpy.typing import NDArray

from flowedge.errors import EngineUnavailableError


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU of this machine.

    Attributes:
        index: The number of the GPU among those that CUDA shows, from 0 on.
        name: The name that NVIDIA gives to the GPU.
        capability: The compute capability of the GPU, such as 8.7.
        driver: The CUDA version that the GPU's driver supports, such as 12.6.
        free: The free memory in bytes, which the CPU shares on a Jetson.
        total: The whole memory in bytes.
    """

    index: int = 0
    name: str
    capability: str
    driver: str
    free: int
    total: int


def device(index: int = 0) -> Device:
    """Find a GPU and its free memory, and make it the GPU of the calling thread.

    Args:
        index: The number of the GPU among those that CUDA shows.

    Raises:
        EngineUnavailableError: There is no such GPU, no driver for it, or one that is older than the CUDA binding.
    """
    driver = call(cudart.cudaDriverGetVersion)
    if driver == 0:
        raise EngineUnavailableError(
            "this machine has no NVIDIA driver. Install the one for its GPU, or take an engine of the CPU."
        )
    if problem := binding_problem():
        raise EngineUnavailableError(problem)
    count = _device_count()
    if count < 1:
        raise EngineUnavailableError("CUDA shows no GPU. Check CUDA_VISIBLE_DEVICES.")
    if index >= count:
        raise EngineUnavailableError(
            f"there is no GPU {index}: CUDA shows {count}, numbered from 0. Check CUDA_VISIBLE_DEVICES."
        )
    use(index)
    properties = call(cudart.cudaGetDeviceProperties, index)
    free, total = call(cudart.cudaMemGetInfo)
    return Device(
        index=index,
        name=properties.name.split(b"\0")[0].decode(errors="replace"),
        capability=f"{properties.major}.{properties.minor}",
        driver=_version(driver),
        free=free,
        total=total,
    )


def binding_problem() -> str:
    """Tell why CUDA's Python binding does not fit the driver, with the one that does. The text is empty if it fits."""
    driver, binding = call(cudart.cudaDriverGetVersion), call(cudart.cudaRuntimeGetVersion)
    if driver == 0 or driver // 1000 >= binding // 1000:
        return ""
    return (
        f"the NVIDIA driver supports CUDA {_version(driver)}, the installed cuda-bindings is of {_version(binding)}. "
        f"Install the one that fits: pip install 'cuda-bindings=={driver // 1000}.*'"
    )


def _device_count() -> int:
    """Count the GPUs that CUDA shows. CUDA reports an error where it shows none, and the count is then 0."""
    status, count = cudart.cudaGetDeviceCount()
    if status == cudart.cudaError_t.cudaErrorNoDevice:
        return 0
    if status != cudart.cudaError_t.cudaSuccess:
        return int(call(cudart.cudaGetDeviceCount))  # which raises the error in words
    return int(count)


def use(index: int) -> None:
    """Make a GPU the one of the calling thread. CUDA keeps a current GPU for each thread, which is 0 at first.

    Raises:
        EngineUnavailableError: The GPU cannot be used.
    """
    call(cudart.cudaSetDevice, index)


def _version(number: int) -> str:
    """Write a version that CUDA gives as a number as text, such as 12.6 for 12060."""
    return f"{number // 1000}.{number % 1000 // 10}"


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of CUDA, and return its values without its status.

    Raises:
        EngineUnavailableError: The call failed.
    """
    status, *values = function(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        _, text = cudart.cudaGetErrorString(status)
        reason = text.decode() if isinstance(text, bytes) else str(text)
        raise EngineUnavailableError(
            f"CUDA's {function.__name__} failed: {reason} ({status.name}). "
            "Check the GPU and its driver with nvidia-smi, or take an engine of the CPU."
        )
    return values[0] if len(values) == 1 else values


class Buffer:
    """Memory for one input or output, on the device and pinned on the host, for the largest batch."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Allocate ``shape`` on the device and on the host.

        Raises:
            EngineUnavailableError: There is not enough memory.
        """
        size = math.prod(shape) * dtype.itemsize
        self.device = int(call(cudart.cudaMalloc, size))
        try:
            self._pinned = int(call(cudart.cudaMallocHost, size))
        except EngineUnavailableError:
            cudart.cudaFree(self.device)
            raise
        content = (ctypes.c_byte * size).from_address(self._pinned)
        self.host: NDArray[Any] = np.frombuffer(memoryview(content), dtype).reshape(shape)

    def to_device(self, images: int, stream: Any) -> None:
        """Queue the copy of the first ``images`` of the batch from the host to the device."""
        size = self.host[:images].nbytes
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(cudart.cudaMemcpyAsync, self.device, self._pinned, size, kind, stream)

    def to_host(self, images: int, stream: Any) -> None:
        """Queue the copy of the first ``images`` of the batch from the device to the host."""
        size = self.host[:images].nbytes
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(cudart.cudaMemcpyAsync, self._pinned, self.device, size, kind, stream)

    def free(self) -> None:
        """Free the memory on the device and on the host. Nothing may use ``host`` after it."""
        cudart.cudaFree(self.device)
        cudart.cudaFreeHost(self._pinned)


def new_stream() -> Any:
    """Make a stream that does not wait for the default one."""
    return call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)


def captured(stream: Any, queue: Callable[[], None]) -> Any:
    """Record the work that ``queue`` puts on the stream as a CUDA graph, which one call can launch later.

    Raises:
        EngineUnavailableError: A part of the work cannot be captured.
    """
    call(cudart.cudaStreamBeginCapture, stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    try:
        queue()
    except BaseException:
        # The stream leaves its capturing state, and CUDA may give the part of the graph that was recorded.
        _, part = cudart.cudaStreamEndCapture(stream)
        if part is not None and int(part):
            cudart.cudaGraphDestroy(part)
        raise
    graph = call(cudart.cudaStreamEndCapture, stream)
    try:
        return call(cudart.cudaGraphInstantiate, graph, 0)
    finally:
        cudart.cudaGraphDestroy(graph)


def launch(graph: Any, stream: Any) -> None:
    """Queue the work of a captured graph."""
    call(cudart.cudaGraphLaunch, graph, stream)


def wait(stream: Any) -> None:
    """Wait until all queued work is done."""
    call(cudart.cudaStreamSynchronize, stream)


def destroy_graph(graph: Any) -> None:
    """Free a captured graph."""
    cudart.cudaGraphExecDestroy(graph)


def destroy_stream(stream: Any) -> None:
    """Free a stream."""
    cudart.cudaStreamDestroy(stream)
