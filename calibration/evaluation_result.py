"""Hold the metrics of a detector on a labelled dataset."""

from __future__ import annotations

import msgspec

from flowedge.manifest import Threshold


class ClassResult(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of defect against all good images.

    Attributes:
        images: How many of its images were inspected.
        image_auroc: None when there is no good image, or none of this class.
        detection_rate: The share of its images above the image threshold; where the number of false alarms decides,
            the share below its limit.
    """

    label: str
    images: int
    image_auroc: float | None
    detection_rate: float | None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule of decision would do on the dataset.

    Attributes:
        rule: ``"fitted"``: the bundle's image and pixel thresholds. ``"best F1"``: those of the largest F1 of this very
            dataset. ``"nfa-tree"`` or ``"nfa-block"``: log10 of the number of false alarms below ``log_nfa``.
        log_nfa: The limit of an NFA rule, else None.
        false_alarm_rate: The share of the good images that it calls anomalous.
        detection_rate: The share of the anomalous images that it calls anomalous.
        pixel_iou: Pixels that it marks and that are defect, over pixels that are either, both counted over the whole
            dataset (not a mean over images), at the size of the network's input.
    """

    rule: str
    log_nfa: float | None
    false_alarm_rate: float | None
    detection_rate: float | None
    pixel_iou: float | None


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of one dataset. Every rate and metric is in 0..1, and None where it is not defined.

    Attributes:
        good_images: How many were inspected.
        anomalous_images: How many were inspected.
        not_inspected: Images that could not be read, images whose mask could not be read, class folders that could not
            be listed, and images whose score or map was not finite; they are in no metric.
        not_inspected_files: The first few of them, relative to the dataset.
        good_outside: How many good images have a finite answer and are not inspected, as the frame check finds them
            unlike the calibration's. The metrics count them all the same; in production each is stopped.
        anomalous_outside: The same for anomalous images.
        outside_files: The first few of both, relative to the dataset, each with what is outside.
        image_auroc: Area under the ROC curve of the image scores; ties count half.
        image_f1: The largest over all thresholds.
        pixel_auroc: As ``image_auroc``, of all pixels of all images.
        aupro: Mean overlap of the defect regions, over false-alarm shares of 0 to 0.3.
        pixel_f1: The largest over all thresholds.
        image_threshold: The one that the rates belong to: the given one, else the one of ``image_f1``.
        pixel_threshold: The same for pixels.
        false_alarm_rate: The share of the good images above the image threshold.
        detection_rate: The share of the anomalous images above it.
        pixel_false_alarm_rate: The share of the normal pixels above the pixel threshold.
        pixel_detection_rate: The share of the defect pixels above it.
        classes: The kinds of defect, by name.
        decisions: The rules side by side: the fitted thresholds, those of the best F1, the number of false alarms.
        notes: One sentence each: why a metric is None, and what weakens the others.
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
    notes: tuple[str, ...]
