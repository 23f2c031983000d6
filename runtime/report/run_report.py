"""A sink that writes one HTML page about a run: verdicts, scores, pictures, and why images were not inspected."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from flowedge.runtime.detector import Detector
from flowedge.runtime.protocols import Frame
from flowedge.runtime.record import Inspection
from flowedge.runtime.report.charts import Series, charts, histogram, points
from flowedge.runtime.report.markup import Markup
from flowedge.runtime.report.pages import write_page
from flowedge.runtime.report.pictures import MostUrgent, pictures_of
from flowedge.runtime.report.provenance import provenance_of
from flowedge.runtime.report.shell import facts, figures, notice, page_of, paragraph, section
from flowedge.runtime.report.tables import Column, image_table
from flowedge.runtime.result import Result
from flowedge.targets import check_file_target

MOST_ROWS: Final = 20_000
MOST_PICTURES: Final = 200

PICTURES: Final = ("image", "findings", "anomaly map")

_STYLES: Final = {"ok": "good", "anomalous": "bad", "unknown": "left", "not_inspected": "left"}
_WORDS: Final = {"ok": "ok", "anomalous": "wrong", "unknown": "absent", "not_inspected": "absent"}
_VERDICTS: Final = tuple(_STYLES)
_RANKS: Final = {"anomalous": 2, "not_inspected": 1}


class _Row(NamedTuple):
    number: int
    record: Inspection


class RunReport:
    """A page about a run, which is written when the sink is closed, also after an interruption.

    The memory stays bounded: a row for the most suspicious images, pictures for fewer, and some bytes for every other
    image, which is in the charts and in the counts.
    """

    def __init__(self, file: Path, detector: Detector, *, source: str, images: int | None = None) -> None:
        """Check that the page can be written, before the first image is inspected.

        Args:
            file: The HTML file. A file that is there is replaced.
            detector: The detector that inspects.
            source: The name of the source, such as a folder.
            images: The number of images of the source. Where fewer came, the page says that it is not complete. The
                number is None where nobody knows it.

        Raises:
            FlowEdgeError: The page cannot be written there, or FlowEdge did not write the file that is there.
        """
        check_file_target(file, force=True)
        self._file = file
        self._source = source
        self._expected = images
        self._provenance = provenance_of(detector)
        self._by_nfa = detector.thresholds.nfa is not None
        limits = detector.thresholds
        self._limit = limits.nfa.log_nfa if limits.nfa else limits.image.value if limits.image else None
        self._rows: MostUrgent[_Row] = MostUrgent(MOST_ROWS)
        self._pictures: MostUrgent[tuple[int, Sequence[str | None]]] = MostUrgent(MOST_PICTURES)
        self._verdicts: Counter[str] = Counter()
        self._values = array("f")
        self._kinds = array("b")
        self._milliseconds = array("f")
        self._decoders: Counter[str] = Counter()

    def put(self, frame: Frame, record: Inspection, result: Result | None) -> Inspection:
        """Take the record of one frame into the page, and return it unchanged."""
        number = len(self._kinds)
        value = record.log_nfa if self._by_nfa else record.score
        self._verdicts[record.verdict] += 1
        if frame.decoder:
            self._decoders[frame.decoder] += 1
        self._kinds.append(_VERDICTS.index(record.verdict))
        self._values.append(float("nan") if value is None else value)
        if record.latency_ms is not None:
            self._milliseconds.append(record.latency_ms)
        # Anomalous images come first, then those that were not inspected, then the others by their score.
        suspicion = 0.0 if value is None else -value if self._by_nfa else value
        urgency = (_RANKS.get(record.verdict, 0), suspicion)
        self._rows.add(urgency, _Row(number, record))
        if frame.pixels.size and self._pictures.would_keep(urgency):
            self._pictures.add(urgency, (number, pictures_of(frame.pixels, result)))
        return record

    def close(self) -> None:
        """Write the page.

        Raises:
            FlowEdgeError: The file cannot be written.
        """
        write_page(self._file, self._page())

    def _page(self) -> str:
        seen = len(self._kinds)
        sections: list[Markup] = []
        if self._expected is not None and seen < self._expected:
            sections.append(
                notice(f"This page is not complete: the run ended after {seen} of {self._expected} images.")
            )
        counts = [(verdict.replace("_", " "), self._verdicts[verdict]) for verdict in _VERDICTS]
        sections.append(
            figures(
                [("images", seen), *((name, n) for name, n in counts if n or name in ("ok", "anomalous"))]
            )
        )
        if self._verdicts["unknown"]:
            sections.append(
                notice("No threshold is set, so there are no verdicts. Run flowedge calibrate to get them.")
            )
        sections.append(self._charts())
        sections.append(self._images())
        sections.append(section("Time", paragraph(self._time())))
        decoders = [(f"{count} of {seen} images", words) for words, count in self._decoders.items()]
        rows = [("source", self._source), *self._provenance, *decoders]
        sections.append(section("Where the answers come from", facts(rows)))
        return page_of("Inspection", sections, lead=self._source)

    def _charts(self) -> Markup:
        unit = "log NFA" if self._by_nfa else "score"
        series = []
        for kind, verdict in enumerate(_VERDICTS):
            chosen = [
                (number + 1, value)
                for number, (one, value) in enumerate(zip(self._kinds, self._values, strict=True))
                if one == kind and value == value
            ]
            if chosen:
                x, y = zip(*chosen, strict=True)
                series.append(Series(name=verdict.replace("_", " "), style=_STYLES[verdict], x=x, y=y))
        if not series:
            return Markup("")
        by_value = [Series(name=one.name, style=one.style, x=one.y) for one in series]
        return section(
            "Scores",
            charts(
                histogram("How often each score occurs", by_value, unit, limit=self._limit),
                points(
                    "Scores in the order of inspection",
                    [_thinned(one) for one in series],
                    "image",
                    unit,
                    limit=self._limit,
                ),
            ),
        )

    def _images(self) -> Markup:
        rows = self._rows.kept()
        folder = common_folder([one.image for _, one in rows])
        pictures = dict(self._pictures.kept())
        columns = [
            Column(name="image", kind="name"),
            Column(name="verdict", kind="choice", styles=_WORDS),
            Column(name="score", kind="number", digits=4),
            *([Column(name="log NFA", kind="number", digits=1)] if self._by_nfa else []),
            Column(name="regions", kind="number"),
            Column(name="ms", kind="number", digits=1),
            Column(name="number", kind="number"),
            Column(name="reason", kind="text"),
        ]
        cells = [
            (
                one.image.removeprefix(folder),
                one.verdict,
                one.score,
                *((one.log_nfa,) if self._by_nfa else ()),
                len(one.regions) if one.score is not None else None,
                one.latency_ms,
                number + 1,
                one.problem or None,
            )
            for number, one in rows
        ]
        shown = {place: pictures[one.number] for place, one in enumerate(rows) if one.number in pictures}
        words = [f"All names begin with {folder}."] if folder else []
        words.append("The most suspicious images come first.")
        if not self._rows.is_all:
            words.append(
                f"The table has the {MOST_ROWS} most suspicious of {len(self._kinds)} images. All are in the charts."
            )
        if not self._pictures.is_all or len(shown) < len(self._pictures.kept()):
            words.append(
                f"Pictures are kept of the {MOST_PICTURES} most suspicious images, to keep this page small."
            )
        words.append("A click on a picture enlarges it, and the arrow keys go to the next.")
        return section(
            "Images",
            paragraph(" ".join(words), soft=True),
            image_table("Inspected images", columns, cells, shown, PICTURES),
            identifier="images",
        )

    def _time(self) -> str:
        times = sorted(self._milliseconds)
        if not times:
            return "No image was inspected."
        half, most = times[len(times) // 2], times[int(0.99 * (len(times) - 1))]
        return (
            f"Half of the images took up to {half:.1f} ms, and 99 of 100 up to {most:.1f} ms. This is the time of "
            "preprocessing, inference and decision, without reading the file and drawing."
        )


def common_folder(names: Sequence[str]) -> str:
    """Return the beginning that all names share, up to a slash. The beginning may be empty."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)  # All other names lie between these two.
    pairs = enumerate(zip(first, last, strict=False))
    shared = next((place for place, (a, b) in pairs if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, shared) + 1]


def _thinned(series: Series, most: int = 1500) -> Series:
    """Leave every n-th point, so that a chart of a long run stays small. The extreme points are always among them."""
    step = -(-len(series.x) // most)
    if step == 1:
        return series
    kept = [
        max(range(start, min(start + step, len(series.x))), key=lambda place: series.y[place])
        for start in range(0, len(series.x), step)
    ]
    return Series(
        name=series.name, style=series.style, x=[series.x[n] for n in kept], y=[series.y[n] for n in kept]
    )
