"""Run a session of ONNX Runtime on a GPU through I/O binding, with pinned memory and CUDA graphs.

1. Each input and output has a buffer on the GPU and a pinned one on the host, for each size of batch. A run copies its
   inputs to the GPU, runs the graph on the GPU's buffers, and copies back the outputs that were asked for.
2. Two frames are in flight: there are two sets of buffers, each with a stream for its copies. One frame is copied while
   the graph runs on the other.
3. The graph runs on one thread alone. ONNX Runtime keeps captured CUDA graphs for each thread, and all of them use the
   memory of one arena, so two at once would overwrite each other's tensors.
4. A new size of batch is prepared on both sets before its first answer, because a CUDA graph is captured after two
   ordinary runs. Where a capture fails, the session is opened again without CUDA graphs, once and with a warning.
5. Frames of uint8 are preprocessed on the GPU by a second session, whose output is the input of the first. Its answer
   to noise is compared with the host's before a frame is judged. The host preprocesses the frames of further sizes.
"""

from __future__ import annotations

import contextlib
import itertools
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
from flowedge.framing import Size
from flowedge.manifest import Preprocessing
from flowedge.runtime.engines import cuda
from flowedge.runtime.engines.onnxrt_frames import FrameSessions
from flowedge.runtime.frames.device_input import FRAMES, IMAGE
from flowedge.runtime.lanes import Lanes
from flowedge.runtime.opening.contract import GraphSource

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

_ONE_CAPTURE: Final = threading.Lock()

_LOG: Final = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Bound:
    """The buffers of one size of batch, the bindings to them, and the options under which they are captured.

    Attributes:
        frames: The size of the frames that are preprocessed on the GPU, or None where the host preprocesses.
    """

    buffers: Mapping[str, cuda.Buffer]
    frames: Size | None
    options: Any
    bindings: list[tuple[Size | None, Any]] = field(default_factory=list)


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
        open_front: Callable[[bytes, bool], ort.InferenceSession],
        source: GraphSource,
        *,
        name: str,
        device: int,
        memory: str = "cuda",
    ) -> None:
        """Open the session and make the streams. Buffers follow with the first run of each size of batch.

        Args:
            open_session: Opens the session, with CUDA graphs where its argument is True.
            open_front: Opens a session on the graph that preprocesses frames, from the same two arguments.
            source: The graph. The first dimension of its outputs is the batch, and no other is open.
            name: The engine's name, for messages.
            device: The number of the GPU.
            memory: ONNX Runtime's name of the memory that ``cuda.Buffer.device`` points to.

        Raises:
            EngineUnavailableError: There is no such GPU, or the session cannot be opened.
        """
        self._open, self._open_front, self._source = open_session, open_front, source
        self._name, self._device, self._memory = name, device, memory
        cuda.use(device)
        self._graphs = True
        self._numbers = itertools.count()  # of CUDA graphs, none of which is ever given to other buffers
        # The session of the network, and by the size of the frames those of the preprocessing. There is no other
        # reference, so that clearing the dictionary frees the sessions.
        self._held: dict[Size | None, ort.InferenceSession] = {None: self._opened()}
        self.output_names = tuple(output.name for output in self._held[None].get_outputs())
        self._frames: FrameSessions | None = None
        # A caller that is alone always gets the same set. The other one is taken while the first is in use.
        self._sets: queue.LifoQueue[_Set] = queue.LifoQueue()
        self._all = [_Set(cuda.new_stream()) for _ in range(IN_FLIGHT)]
        self._spare = cuda.new_stream()  # for copies of the thread that prepares new sizes
        for one in reversed(self._all):
            self._sets.put(one)
        self._thread = Lanes(1)
        self._ended = threading.Condition()
        self._calls, self._is_closed = 0, False
        self._finalizer = weakref.finalize(
            self, _free, self._held, self._all, self._spare, self._thread, os.getpid(), device
        )

    def take_frames(self, preprocessing: Preprocessing) -> Callable[[Size], bool] | None:
        """Take frames of uint8 too, see `flowedge.runtime.protocols.TakesFrames`."""
        if preprocessing.method == "cv2_bilinear" or len(self._source.inputs) != 1:
            return None
        self._frames = FrameSessions(preprocessing, self._open_front, self._held, name=self._name)
        return self._frames.may_take

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
        size = self._size_of_frames(feed)
        if self._may_prepare(key, size):
            self._prepare_alone(key, feed)
        images = len(next(iter(feed.values())))
        if key not in self._all[0].bound and size is not None:
            ((name, frames),) = feed.items()
            assert self._frames is not None
            return self._run(names, {name: np.stack([self._frames.on_the_host(frame) for frame in frames])})
        one = self._sets.get()
        try:
            bound = one.bound.get(key)
            if bound is None:  # the sizes that have buffers are too many already
                answers: dict[str, NDArray[np.float32]] = self._on_thread(lambda: self._unbound(names, feed))
                return answers
            self._upload(bound, feed, one.stream)
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
        try:
            return answer.result()
        finally:
            # The wait may have been interrupted. The caller may close the engine next, so nothing may still use it.
            if not answer.cancel():
                answer.exception()

    def _size_of_frames(self, feed: Mapping[str, NDArray[Any]]) -> Size | None:
        """Return the size of the frames where a run is given some in place of the graph's input, or None."""
        ((name, array), *others) = feed.items()
        if others or self._frames is None or array.dtype != np.uint8 or array.ndim != 4:
            return None
        return None if self._source.inputs[name].dtype == "uint8" else (array.shape[1], array.shape[2])

    def _upload(self, bound: _Bound, feed: Mapping[str, NDArray[Any]], stream: Any) -> None:
        """Copy the inputs, or the frames in place of the input, to the GPU."""
        for name, array in feed.items():
            buffer = bound.buffers[name if bound.frames is None else FRAMES]
            np.copyto(buffer.host, array)
            buffer.to_device(len(array), stream)
        cuda.wait(stream)

    def _compute(self, bound: _Bound, options: Any = None) -> None:
        # ONNX Runtime waits for the graph before it returns, so that the copies of the answers may begin.
        for session, binding in bound.bindings:
            self._held[session].run_with_iobinding(binding, options or bound.options)

    def _unbound(
        self, names: Collection[str], feed: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[np.float32]]:
        answers: list[Any] = self._held[None].run(list(names), dict(feed), _options(_NO_GRAPH))  # pyright: ignore[reportAssignmentType]
        return dict(zip(names, answers, strict=True))

    def _may_prepare(self, key: _Key, size: Size | None) -> bool:
        """Return True where the inputs of a run have no buffers yet, and may have some."""
        known = self._all[0].bound
        alike = sum((bound.frames is None) == (size is None) for bound in known.values())
        return (
            key not in known
            and alike < MOST_SIZES
            and (self._frames is None or size is None or self._frames.may_take(size))
        )

    def _prepare_alone(self, key: _Key, feed: Mapping[str, NDArray[Any]]) -> None:
        """Prepare a new size of batch while no other run of this engine is at work, and no other engine captures."""
        # Older versions of ONNX Runtime capture in CUDA's global mode. A capture then fails, and so does the call of
        # another thread, where that thread allocates or waits meanwhile.
        with _ONE_CAPTURE:
            taken: list[_Set] = []
            try:
                while len(taken) < len(self._all):
                    taken.append(self._sets.get())
                self._on_thread(lambda: self._prepare(key, feed))
            finally:
                for one in sorted(taken, key=self._all.index, reverse=True):
                    self._sets.put(one)

    def _prepare(self, key: _Key, feed: Mapping[str, NDArray[Any]]) -> None:
        """Bind buffers for a new size of batch in each set, and run the graph until it is captured, on the thread."""
        size = self._size_of_frames(feed)
        if not self._may_prepare(key, size):  # another caller was first
            return
        cuda.use(self._device)
        frames = None if size is None else self._frames
        if frames is not None and size is not None and not frames.has_session(size, self._graphs):
            return
        made: list[_Bound] = []
        try:
            for _ in self._all:
                made.append(self._bound_to(feed, size))
            if frames is not None and size is not None and not self._is_right(frames, size, made[0]):
                for bound in made:
                    _free_buffers(bound)
                self._drop(size)
                return
            # A batch that is too large fails here, and says nothing about CUDA graphs.
            self._compute(made[0], _options(_NO_GRAPH))
            if self._graphs:
                self._capture(made)
        except BaseException:
            for bound in made:
                _free_buffers(bound)
            raise
        for one, bound in zip(self._all, made, strict=True):
            one.bound[key] = bound

    def _is_right(self, frames: FrameSessions, size: Size, bound: _Bound) -> bool:
        """Compare the GPU's preprocessing of noise with the host's, on the buffers of a size."""
        session, binding = bound.bindings[0]
        image = bound.buffers[next(iter(self._source.inputs))]
        return frames.is_right(
            size,
            bound.buffers[FRAMES],
            image,
            lambda: self._held[session].run_with_iobinding(binding, _options(_NO_GRAPH)),
            self._spare,
        )

    def _drop(self, size: Size) -> None:
        """Free the session that preprocesses frames of a size, and the buffers of every batch of such frames."""
        for one in self._all:
            for key in [key for key, bound in one.bound.items() if bound.frames == size]:
                _free_buffers(one.bound.pop(key))
        del self._held[size]

    def _bound_to(self, feed: Mapping[str, NDArray[Any]], size: Size | None) -> _Bound:
        """Allocate buffers for a run, bind them, and fill the inputs."""
        images = len(next(iter(feed.values())))
        sizes = {name: (array.shape, array.dtype) for name, array in feed.items()}
        for name, spec in {**self._source.inputs, **self._source.outputs}.items():
            if name in feed and size is None:
                continue
            if name in feed:
                sizes[FRAMES] = sizes.pop(name)
            sizes[name] = tuple(images if one is None else one for one in spec.shape), np.dtype(spec.dtype)
        buffers: dict[str, cuda.Buffer] = {}
        try:
            for name, (shape, dtype) in sizes.items():
                buffers[name] = cuda.Buffer(shape, dtype)
            bound = _Bound(buffers, size, _options(str(next(self._numbers))))
            # The runs until the capture compute on these values, and their answers are not read.
            self._upload(bound, feed, self._spare)
            self._rebind(bound)
        except BaseException:
            for buffer in buffers.values():
                buffer.free()
            raise
        return bound

    def _rebind(self, bound: _Bound) -> None:
        """Bind the buffers to the sessions that are open now."""
        if not self._graphs:
            bound.options = _options(_NO_GRAPH)
        network, bound.bindings = self._held[None].io_binding(), []
        for name in (*self._source.inputs, *self.output_names):
            bind = network.bind_input if name in self._source.inputs else network.bind_output
            bind(name, *self._place(bound.buffers[name]))
        if bound.frames is not None:
            front = self._held[bound.frames].io_binding()
            front.bind_input(FRAMES, *self._place(bound.buffers[FRAMES]))
            front.bind_output(IMAGE, *self._place(bound.buffers[next(iter(self._source.inputs))]))
            bound.bindings.append((bound.frames, front))
        bound.bindings.append((None, network))

    def _place(self, buffer: cuda.Buffer) -> tuple[Any, ...]:
        return self._memory, self._device, buffer.host.dtype.type, buffer.host.shape, buffer.device

    def _capture(self, made: Sequence[_Bound]) -> None:
        """Run the graph on new buffers until it is captured. Where that fails, go on without CUDA graphs."""
        try:
            for bound in made:
                for _ in range(_WARM_UP):
                    self._compute(bound)
        except Exception as error:
            try:
                self._held[None] = self._without_graphs(error)
                if self._frames is not None:
                    self._frames.open_again(has_graphs=False)
            except FlowEdgeError as problem:
                # The file of an area's graph is removed after the opening. Ordinary runs are possible there too.
                _LOG.warning("%s keeps its session, which cannot be opened again: %s", self._name, problem)
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
    bound.bindings.clear()
    for buffer in bound.buffers.values():
        buffer.free()


def _free(
    held: dict[Size | None, Any], sets: list[_Set], spare: Any, thread: Lanes, process: int, device: int
) -> None:
    """Free the sessions, buffers and streams, but not in a forked process, where CUDA refuses every call."""
    thread.close()
    if os.getpid() != process:
        return
    with contextlib.suppress(EngineUnavailableError):
        cuda.use(device)
    for one in sets:
        for bound in one.bound.values():
            bound.bindings.clear()
    held.clear()
    for one in sets:
        for bound in one.bound.values():
            _free_buffers(bound)
        one.bound.clear()
        cuda.destroy_stream(one.stream)
    cuda.destroy_stream(spare)
