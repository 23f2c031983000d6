"""From frames to verdicts: preprocess, infer, decide."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.errors import BundleError, ImageError
from flowedge.geometry import map_to_frame
from flowedge.manifest import Preprocessing, SourceScale, Threshold
from flowedge.runtime.engine import Engine
from flowedge.runtime.preprocess import Preprocessor
from flowedge.runtime.source_scale import scaled_map, scaled_score, source_thresholds

Verdict: TypeAlias = Literal["ok", "anomalous", "unknown", "not_inspected"]
"""``unknown``: no image threshold was fitted. ``not_inspected``: the answer is not finite. Only ``ok`` is a
reason to let a part pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long one frame took, in ms of wall-clock time; in a batch, its share of the whole."""

    preprocess_ms: float
    infer_ms: float
    decide_ms: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What was found in one frame.

    Attributes:
        score: The family's image score, or the source's normalised one; larger is more anomalous.
        verdict: See ``Verdict``.
        network_map: ``(h, w)`` float32, the localisation map over the network's input, as the graph gave it or on
            the source's scale; larger is more anomalous.
        levels: Per scale, fine to coarse, ``(h, w)`` float32, the graph's ``level_i``.
        frame_size: ``(height, width)`` of the frame, in pixels.
        preprocessing: How the frame became the network's input.
        pixel_threshold: The limit of the map, fitted or the source's; None when there is none.
        precision: What the graph computed in.
        engine: The name of the engine that ran it.
        timings: Where the time went.
    """

    score: float
    verdict: Verdict
    network_map: NDArray[np.float32] = field(repr=False)
    levels: tuple[NDArray[np.float32], ...] = field(repr=False)
    frame_size: tuple[int, int]
    preprocessing: Preprocessing = field(repr=False)
    pixel_threshold: Threshold | None
    precision: str
    engine: str
    timings: Timings

    @property
    def is_anomalous(self) -> bool | None:
        """True or False where the score was compared with a threshold, None where it was not.

        None is not False: to let a part pass, ask for ``verdict == "ok"``.
        """
        return {"ok": False, "anomalous": True}.get(self.verdict)

    @cached_property
    def anomaly_map(self) -> NDArray[np.float32]:
        """``(H, W)`` float32, the map laid over the frame; NaN where a crop left the frame uninspected."""
        return map_to_frame(self.network_map, self.preprocessing, self.frame_size)

    @cached_property
    def mask(self) -> NDArray[np.bool_] | None:
        """``(H, W)``: which pixels of the frame are anomalous; False outside of a crop.

        None where no pixel threshold was fitted or the answer is not finite.
        """
        if self.pixel_threshold is None or self.verdict == "not_inspected":
            return None
        return self.anomaly_map > self.pixel_threshold.value


class Detector:
    """One graph of a bundle on one engine; closes the engine when it is closed."""

    def __init__(self, bundle: Bundle, engine: Engine, precision: str, *, source_scale: bool = False) -> None:
        """Decide with the thresholds that were fitted for this precision, or with the source's.

        Args:
            bundle: The bundle.
            engine: An engine that has loaded the bundle's graph of this precision.
            precision: Which graph.
            source_scale: Give the normalised score and map and the verdict that anomalib would give.

        Raises:
            BundleError: The bundle has no graph of this precision; or for ``source_scale`` it holds no such scale, or
                was calibrated to another.
        """
        self.bundle = bundle
        self.engine = engine
        self.precision = precision
        self.thresholds = bundle.manifest.graph(precision).thresholds
        self._scale = _source_scale(bundle, precision) if source_scale else None
        if self._scale is not None:
            self.thresholds = source_thresholds(self._scale)
        self._preprocessor = Preprocessor(bundle.manifest.preprocessing)

    def __call__(self, frame: NDArray[np.uint8]) -> Result:
        """Inspect one frame.

        Args:
            frame: ``(H, W, 3)`` uint8, RGB, any size; not modified.

        Raises:
            ImageError: The frame is of another type or shape, or does not become the network's input.
            EngineUnavailableError: The device stopped.
        """
        (result,) = self.detect_batch([frame])
        return result

    def detect_batch(self, frames: Sequence[NDArray[np.uint8]]) -> list[Result]:
        """Inspect several frames in one run of the engine; they may differ in size.

        Args:
            frames: Each as in a call with one frame.

        Returns:
            One result per frame, in order. None depends on the other frames.

        Raises:
            ImageError: As for one frame.
            EngineUnavailableError: The device stopped, for instance because the batch does not fit its memory.
        """
        if not frames:
            return []
        start = time.perf_counter()
        image = np.stack([self._network_input(frame) for frame in frames])
        preprocessed = time.perf_counter()
        outputs = self.engine.infer(image)
        inferred = time.perf_counter()
        scores, maps, verdicts = self._decide(outputs["score"], outputs["anomaly_map"])
        decided = time.perf_counter()
        ms = 1000 / len(frames)
        timings = Timings(
            preprocess_ms=(preprocessed - start) * ms,
            infer_ms=(inferred - preprocessed) * ms,
            decide_ms=(decided - inferred) * ms,
        )
        return [
            Result(
                score=float(scores[index]),
                verdict=verdicts[index],
                network_map=maps[index, 0],
                levels=tuple(
                    outputs[f"level_{level}"][index, 0] for level in range(len(self.bundle.manifest.levels))
                ),
                frame_size=frame.shape[:2],
                preprocessing=self.bundle.manifest.preprocessing,
                pixel_threshold=self.thresholds.pixel,
                precision=self.precision,
                engine=self.engine.name,
                timings=timings,
            )
            for index, frame in enumerate(frames)
        ]

    def close(self) -> None:
        """Give the engine's memory back; the detector cannot be used after it."""
        self.engine.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _network_input(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        image = self._preprocessor(frame)
        height, width = self.bundle.manifest.image_size
        if image.shape != (3, height, width):
            raise ImageError(
                f"a frame of {frame.shape[0]}x{frame.shape[1]} becomes {image.shape[1]}x{image.shape[2]} pixels "
                f"by the bundle's preprocessing, its graph takes {height}x{width}. "
                "Export again with an --image-size that suits the frames."
            )
        return image

    def _decide(
        self, scores: NDArray[np.float32], maps: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], list[Verdict]]:
        """Scores and maps on the scale asked for, and a verdict each.

        Whatever is not finite was not inspected: NaN compares as smaller than any threshold.
        """
        finite = np.isfinite(scores) & np.isfinite(maps).all(axis=(1, 2, 3))
        limit = self.thresholds.image
        is_anomalous = None if limit is None else scores.astype(np.float64) > limit.value
        if self._scale is not None:
            scaled = scaled_score(scores, self._scale)
            scores, is_anomalous = scaled.value, scaled.is_anomalous
            maps = scaled_map(maps, self._scale).value
            finite &= np.isfinite(scores) & np.isfinite(maps).all(axis=(1, 2, 3))
        return scores, maps, [_verdict(bool(finite[n]), is_anomalous, n) for n in range(len(scores))]


def _verdict(is_finite: bool, is_anomalous: NDArray[np.bool_] | None, index: int) -> Verdict:
    if not is_finite:
        return "not_inspected"
    if is_anomalous is None:
        return "unknown"
    return "anomalous" if is_anomalous[index] else "ok"


def _source_scale(bundle: Bundle, precision: str) -> SourceScale:
    """The bundle's.

    Raises:
        BundleError: It holds none, or its scores are no longer those that the scale belongs to.
    """
    scale = bundle.manifest.source_scale
    if scale is None:
        raise BundleError(
            f"{bundle.path} has no scale of its source: the checkpoint held no thresholds and ranges of anomalib's. "
            "Run it without the source's scale, after flowedge calibrate."
        )
    if bundle.manifest.graph(precision).scoring.normalisation == "fixed_reference":
        raise BundleError(
            f"{bundle.path} was calibrated to a fixed reference, and anomalib's thresholds belong to scores that each "
            "image normalises by itself. Export the checkpoint again for the source's scale, or run it without."
        )
    return scale
