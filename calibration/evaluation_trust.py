"""Say how far the numbers of an evaluation can be trusted, from the number of images that they were counted on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flowedge.calibration.auroc_interval import auroc_interval
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.calibration.intervals import rate_interval
from flowedge.runtime.report.markup import Markup
from flowedge.runtime.report.shell import list_of, paragraph, section
from flowedge.text import images_words

_FEW_IMAGES: Final = 20


def trust_section(found: Evaluation, good: Sequence[float], anomalous: Sequence[float]) -> Markup:
    """Return the section on how far to trust an evaluation.

    Args:
        found: The metrics.
        good: The scores of the good images.
        anomalous: The scores of the anomalous images.
    """
    return section(
        "How far to trust this",
        list_of(trust_sentences(found, good, anomalous)),
        paragraph(
            "All intervals have 95 % confidence: rates by Clopper and Pearson (1934), AUROC by DeLong (1988). They "
            "take the images as independent. Photographs of one part, or crops of one photograph, count as fewer.",
            soft=True,
        ),
    )


def trust_sentences(found: Evaluation, good: Sequence[float], anomalous: Sequence[float]) -> list[str]:
    """Return one sentence or more for each number that a reader could trust too much."""
    sentences = []
    if found.false_alarm_rate is not None:
        alarms = round(found.false_alarm_rate * found.good_images)
        low, high = rate_interval(alarms, found.good_images)
        sentences.append(
            f"{alarms} of {found.good_images} good images were called anomalous. On new good images expect "
            f"{interval_words(low, high)} false alarms."
        )
        if alarms == 0:
            sentences.append(
                f"No false alarm in {images_words(found.good_images)} does not mean none: "
                f"up to {high:.1%} are possible."
            )
    if found.detection_rate is not None:
        hits = round(found.detection_rate * found.anomalous_images)
        low, high = rate_interval(hits, found.anomalous_images)
        sentences.append(
            f"{hits} of {found.anomalous_images} anomalous images were detected and "
            f"{found.anomalous_images - hits} were missed. On new images of the same kinds of defects expect "
            f"{interval_words(low, high)} detected."
        )
    area = auroc_interval(good, anomalous)
    if found.image_auroc is not None:
        sentences.append(
            f"The image AUROC of {found.image_auroc:.3f} has the interval {area[0]:.3f} to {area[1]:.3f}."
            if area
            else f"The image AUROC of {found.image_auroc:.3f} has no interval, because the images are too few or are "
            "separated fully."
        )
    few = [f"{one.label} ({one.images})" for one in found.classes if one.images < _FEW_IMAGES]
    if few:
        sentences.append(
            f"Kinds of defects with fewer than {_FEW_IMAGES} images say little by themselves: {', '.join(few)}."
        )
    threshold = found.image_threshold
    if threshold is not None and not found.is_decided:
        sentences.append(
            "The bundle has no image threshold. The rates are those of the best F1 of this very dataset, so they are "
            "optimistic."
        )
    elif threshold is not None and threshold.method == "f1":
        sentences.append(
            f"The image threshold was fitted on {images_words(threshold.images)}, with and without defects. Where "
            "these images are among those of this dataset, the rates are optimistic."
        )
    elif threshold is not None and threshold.images:
        sentences.append(
            f"The image threshold was fitted on {images_words(threshold.images, 'good ')}. Where these images are "
            "among those of this dataset, the false alarms are optimistic."
        )
    if found.not_inspected:
        were = "was" if found.not_inspected == 1 else "were"
        sentences.append(
            f"{images_words(found.not_inspected)} {were} not inspected. No number counts such an image."
        )
    outside = found.good_outside + found.anomalous_outside
    if outside:
        sentences.append(
            f"The frame check would stop {images_words(outside)} on a line. The numbers count them all the same."
        )
    return sentences


def rate_words(hits: int, total: int) -> tuple[str, str]:
    """Return a counted rate and its interval as two texts, which are empty without images."""
    if not total:
        return "", ""
    return f"{hits / total:.1%}", interval_words(*rate_interval(hits, total))


def interval_words(low: float, high: float) -> str:
    """Return an interval of a rate as text."""
    return f"{low:.1%} to {high:.1%}"
