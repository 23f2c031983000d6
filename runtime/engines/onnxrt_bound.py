"""Run a session of ONNX Runtime on a GPU through I/O binding, with pinned memory and CUDA graphs.

1. Each input and output has a buffer on the GPU and a pinned one on the host, for each size of batch. A run copies its
   inputs to the GPU, runs the graph on the GPU's buffers, and copies back the outputs that were asked for.
2. Two frames are in flight: there are two sets of buffers, each with a stream for its copies. One frame is copied while
   the graph runs on the other.
3. The graph runs on one thread alone. ONNX Runtime keeps captured CUDA graphs for each thread, and all of them use the
   memory of one arena, so two at once would overwrite each other's tensors.
4. A new size of batch is prepared on both sets before its first answer, because a CUDA graph is captured after two
   ordinary runs. Where a capture fails, the session is opened again without CUDA graphs, once and with a warning.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from flowedge.errors import EngineUnavailableError, FlowEdgeError
from flowedge.runtime.engines import cuda
from flowedge.runtime.lanes import Lanes
from flowedge.runtime.opening.contract import TensorSpec

IN_FLIGHT: Final = 2
"""The number of frames or batches that are copied or computed at once."""

MOST_SIZES: Final = 8
"""The number of sizes of batch that have buffers. Each size holds memory of the GPU, also after its last run."""

_WARM_UP: Final = 3
"""The runs of a new size. ONNX Runtime captures in the third run at the latest, and current versions in the first."""

_GRAPH: Final = "gpu_graph_id"
_NO_GRAPH: Final = "-1"  # ONNX Runtime captures nothing under this number

_Key: TypeAlias = tuple[tuple[tuple[int, ...], str], ...]
"""The shapes and types of the inputs of a run."""

_LOG: Final = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Bound:
    """The buffers of one size of batch, the binding to them, and the options under which their graph is captured."""

    buffers: Mapping[str, cuda.Buffer]
    binding: Any
    options: Any


@dataclass(slots=True, eq=False)
class _Set:
    """One of the sets of buffers: a stream for the copies, and the buffers by the inputs of a run."""

    stream: Any
    bound: dict[_Key, _Bound] = field(default_factory=dict)


class BoundRuns:
    """Runs of one session on a GPU. Threads may share them: at most `IN_FLIGHT` calls are at work at once."""

    in_flight: Final = IN_FLIGHT

    def __init__(
        self,
        open_session: Callable[[bool], ort.InferenceSession],
        outputs: Mapping[str, TensorSpec],
        *,
        name: str,
        device: int,
        memory: str = "cuda",
    ) -> None:
        """Open the session and make the streams. Buffers follow with the first run of each size of batch.

        Args:
            open_session: Opens the session, with CUDA graphs where its argument is True.
            outputs: The types of the outputs by name. The first dimension is the batch, and no other is open.
            name: The engine's name, for messages.
            device: The number of the GPU.
            memory: ONNX Runtime's name of the memory that ``cuda.Buffer.device`` points to.

        Raises:
            EngineUnavailableError: There is no such GPU, or the session cannot be opened.
        """
        self._open, self._outputs, self._name, self._device = open_session, dict(outputs), name, device
        self._memory = memory
        cuda.use(device)
        self._graphs = True
        session = self._opened()
        self.output_names = tuple(output.name for output in session.get_outputs())
        self._held = [session]  # the only reference, so that clearing the list frees the session
        # A caller that is alone always gets the same set. The other one is taken while the first is in use.
        self._sets: queue.LifoQueue[_Set] = queue.LifoQueue()
        self._all = [_Set(cuda.new_stream()) for _ in range(IN_FLIGHT)]
        for one in reversed(self._all):
            self._sets.put(one)
        self._thread = Lanes(1)
        self._ended = threading.Condition()
        self._calls, self._is_closed = 0, False
        self._finalizer = weakref.finalize(
            self, _free, self._held, self._all, self._thread, os.getpid(), device
        )

    def run(self, names: Collection[str], feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run the graph once.

        Args:
            names: The outputs to copy back to the host.
            feed: The inputs by name, C-contiguous.

        Raises:
            EngineUnavailableError: The GPU has too little memory, or an error occurred.
            ValueError: The engine was closed.
        """
        with self._ended:
            if self._is_closed:
                raise ValueError("the engine is closed")
            self._calls += 1
        try:
            return self._run(names, feed)
        finally:
            with self._ended:
                self._calls -= 1
                is_last = self._is_closed and not self._calls
            if is_last:
                self._finalizer()

    def close(self) -> None:
        """Free the session and its memory, after the calls that have begun."""
        with self._ended:
            self._is_closed = True
            is_last = not self._calls
        if is_last:
            self._finalizer()

    def _run(
        self, names: Collection[str], feed: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[np.float32]]:
        # This thread has a current GPU of its own, which is the first one until another is set.
        cuda.use(self._device)
        key = tuple((array.shape, array.dtype.str) for array in feed.values())
        if key not in self._all[0].bound:
            self._on_thread(lambda: self._prepare(key, feed))
        images = len(next(iter(feed.values())))
        one = self._sets.get()
        try:
            bound = one.bound.get(key)
            if bound is None:  # the sizes that have buffers are too many already
                answers: dict[str, NDArray[np.float32]] = self._on_thread(lambda: self._unbound(names, feed))
                return answers
            for name, array in feed.items():
                np.copyto(bound.buffers[name].host, array)
                bound.buffers[name].to_device(images, one.stream)
            cuda.wait(one.stream)
            self._on_thread(lambda: self._compute(bound))
            for name in names:
                bound.buffers[name].to_host(images, one.stream)
            cuda.wait(one.stream)
            return {name: bound.buffers[name].host.copy() for name in names}
        except BaseException:
            # A copy that was queued before the failure still uses the host's buffers, which the next call overwrites.
            with contextlib.suppress(EngineUnavailableError):
                cuda.wait(one.stream)
            raise
        finally:
            self._sets.put(one)

    def _on_thread(self, work: Callable[[], Any]) -> Any:
        answer: Future[Any] = self._thread.submit(work)
        return answer.result()

    def _compute(self, bound: _Bound) -> None:
        # ONNX Runtime waits for the graph before it returns, so that the copies of the answers may begin.
        self._held[0].run_with_iobinding(bound.binding, bound.options)

    def _unbound(
        self, names: Collection[str], feed: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[np.float32]]:
        answers: list[Any] = self._held[0].run(list(names), dict(feed), _options(_NO_GRAPH))  # pyright: ignore[reportAssignmentType]
        return dict(zip(names, answers, strict=True))

    def _prepare(self, key: _Key, feed: Mapping[str, NDArray[Any]]) -> None:
        """Bind buffers for a new size of batch in each set, and run the graph until it is captured, on the thread."""
        if key in self._all[0].bound or len(self._all[0].bound) >= MOST_SIZES:
            return
        cuda.use(self._device)
        made: list[_Bound] = []
        try:
            for number, one in enumerate(self._all):
                made.append(self._bind(feed, graph=IN_FLIGHT * len(one.bound) + number))
            # A batch that is too large fails here, and says nothing about CUDA graphs.
            self._held[0].run_with_iobinding(made[0].binding, _options(_NO_GRAPH))
            if self._graphs:
                self._capture(made)
        except BaseException:
            for bound in made:
                _free_buffers(bound)
            raise
        for one, bound in zip(self._all, made, strict=True):
            one.bound[key] = bound

    def _bind(self, feed: Mapping[str, NDArray[Any]], *, graph: int) -> _Bound:
        images = len(next(iter(feed.values())))
        sizes = {name: (array.shape, array.dtype) for name, array in feed.items()}
        for name in self.output_names:
            spec = self._outputs[name]
            shape = tuple(images if size is None else size for size in spec.shape)
            sizes[name] = shape, np.dtype(spec.dtype)
        buffers: dict[str, cuda.Buffer] = {}
        try:
            for name, (shape, dtype) in sizes.items():
                buffers[name] = cuda.Buffer(shape, dtype)
        except BaseException:
            for buffer in buffers.values():
                buffer.free()
            raise
        bound = _Bound(buffers, None, _options(str(graph)))
        # The runs until the capture compute on these values, and their answers are not read.
        for name, array in feed.items():
            np.copyto(buffers[name].host, array)
            buffers[name].to_device(images, self._all[0].stream)
        cuda.wait(self._all[0].stream)
        self._rebind(bound)
        return bound

    def _rebind(self, bound: _Bound) -> None:
        """Bind the buffers to the session that is open now."""
        bound.binding = self._held[0].io_binding()
        if not self._graphs:
            bound.options = _options(_NO_GRAPH)
        for name, buffer in bound.buffers.items():
            bind = bound.binding.bind_output if name in self._outputs else bound.binding.bind_input
            bind(name, self._memory, self._device, buffer.host.dtype.type, buffer.host.shape, buffer.device)

    def _capture(self, made: Sequence[_Bound]) -> None:
        """Run the graph on new buffers until it is captured. Where that fails, open the session without CUDA graphs."""
        try:
            for bound in made:
                for _ in range(_WARM_UP):
                    self._compute(bound)
        except Exception as error:
            self._held[:] = [self._without_graphs(error)]
            for bound in (*made, *(other for one in self._all for other in one.bound.values())):
                self._rebind(bound)

    def _opened(self) -> ort.InferenceSession:
        """Open the session with CUDA graphs. Where ONNX Runtime refuses them for this graph, open it without."""
        try:
            return self._open(True)
        except FlowEdgeError as error:
            return self._without_graphs(error)

    def _without_graphs(self, error: Exception) -> ort.InferenceSession:
        self._graphs = False
        session = self._open(False)
        _LOG.warning(
            "%s runs without CUDA graphs, which costs time: %s", self._name, " ".join(str(error).split())
        )
        return session


def _options(graph: str) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry(_GRAPH, graph)
    return options


def _free_buffers(bound: _Bound) -> None:
    bound.binding = None
    for buffer in bound.buffers.values():
        buffer.free()


def _free(held: list[Any], sets: list[_Set], thread: Lanes, process: int, device: int) -> None:
    """Free the session, its buffers and its streams, but not in a forked process, where CUDA refuses every call."""
    thread.close()
    if os.getpid() != process:
        return
    with contextlib.suppress(EngineUnavailableError):
        cuda.use(device)
    for one in sets:
        for bound in one.bound.values():
            bound.binding = None
    held.clear()
    for one in sets:
        for bound in one.bound.values():
            _free_buffers(bound)
        one.bound.clear()
        cuda.destroy_stream(one.stream)
