"""From frames to verdicts: preprocess, infer, decide."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.errors import BundleError, ImageError, ProcessError
from flowedge.geometry import map_to_frame
from flowedge.manifest import NfaThreshold, Preprocessing, SourceScale, Threshold
from flowedge.runtime.engine import Engine
from flowedge.runtime.forks import keep_in_children
from flowedge.runtime.frame_check import FrameChecker
from flowedge.runtime.graph_input import GraphInput
from flowedge.runtime.nfa import (
    NotInspectedError,
    Region,
    check_form,
    detected_regions,
    log_nfa_of_outputs,
    warm_up,
)
from flowedge.runtime.source_scale import scaled_map, scaled_score, source_thresholds

Verdict: TypeAlias = Literal["ok", "anomalous", "unknown", "not_inspected"]
"""``unknown``: no threshold was set. ``not_inspected``: the answer is not finite, or the frame is unlike the good
frames of the calibration. Only ``ok`` is a reason to let a part pass."""

_NOT_FINITE: Final = "the network's answer is not finite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long one frame took, in ms of wall-clock time; in a batch, its share of the whole."""

    preprocess_ms: float
    infer_ms: float
    decide_ms: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """The findings in one frame.

    Attributes:
        score: The family's image score, or the source's normalised one; larger is more anomalous.
        verdict: See ``Verdict``.
        network_map: ``(h, w)`` float32, the localisation map over the network's input, as the graph gave it or on
            the source's scale; larger is more anomalous.
        levels: Per scale, fine to coarse, ``(h, w)`` float32, the graph's ``level_i``.
        frame_size: ``(height, width)`` of the frame, in pixels.
        preprocessing: How the frame became the network's input.
        pixel_threshold: The limit of the map, fitted or the source's; None when there is none.
        nfa: The a-contrario decision that the verdict and the mask follow, None when limits of the score decide.
        network_log_nfa: ``(h, w)`` float64, log10 of each pixel's number of false alarms, over the network's input;
            smaller is more anomalous. None without ``nfa``, and where the answer is not finite.
        precision: What the graph computed in.
        engine: The name of the engine that ran it.
        engine_reason: Why that one: it was named, or what stood in the way of those before it.
        timings: Where the time went.
        problem: Why the frame was not inspected, a clause without a full stop; empty otherwise.

    Examples:
        >>> import numpy as np
        >>> import flowedge
        >>> with flowedge.load("bottle.flowedge") as detector:
        ...     result = detector(np.zeros((480, 640, 3), dtype=np.uint8))
        >>> result.anomaly_map.shape, result.precision
        ((480, 640), 'fp32')
    """

    score: float
    verdict: Verdict
    network_map: NDArray[np.float32] = field(repr=False)
    levels: tuple[NDArray[np.float32], ...] = field(repr=False)
    frame_size: tuple[int, int]
    preprocessing: Preprocessing = field(repr=False)
    pixel_threshold: Threshold | None
    nfa: NfaThreshold | None = None
    network_log_nfa: NDArray[np.float64] | None = field(default=None, repr=False)
    precision: str
    engine: str
    engine_reason: str
    timings: Timings
    problem: str = ""

    @property
    def is_anomalous(self) -> bool | None:
        """True or False where the answer was compared with a threshold, None where it was not.

        None is not False: to let a part pass, ask for ``verdict == "ok"``.
        """
        return {"ok": False, "anomalous": True}.get(self.verdict)

    @cached_property
    def anomaly_map(self) -> NDArray[np.float32]:
        """``(H, W)`` float32, the map laid over the frame; NaN where a crop left the frame uninspected."""
        return map_to_frame(self.network_map, self.preprocessing, self.frame_size)

    @cached_property
    def mask(self) -> NDArray[np.bool_] | None:
        """``(H, W)``: which pixels of the frame are anomalous. Pixels outside of a crop are False.

        By the number of false alarms where that decides, else by the pixel threshold. None where there is neither,
        and where the frame was not inspected.
        """
        if self.verdict == "not_inspected":
            return None
        if self.nfa is not None and self.log_nfa_map is not None:
            return self.log_nfa_map < self.nfa.log_nfa
        return None if self.pixel_threshold is None else self.anomaly_map > self.pixel_threshold.value

    @property
    def log_nfa(self) -> float | None:
        """The image's lowest log10 number of false alarms; below the limit is anomalous. None as its map."""
        return None if self.network_log_nfa is None else float(self.network_log_nfa.min())

    @cached_property
    def log_nfa_map(self) -> NDArray[np.float32] | None:
        """``(H, W)`` float32, ``network_log_nfa`` laid over the frame as ``anomaly_map`` is."""
        if self.network_log_nfa is None:
            return None
        return map_to_frame(self.network_log_nfa.astype(np.float32), self.preprocessing, self.frame_size)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The regions of the frame's log-NFA map below the limit, in pixels of the frame, surest first.

        A frame smaller than the network's input can lose a region that is narrower than its pixels; the verdict
        does not lose it. Empty without ``nfa``.
        """
        if self.nfa is None or self.log_nfa_map is None:
            return ()
        return detected_regions(self.log_nfa_map, self.nfa.log_nfa)


class Detector:
    """One graph of a bundle on one engine.

    Threads may share a detector, for instance one thread a camera: each call gets the answer to its own frames, and a
    frame waits where the engine is busy. Closing a detector closes its engine. A call that has begun ends with its
    answer, and a later call with an error.

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

    def __init__(self, bundle: Bundle, engine: Engine, precision: str, *, source_scale: bool = False) -> None:
        """Decide with the thresholds of this precision, or with the source's.

        A threshold by the NFA tree is compiled now, if Numba is there.

        Args:
            bundle: The bundle.
            engine: An engine that has loaded the bundle's graph of this precision.
            precision: Which graph.
            source_scale: Give the normalised score and map and the verdict that anomalib would give.

        Raises:
            BundleError: The bundle has no graph of this precision; its threshold needs outputs that the graph does
                not give; or for ``source_scale`` it holds no such scale, or was calibrated to another.
        """
        self.bundle = bundle
        self.engine = engine
        self.precision = precision
        self.thresholds = bundle.manifest.graph(precision).thresholds
        self._scale = _source_scale(bundle, precision) if source_scale else None
        if self._scale is not None:
            self.thresholds = source_thresholds(self._scale)
        self._input = GraphInput(bundle.manifest)
        check = bundle.manifest.frame_check
        self._frame_problem: Callable[[NDArray[np.uint8]], str] = (
            (lambda frame: "") if check is None else FrameChecker(check)
        )
        self._is_closed = False
        self._process = os.getpid()
        keep_in_children(engine)
        if self.thresholds.nfa is not None:
            check_form(bundle.manifest, self.thresholds.nfa.form)
            if self.thresholds.nfa.form == "tree":
                warm_up()

    def __call__(self, frame: NDArray[Any]) -> Result:
        """Inspect one frame.

        Args:
            frame: ``(H, W, 3)`` uint8, RGB, not modified; of any size, or of the manifest's ``frame_size``. With a
                ``pixel_range`` in the manifest also ``(H, W)`` grey or ``(H, W, 3)`` RGB of other integers or floats.

        Raises:
            ImageError: The frame is of another type or shape, or does not become the graph's input.
            EngineUnavailableError: The device stopped.
            ValueError: The detector was closed.
            ProcessError: The process was forked after the detector was loaded.
        """
        (result,) = self.detect_batch([frame])
        return result

    def detect_batch(self, frames: Sequence[NDArray[Any]] | NDArray[Any]) -> list[Result]:
        """Inspect several frames in one run of the engine. They may differ in size, but for a ``frame_size``.

        Args:
            frames: Each as in a call with one frame; or ``(N, H, W, 3)``, frames of one size.

        Returns:
            One result per frame, in order. None depends on the other frames.

        Raises:
            ImageError: As for one frame, or ``frames`` is neither a sequence nor an array.
            EngineUnavailableError: The device stopped, for instance because the batch does not fit its memory.
            ValueError: The detector was closed.
            ProcessError: The process was forked after the detector was loaded.
        """
        if os.getpid() != self._process:
            raise self._not_here("cannot be used after a fork: its threads stayed in the other process")
        if self._is_closed:
            raise self._closed()
        if not isinstance(frames, Sequence | np.ndarray):
            raise ImageError(
                f"frames must be a list of frames or an array (N, H, W, 3), got {type(frames).__name__}. "
                "Put the frames into a list."
            )
        if len(frames) == 0:
            return []
        start = time.perf_counter()
        frames = self._input.in_8_bits(frames)
        image = self._input(frames)
        preprocessed = time.perf_counter()
        try:
            outputs = self.engine.infer(image)
        except ValueError as error:
            if not self._is_closed:
                raise
            raise self._closed() from error  # by another thread, since the check above
        inferred = time.perf_counter()
        log_nfas = [self._log_nfa(outputs, index) for index in range(len(frames))]
        scores, maps, verdicts = self._decide(outputs["score"], outputs["anomaly_map"], log_nfas)
        problems = [
            self._frame_problem(frame) or (_NOT_FINITE if verdict == "not_inspected" else "")
            for frame, verdict in zip(frames, verdicts, strict=True)
        ]
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
                verdict="not_inspected" if problems[index] else verdicts[index],
                network_map=maps[index, 0],
                levels=tuple(
                    outputs[f"level_{level}"][index, 0] for level in range(len(self.bundle.manifest.levels))
                ),
                frame_size=frame.shape[:2],
                preprocessing=self.bundle.manifest.preprocessing,
                pixel_threshold=self.thresholds.pixel,
                nfa=self.thresholds.nfa,
                network_log_nfa=log_nfas[index],
                precision=self.precision,
                engine=self.engine.name,
                engine_reason=self.engine.reason,
                timings=timings,
                problem=problems[index],
            )
            for index, frame in enumerate(frames)
        ]

    def close(self) -> None:
        """Give the engine's memory back; the detector cannot be used after it."""
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

    def _closed(self) -> ValueError:
        return ValueError(
            "this detector was closed. Load the bundle again, and close it after the last frame."
        )

    def _not_here(self, reason: str) -> ProcessError:
        return ProcessError(
            f"a detector {reason}. Load the bundle again in each process: flowedge.load({str(self.bundle.path)!r})"
        )

    def _decide(
        self,
        scores: NDArray[np.float32],
        maps: NDArray[np.float32],
        log_nfas: Sequence[NDArray[np.float64] | None],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], list[Verdict]]:
        """Scores and maps on the scale asked for, and a verdict each.

        Whatever is not finite was not inspected: NaN compares as smaller than any threshold.
        """
        finite = np.isfinite(scores) & np.isfinite(maps).all(axis=(1, 2, 3))
        limit, nfa = self.thresholds.image, self.thresholds.nfa
        with np.errstate(invalid="ignore"):  # some of the NaNs that a graph may give are signals
            is_anomalous = None if limit is None else scores.astype(np.float64) > limit.value
        if self._scale is not None:
            scaled = scaled_score(scores, self._scale)
            scores, is_anomalous = scaled.value, scaled.is_anomalous
            maps = scaled_map(maps, self._scale).value
            finite &= np.isfinite(scores) & np.isfinite(maps).all(axis=(1, 2, 3))
        elif nfa is not None:
            finite &= np.array([log_nfa is not None for log_nfa in log_nfas])
            is_anomalous = np.array(
                [log_nfa is not None and float(log_nfa.min()) < nfa.log_nfa for log_nfa in log_nfas]
            )
        return scores, maps, [_verdict(bool(finite[n]), is_anomalous, n) for n in range(len(scores))]

    def _log_nfa(self, outputs: dict[str, NDArray[np.float32]], index: int) -> NDArray[np.float64] | None:
        if self.thresholds.nfa is None:
            return None
        try:
            return log_nfa_of_outputs(outputs, index, self.bundle.manifest, self.thresholds.nfa.form)
        except NotInspectedError:
            return None


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
