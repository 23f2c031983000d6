"""Inspect frames with a bundle: make the graph's input, run the engine, decide."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.errors import ImageError, ProcessError
from flowedge.framing import Size
from flowedge.runtime.decide import Decided, Decider
from flowedge.runtime.device.forks import keep_in_children
from flowedge.runtime.device.limits import check_frame_size
from flowedge.runtime.frames.frame_check import FrameChecker, frame_statistics
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.frames.pixels import Color, Given, check_color, pixels_of, several
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.protocols import Frame, Source, TakesFrames
from flowedge.runtime.result import Result, Timings
from flowedge.runtime.settings import Settings
from flowedge.runtime.streaming import stream

_NOT_FINITE: Final = "the network's answer is not finite"


class Detector:
    """A detector that runs one graph of a bundle on one engine.

    A detector is safe to share between threads, for instance one thread a camera: each call gets the answer to its own
    frames, and a frame waits where the engine is busy. Closing a detector closes its engine. A call that has begun ends
    with its answer, and a later call with an error.

    A detector belongs to the process that loaded it: it cannot be pickled or copied, and refuses to inspect after a
    fork. Each process loads the bundle itself.

    Examples:
        >>> import numpy as np
        >>> import flowedge
        >>> frames = np.zeros((2, 480, 640, 3), dtype=np.uint8)
        >>> with flowedge.load("bottle.flowedge") as detector:
        ...     results = detector.detect_batch(frames)
        >>> [result.score == results[0].score for result in results]
        [True, True]
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Opened,
        *,
        source_scale: bool = False,
        min_region_px: int = 1,
        levels: bool = True,
    ) -> None:
        """Decide with the thresholds of the engine's precision, or with the source's.

        A threshold by the NFA tree is compiled now, if Numba is there.

        Args:
            bundle: The bundle.
            engine: An engine that has loaded one of the bundle's graphs.
            source_scale: True gives the normalised score and map and the verdict that anomalib would give.
            min_region_px: The number of pixels of the frame below which a region is left out of `Result.regions`.
                Score, verdict, map and mask do not depend on it.
            levels: False leaves `Result.levels` empty, so that a GPU copies back only what decides.

        Raises:
            BundleError: The bundle has no graph of this precision, or its threshold needs outputs that the graph does
                not give. With ``source_scale``, the bundle has no such scale or was calibrated to another.
            TypeError: ``min_region_px`` is not a whole number.
            ValueError: ``min_region_px`` is below 1.
        """
        if not isinstance(min_region_px, int):
            raise TypeError(f"min_region_px must be a whole number, got {min_region_px!r}")
        if min_region_px < 1:
            raise ValueError(f"min_region_px must be 1 or more, got {min_region_px}")
        self.bundle = bundle
        self.engine = engine
        self.precision = engine.precision
        self.source_scale, self.min_region_px, self.levels = source_scale, min_region_px, levels
        self._decider = Decider(bundle, engine.precision, source_scale=source_scale)
        self.thresholds = self._decider.thresholds
        self._outputs = None if levels else self._decider.outputs_needed(engine.output_names)
        self._input = GraphInput(bundle.manifest, _on_device(bundle, engine))
        check = bundle.manifest.frame_check
        self._frame_checker = None if check is None else FrameChecker(check)
        self._is_closed = False
        self._process = os.getpid()
        keep_in_children(engine.engine)

    @property
    def engine_name(self) -> str:
        """The name of the engine that computes."""
        return self.engine.name

    @property
    def engine_reason(self) -> str:
        """The reason why this engine computes. Somebody named it, or the engines before it could not."""
        return self.engine.reason

    @property
    def image_size(self) -> tuple[int, int]:
        """The height and the width of the network's input in pixels. Frames of other sizes are resized to it."""
        return self.bundle.manifest.image_size

    def warm_up(self, frame_size: tuple[int, int] | None = None, *, batch: int = 1) -> None:
        """Inspect black frames, so that the first frame of the line does not wait for what an engine does once.

        Args:
            frame_size: The height and the width of the frames to come, for which the resize is prepared. By default
                the bundle's ``frame_size``, or else the size of the network's input.
            batch: The number of frames at once.

        Raises:
            ImageError: A frame of this size does not become the graph's input.
            EngineUnavailableError: The device stopped.
            ValueError: The detector was closed, or a number is below 1.
            ProcessError: The process was forked after the detector was loaded.
        """
        height, width = frame_size or self.bundle.manifest.frame_size or self.image_size
        for name, number in {"height": height, "width": width, "batch": batch}.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        check_frame_size(height, width)
        for result in self.detect_batch(np.zeros((batch, height, width, 3), np.uint8)):
            # The map is laid over the frame on first use, with matrices that are kept for the size.
            _ = result.anomaly_map

    def __call__(self, frame: Given, *, color: Color = "rgb") -> Result:
        """Inspect one frame.

        Args:
            frame: An array, the path of an image file, or a PIL image, which is not modified. An array is
                ``(H, W, 3)`` uint8, or ``(H, W)`` uint8 with ``color="gray"``. The size is any, or the manifest's
                ``frame_size``. With a ``pixel_range`` in the manifest also ``(H, W)`` grey or ``(H, W, 3)`` of other
                integers or floats.
            color: The channels of an array: ``rgb``, ``bgr`` as OpenCV reads them, or ``gray``. Files and PIL images
                know their own.

        Raises:
            ImageError: The frame is of another type or shape, cannot be read, or does not become the graph's input.
            EngineUnavailableError: The device stopped.
            ValueError: The detector was closed, or ``color`` is another word.
            ProcessError: The process was forked after the detector was loaded.
        """
        (result,) = self._detect([frame], color)
        return result

    def detect_batch(self, frames: Sequence[Given] | NDArray[Any], *, color: Color = "rgb") -> list[Result]:
        """Inspect several frames in one run of the engine. Without a ``frame_size``, the frames may differ in size.

        Args:
            frames: A list of frames, each of them such as a call with one frame takes, or an array ``(N, H, W, 3)``, or
                ``(N, H, W)`` of grey frames.
            color: The channels of the arrays: ``rgb``, ``bgr`` as OpenCV reads them, or ``gray``.

        Returns:
            One result per frame, in order. A result does not depend on the other frames.

        Raises:
            ImageError: A frame is of another type or shape or cannot be read, or ``frames`` is no list of frames.
            EngineUnavailableError: The device stopped, for instance because the batch does not fit its memory.
            ValueError: The detector was closed, or ``color`` is another word.
            ProcessError: The process was forked after the detector was loaded.
        """
        if error := several(frames, color=color, pixel_range=self.bundle.manifest.pixel_range):
            raise error
        return self._detect(frames, color)

    def stream(
        self, source: Source | Settings | str | os.PathLike[str]
    ) -> Iterator[tuple[Frame, Result | None]]:
        """Inspect the frames of a folder, a video or a camera as they come.

        Args:
            source: The address of the frames: an image, a folder, a pattern, a video file, ``rtsp://…``, ``http://…``
                (Motion JPEG), ``v4l2:///dev/video0``, ``csi://0`` (Jetson), ``gstreamer:PIPELINE``, ``genicam://…`` or
                ``aravis://…``. More is told by `flowedge.runtime.sources.settings.SourceSettings`. A source that is
                already open is closed at the end.

        Returns:
            Each frame with its result. The result is None for a frame that was not inspected, whose ``problem`` is the
            reason. A folder or a video ends. A camera that is lost, or does not answer from the beginning, is connected
            again without an end, and a warning of `logging` tells why no frame comes.

        Raises:
            FlowEdgeError: The source cannot be opened.

        Examples:
            >>> import flowedge
            >>> with flowedge.load("bottle.flowedge") as detector:
            ...     for frame, result in detector.stream("photos"):
            ...         verdict = "not_inspected" if result is None else result.verdict
            ...         print(frame.id, verdict, frame.problem)  # doctest: +SKIP
        """
        return stream(self, source, pixel_range=self.bundle.manifest.pixel_range)

    def _detect(self, frames: Sequence[Given] | NDArray[Any], color: Color) -> list[Result]:
        self.check_usable()
        check_color(color)
        if len(frames) == 0:
            return []
        start = time.perf_counter()
        pixels, image = self.prepare(frames, color)
        preprocessed = time.perf_counter()
        outputs = self.infer(image)
        ms = 1000 / len(frames)
        return self.judge(
            pixels,
            outputs,
            preprocess_ms=(preprocessed - start) * ms,
            infer_ms=(time.perf_counter() - preprocessed) * ms,
        )

    def check_usable(self) -> None:
        """Check that the detector is open, and that this process loaded it.

        Raises:
            ValueError: The detector was closed.
            ProcessError: The process was forked after the detector was loaded.
        """
        if os.getpid() != self._process:
            raise self._not_here("cannot be used after a fork: its threads stayed in the other process")
        if self._is_closed:
            raise self._closed()

    def prepare(
        self, frames: Sequence[Given] | NDArray[Any], color: Color = "rgb"
    ) -> tuple[list[NDArray[np.uint8]], NDArray[Any]]:
        """Return the frames as 8-bit RGB, and the engine's input that is made of them.

        Raises:
            ImageError: A frame is of another type or shape, cannot be read, or does not become the graph's input.
        """
        pixels = self._pixels(frames, color)
        return pixels, self._input(pixels)

    def joined(self, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Join inputs of single frames, as `prepare` made them, into the input of a batch.

        Args:
            inputs: The inputs, at least one.
        """
        return self._input.joined(inputs)

    def infer(self, image: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run the engine on its input.

        Args:
            image: The input that `prepare` made.

        Raises:
            EngineUnavailableError: The device stopped.
            ValueError: The detector was closed.
        """
        try:
            if self._outputs is None:
                return self.engine.infer(image)
            return self.engine.infer(image, outputs=self._outputs)
        except ValueError as error:
            if not self._is_closed:
                raise
            raise self._closed() from error

    def judge(
        self,
        pixels: Sequence[NDArray[np.uint8]],
        outputs: Mapping[str, NDArray[np.float32]],
        *,
        preprocess_ms: float,
        infer_ms: float,
    ) -> list[Result]:
        """Decide on frames whose answers an engine has computed.

        Args:
            pixels: The frames as 8-bit RGB.
            outputs: The outputs of the engine by name, for as many images as there are frames.
            preprocess_ms: The time of preparing one frame, in ms.
            infer_ms: The time of the engine for one frame, in ms.
        """
        begun = time.perf_counter()
        decisions = self._decide(pixels, outputs)
        compared = [self._compare(frame) for frame in pixels]
        timings = Timings(
            preprocess_ms=preprocess_ms,
            infer_ms=infer_ms,
            decide_ms=(time.perf_counter() - begun) * 1000 / len(pixels),
        )
        return [
            self._result(frame, decision, *one, timings)
            for frame, decision, one in zip(pixels, decisions, compared, strict=True)
        ]

    def _decide(
        self, pixels: Sequence[NDArray[np.uint8]], outputs: Mapping[str, NDArray[np.float32]]
    ) -> list[Decided]:
        return self._decider(outputs)

    def _compare(self, frame: NDArray[np.uint8]) -> tuple[str, NDArray[np.float64] | None]:
        """Name what is unlike the good frames of the calibration, and return the quantities that were compared."""
        if self._frame_checker is None:
            return "", None
        quantities = frame_statistics(frame)
        return self._frame_checker.problem(quantities), quantities

    def _result(
        self,
        frame: NDArray[np.uint8],
        decision: Decided,
        problem: str,
        quantities: NDArray[np.float64] | None,
        timings: Timings,
    ) -> Result:
        """Make the result of a frame. A frame with a problem was not inspected."""
        if decision.verdict == "not_inspected":
            problem = problem or _NOT_FINITE
        return Result(
            score=decision.score,
            verdict="not_inspected" if problem else decision.verdict,
            network_map=decision.network_map,
            levels=decision.levels,
            frame=frame,
            preprocessing=self.bundle.manifest.preprocessing,
            image_threshold=self.thresholds.image,
            pixel_threshold=self.thresholds.pixel,
            colours=self._decider.colours,
            nfa=self.thresholds.nfa,
            network_log_nfa=decision.network_log_nfa,
            precision=self.precision,
            engine=self.engine.name,
            engine_reason=self.engine.reason,
            timings=timings,
            min_region_px=self.min_region_px,
            problem=problem,
            frame_quantities=quantities,
        )

    def _pixels(self, frames: Sequence[Given] | NDArray[Any], color: Color) -> list[NDArray[np.uint8]]:
        """Return the frames as 8-bit RGB. An error names the frame's place in a batch."""
        pixels = []
        for place, frame in enumerate(frames):
            try:
                pixels.append(pixels_of(frame, color=color, pixel_range=self.bundle.manifest.pixel_range))
            except ImageError as error:
                if len(frames) == 1:
                    raise
                raise ImageError(f"frames[{place}]: {error}") from error
        return pixels

    def close(self) -> None:
        """Free the engine's memory. The detector cannot be used after it."""
        self._is_closed = True
        if os.getpid() == self._process:
            self.engine.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            ProcessError: A detector is always refused.
        """
        raise self._not_here("can be neither pickled nor copied: its engine belongs to this process")

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        """Describe the detector on one line: bundle, model, size, engine, precision and thresholds."""
        manifest = self.bundle.manifest
        height, width = manifest.image_size
        thresholds = self.thresholds
        if thresholds.nfa is not None:
            limits = [f"log NFA limit {thresholds.nfa.log_nfa:.6g}"]
        else:
            of_score_and_map = {"image": thresholds.image, "pixel": thresholds.pixel}
            limits = [f"{name} threshold {one.value:.6g}" for name, one in of_score_and_map.items() if one]
        return (
            f"<Detector {str(self.bundle.path)!r}: {manifest.family} on {manifest.backbone}, {height}x{width}, "
            f"{self.precision} on {self.engine.name}, {', '.join(limits) or 'no threshold'}"
            f"{', closed' if self._is_closed else ''}>"
        )

    def _closed(self) -> ValueError:
        return ValueError(
            "this detector was closed. Load the bundle again, and close it after the last frame."
        )

    def _not_here(self, reason: str) -> ProcessError:
        return ProcessError(
            f"a detector {reason}. Load the bundle again in each process: flowedge.load({str(self.bundle.path)!r})"
        )


def _on_device(bundle: Bundle, engine: Opened) -> Callable[[Size], bool] | None:
    """Return a function that tells which sizes of frames the engine preprocesses itself, or None where it does not."""
    if bundle.manifest.frame_size is not None or not isinstance(engine.engine, TakesFrames):
        return None
    return engine.engine.take_frames(bundle.manifest.preprocessing)
