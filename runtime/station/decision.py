"""Decide what the machine is told about a frame: ok or nok, with the reason in words and a class of severity."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from flowedge.runtime.regions import Region
from flowedge.runtime.result import Result
from flowedge.runtime.settings import Settings
from flowedge.runtime.station.measuring import Millimetres, ScaleSettings, length_of
from flowedge.runtime.station.record import MOST_REGIONS, Record, RecordedRegion, Signal, recorded_region

_MOST_WINDOWS: Final = 1000

_Frames = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class SizeLimits(Settings, frozen=True, kw_only=True):
    """The table ``[decision.limits]``: the sizes from which a region is too large.

    Attributes:
        area_mm2: The area of one region in mm².
        length_mm: The length of one region in mm, its maximum Feret diameter.
        total_area_mm2: The area of all regions of a frame together in mm².
    """

    area_mm2: Millimetres | None = None
    length_mm: Millimetres | None = None
    total_area_mm2: Millimetres | None = None

    def reached(self, regions: Sequence[RecordedRegion], total_mm2: float) -> str:
        """Describe the first limit that is reached, as a clause. The text is empty where none is.

        Args:
            regions: Regions with their sizes.
            total_mm2: The area of all regions of the frame together.
        """
        area = max((one.area_mm2 or 0.0 for one in regions), default=0.0)
        length = max((one.length_mm or 0.0 for one in regions), default=0.0)
        if self.area_mm2 is not None and area >= self.area_mm2:
            return f"a region of {area:.4g} mm² reaches the limit of {self.area_mm2:g} mm²"
        if self.length_mm is not None and length >= self.length_mm:
            return f"a region {length:.4g} mm long reaches the limit of {self.length_mm:g} mm"
        if self.total_area_mm2 is not None and total_mm2 >= self.total_area_mm2:
            return f"all regions have {total_mm2:.4g} mm² and reach the limit of {self.total_area_mm2:g} mm²"
        return ""

    @property
    def is_empty(self) -> bool:
        """True where no size is limited."""
        return self.area_mm2 is None and self.length_mm is None and self.total_area_mm2 is None


class SeverityClass(SizeLimits, frozen=True, kw_only=True):
    """A table ``[[decision.severity]]``: a class of severity. A frame belongs to the last class that it reaches.

    Attributes:
        name: The name of the class, such as ``minor``.
        score: The image score from which a frame belongs to the class, whatever the sizes are.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    score: float | None = None

    def __post_init__(self) -> None:
        """Check that the class has a limit.

        Raises:
            ValueError: The class has none.
        """
        if self.is_empty and self.score is None:
            raise ValueError("A class of severity needs area_mm2, length_mm, total_area_mm2 or score")


class DecisionSettings(Settings, frozen=True, kw_only=True):
    """The table ``[decision]``: the rule by which a verdict becomes ok or nok.

    Attributes:
        rule: The rule for one frame. With ``verdict`` the bundle's thresholds decide. With ``regions`` a frame is nok
            where a region reaches one of ``limits``, and a smaller region is accepted.
        nok_frames: The number of rejected frames among the last ``of_last_frames`` from which the signal is nok. More
            than 1 is for continuous material. Single parts need 1.
        of_last_frames: The number of frames that ``nok_frames`` looks back on, of each source and product.
        late: The signal for a verdict after its deadline: ``nok``, or ``verdict`` to give it as if it was in time.
        scale: The size of a pixel on the part. Sizes in mm need it.
        limits: The sizes for the rule ``regions``.
        severity: The classes of severity, the mildest first.
    """

    rule: Literal["verdict", "regions"] = "verdict"
    nok_frames: _Frames = 1
    of_last_frames: _Frames = 1
    late: Literal["nok", "verdict"] = "nok"
    scale: ScaleSettings | None = None
    limits: SizeLimits = SizeLimits()
    severity: Annotated[tuple[SeverityClass, ...], msgspec.Meta(max_length=20)] = ()

    def __post_init__(self) -> None:
        """Check what no single key shows.

        Raises:
            ValueError: Two keys contradict each other, or one is missing.
        """
        if self.nok_frames > self.of_last_frames:
            raise ValueError("nok_frames must not be larger than of_last_frames")
        if (self.rule == "regions") == self.limits.is_empty:
            raise ValueError('rule = "regions" and a limit in [decision.limits] belong together')
        if self.scale is None and not all(one.is_empty for one in (self.limits, *self.severity)):
            raise ValueError("Sizes in mm need [decision.scale]")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFacts:
    """The facts of a frame that a decision needs beside the detector's result.

    Attributes:
        source: The name of the source.
        product: The product that the frame was judged as.
        late: True where the verdict is later than its deadline.
        problem: The reason why the frame was not inspected. The text is empty where it was.
    """

    source: str = ""
    product: str = ""
    late: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The decision on a frame. The attributes are those of `flowedge.runtime.station.record.Record`."""

    signal: Signal
    reason: str
    severity: str | None = None
    regions: tuple[RecordedRegion, ...] = ()
    regions_left_out: int = 0


class Decision:
    """Decides frame after frame, in their order, from one thread."""

    def __init__(self, settings: DecisionSettings) -> None:
        """Take the settings. No frame has been seen yet."""
        self._settings = settings
        self._scale = None if settings.scale is None else settings.scale.value
        self._rejected: dict[tuple[str, str], deque[bool]] = {}

    def __call__(self, result: Result | None, facts: FrameFacts) -> Outcome:
        """Decide on one frame.

        Args:
            result: The detector's result, or None for a frame that was not judged.
            facts: Facts about the frame.
        """
        window = self._window(facts.source, facts.product)
        problem = facts.problem
        if result is None or result.verdict == "not_inspected":
            problem = problem or (result.problem if result else "") or "there is no answer"
        if problem or result is None:
            window.append(True)
            return Outcome(signal="nok", reason=f"not inspected: {problem}")
        has_regions = result.verdict != "ok" or self._settings.rule == "regions"
        found = result.regions if has_regions else ()
        regions = self._measured(found)
        total_mm2 = sum(one.area_px for one in found) * (self._scale or 0.0) ** 2
        rejected, reason = self._answer(result, regions, total_mm2)
        window.append(rejected)
        signal, reason = self._with_window(window, rejected, reason)
        if facts.late:
            signal, reason = self.late_answer(signal, reason)
        is_bad = signal == "nok" or result.verdict == "anomalous"
        return Outcome(
            signal=signal,
            reason=reason,
            severity=self._severity(result.score, regions, total_mm2) if is_bad else None,
            regions=regions,
            regions_left_out=len(found) - len(regions),
        )

    def late_answer(self, signal: Signal, reason: str) -> tuple[Signal, str]:
        """Return the signal and its reason for an answer that came after its deadline."""
        if self._settings.late == "verdict":
            return signal, reason
        return "nok", f"late: the verdict came after its deadline ({reason})"

    def remember(self, records: Iterable[Record]) -> None:
        """Take the newest records of the journal, oldest first, so that a restart does not forget rejected frames."""
        for record in records:
            self._window(record.source, record.product).append(self._was_rejected(record))

    def _window(self, source: str, product: str) -> deque[bool]:
        """Return for the last frames of a source and a product whether each was rejected by itself."""
        key = source, product
        window = self._rejected.pop(key, None)
        if window is None:
            window = deque(maxlen=self._settings.of_last_frames)
        self._rejected[key] = window
        # Each folder of a watched tree is a source of its own, and new ones may come every day.
        if len(self._rejected) > _MOST_WINDOWS:
            del self._rejected[next(iter(self._rejected))]
        return window

    def _measured(self, found: Sequence[Region]) -> tuple[RecordedRegion, ...]:
        """Measure the regions that a record keeps: the surest ones, then the largest and the longest of the others."""
        surest, others = found[:MOST_REGIONS], found[MOST_REGIONS:]
        if not others:
            return tuple(map(self._measure, surest))
        surest, others = found[: MOST_REGIONS - 2], found[MOST_REGIONS - 2 :]
        largest = max(others, key=lambda one: one.area_px)
        longest = _longest(others)
        return tuple(map(self._measure, (*surest, largest, *([] if longest is largest else [longest]))))

    def _measure(self, region: Region) -> RecordedRegion:
        return recorded_region(region, length_px=length_of(region.contour), mm_per_px=self._scale)

    def _answer(
        self, result: Result, regions: Sequence[RecordedRegion], total_mm2: float
    ) -> tuple[bool, str]:
        """Return True where the frame alone is rejected, and the reason of the answer as a clause."""
        if self._settings.rule == "regions":
            if result.mask is None:
                return True, "the bundle has no threshold for pixels, so no region can be measured"
            if reached := self._settings.limits.reached(regions, total_mm2):
                return True, reached
            if result.verdict == "anomalous" and not regions:
                return True, f"{_score_text(result)}, and there is no region to measure"
            return False, "all regions are below the limits" if regions else "there is no region"
        if result.verdict == "unknown":
            return True, "the bundle has no threshold that could accept it"
        return result.verdict != "ok", _score_text(result)

    def _was_rejected(self, record: Record) -> bool:
        """Return True where the frame of a record was rejected by itself."""
        if record.verdict == "not_inspected" or self._settings.rule == "verdict":
            return record.verdict != "ok"
        total_mm2 = sum(one.area_mm2 or 0.0 for one in record.regions)
        return bool(
            self._settings.limits.reached(record.regions, total_mm2)
            or (record.verdict == "anomalous" and not record.regions)
            # The area of regions that were left out is not known any more.
            or record.regions_left_out
        )

    def _with_window(self, window: Sequence[bool], rejected: bool, reason: str) -> tuple[Signal, str]:
        """Return the signal by the last frames, and its reason."""
        if self._settings.of_last_frames == 1:
            return ("nok" if rejected else "ok"), reason
        count, needed = sum(window), self._settings.nok_frames
        counted = f"{count} of the last {len(window)} frames rejected, nok from {needed} on"
        if count >= needed:
            return "nok", f"{counted} ({reason})"
        return "ok", f"{counted} ({reason})" if rejected else reason

    def _severity(self, score: float, regions: Sequence[RecordedRegion], total_mm2: float) -> str | None:
        """Return the last class that the frame reaches."""
        reached = [
            one.name
            for one in self._settings.severity
            if one.reached(regions, total_mm2) or (one.score is not None and score >= one.score)
        ]
        return reached[-1] if reached else None


def _longest(regions: Sequence[Region]) -> Region:
    """Return the longest region, and measure few of them, since noise can give thousands."""

    def diagonal(region: Region) -> float:
        return math.hypot(region.height_px, region.width_px)

    longest, length = regions[0], 0.0
    for region in sorted(regions, key=diagonal, reverse=True):
        if diagonal(region) <= length:  # No region is longer than the diagonal of its box.
            break
        if (measured := length_of(region.contour)) > length:
            longest, length = region, measured
    return longest


def _score_text(result: Result) -> str:
    """Compare the value that decides with its limit, as a clause."""
    if result.nfa is not None and result.log_nfa is not None:
        is_below = result.verdict == "anomalous"
        return f"log NFA {result.log_nfa:.4g} is {'' if is_below else 'not '}below the limit {result.nfa.log_nfa:g}"
    limit = "" if result.image_threshold is None else f" {result.image_threshold.value:.4g}"
    return f"score {result.score:.4g} is {'' if result.verdict == 'anomalous' else 'not '}above the threshold{limit}"
