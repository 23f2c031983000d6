"""Define the protocols between the parts of an inspection: source, frame, detector, engine and sink.

Each protocol has an implementation in this folder. A program of a user may bring others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flowedge.manifest import Preprocessing, Thresholds
from flowedge.runtime.record import Inspection
from flowedge.runtime.result import Result

PixelArray: TypeAlias = NDArray[Any]
"""The pixels of a frame, ``(H, W, 3)`` RGB or ``(H, W)`` grey, in a type that the detector takes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """A frame from a source, or the reason why the source could not read it.

    Attributes:
        pixels: The pixels. The array is empty where there is a ``problem``.
        id: The name of the frame in its source. For an image file the name is the path.
        time: The time at which the frame was taken or read, with its time zone.
        source: The name of the source. For an image file the name is the folder.
        part: The number or name of the part in the picture. The part is None where nobody knows it.
        problem: The reason why the frame could not be read. The text is empty for a frame that was read.
        monotonic_ns: The time of capture on the monotonic clock, in ns. The time is 0 where it is not known.
        dropped_before: The number of frames that the source lost between the frame before and this one.
        version: The state of the file that the frame was read from, by which a later run recognises a file that it has
            judged. The text is empty for a frame that is no file.
        decoder: A sentence about the decoder, where its pixels may differ from those of the usual one.
    """

    pixels: PixelArray = field(repr=False)
    id: str
    time: datetime
    source: str
    part: str | None = None
    problem: str = ""
    monotonic_ns: int = 0
    dropped_before: int = 0
    version: str = ""
    decoder: str = ""


class Source(Protocol):
    """A source of frames: a folder, a camera, a video. `flowedge.runtime.image_files.ImageFiles` is one."""

    def frames(self) -> Iterator[Frame]:
        """Give the frames in order, until the source ends or is closed.

        A frame that cannot be read is given with its ``problem``, and the next one follows.
        """
        ...

    def close(self) -> None:
        """Free the camera or the file that the source holds.

        Any thread may close a source. An iteration that waits for a frame then ends soon.
        """
        ...


class Sink(Protocol):
    """A place where records go: a folder, a database, a message. `flowedge.runtime.pictures.PictureFolder` is one."""

    def put(self, frame: Frame, record: Inspection, result: Result | None) -> Inspection:
        """Store the record of one frame.

        Args:
            frame: The frame.
            record: The record of its inspection.
            result: The detector's result, from which pictures can be drawn. The result is None for a frame that could
                not be read.

        Returns:
            The record, completed by the names of the files that the sink has written and by its problems.

        Raises:
            FlowEdgeError: The sink can store no record at all.
        """
        ...

    def close(self) -> None:
        """Write what is left and free what the sink holds."""
        ...


class Inspects(Protocol):
    """A detector, whatever computes inside. `flowedge.runtime.detector.Detector` is one.

    Threads may share a detector. Each call gets the answer to its own frames, and a frame waits where the engine is
    busy. Closing a detector waits for no call.
    """

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds that decide."""
        ...

    @property
    def precision(self) -> str:
        """The precision of the graph that computes."""
        ...

    @property
    def engine_name(self) -> str:
        """The name of the engine that computes."""
        ...

    @property
    def engine_reason(self) -> str:
        """The reason why this engine computes."""
        ...

    def __call__(self, frame: PixelArray) -> Result:
        """Inspect one frame.

        Raises:
            ImageError: The frame is of another type or shape than the detector takes.
        """
        ...

    def detect_batch(self, frames: Sequence[PixelArray]) -> list[Result]:
        """Inspect several frames in one run of the engine, and give a result for each in their order.

        Raises:
            ImageError: One of the frames is of another type or shape than the detector takes.
        """
        ...


class InspectsProducts(Protocol):
    """A detector of several products that share a backbone. `flowedge.runtime.products.ProductLine` is one.

    Threads may share it, as they may share a detector. Changing the product loads nothing.
    """

    @property
    def products(self) -> tuple[str, ...]:
        """The names of the products."""
        ...

    def __call__(self, frame: PixelArray, *, product: str | None = None) -> Result:
        """Inspect one frame as one product.

        Raises:
            ValueError: There is no such product.
            ImageError: The frame is of another type or shape than the products take.
        """
        ...

    def detect_products(
        self, frame: PixelArray, products: Sequence[str] | None = None
    ) -> Mapping[str, Result]:
        """Inspect one frame as several products, with one run of the backbone."""
        ...

    def detector(self, product: str | None = None) -> Inspects:
        """Give the detector of one product, for code that knows nothing of products."""
        ...


class Engine(Protocol):
    """A graph that is loaded on a device. An engine only computes: its caller has checked the image.

    Threads may share an engine. Each call gets the answers to its own image. `close` waits for no call: a call that
    has begun ends with its answers, and a later one with an error.
    """

    @property
    def name(self) -> str:
        """The engine's name in ``ENGINES``."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the graph's outputs, in the graph's order."""
        ...

    @property
    def batches(self) -> tuple[int, int] | None:
        """The smallest and the largest number of images of a run. The value is None where every number runs."""
        ...

    def infer(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run the graph once.

        Args:
            inputs: The graph's inputs in their order, C-contiguous. The graph of a bundle has one input. The input is
                the network's, ``(N, 3, H, W)`` float32, resized and normalised as the manifest tells. Where the
                manifest has a ``frame_size``, the input is unchanged frames, ``(N, H, W, 3)`` uint8, RGB. The head of
                a pack takes the features of its backbone.

        Returns:
            The outputs by name, all float32 and owned by the caller: ``score`` ``(N,)``, ``anomaly_map``
            ``(N, 1, H, W)`` and ``level_i`` ``(N, 1, h, w)``. Where the manifest has ``nfa``, ``energy_i`` and
            ``count_i`` ``(N, 1, h, w)`` may be there. For scores and maps, larger is more anomalous.

        Raises:
            EngineUnavailableError: The device stopped, for instance for lack of memory.
            ValueError: The engine was closed.
        """
        ...

    def close(self) -> None:
        """Free the memory. The engine cannot be used after it."""
        ...


@runtime_checkable
class SelectsOutputs(Protocol):
    """An engine that can leave out outputs, which then are not copied from its device."""

    def infer_only(self, outputs: Sequence[str], *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run the graph once, and give these outputs alone. The rest is as in `Engine.infer`."""
        ...


@runtime_checkable
class TakesFrames(Protocol):
    """An engine that preprocesses frames on its device, for a bundle whose graphs take the network's input."""

    def take_frames(self, preprocessing: Preprocessing) -> Callable[[tuple[int, int]], bool] | None:
        """Let `Engine.infer` take frames ``(N, H, W, 3)`` uint8, RGB, in place of the graph's input.

        Args:
            preprocessing: The preprocessing of the bundle.

        Returns:
            A function that returns True for the sizes of frames that are taken. The result is None where no frame is.
        """
        ...


class Buffer(Protocol):
    """An array of any library that can be exchanged by DLPack.

    `flowedge.runtime.opening.engine_contract.Opened.infer` takes one that is in the host's memory.
    """

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Give the array as a DLPack capsule."""
        ...

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """Give the type and the number of the device that holds the array."""
        ...
