"""Define the result of one frame: verdict, score, maps, mask and regions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.geometry import map_to_frame
from flowedge.manifest import ColourScale, NfaThreshold, Preprocessing, Threshold
from flowedge.runtime.record import Inspection, Verdict
from flowedge.runtime.regions import Region, find_regions
from flowedge.runtime.render import Style, check_style, draw, write_content, write_jpeg, write_png

_ROUNDING: Final = 1e-5  # of the largest value; an interpolation in float32 is off by less than a tenth of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The time that one frame took, in ms of wall-clock time. For a frame of a batch it is the frame's share.

    Where a detector was given a path, the reading of the file is a part of ``preprocess_ms``.
    """

    preprocess_ms: float
    infer_ms: float
    decide_ms: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result:
    """The findings in one frame.

    Attributes:
        score: The family's image score, or the source's normalised one. Larger is more anomalous.
        verdict: The verdict by the thresholds, see ``Verdict``.
        network_map: ``(h, w)`` float32, the localisation map over the network's input, as the graph gave it or on
            the source's scale. Larger is more anomalous.
        levels: Per level, fine to coarse, ``(h, w)`` float32, the graph's ``level_i``. The tuple is empty where the
            detector was loaded with ``levels=False``.
        frame: ``(H, W, 3)`` uint8, RGB, the frame that was judged. For a frame of 8 bits it is the array that the
            detector was given, and no copy. A camera loop that fills one buffer again must draw a result before.
        preprocessing: The preprocessing that made the network's input of the frame.
        image_threshold: The threshold of the score, fitted or the source's, if there is one.
        pixel_threshold: The threshold of the map, fitted or the source's, if there is one.
        colours: The colour scale of the map in pictures. The value is None where the bundle was not calibrated.
        nfa: The a-contrario decision that the verdict and the mask follow. The value is None where thresholds of the
            score decide.
        network_log_nfa: ``(h, w)`` float64, log10 of each pixel's number of false alarms, over the network's input.
            Smaller is more anomalous. The value is None without ``nfa``, and where the answer is not finite.
        precision: The precision of the graph.
        engine: The name of the engine that ran the graph.
        engine_reason: The reason why this engine ran. Somebody named it, or the engines before it could not.
        timings: The time of each stage.
        min_region_px: The number of pixels below which a region is left out of ``regions``.
        problem: The reason why the frame was not inspected, as a clause without a full stop. The reason is empty for a
            frame that was inspected.
        frame_quantities: ``(Q,)`` float64, the quantities of the frame that were compared with those of good frames,
            see `flowedge.frame_quantities`. The value is None where nothing was compared.

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
    network_map: NDArray[np.float32]
    levels: tuple[NDArray[np.float32], ...]
    frame: NDArray[np.uint8]
    preprocessing: Preprocessing
    image_threshold: Threshold | None = None
    pixel_threshold: Threshold | None
    colours: ColourScale | None = None
    nfa: NfaThreshold | None = None
    network_log_nfa: NDArray[np.float64] | None = None
    precision: str
    engine: str
    engine_reason: str
    timings: Timings
    min_region_px: int = 1
    problem: str = ""
    frame_quantities: NDArray[np.float64] | None = None

    @property
    def frame_size(self) -> tuple[int, int]:
        """``(height, width)`` of the frame, in pixels."""
        height, width = self.frame.shape[:2]
        return height, width

    @property
    def is_anomalous(self) -> bool | None:
        """True or False where the answer was compared with a threshold, None where it was not.

        A value of None is not False. To let a part pass, test for ``verdict == "ok"``.
        """
        return {"ok": False, "anomalous": True}.get(self.verdict)

    @cached_property
    def anomaly_map(self) -> NDArray[np.float32]:
        """``(H, W)`` float32, the map laid over the frame. The map is NaN where a crop left the frame uninspected."""
        return map_to_frame(self.network_map, self.preprocessing, self.frame_size)

    @cached_property
    def mask(self) -> NDArray[np.bool_] | None:
        """``(H, W)``, True for the anomalous pixels of the frame. Pixels outside of a crop are False.

        The number of false alarms decides, where the bundle has its limit, else the pixel threshold. The value is None
        where there is neither, and where the frame was not inspected.
        """
        if self._is_clear:
            return np.zeros(self.frame_size, np.bool_)
        if self.verdict == "not_inspected":
            return None
        if self.nfa is not None and self.log_nfa_map is not None:
            return self.log_nfa_map < self.nfa.log_nfa
        return None if self.pixel_threshold is None else self.anomaly_map > self.pixel_threshold.value

    @cached_property
    def _is_clear(self) -> bool:
        """True where no pixel of the frame can be anomalous, so that nothing needs a map or a mask over the frame."""
        if self.verdict == "not_inspected":
            return False
        if self.nfa is not None and self.network_log_nfa is not None:
            return _stays_below(-self.network_log_nfa, -self.nfa.log_nfa)
        return self.pixel_threshold is not None and _stays_below(self.network_map, self.pixel_threshold.value)

    @property
    def _anomalous_share(self) -> float | None:
        """The share of the frame's pixels that are anomalous, 0..1. The value is None where there is no mask."""
        if self._is_clear:
            return 0.0
        return None if self.mask is None else int(np.count_nonzero(self.mask)) / self.mask.size

    @property
    def log_nfa(self) -> float | None:
        """The image's lowest log10 number of false alarms, if there is a map of it. Below the limit is anomalous."""
        return None if self.network_log_nfa is None else float(self.network_log_nfa.min())

    @cached_property
    def log_nfa_map(self) -> NDArray[np.float32] | None:
        """``(H, W)`` float32, ``network_log_nfa`` laid over the frame as ``anomaly_map`` is."""
        if self.network_log_nfa is None:
            return None
        return map_to_frame(self.network_log_nfa.astype(np.float32), self.preprocessing, self.frame_size)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The regions of ``mask``, in pixels of the frame, surest first. Without a mask there are no regions.

        Regions of fewer pixels than ``min_region_px`` are left out. The mask, the score and the verdict keep them.
        A region may be there in a frame whose verdict is ``ok``, because a threshold of the score decides the verdict.
        A frame smaller than the network's input can lose a region that is narrower than its pixels. The verdict does
        not lose it.
        """
        if self._is_clear or self.mask is None or not self.mask.any():
            return ()
        return find_regions(
            self.mask, self.anomaly_map, log_nfa=self.log_nfa_map, min_area_px=self.min_region_px
        )

    def record(self, image: str) -> Inspection:
        """Return the record of this inspection, which is one line of ``flowedge run --json``.

        Args:
            image: The name of the frame.
        """
        is_inspected = self.verdict != "not_inspected"
        threshold = None if self.image_threshold is None else self.image_threshold.value
        return Inspection(
            image=image,
            verdict=self.verdict,
            score=self.score if is_inspected else None,
            # Only the limit that decides the verdict is recorded.
            threshold=threshold if self.nfa is None else None,
            log_nfa=self.log_nfa if is_inspected else None,
            log_nfa_limit=None if self.nfa is None else self.nfa.log_nfa,
            regions=self.regions,
            anomalous_share=self._anomalous_share,
            latency_ms=self.timings.preprocess_ms + self.timings.infer_ms + self.timings.decide_ms,
            precision=self.precision,
            engine=self.engine,
            engine_reason=self.engine_reason,
            problem=self.problem,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as JSON's own types, under the keys of a line of ``flowedge run --json``.

        The names of files, which a frame has not, are left out. The keys are described in
        `flowedge.runtime.record.Inspection` and `flowedge.runtime.regions.Region`.

        Examples:
            >>> import json
            >>> import numpy as np
            >>> import flowedge
            >>> with flowedge.load("bottle.flowedge") as detector:
            ...     result = detector(np.zeros((480, 640, 3), dtype=np.uint8))
            >>> json.loads(json.dumps(result.to_dict())) == result.to_dict()
            True
        """
        line: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self.record("")))
        return {key: value for key, value in line.items() if key not in ("image", "overlay", "mask")}

    def plot(self, style: Style = "overlay", *, frame: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Draw the findings, with the verdict and the score above the frame and the colour bar below it.

        Args:
            style: ``overlay`` paints the frame. ``side-by-side`` puts the bare frame to the left of it. ``mask`` shows
                the anomalous pixels in white.
            frame: ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey, to draw on. By default the frame that was judged.

        Returns:
            ``(H', W', 3)`` uint8 RGB, larger than the frame. OpenCV shows ``result.plot()[..., ::-1]``.

        Raises:
            ValueError: The style is unknown, or the frame has another size or type than the judged one.
            TypeError: The frame is no array.
        """
        return draw(self, frame=frame, style=style)

    def save(self, path: str | PathLike[str], style: Style = "overlay") -> None:
        """Write the findings into a file, as a picture or as data. A reader sees the whole file or nothing.

        Args:
            path: The file, whose folder must exist. The end of the name chooses: ``.png`` or ``.jpg`` for the picture
                of `plot`, ``.json`` for the data of `to_dict`. A file that is there is replaced.
            style: The style of a picture.

        Raises:
            ImageError: The file cannot be written.
            ValueError: The name ends otherwise, or the style is unknown.
        """
        check_style(style)
        file = Path(fspath(path))
        match file.suffix.lower():
            case ".png":
                write_png(file, self.plot(style))
            case ".jpg" | ".jpeg":
                write_jpeg(file, self.plot(style))
            case ".json":
                write_content(file, msgspec.json.encode(self.to_dict()) + b"\n")
            case _:
                raise ValueError(f"a result is saved as .png, .jpg or .json, got {file.name!r}")

    def __repr__(self) -> str:
        """Describe the result on one line, without its arrays."""
        height, width = self.frame_size
        facts = [f"verdict={self.verdict!r}", f"score={self.score:.6g}"]
        if self.nfa is not None:
            facts += [
                f"log_nfa={'None' if self.log_nfa is None else f'{self.log_nfa:.6g}'}",
                f"limit={self.nfa.log_nfa:.6g}",
            ]
        elif self.image_threshold is not None:
            facts.append(f"threshold={self.image_threshold.value:.6g}")
        facts += [f"frame={height}x{width}", f"precision={self.precision!r}", f"engine={self.engine!r}"]
        if self.problem:
            facts.append(f"problem={self.problem!r}")
        return f"Result({', '.join(facts)})"


def _stays_below(values: NDArray[np.floating[Any]], limit: float) -> bool:
    """Return True where no value exceeds a limit, not even after the rounding of an interpolation between values."""
    highest, lowest = float(values.max()), float(values.min())
    return highest + _ROUNDING * max(abs(highest), abs(lowest)) <= limit
