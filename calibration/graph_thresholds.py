"""Fit the thresholds and the colour scale of one graph of a bundle, on images of good parts or on labelled images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.calibration_images import GoodImages, finite_result
from flowedge.calibration.colour_scale import fit_colour_scale
from flowedge.calibration.dataset import Dataset, Sample, read_mask
from flowedge.calibration.masks import mask_on_map
from flowedge.calibration.metrics import PixelMetrics, ValueHistogram, curve_from_scores
from flowedge.calibration.operating_points import OperatingPoint, operating_points
from flowedge.calibration.score_maxima import StoredLevels
from flowedge.calibration.threshold import (
    FittedThreshold,
    GoodMethod,
    ThresholdRequest,
    fit_f1_threshold,
    fit_pixel_threshold,
    fit_threshold,
    pixel_note,
)
from flowedge.manifest import ColourScale, Thresholds
from flowedge.progress import Reports
from flowedge.runtime.aggregate import aggregate
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.lanes import in_order, lanes_of
from flowedge.runtime.result import Result
from flowedge.runtime.verify import AGGREGATION_LIMIT

_Fitted: TypeAlias = tuple[
    FittedThreshold, FittedThreshold | None, tuple[OperatingPoint, ...], Sequence[float]
]


class GraphFit(NamedTuple):
    """The fitted numbers of one graph.

    Attributes:
        thresholds: The thresholds.
        colours: The colour scale of pictures. The value is None where the good pixels are all alike.
        notes: Sentences on what weakens the thresholds.
        points: The image thresholds to choose from, counted on the images of the fit.
        good_scores: The scores of the good images of the fit. The tuple is empty where none were computed.
    """

    thresholds: Thresholds
    colours: ColourScale | None
    notes: tuple[str, ...]
    points: tuple[OperatingPoint, ...] = ()
    good_scores: tuple[float, ...] = ()


def fit_graph_thresholds(
    detect: Detector,
    images: GoodImages,
    stored: StoredLevels | None,
    request: ThresholdRequest | None,
    labelled: Dataset | None,
    reports: Reports,
) -> GraphFit:
    """Fit the thresholds and the colour scale of the graph that a detector runs.

    Args:
        detect: The detector of the graph, with its score maxima.
        images: The good images.
        stored: The graph's levels of these images. The value is None where the images are to be inferred.
        request: The thresholds to fit. The value is None for the graph's own thresholds.
        labelled: The labelled images of an ``f1`` request.
        reports: Receives the progress, one unit for each inference.

    Raises:
        CalibrationError: An answer is not finite, or ``f1`` lacks a class.
        ImageError: An image cannot be read.
    """
    pixels = ValueHistogram()
    if request is None:
        # Images without stored levels are not inferred for the colours alone.
        if stored is None:
            return GraphFit(detect.thresholds, detect.bundle.manifest.graph(detect.precision).colours, ())
        unfitted: list[float] = []
        for score, anomaly_map in _answers(detect, images, stored, reports):
            unfitted.append(score)
            pixels.add(anomaly_map)
        return GraphFit(detect.thresholds, fit_colour_scale(pixels), (), good_scores=tuple(unfitted))
    if request.method == "f1":
        assert labelled is not None
        fitted = _fit_f1(detect, labelled, pixels, reports)
    else:
        fitted = _fit_good(detect, images, stored, request, request.method, pixels, reports)
    image, pixel, points, scores = fitted
    notes = tuple(fit.note for fit in (image, pixel) if fit is not None and fit.note)
    thresholds = Thresholds(image=image.threshold, pixel=None if pixel is None else pixel.threshold)
    return GraphFit(thresholds, fit_colour_scale(pixels), notes, points, tuple(scores))


def _fit_good(
    detect: Detector,
    images: GoodImages,
    stored: StoredLevels | None,
    request: ThresholdRequest,
    method: GoodMethod,
    pixels: ValueHistogram,
    reports: Reports,
) -> _Fitted:
    """Fit a quantile or a false-alarm rate, and add the good images' pixels to a histogram."""
    scores: list[float] = []
    largest: list[float] = []
    for score, anomaly_map in _answers(detect, images, stored, reports):
        scores.append(score)
        largest.append(float(anomaly_map.max()))
        pixels.add(anomaly_map)
    names = images.names

    def fitted() -> tuple[FittedThreshold, tuple[OperatingPoint, ...]]:
        image = fit_threshold(scores, method=method, parameter=request.image, names=names)
        curve = curve_from_scores(scores, [False] * len(scores))
        return image, operating_points(curve, image.threshold.value, fitted_by=method)

    image, points = fitted()
    if stored is not None:
        # Scores from stored levels are rounded differently from the graph's own. Images whose score is within rounding
        # of a threshold are run again, until the thresholds rest on scores of the graph alone.
        rounding = AGGREGATION_LIMIT * max(1.0, *(abs(score) for score in scores))
        inferred: set[int] = set()
        while (
            near := {
                n
                for n, score in enumerate(scores)
                for point in points
                if point.threshold is not None and abs(score - point.threshold) <= rounding
            }
            - inferred
        ):
            for n in sorted(near):
                scores[n] = images.inferred(detect, images.paths[n]).score
            inferred |= near
            image, points = fitted()
    if request.pixel is None:
        return image, None, points, scores
    pixel = fit_pixel_threshold(pixels, method=method, parameter=request.pixel, images=len(images.paths))
    if not pixel.note:
        note = pixel_note(pixel.threshold, largest, method=method, parameter=request.pixel)
        pixel = FittedThreshold(pixel.threshold, note)
    return image, pixel, points, scores


def _answers(
    detect: Detector, images: GoodImages, stored: StoredLevels | None, reports: Reports
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Yield every image's score and map, from its stored levels where there are some."""
    if stored is None:
        for result in images.results(detect, reports):
            yield result.score, result.network_map
        return
    manifest = detect.bundle.manifest
    scoring = manifest.graph(detect.precision).scoring
    for levels in stored:
        answer = aggregate(levels, scoring, manifest.family, manifest.image_size)
        yield float(answer.score[0]), answer.anomaly_map


def _fit_f1(detect: Detector, labelled: Dataset, pixels: ValueHistogram, reports: Reports) -> _Fitted:
    """Fit the largest F1, and add the pixels of the images without a defect to a histogram."""
    scores: list[float] = []
    metrics = PixelMetrics()

    def answered(sample: Sample) -> tuple[Result, NDArray[np.bool_] | None]:
        frame = read_image(sample.path, detect.bundle.manifest.pixel_range)
        result = finite_result(detect, frame, sample.path)
        if sample.mask is None:
            return result, None
        height, width = result.network_map.shape
        return result, mask_on_map(read_mask(sample.mask, frame), result.preprocessing, (height, width))

    with contextlib.closing(in_order(answered, labelled.samples, lanes=lanes_of(detect.engine))) as answers:
        for sample, (result, mask) in zip(labelled.samples, answers, strict=True):
            scores.append(result.score)
            metrics.add(result.network_map, mask)
            if not sample.is_anomalous:
                pixels.add(result.network_map)
            reports.advance()
    curve = curve_from_scores(scores, [sample.is_anomalous for sample in labelled.samples])
    image = fit_f1_threshold(curve, images=len(scores))
    points = operating_points(curve, image.threshold.value, fitted_by="f1")
    good = [score for score, sample in zip(scores, labelled.samples, strict=True) if not sample.is_anomalous]
    if labelled.classes_without_masks:
        return image, None, points, good
    return image, fit_f1_threshold(metrics.curve(), images=len(scores)), points, good
