"""Hold the metrics of a detector on a labelled dataset."""

from __future__ import annotations

import msgspec

from flowedge.calibration.operating_points import NOW, OperatingPoint
from flowedge.manifest import Threshold


class ClassResult(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of one kind of defect against all good images.

    Attributes:
        label: The name of the kind of defect.
        images: The number of its inspected images.
        image_auroc: The value is None where there is no good image, or none of this class.
        detection_rate: The share of its images above the image threshold. Where the number of false alarms decides, it
            is the share below the limit.
    """

    label: str
    images: int
    image_auroc: float | None
    detection_rate: float | None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The verdicts that one rule of decision gives on the dataset.

    Attributes:
        rule: The name of the rule. ``"fitted"`` stands for the bundle's image and pixel thresholds, and ``"best F1"``
            for those of the largest F1 of this very dataset. ``"nfa-tree"`` and ``"nfa-block"`` compare log10 of the
            number of false alarms with ``log_nfa``.
        log_nfa: The limit of an NFA rule. The value is None for other rules.
        false_alarm_rate: The share of the good images that the rule calls anomalous.
        detection_rate: The share of the anomalous images that the rule calls anomalous.
        pixel_iou: The number of pixels that are marked and defect, over the number that are marked or defect. Both are
            counted over the whole dataset, at the size of the network's input.
    """

    rule: str
    log_nfa: float | None
    false_alarm_rate: float | None
    detection_rate: float | None
    pixel_iou: float | None


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Gives the metrics of one dataset. Every rate and metric is in 0..1, and None where it is not defined.

    Attributes:
        good_images: The number of inspected good images.
        anomalous_images: The number of inspected anomalous images.
        not_inspected: The number of images in no metric. Such an image or its mask could not be read, its folder could
            not be listed, or its score or map was not finite.
        not_inspected_files: The first few files that were not inspected, relative to the dataset.
        good_outside: The number of good images with a finite answer that the frame check stops. The metrics count these
            images nevertheless, although they would not be inspected on a line.
        anomalous_outside: The number of anomalous images with a finite answer that the frame check stops.
        outside_files: The first few files that the frame check stops, relative to the dataset, each with the reason.
        image_auroc: The area under the ROC curve of the image scores. Ties count half.
        image_f1: The largest F1 of the image scores over all thresholds.
        pixel_auroc: The area under the ROC curve of all pixels of all images. Ties count half.
        aupro: The mean overlap of the defect regions, over false-alarm shares of 0 to 0.3.
        pixel_f1: The largest F1 of the pixels over all thresholds.
        image_threshold: The image threshold of the rates. The given image threshold is used, or that of ``image_f1``
            where none is given. The value is None where the number of false alarms decides.
        pixel_threshold: The pixel threshold of the rates. The given pixel threshold is used, or that of ``pixel_f1``
            where none is given. The value is None where the number of false alarms decides.
        false_alarm_rate: The share of the good images that the deciding rule calls anomalous. The rule is the image
            threshold, or the limit of log NFA where the number of false alarms decides.
        detection_rate: The share of the anomalous images that the deciding rule calls anomalous.
        pixel_false_alarm_rate: The share of the normal pixels that the deciding rule marks.
        pixel_detection_rate: The share of the defect pixels that the deciding rule marks.
        classes: The kinds of defect, by name.
        decisions: The rules side by side: the fitted thresholds, those of the best F1, the number of false alarms.
        operating_points: The image thresholds to choose from, each with false alarms, detections and their intervals.
        notes: Sentences on why a metric is None and what weakens the others.
    """

    good_images: int
    anomalous_images: int
    not_inspected: int
    not_inspected_files: tuple[str, ...]
    good_outside: int = 0
    anomalous_outside: int = 0
    outside_files: tuple[str, ...] = ()
    image_auroc: float | None
    image_f1: float | None
    pixel_auroc: float | None
    aupro: float | None
    pixel_f1: float | None
    image_threshold: Threshold | None
    pixel_threshold: Threshold | None
    false_alarm_rate: float | None
    detection_rate: float | None
    pixel_false_alarm_rate: float | None
    pixel_detection_rate: float | None
    classes: tuple[ClassResult, ...]
    decisions: tuple[Decision, ...]
    operating_points: tuple[OperatingPoint, ...] = ()
    notes: tuple[str, ...]

    @property
    def is_decided(self) -> bool:
        """True when the bundle has a rule for images. Without a rule, the rates are those of the best F1."""
        return any(point.name == NOW for point in self.operating_points)
