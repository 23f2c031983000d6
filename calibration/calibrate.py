"""Fit a bundle to the place where it inspects: reference maxima and thresholds, on images of good parts."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle, clone_bundle, folder_for_next_version, replace_in_bundle
from flowedge.calibration.calibration_record import (
    RECORD,
    CalibrationRecord,
    FittedGraph,
    bytes_of_record,
    read_record,
)
from flowedge.calibration.dataset import Dataset, read_mask
from flowedge.calibration.evaluation import mask_on_map
from flowedge.calibration.frame_range import frame_check_from_images
from flowedge.calibration.metrics import Curve, PixelMetrics, ValueHistogram, curve_from_scores
from flowedge.calibration.score_maxima import StoredLevels, fit_score_maxima
from flowedge.calibration.threshold import (
    FittedThreshold,
    GoodMethod,
    fit_f1_threshold,
    fit_pixel_threshold,
    fit_threshold,
)
from flowedge.clock import utc_now
from flowedge.errors import CalibrationError, EngineUnavailableError
from flowedge.families import TRAITS
from flowedge.frame_quantities import DEFAULT_FRAME_RATE
from flowedge.manifest import GraphFile, Manifest, NfaThreshold, ScoreMaxima, Thresholds
from flowedge.onnx_constants import write_constants
from flowedge.progress import SILENT, Reports
from flowedge.runtime.aggregate import aggregate, largest_sums
from flowedge.runtime.detector import Detector
from flowedge.runtime.images import read_image
from flowedge.runtime.nfa import check_form
from flowedge.runtime.opening import open_engine
from flowedge.runtime.pixel_range import PixelRange, with_pixel_range
from flowedge.runtime.result import Result
from flowedge.runtime.verify import AGGREGATION_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdRequest:
    """Which thresholds to fit.

    Attributes:
        method: ``f1`` needs labelled images.
        image: The quantile or the largest share of good images above the threshold; None for ``f1``.
        pixel: The same for pixels.
    """

    method: Literal["quantile", "target-fpr", "f1"] = "quantile"
    image: float | None = 0.99
    pixel: float | None = 0.9995


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The calibrated bundle and what was fitted."""

    bundle: Bundle
    record: CalibrationRecord


def calibrate_bundle(
    bundle: Bundle,
    images: Sequence[Path],
    *,
    score_maxima: bool = True,
    known: Mapping[str, FittedGraph] | None = None,
    levels: Mapping[str, StoredLevels] | None = None,
    request: ThresholdRequest | None = None,
    labelled: Dataset | None = None,
    frame_rate: float | None = DEFAULT_FRAME_RATE,
    pixel_range: PixelRange | None = None,
    engine: str | None = None,
    threads: int | None = None,
    reports: Reports = SILENT,
) -> Calibration:
    """Fit the fixed reference and the thresholds of every graph of a bundle, and store them in it.

    Each graph infers each image once, for its levels; the reference is fitted on them and patched into the graph. The
    scores and maps that follow are then computed from the levels, and every image whose score lies within rounding of
    the image threshold is asked of the patched graph again: that threshold holds to the last bit for the graph that
    inspects, the one for pixels to within 1e-5 of the largest score. Without a reference, both are the graph's own.

    Args:
        bundle: The bundle; it is replaced by its calibrated version, or left as it was.
        images: Good images.
        score_maxima: Fit the score maxima too, where the family's score has them.
        known: By precision, what was fitted on these images for this request before; it is taken as it is.
        levels: By precision, the levels of these images where they were inferred before; the caller closes them.
        request: Which thresholds; None fits none. A limit of the number of false alarms gives way to them.
        labelled: The labelled images of an ``f1`` request.
        frame_rate: The expected share of good frames outside the ranges of plain statistics, see `frame_range`; None
            fits none and removes those of an earlier calibration.
        pixel_range: The window to declare for images of more than 8 bits; None keeps the bundle's.
        engine: The engine to compute with; None takes the default.
        threads: CPU threads of one inference.
        reports: Told of each inference that is done.

    Raises:
        CalibrationError: No images, an answer that is not finite, or ``f1`` without labels.
        BundleError: The bundle cannot be written.
        ImageError: An image cannot be read.
    """
    if not images:
        raise CalibrationError("calibration needs at least one good image, got none.")
    if request is not None and request.method == "f1" and labelled is None:
        raise CalibrationError(
            "f1 needs labelled images: name a dataset with a test folder, or fit a quantile or a target-fpr."
        )
    opened = Bundle(Path(os.path.realpath(bundle.path)), bundle.manifest)
    start = without_frame_check(opened)
    start = Bundle(start.path, with_pixel_range(start.manifest, pixel_range))
    checked = None
    if frame_rate is not None:
        checked = frame_check_from_images(images, rate=frame_rate, pixel_range=start.manifest.pixel_range)
    with folder_for_next_version(opened.path) as folder:
        draft, record = _fitted(
            start,
            folder,
            images,
            score_maxima,
            known or {},
            levels or {},
            request,
            labelled,
            engine,
            threads,
            reports,
        )
        before = read_record(opened)
        if before is not None:
            record = msgspec.structs.replace(record, lower_precisions=before.lower_precisions)
        record = msgspec.structs.replace(record, frame_notes=() if checked is None else checked.notes)
        files: dict[str, Path | bytes] = {RECORD: bytes_of_record(record)}
        if draft is not start:
            files |= {graph.file: draft.path / graph.file for graph in draft.manifest.graphs}
        manifest = msgspec.structs.replace(
            _with_thresholds(draft.manifest, record, request),
            frame_check=None if checked is None else checked.check,
        )
        done = replace_in_bundle(opened, manifest=manifest, files=files)
    return Calibration(bundle=Bundle(bundle.path, done.manifest), record=record)


def _fitted(
    draft: Bundle,
    folder: Path,
    images: Sequence[Path],
    score_maxima: bool,
    known: Mapping[str, FittedGraph],
    levels: Mapping[str, StoredLevels],
    request: ThresholdRequest | None,
    labelled: Dataset | None,
    engine: str | None,
    threads: int | None,
    reports: Reports,
) -> tuple[Bundle, CalibrationRecord]:
    """A draft in the folder where the graphs are to be patched, else the bundle; and what was fitted.

    The bundle itself waits until all of it is there.
    """
    precisions = [graph.precision for graph in draft.manifest.graphs]
    unknown = [precision for precision in precisions if precision not in known]
    fits_score_maxima = score_maxima and has_score_maxima(draft.manifest)
    inferences = 0
    if request is not None and request.method == "f1":
        inferences += (len(labelled.samples) if labelled else 0) * len(unknown)
    if fits_score_maxima:
        inferences += len(images) * len(set(unknown) - set(levels))
    elif request is not None and request.method != "f1":
        inferences += len(images) * len(unknown)
    if unknown:
        reports.step(f"calibrating {', '.join(unknown)}", inferences)

    def detector(precision: str) -> Detector:
        try:
            session = open_engine(engine, draft, precision, threads=threads)
        except EngineUnavailableError as error:
            if precision != "bf16":
                raise
            raise CalibrationError(
                "the bf16 graph cannot be calibrated here: take an engine that runs it (--engine openvino or a GPU's), "
                f"or add --bf16, which plans it anew and calibrates an emulation. ({error})"
            ) from error
        return Detector(draft, session)

    maxima = {precision: one.score_maxima for precision, one in known.items()}
    fitted = dict(known)
    engines: dict[str, None] = {}  # in the order of their use
    with contextlib.ExitStack() as stack:
        stored: dict[str, StoredLevels] = {}
        if fits_score_maxima:
            for precision in unknown:
                if precision in levels:
                    stored[precision] = levels[precision]
                else:
                    with detector(precision) as detect:
                        stored[precision] = stack.enter_context(_stored_levels(detect, images, reports))
                maxima[precision] = _fit_score_maxima(stored[precision], draft.manifest)
            draft = _with_score_maxima(draft, maxima, folder)
        for precision in unknown:
            with detector(precision) as detect:
                engines[detect.engine.name] = None
                thresholds, notes = _fit_thresholds(
                    detect, images, stored.get(precision), request, labelled, reports
                )
            fitted[precision] = FittedGraph(
                precision=precision, score_maxima=maxima.get(precision), thresholds=thresholds, notes=notes
            )
    record = CalibrationRecord(
        date=utc_now().isoformat(),
        engine=", ".join(engines),
        images=len(images),
        images_sha256=hash_of_images(images),
        labelled_images=len(labelled.samples) if labelled is not None else 0,
        graphs=tuple(fitted[precision] for precision in precisions),
    )
    return draft, record


def without_frame_check(bundle: Bundle) -> Bundle:
    """Return the bundle with a manifest whose detectors judge every frame. Ranges fitted before decide nothing now."""
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, frame_check=None))


def has_score_maxima(manifest: Manifest) -> bool:
    """Whether the family's score is normalised by maxima that can be fitted."""
    return manifest.graphs[0].scoring.normalisation != "none"


def decide_by_nfa(bundle: Bundle, threshold: NfaThreshold) -> Bundle:
    """Let the number of false alarms decide, in every graph of a bundle; needs no images.

    Fitted thresholds stay stored beside it, and decide no more.

    Args:
        bundle: The bundle; it is replaced.
        threshold: The form of the test and its limit.

    Raises:
        BundleError: The graphs do not give what the form needs, or the bundle cannot be written.
    """
    check_form(bundle.manifest, threshold.form)
    graphs = tuple(
        msgspec.structs.replace(graph, thresholds=msgspec.structs.replace(graph.thresholds, nfa=threshold))
        for graph in bundle.manifest.graphs
    )
    return replace_in_bundle(
        bundle, manifest=msgspec.structs.replace(bundle.manifest, graphs=graphs), files={}
    )


def _results(
    detect: Detector, images: Sequence[Path], on_image: Callable[[], None] = lambda: None
) -> Iterator[tuple[Path, Result]]:
    for path in images:
        result = detect(read_image(path, detect.bundle.manifest.pixel_range))
        if result.verdict == "not_inspected":
            raise CalibrationError(
                f"the {detect.precision} graph's answer for {path} is not finite. Remove the image, or run "
                "flowedge verify to see whether the precision is the cause."
            )
        yield path, result
        on_image()


def _stored_levels(detect: Detector, images: Sequence[Path], reports: Reports) -> StoredLevels:
    levels = (
        tuple(level[None, None] for level in result.levels)
        for _, result in _results(detect, images, reports.advance)
    )
    return StoredLevels(levels, names=[str(path) for path in images])


def _fit_score_maxima(levels: StoredLevels, manifest: Manifest) -> ScoreMaxima:
    def largest_map(image: tuple[NDArray[np.float32], ...], level_max: tuple[float, ...]) -> float:
        return largest_sums(image, level_max, manifest.family, manifest.image_size)[0]

    def largest_mul(image: tuple[NDArray[np.float32], ...], level_max: tuple[float, ...]) -> float:
        largest = largest_sums(image, level_max, manifest.family, manifest.image_size)[1]
        assert largest is not None
        return largest

    multiplicative = TRAITS[manifest.family].multiplicative_map
    return fit_score_maxima(levels, map_sum=largest_map, mul_sum=largest_mul if multiplicative else None)


def _fit_thresholds(
    detect: Detector,
    images: Sequence[Path],
    stored: StoredLevels | None,
    request: ThresholdRequest | None,
    labelled: Dataset | None,
    reports: Reports,
) -> tuple[Thresholds, tuple[str, ...]]:
    if request is None:
        return detect.thresholds, ()
    if request.method == "f1":
        assert labelled is not None
        image, pixel = _fit_f1(detect, labelled, reports)
    else:
        image, pixel = _fit_good(detect, images, stored, request, request.method, reports)
    notes = tuple(fit.note for fit in (image, pixel) if fit is not None and fit.note)
    return Thresholds(image=image.threshold, pixel=None if pixel is None else pixel.threshold), notes


def _fit_good(
    detect: Detector,
    images: Sequence[Path],
    stored: StoredLevels | None,
    request: ThresholdRequest,
    method: GoodMethod,
    reports: Reports,
) -> tuple[FittedThreshold, FittedThreshold | None]:
    scores: list[float] = []
    pixels = ValueHistogram()
    for score, anomaly_map in _answers(detect, images, stored, reports):
        scores.append(score)
        pixels.add(anomaly_map)
    names = [str(path) for path in images]

    def fitted() -> FittedThreshold:
        return fit_threshold(scores, method=method, parameter=request.image, names=names)

    image = fitted()
    if stored is not None:  # what lies within rounding of the threshold is asked of the graph itself
        rounding = AGGREGATION_LIMIT * max(1.0, *(abs(score) for score in scores))
        asked: set[int] = set()
        while (
            near := {n for n, score in enumerate(scores) if abs(score - image.threshold.value) <= rounding}
            - asked
        ):
            for n in sorted(near):
                ((_, result),) = _results(detect, [images[n]])
                scores[n] = result.score
            asked |= near
            image = fitted()
    if request.pixel is None:
        return image, None
    return image, fit_pixel_threshold(pixels, method=method, parameter=request.pixel, images=len(images))


def _answers(
    detect: Detector, images: Sequence[Path], stored: StoredLevels | None, reports: Reports
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Every image's score and map, from its stored levels where there are some."""
    if stored is None:
        for _, result in _results(detect, images, reports.advance):
            yield result.score, result.network_map
        return
    manifest = detect.bundle.manifest
    scoring = manifest.graph(detect.precision).scoring
    for levels in stored:
        answer = aggregate(levels, scoring, manifest.family, manifest.image_size)
        yield float(answer.score[0]), answer.anomaly_map


def _fit_f1(
    detect: Detector, labelled: Dataset, reports: Reports
) -> tuple[FittedThreshold, FittedThreshold | None]:
    scores: list[float] = []
    pixels = PixelMetrics()
    for sample in labelled.samples:
        frame = read_image(sample.path, detect.bundle.manifest.pixel_range)
        result = detect(frame)
        if result.verdict == "not_inspected":
            raise CalibrationError(f"the {detect.precision} graph's answer for {sample.path} is not finite.")
        scores.append(result.score)
        mask = None
        if sample.mask is not None:
            height, width = result.network_map.shape
            mask = mask_on_map(read_mask(sample.mask, frame), result.preprocessing, (height, width))
        pixels.add(result.network_map, mask)
        reports.advance()
    curve: Curve = curve_from_scores(scores, [sample.is_anomalous for sample in labelled.samples])
    image = fit_f1_threshold(curve, images=len(scores))
    if labelled.classes_without_masks:
        return image, None
    return image, fit_f1_threshold(pixels.curve(), images=len(scores))


def _with_score_maxima(bundle: Bundle, maxima: Mapping[str, ScoreMaxima | None], folder: Path) -> Bundle:
    """A draft with every graph patched; the thresholds that belonged to the old scores are dropped.

    The number of false alarms is taken from the latents, which know no reference: its limit stays.
    """
    graphs: list[GraphFile] = []
    for graph in bundle.manifest.graphs:
        own = maxima[graph.precision]
        assert own is not None
        bundle.check_again(graph.file)
        write_constants(bundle.path / graph.file, folder / graph.file, constants_of(own))
        scoring = msgspec.structs.replace(graph.scoring, normalisation="fixed_reference", score_maxima=own)
        thresholds = Thresholds(nfa=graph.thresholds.nfa)
        graphs.append(msgspec.structs.replace(graph, scoring=scoring, thresholds=thresholds))
    manifest = msgspec.structs.replace(bundle.manifest, graphs=tuple(graphs))
    files = {graph.file: folder / graph.file for graph in graphs}
    return clone_bundle(bundle, folder / "draft", manifest=manifest, files=files)


def constants_of(maxima: ScoreMaxima) -> dict[str, NDArray[np.generic]]:
    values = {f"level_max_{n}": value for n, value in enumerate(maxima.level_max)}
    values["map_max"] = maxima.map_max
    if maxima.mul_max is not None:
        values["mul_max"] = maxima.mul_max
    constants: dict[str, NDArray[np.generic]] = {
        f"reference.{name}": np.full((1, 1, 1, 1), value, np.float32) for name, value in values.items()
    }
    return {"reference.fixed": np.array(True), **constants}


def _with_thresholds(
    manifest: Manifest, record: CalibrationRecord, request: ThresholdRequest | None
) -> Manifest:
    if request is None:
        return manifest
    fitted = {graph.precision: graph.thresholds for graph in record.graphs}
    graphs = tuple(msgspec.structs.replace(g, thresholds=fitted[g.precision]) for g in manifest.graphs)
    return msgspec.structs.replace(manifest, graphs=graphs)


def hash_of_images(images: Sequence[Path]) -> str:
    """One hash over all files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(images, key=lambda image: image.name):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
