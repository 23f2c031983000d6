"""Define the record of one frame at a station, and the events of a station."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import msgspec

from flowedge.clock import utc_moment
from flowedge.runtime.record import Verdict
from flowedge.runtime.regions import Region
from flowedge.text import printable

Signal: TypeAlias = Literal["ok", "nok"]
"""The answer that the machine gets. Only a frame that was inspected, in time, and accepted is ``ok``."""

Level: TypeAlias = Literal["info", "warning", "alarm"]

MOST_REGIONS: Final = 100
"""The largest number of regions in a record."""

LONGEST_TEXT: Final = 1000
"""The largest number of characters of a text from outside in a record, other than the name of a frame."""

LONGEST_NAME: Final = 6 * 4096  # the longest path of Linux in bytes, each of them escaped
"""The largest number of characters of the name of a frame."""


def picture_name(journal: str, number: int, signal: Signal) -> str:
    """Return the place of a record's picture in the archive's folder.

    The name is made of numbers alone, so no text from outside reaches the file system. Names sort by age.
    """
    return f"{journal}/{number // 1000:07d}/{number:010d}-{signal}.jpg"


class RecordedRegion(msgspec.Struct, frozen=True, kw_only=True):
    """A region of anomalous pixels in a record, in pixels of the frame.

    Attributes:
        area_px: The number of pixels.
        top: The first row.
        left: The first column.
        height_px: The number of rows of the bounding box.
        width_px: The number of columns of the bounding box.
        centroid: The mean row and the mean column of the pixels.
        peak: The largest value of the anomaly map in the region.
        log_nfa: The lowest log10 number of false alarms in the region, where this number decides.
        length_px: The largest distance between two points of the border (maximum Feret diameter), in pixels.
        area_mm2: The area in mm². The area is None where no scale is known.
        length_mm: The length in mm. The length is None where no scale is known.
    """

    area_px: int
    top: int
    left: int
    height_px: int
    width_px: int
    centroid: tuple[float, float]
    peak: float
    log_nfa: float | None = None
    length_px: float
    area_mm2: float | None = None
    length_mm: float | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one frame, from whatever source and with whatever outcome.

    Texts from outside are made printable and are cut where they are too long, so that a record is safe to print.

    Attributes:
        number: The place in the journal, 1 for the first record. Each record has the next number. The journal gives
            the number when it takes the record, and 0 stands for a record outside of a journal.
        id: The name by which a receiver knows a repeated record, unique over stations and restarts. The journal gives
            it together with the number.
        station: The name of the station.
        run: The name of the run of the station's process, unique over stations and restarts.
        time: The wall time at which the frame was taken, in UTC. The clock may jump, so the order is that of `number`.
        monotonic_ns: The time at which the frame was taken on the clock that never jumps and begins anew with the
            machine, in ns.
        source: The name of the source.
        source_id: The name of the frame in its source. For an image file the name is its absolute path.
        source_key: The state of the file, see `flowedge.runtime.protocols.Frame.version`. The text is empty for a frame
            that is no file.
        part: The number or name of the part in the picture. The part is None where nobody knows it.
        product: The product that the frame was judged as. The product is empty for a bundle of one product.
        bundle_sha256: The SHA-256 of the bundle's manifest, which has those of all its files.
        engine: The name of the engine that computed. The name is empty where none did.
        engine_version: The version of the engine's library.
        engine_reason: The reason why this engine computed.
        precision: The precision of the graph.
        threshold: The image threshold, where it decides the verdict.
        log_nfa_limit: The limit of ``log_nfa``, where it decides the verdict.
        threshold_version: The number of changes in the bundle's history of thresholds.
        score: The image score. A frame that was not inspected has no score.
        log_nfa: The image's lowest log10 number of false alarms, where it decides the verdict.
        verdict: The verdict of the detector.
        signal: The answer that the machine gets.
        reason: The reason of the signal, as a clause.
        severity: The class of severity. The value is None for an accepted frame, and where no class fits.
        regions: The regions of anomalous pixels, surest first, at most ``MOST_REGIONS`` of them.
        regions_left_out: The number of further regions.
        late: True where the verdict came after its deadline.
        stages_ms: The time of each stage by name, in ms.
        dropped_before: The number of frames that were lost between the frame before and this one.
        problem: The reason why the frame was not inspected. The reason is empty where it was.
        picture: The file of the picture in the archive's folder, where the archive's policy keeps one. An empty text in
            a record that is appended asks the journal for the name.
    """

    number: int = 0
    id: str = ""
    station: str
    run: str
    time: datetime.datetime
    monotonic_ns: int
    source: str
    source_id: str
    source_key: str = ""
    part: str | None = None
    product: str = ""
    bundle_sha256: str = ""
    engine: str = ""
    engine_version: str = ""
    engine_reason: str = ""
    precision: str = ""
    threshold: float | None = None
    log_nfa_limit: float | None = None
    threshold_version: int = 0
    score: float | None = None
    log_nfa: float | None = None
    verdict: Verdict
    signal: Signal
    reason: str
    severity: str | None = None
    regions: tuple[RecordedRegion, ...] = ()
    regions_left_out: int = 0
    late: bool = False
    stages_ms: dict[str, float] = msgspec.field(default_factory=dict)
    dropped_before: int = 0
    problem: str = ""
    picture: str | None = None

    def __post_init__(self) -> None:
        """Make the texts from outside printable and short.

        Raises:
            ValueError: The signal is ``ok`` although the frame was not inspected.
        """
        for name in ("source", "part", "product", "engine_reason", "reason", "problem"):
            _tidy(self, name, LONGEST_TEXT)
        _tidy(self, "source_id", LONGEST_NAME)
        # The last line of defence: no path through the station may let a part pass that nobody has seen.
        if self.signal == "ok" and self.verdict == "not_inspected":
            raise ValueError(f"a frame that was not inspected is never ok: {self.source_id}")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact about a station that is no inspection, such as a lost source, a failed engine or a drift.

    Attributes:
        number: The place among the journal's events, 1 for the first. The journal gives it.
        id: The name by which a receiver knows a repeated event, unique over stations and restarts.
        record: The number of the newest record when the journal took the event, 0 before the first.
        station: The name of the station.
        run: The name of the run of the station's process.
        time: The wall time, in UTC.
        kind: The kind of event, one word such as ``source_lost``, ``engine_replaced``, ``drift`` or ``disk_low``.
        level: The weight of the event.
        text: The event in words, for a person.
        data: Further facts by name, as JSON's own types.
    """

    number: int = 0
    id: str = ""
    record: int = 0
    station: str = ""
    run: str = ""
    time: datetime.datetime = msgspec.field(default_factory=utc_moment)
    kind: str
    level: Level = "info"
    text: str
    data: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the texts printable and short."""
        _tidy(self, "text", LONGEST_TEXT)
        data = {
            name: _printable(value, LONGEST_TEXT) if isinstance(value, str) else value
            for name, value in self.data.items()
        }
        msgspec.structs.force_setattr(self, "data", data)


Tell: TypeAlias = Callable[[Event], None]
"""A function that takes an event of a station. Any thread may call it, and none waits in it."""


def recorded_region(region: Region, *, length_px: float, mm_per_px: float | None) -> RecordedRegion:
    """Return what a record keeps of a region.

    Args:
        region: The region.
        length_px: The length of the region in pixels.
        mm_per_px: The side of a pixel in mm, where it is known.
    """
    return RecordedRegion(
        area_px=region.area_px,
        top=region.top,
        left=region.left,
        height_px=region.height_px,
        width_px=region.width_px,
        centroid=region.centroid,
        peak=region.peak,
        log_nfa=region.log_nfa,
        length_px=length_px,
        area_mm2=None if mm_per_px is None else region.area_px * mm_per_px**2,
        length_mm=None if mm_per_px is None else length_px * mm_per_px,
    )


def _tidy(struct: msgspec.Struct, name: str, longest: int) -> None:
    """Replace a text by a printable and short one, and leave a good one as it is."""
    text = getattr(struct, name)
    if text is not None and (tidy := _printable(text, longest)) is not text:
        msgspec.structs.force_setattr(struct, name, tidy)


def _printable(text: str, longest: int) -> str:
    """Return a text, escaped and cut where it has to be."""
    if len(text) <= longest and text.isprintable():
        return text
    # Escaping makes a text longer, never shorter.
    escaped = printable(text[: longest + 1])
    return escaped if len(escaped) <= longest else escaped[: longest - 1] + "…"
