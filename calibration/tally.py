"""Count what a detector answers on the images of a dataset, and compute the metrics of the counts."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.dataset import Dataset, Sample
from flowedge.calibration.evaluation_result import ClassResult, Decision, Evaluation
from flowedge.calibration.masks import mask_on_map
from flowedge.calibration.metrics import Curve, PixelMetrics, ValueHistogram, curve_from_histograms
from flowedge.calibration.operating_points import OperatingPoint, nfa_operating_points, operating_points
from flowedge.errors import CalibrationError
from flowedge.manifest import NfaThreshold, Preprocessing, Threshold, Thresholds
from flowedge.text import images_words, printable

NAMED_FAILURES: Final = 10
LARGEST_SCORE: Final = float(np.finfo(np.float32).max)


class Detection(Protocol):
    """The answer of a detector for one image.

    Attributes:
        score: A larger score is more anomalous.
        network_map: ``(H, W)`` float32 over the network's input. A larger value is more anomalous.
        preprocessing: The steps that made this input of the image.
    """

    @property
    def score(self) -> float: ...

    @property
    def network_map(self) -> NDArray[np.float32]: ...

    @property
    def preprocessing(self) -> Preprocessing: ...


class CheckedDetection(Detection, Protocol):
    """A detection with the result of the frame check.

    Attributes:
        network_log_nfa: ``(H, W)`` float64, log10 of each pixel's number of false alarms. The value is None where it is
            not computed.
        problem: The reason why the frame was not inspected. The text is empty otherwise.
    """

    @property
    def network_log_nfa(self) -> NDArray[np.float64] | None: ...

    @property
    def problem(self) -> str: ...


class Tally:
    """The counts of an evaluation, which grow with each image."""

    def __init__(self, *, has_masks: bool, nfa: NfaThreshold | None) -> None:
        self.good = ValueHistogram()
        self.anomalous = ValueHistogram()
        self.classes: dict[str, ValueHistogram] = {}
        self.pixels = PixelMetrics() if has_masks else None
        self.not_inspected = 0
        self.problems: list[tuple[Sample, str]] = []
        self.outside: Counter[bool] = Counter()  # The key is True for anomalous images.
        self.outside_samples: list[tuple[Sample, str]] = []
        self.unmarked = 0
        # The limit of one false alarm an image is shown beside the bundle's own limit.
        limits = [] if nfa is None else sorted({0.0, nfa.log_nfa}, reverse=True)
        self.nfa = [_NfaTally(f"nfa-{nfa.form}", limit) for limit in limits if nfa is not None]
        # The smallest log NFA of each image, and whether the image is anomalous, in 9 bytes an image.
        self.log_nfas = array("d")
        self.log_nfa_labels = bytearray()

    def add(self, sample: Sample, mask: NDArray[np.bool_] | None, detection: CheckedDetection) -> str:
        """Count one image. An image without a finite answer counts as not inspected.

        Returns:
            The reason why the image was not inspected. The text is empty for an image that was counted.
        """
        if sample.is_anomalous:
            self.classes.setdefault(sample.label, ValueHistogram())
        anomaly_map = np.asarray(detection.network_map, np.float32)
        log_nfa = detection.network_log_nfa if self.nfa else None
        is_known = log_nfa is not None or not self.nfa
        if not (is_known and abs(detection.score) <= LARGEST_SCORE and np.isfinite(anomaly_map).all()):
            problem = f"{sample.path}: score or map is not finite"
            self.leave_out(sample, problem)
            return problem
        # The frame check would stop this image on a line. The metrics count it, because its answer is known.
        if detection.problem:
            self.outside[sample.is_anomalous] += 1
            if len(self.outside_samples) < NAMED_FAILURES:
                self.outside_samples.append((sample, detection.problem))
        if sample.is_anomalous:
            self.anomalous.add(detection.score)
            self.classes[sample.label].add(detection.score)
        else:
            self.good.add(detection.score)
        defects = None
        if self.pixels is not None:
            if mask is not None:
                height, width = anomaly_map.shape
                defects = mask_on_map(mask, detection.preprocessing, (height, width))
                self.unmarked += not defects.any()
            self.pixels.add(anomaly_map, defects)
        if log_nfa is not None:
            self.log_nfas.append(float(log_nfa.min()))
            self.log_nfa_labels.append(sample.is_anomalous)
            for rule in self.nfa:
                rule.add(log_nfa, label=sample.label, is_anomalous=sample.is_anomalous, defects=defects)
        return ""

    def leave_out(self, sample: Sample, problem: str) -> None:
        """Count an image that was not inspected and is in no metric."""
        self.not_inspected += 1
        if len(self.problems) < NAMED_FAILURES:
            self.problems.append((sample, printable(problem)))

    def evaluation(self, dataset: Dataset, thresholds: Thresholds) -> Evaluation:
        """Compute the metrics of the counts.

        Raises:
            CalibrationError: No image was inspected.
        """
        images = int(self.good.total + self.anomalous.total)
        if images == 0:
            raise CalibrationError(
                f"none of the {self.not_inspected} images of {dataset.root} could be inspected: "
                f"{'; '.join(problem.rstrip('.') for _, problem in self.problems[:1])}. Run flowedge verify to see "
                "whether the precision is the cause."
            )
        notes: list[str] = []
        curve = curve_from_histograms(self.good, self.anomalous)
        if not curve.has_both_classes:
            missing = "good" if self.good.total == 0 else "anomalous"
            notes.append(f"No image metric: the dataset has no {missing} image that was inspected.")
        deciding = next(
            (rule for rule in self.nfa if thresholds.nfa and rule.limit == thresholds.nfa.log_nfa), None
        )
        is_by_nfa = deciding is not None
        image_f1, image_threshold = _best_or_given(
            curve, thresholds.image, images, "image", notes, is_by_nfa=is_by_nfa
        )
        pixel_auroc = aupro = pixel_f1 = pixel_false_alarms = pixel_detections = None
        pixel_threshold = None if is_by_nfa else thresholds.pixel
        if self.pixels is None:
            notes.append(f"No pixel metric: no masks for {', '.join(dataset.classes_without_masks)}.")
        else:
            pixel_curve = curve_from_histograms(self.pixels.normal, self.pixels.defect)
            if not pixel_curve.has_both_classes:
                missing = "normal" if self.pixels.normal.total == 0 else "defect"
                notes.append(f"No pixel metric: there is no {missing} pixel.")
            pixel_auroc, aupro = pixel_curve.auroc(), self.pixels.aupro()
            pixel_f1, pixel_threshold = _best_or_given(
                pixel_curve, thresholds.pixel, images, "pixel", notes, is_by_nfa=is_by_nfa
            )
            pixel_false_alarms, pixel_detections = (
                deciding.pixel_rates()
                if deciding is not None
                else (
                    _share_above(self.pixels.normal, pixel_threshold),
                    _share_above(self.pixels.defect, pixel_threshold),
                )
            )
        if self.unmarked:
            have = "has" if self.unmarked == 1 else "have"
            notes.append(
                f"{images_words(self.unmarked, 'anomalous ')} {have} no defect pixel at the network's size. The pixels "
                "count as normal."
            )
        if self.not_inspected:
            were = "was" if self.not_inspected == 1 else "were"
            notes.append(
                f"{images_words(self.not_inspected)} {were} not inspected, first: {self.problems[0][1]}"
            )
        return Evaluation(
            good_images=int(self.good.total),
            anomalous_images=int(self.anomalous.total),
            not_inspected=self.not_inspected,
            not_inspected_files=tuple(
                printable(sample.path.relative_to(dataset.root).as_posix()) for sample, _ in self.problems
            ),
            good_outside=self.outside[False],
            anomalous_outside=self.outside[True],
            outside_files=tuple(
                f"{printable(sample.path.relative_to(dataset.root).as_posix())}: {problem}"
                for sample, problem in self.outside_samples
            ),
            image_auroc=curve.auroc(),
            image_f1=image_f1,
            pixel_auroc=pixel_auroc,
            aupro=aupro,
            pixel_f1=pixel_f1,
            image_threshold=image_threshold,
            pixel_threshold=pixel_threshold,
            false_alarm_rate=_share_above(self.good, image_threshold)
            if deciding is None
            else deciding.detection_rate(False),
            detection_rate=_share_above(self.anomalous, image_threshold)
            if deciding is None
            else deciding.detection_rate(True),
            pixel_false_alarm_rate=pixel_false_alarms,
            pixel_detection_rate=pixel_detections,
            classes=tuple(
                ClassResult(
                    label=label,
                    images=int(scores.total),
                    image_auroc=curve_from_histograms(self.good, scores).auroc(),
                    detection_rate=_share_above(scores, image_threshold)
                    if deciding is None
                    else deciding.detection_rate(label),
                )
                for label, scores in sorted(self.classes.items())
            ),
            decisions=tuple(self._decisions(curve, thresholds)),
            operating_points=self._operating_points(curve, thresholds),
            notes=tuple(notes),
        )

    def _operating_points(self, curve: Curve, thresholds: Thresholds) -> tuple[OperatingPoint, ...]:
        if thresholds.nfa is not None:
            is_anomalous = np.frombuffer(self.log_nfa_labels, np.bool_)
            return nfa_operating_points(self.log_nfas, is_anomalous, thresholds.nfa.log_nfa)
        return operating_points(curve, None if thresholds.image is None else thresholds.image.value)

    def _decisions(self, curve: Curve, thresholds: Thresholds) -> Iterator[Decision]:
        if thresholds.image is not None:
            pixel = None if thresholds.pixel is None else thresholds.pixel.value
            yield self._decision("fitted", thresholds.image.value, pixel)
        image_best = curve.best_f1()
        if image_best is not None:
            pixel_best = None if self.pixels is None else self.pixels.curve().best_f1()
            yield self._decision("best F1", image_best[1], None if pixel_best is None else pixel_best[1])
        for rule in self.nfa:
            yield rule.decision(has_masks=self.pixels is not None)

    def _decision(self, rule: str, image: float, pixel: float | None) -> Decision:
        iou = None
        if self.pixels is not None and pixel is not None:
            normal, defect = self.pixels.normal, self.pixels.defect
            false_alarms = normal.total * (normal.share_above(pixel) or 0.0)
            found = defect.total * (defect.share_above(pixel) or 0.0)
            iou = _ratio(found, defect.total + false_alarms)
        return Decision(
            rule=rule,
            log_nfa=None,
            false_alarm_rate=self.good.share_above(image),
            detection_rate=self.anomalous.share_above(image),
            pixel_iou=iou,
        )


class _NfaTally:
    """The counts of the verdicts that one limit of log NFA gives."""

    def __init__(self, rule: str, limit: float) -> None:
        self.rule, self.limit = rule, limit
        self.images: Counter[bool | str] = Counter()  # Each image counts by its class and by its label.
        self.detected: Counter[bool | str] = Counter()
        self.both = self.either = self.defects = self.pixels = 0

    def add(
        self,
        log_nfa: NDArray[np.float64],
        *,
        label: str,
        is_anomalous: bool,
        defects: NDArray[np.bool_] | None,
    ) -> None:
        marked = log_nfa < self.limit
        self.pixels += marked.size
        for kind in (is_anomalous, label):
            self.images[kind] += 1
            self.detected[kind] += bool(marked.any())
        if defects is None:
            self.either += int(np.count_nonzero(marked))
        else:
            self.defects += int(np.count_nonzero(defects))
            self.both += int(np.count_nonzero(marked & defects))
            self.either += int(np.count_nonzero(marked | defects))

    def detection_rate(self, kind: bool | str) -> float | None:
        """Return the share of the images of one class or of one label that the rule calls anomalous."""
        return _ratio(self.detected[kind], self.images[kind])

    def pixel_rates(self) -> tuple[float | None, float | None]:
        """Return the share of the normal and the share of the defect pixels that the rule marks, counted by masks."""
        false_alarms = self.either - self.defects
        return _ratio(false_alarms, self.pixels - self.defects), _ratio(self.both, self.defects)

    def decision(self, *, has_masks: bool) -> Decision:
        rates = {kind: _ratio(self.detected[kind], self.images[kind]) for kind in (False, True)}
        return Decision(
            rule=self.rule,
            log_nfa=self.limit,
            false_alarm_rate=rates[False],
            detection_rate=rates[True],
            pixel_iou=_ratio(self.both, self.either) if has_masks else None,
        )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _best_or_given(
    curve: Curve, given: Threshold | None, images: int, noun: str, notes: list[str], *, is_by_nfa: bool
) -> tuple[float | None, Threshold | None]:
    """Return the best F1, and the threshold to report rates at, which is None where the NFA decides."""
    best = curve.best_f1()
    if is_by_nfa:
        return (None if best is None else best[0]), None
    if best is None:
        return None, given
    if given is not None:
        return best[0], given
    notes.append(
        f"The bundle has no {noun} threshold: rates are at the best F1 of this very dataset, and optimistic."
    )
    return best[0], Threshold(value=best[1], method="f1", images=images)


def _share_above(values: ValueHistogram, threshold: Threshold | None) -> float | None:
    return None if threshold is None else values.share_above(threshold.value)
