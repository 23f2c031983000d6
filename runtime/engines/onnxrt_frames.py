"""Preprocess frames of uint8 on a GPU by sessions of ONNX Runtime, one for each size of frames."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from flowedge.errors import FlowEdgeError
from flowedge.framing import Size
from flowedge.manifest import Preprocessing
from flowedge.runtime.engines import cuda
from flowedge.runtime.frames.device_input import input_graph
from flowedge.runtime.frames.preprocess import Preprocessor

MOST_FRAMES: Final = 4
"""The number of sizes of frames that are preprocessed on the GPU. Each has a session of its own."""

_LIMIT: Final = 1e-4  # of the normalised input, in which a grey level is about 0.02

_LOG: Final = logging.getLogger(__name__)


class FrameSessions:
    """The sessions that preprocess frames on the GPU. The host preprocesses the sizes that have none."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        open_session: Callable[[bytes, bool], ort.InferenceSession],
        held: dict[Size | None, ort.InferenceSession],
        *,
        name: str,
    ) -> None:
        """Begin without a session.

        Args:
            preprocessing: The preprocessing of the bundle, of a method that has a graph.
            open_session: Opens a session on a graph, with CUDA graphs where its second argument is True.
            held: The sessions of the engine, to which those of this object are added by the size of their frames. The
                session of the network is under None.
            name: The engine's name, for messages.
        """
        self._preprocessing, self._host = preprocessing, Preprocessor(preprocessing)
        self._open, self._held, self._name = open_session, held, name
        self._refused: set[Size] = set()

    def on_the_host(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Preprocess one frame on the host."""
        return self._host(frame)

    def may_take(self, size: Size) -> bool:
        """Return True where frames of a size are preprocessed on the GPU, or may still be."""
        sizes = self._held.keys()  # with that of the network, which has no size
        return size in sizes or (size not in self._refused and len(sizes) <= MOST_FRAMES)

    def has_session(self, size: Size, has_graphs: bool) -> bool:
        """Open the session of a size where there is none yet, and return True where there is one."""
        if size in self._held:
            return True
        try:
            self._held[size] = self._opened(size, has_graphs)
        except FlowEdgeError as error:
            self._refuse(size, str(error))
            return False
        return True

    def open_again(self, *, has_graphs: bool) -> None:
        """Open every session anew.

        Raises:
            FlowEdgeError: A session cannot be opened.
        """
        for size in self._held.keys() - {None}:
            assert size is not None
            self._held[size] = self._opened(size, has_graphs)

    def is_right(
        self, size: Size, frames: cuda.Buffer, image: cuda.Buffer, run: Callable[[], object], stream: Any
    ) -> bool:
        """Compare the GPU's preprocessing of noise with the host's. Where it differs, the host keeps this size.

        Args:
            size: The size of the frames.
            frames: The buffer of the frames, which is overwritten.
            image: The buffer of the preprocessed frames.
            run: Runs the session of this size from one buffer to the other.
            stream: A stream for the copies.
        """
        images = len(frames.host)
        frames.host[:] = np.random.default_rng(0).integers(0, 256, frames.host.shape, np.uint8)
        frames.to_device(images, stream)
        cuda.wait(stream)
        try:
            run()
        except Exception as error:  # for instance a resize that needs more memory than the network does
            self._refuse(size, str(error))
            return False
        image.to_host(images, stream)
        cuda.wait(stream)
        difference = float(np.abs(image.host[-1] - self._host(frames.host[-1])).max())
        if difference <= _LIMIT:
            return True
        self._refuse(size, f"its answer to noise differs from the host's by {difference:.2g}")
        return False

    def _opened(self, size: Size, has_graphs: bool) -> ort.InferenceSession:
        graph = input_graph(self._preprocessing, size)
        assert graph is not None  # BoundRuns.take_frames refuses the one method without a graph
        return self._open(graph, has_graphs)

    def _refuse(self, size: Size, reason: str) -> None:
        self._refused.add(size)
        height, width = size
        _LOG.warning(
            "%s lets the host preprocess frames of %dx%d, which costs time: %s",
            *(self._name, height, width, " ".join(reason.split())),
        )
