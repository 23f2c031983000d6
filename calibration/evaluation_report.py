"""Write an evaluation as one HTML page: curves, confusion, the worst images with pictures, and how far to trust it."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.dataset import GOOD, Dataset, Sample
from flowedge.calibration.evaluation_curves import curves_section
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.calibration.evaluation_trust import interval_words, rate_words, trust_section
from flowedge.calibration.operating_points import OperatingPoint
from flowedge.calibration.tally import Tally
from flowedge.runtime.detector import Detector
from flowedge.runtime.report.markup import Markup, element
from flowedge.runtime.report.pages import write_page
from flowedge.runtime.report.pictures import MostUrgent, mask_address, pictures_of
from flowedge.runtime.report.provenance import provenance_of
from flowedge.runtime.report.shell import facts, figures, list_of, notice, page_of, paragraph, section
from flowedge.runtime.report.tables import Column, image_table, table
from flowedge.runtime.result import Result
from flowedge.targets import check_file_target
from flowedge.text import printable

MOST_ROWS: Final = 10_000
"""The most good and the most anomalous images in the table, each."""

MOST_PICTURES: Final = 120
"""The most good and the most anomalous images with pictures, each."""

RIGHT, MISSED, FALSE_ALARM, NOT_INSPECTED, UNKNOWN = (
    "right",
    "missed",
    "false alarm",
    "not inspected",
    "unknown",
)
_STYLES: Final = {
    RIGHT: "ok",
    MISSED: "wrong",
    FALSE_ALARM: "wrong",
    NOT_INSPECTED: "absent",
    UNKNOWN: "absent",
}
_PICTURES: Final = ("image", "findings", "anomaly map", "ground truth")
_STAGES: Final = ("preprocessing", "inference", "decision")


class _Row(NamedTuple):
    """One image. ``value`` is the number that decides, so that larger is more anomalous."""

    name: str
    label: str
    value: float | None
    score: float | None
    log_nfa: float | None
    regions: int | None
    milliseconds: float | None
    problem: str


class EvaluationReport:
    """A page about an evaluation, for which it observes every image.

    The memory stays bounded: rows and pictures are kept of the images that were judged worst, and a few numbers of all.
    """

    def __init__(self, file: Path, detector: Detector, dataset: Dataset) -> None:
        """Check that the page can be written, before the first image is inspected.

        Args:
            file: The HTML file. A file that is there is replaced.
            detector: The detector that is evaluated.
            dataset: The labelled images.

        Raises:
            FlowEdgeError: The page cannot be written there, or FlowEdge did not write the file that is there.
        """
        check_file_target(file, force=True)
        self._file = file
        self._dataset = dataset
        self._provenance = provenance_of(detector)
        self._nfa = detector.thresholds.nfa
        self._scores: dict[str, array[float]] = {}
        self._values: dict[str, array[float]] = {}
        self._times = tuple(array("f") for _ in _STAGES)
        self._left_out: Counter[str] = Counter()
        # The worst good images are those of the largest value, and the worst anomalous ones those of the smallest.
        self._rows = {is_anomalous: MostUrgent[_Row](MOST_ROWS) for is_anomalous in (False, True)}
        self._unseen = MostUrgent[_Row](MOST_ROWS)
        self._pictures = {
            is_anomalous: MostUrgent[tuple[str, Sequence[str | None]]](MOST_PICTURES)
            for is_anomalous in (False, True)
        }
        self._overlap: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def add(
        self, sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None, detection: Result
    ) -> None:
        """Take an image that was counted."""
        log_nfa = detection.log_nfa if self._nfa is not None else None
        value = detection.score if log_nfa is None else -log_nfa
        self._scores.setdefault(sample.label, array("f")).append(detection.score)
        self._values.setdefault(sample.label, array("f")).append(value)
        timings = detection.timings
        stages = (timings.preprocess_ms, timings.infer_ms, timings.decide_ms)
        for times, one in zip(self._times, stages, strict=True):
            times.append(one)
        row = _Row(
            name=self._name(sample),
            label=sample.label,
            value=self._values[sample.label][-1],
            score=detection.score,
            log_nfa=log_nfa,
            regions=len(detection.regions),
            milliseconds=sum(stages),
            problem=f"The frame check stops this image: {detection.problem}." if detection.problem else "",
        )
        urgency = (-value if sample.is_anomalous else value,)
        self._rows[sample.is_anomalous].add(urgency, row)
        kept = self._pictures[sample.is_anomalous]
        if kept.would_keep(urgency):
            truth = None if mask is None else mask_address(mask)
            kept.add(urgency, (row.name, (*pictures_of(image, detection), truth)))

    def leave_out(self, sample: Sample, problem: str) -> None:
        """Take an image that was not inspected, with the reason."""
        self._left_out[sample.label] += 1
        row = _Row(self._name(sample), sample.label, None, None, None, None, None, printable(problem))
        self._unseen.add((0.0,), row)

    def finish(self, tally: Tally) -> None:
        """Take the curve of the regions' overlap."""
        self._overlap = None if tally.pixels is None else tally.pixels.overlap_curve()

    def write(
        self,
        found: Evaluation,
        *,
        doubt: str = "",
        links: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Write the page.

        Args:
            found: The metrics of the dataset.
            doubt: A sentence on a wrong preprocessing, or an empty text.
            links: The names and relative addresses of the pages beside this one.

        Raises:
            FlowEdgeError: The file cannot be written.
        """
        limit = self._limit(found)
        sections = [
            *([notice(f"Warning: {doubt}")] if doubt else []),
            _headline(found),
            trust_section(found, self._scores.get(GOOD, ()), self._anomalous(self._scores)),
            curves_section(
                self._values.get(GOOD, ()),
                self._anomalous(self._values),
                limit,
                self._overlap,
                "score" if self._nfa is None else "minus log NFA",
            ),
            self._classes(found, limit),
            self._points(found.operating_points),
            self._images(limit),
            _pixels(found),
            self._time(),
            section(
                "Where the answers come from",
                facts([("dataset", str(self._dataset.root)), *self._provenance]),
            ),
        ]
        lead = f"{self._dataset.root}: {found.good_images} good and {found.anomalous_images} anomalous images"
        write_page(self._file, page_of("Evaluation", sections, lead=lead, links=links))

    def _name(self, sample: Sample) -> str:
        test = self._dataset.root / "test"
        return sample.path.relative_to(test).as_posix() if test in sample.path.parents else str(sample.path)

    def _limit(self, found: Evaluation) -> float | None:
        if self._nfa is not None:
            return -self._nfa.log_nfa
        return None if found.image_threshold is None else found.image_threshold.value

    @staticmethod
    def _anomalous(numbers: dict[str, array[float]]) -> list[float]:
        return [one for label, some in numbers.items() if label != GOOD for one in some]

    def _classes(self, found: Evaluation, limit: float | None) -> Markup:
        """Return the confusion of each class with its metrics, the good images first."""
        metrics = {one.label: one for one in found.classes}
        labels = sorted({*self._values, *self._left_out, *metrics}, key=lambda label: (label != GOOD, label))
        rows = []
        for label in labels:
            values = self._values.get(label, array("f"))
            called = sum(one > limit for one in values) if limit is not None else 0
            verdicts = ("", "") if limit is None else (len(values) - called, called)
            right = len(values) - called if label == GOOD else called
            auroc = metrics[label].image_auroc if label in metrics else None
            rows.append(
                (
                    label,
                    *verdicts,
                    self._left_out[label],
                    *(("", "") if limit is None else rate_words(right, len(values))),
                    "" if auroc is None else f"{auroc:.3f}",
                )
            )
        return section(
            "Classes",
            table(
                "Verdicts by class. A right verdict is ok for a good image and anomalous for every other image.",
                (
                    "class",
                    ">called ok",
                    ">called anomalous",
                    ">not inspected",
                    ">right",
                    ">interval of 95 %",
                    ">AUROC",
                ),
                rows,
                sortable=True,
            ),
        )

    def _points(self, points: Sequence[OperatingPoint]) -> Markup:
        if not points:
            return Markup("")
        rows = []
        for one in points:
            value = one.threshold if one.threshold is not None else one.log_nfa
            detections = (
                ("", "") if one.detections is None else rate_words(one.detections.hits, one.detections.total)
            )
            rows.append(
                (
                    one.name,
                    "" if value is None else f"{value:.6g}",
                    "" if one.false_alarms.rate is None else f"{one.false_alarms.rate:.1%}",
                    interval_words(one.false_alarms.low, one.false_alarms.high),
                    *detections,
                    element("code", one.command) if one.command else "",
                )
            )
        return section(
            "Thresholds to choose from",
            table(
                "Each threshold with its false alarms and detections on this dataset",
                (
                    *(
                        "threshold",
                        ">value",
                        ">false alarms",
                        ">interval of 95 %",
                        ">detected",
                        ">interval of 95 %",
                    ),
                    "command that sets it",
                ),
                rows,
            ),
            paragraph(
                "A threshold that was chosen on this very dataset looks better here than on new images.",
                soft=True,
            ),
        )

    def _images(self, limit: float | None) -> Markup:
        rows = [
            (_outcome(one, is_anomalous, limit), one)
            for is_anomalous, kept in self._rows.items()
            for one in kept.kept()
        ]
        rows += [(NOT_INSPECTED, one) for one in self._unseen.kept()]
        rows.sort(key=lambda pair: _order(pair[0], pair[1], limit))
        pictures = {name: shown for kept in self._pictures.values() for name, shown in kept.kept()}
        by_nfa = self._nfa is not None
        columns = [
            Column(name="image", kind="name"),
            Column(name="class", kind="choice"),
            Column(name="verdict", kind="choice", styles=_STYLES),
            Column(name="score", kind="number", digits=4),
            *([Column(name="log NFA", kind="number", digits=1)] if by_nfa else []),
            Column(name="above threshold", kind="number", digits=4),
            Column(name="regions", kind="number"),
            Column(name="ms", kind="number", digits=1),
            Column(name="reason", kind="text"),
        ]
        cells = [
            (
                one.name,
                one.label,
                outcome,
                one.score,
                *((one.log_nfa,) if by_nfa else ()),
                None if one.value is None or limit is None else one.value - limit,
                one.regions,
                one.milliseconds,
                one.problem or None,
            )
            for outcome, one in rows
        ]
        words = ["The worst misses and false alarms come first, by their distance from the threshold."]
        kept = [*self._rows.values(), self._unseen]
        if not all(one.is_all for one in kept):
            words.append(
                f"The table has the {MOST_ROWS} worst images of each kind. All images are in the curves."
            )
        if not all(one.is_all for one in self._pictures.values()):
            words.append(
                f"Pictures are kept of the {MOST_PICTURES} good images with the largest scores and of the "
                f"{MOST_PICTURES} anomalous images with the smallest, to keep this page small."
            )
        words.append("A click on a picture enlarges it, and the arrow keys go to the next.")
        shown = {place: pictures[one.name] for place, (_, one) in enumerate(rows) if one.name in pictures}
        return section(
            "Images",
            paragraph(" ".join(words), soft=True),
            image_table("Images of the dataset", columns, cells, shown, _PICTURES),
            identifier="images",
        )

    def _time(self) -> Markup:
        rows = []
        stages = [np.asarray(times, np.float64) for times in self._times]
        for name, times in zip((*_STAGES, "together"), (*stages, np.sum(stages, axis=0)), strict=True):
            if times.size:
                rows.append((name, *(f"{one:.2f}" for one in np.percentile(times, (50, 90, 99)))))
        caption = "Milliseconds of one image, without reading the file, while the machine also drew pictures"
        return section("Time", table(caption, ("stage", ">median", ">90 of 100", ">99 of 100"), rows))


def _headline(found: Evaluation) -> Markup:
    # Without a threshold in the bundle no image gets a verdict, and the rates are those of another threshold.
    at = "" if found.is_decided else " at the best F1"
    entries = [
        ("image AUROC", _three(found.image_auroc)),
        ("pixel AUROC", _three(found.pixel_auroc)),
        ("AUPRO to 0.3", _three(found.aupro)),
        (f"false alarms{at}", "-" if found.false_alarm_rate is None else f"{found.false_alarm_rate:.1%}"),
        (f"detected{at}", "-" if found.detection_rate is None else f"{found.detection_rate:.1%}"),
        ("not inspected", found.not_inspected),
    ]
    return figures(entries)


def _pixels(found: Evaluation) -> Markup:
    rows = [
        (
            one.rule if one.log_nfa is None else f"{one.rule}, log NFA below {one.log_nfa:g}",
            *("-" if rate is None else f"{rate:.1%}" for rate in (one.false_alarm_rate, one.detection_rate)),
            _three(one.pixel_iou),
        )
        for one in found.decisions
    ]
    return section(
        "Rules of decision",
        table(
            "Images called anomalous and pixels marked, by rule",
            ("rule", ">false alarms", ">detected", ">pixel IoU"),
            rows,
        ),
        list_of(found.notes) if found.notes else None,
    )


def _outcome(row: _Row, is_anomalous: bool, limit: float | None) -> str:
    if row.value is None:
        return NOT_INSPECTED
    if limit is None:
        return UNKNOWN
    called = row.value > limit
    return RIGHT if called == is_anomalous else MISSED if is_anomalous else FALSE_ALARM


def _order(outcome: str, row: _Row, limit: float | None) -> tuple[int, float]:
    """Sort wrong verdicts first and the farthest from the threshold first, then the unseen, then the closest."""
    distance = 0.0 if row.value is None or limit is None else abs(row.value - limit)
    if outcome == RIGHT:
        return 2, distance
    return (1, 0.0) if outcome in (NOT_INSPECTED, UNKNOWN) else (0, -distance)


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
