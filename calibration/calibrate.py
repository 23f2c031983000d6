"""Fit the score maxima and the thresholds of a bundle on images of good parts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from flowedge.bundle import Bundle, folder_for_next_version, replace_in_bundle
from flowedge.calibration.calibration_images import GoodImages, hash_of_images, stored_levels
from flowedge.calibration.calibration_record import (
    RECORD,
    CalibrationRecord,
    FittedGraph,
    bytes_of_record,
    kept_values,
    read_record,
)
from flowedge.calibration.dataset import Dataset
from flowedge.calibration.frame_range import check_frame_rate
from flowedge.calibration.graph_thresholds import fit_graph_thresholds
from flowedge.calibration.score_maxima import (
    StoredLevels,
    has_score_maxima,
    score_maxima_of_bundle,
    with_score_maxima,
)
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.calibration.threshold_history import ChangeOrigin, with_history
from flowedge.clock import utc_now
from flowedge.errors import CalibrationError, EngineUnavailableError
from flowedge.frame_quantities import DEFAULT_FRAME_RATE
from flowedge.manifest import Manifest, NfaThreshold
from flowedge.progress import SILENT, Reports
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.pixel_range import PixelRange, with_pixel_range
from flowedge.runtime.lanes import threads_for_many
from flowedge.runtime.nfa import check_form
from flowedge.runtime.opening.opening import open_engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The result of a calibration.

    Attributes:
        bundle: The calibrated bundle.
        record: The fitted values, as ``calibration.json`` in the bundle holds them.
    """

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
    origin: ChangeOrigin = ChangeOrigin(),  # noqa: B008 - frozen
    engine: str | None = None,
    threads: int | None = None,
    reports: Reports = SILENT,
) -> Calibration:
    """Fit the score maxima and the thresholds of every graph of a bundle, and store them in it.

    Each graph infers each image once, for its levels. The score maxima are fitted on the levels and patched into the
    graph. The scores and maps are then computed from the levels. Images whose score is within rounding of the image
    threshold are run again on the patched graph. So the image threshold is exact for the graph that inspects, and the
    pixel threshold is within 1e-5 of the largest score. Without score maxima, both rest on the graph's own answers.
    The frame check is fitted on the frames of the same pass.

    Args:
        bundle: The bundle, which is replaced by its calibrated version or left as it was.
        images: The good images.
        score_maxima: True fits the score maxima too, where the family's score has them.
        known: By precision, the results of an earlier fit on these images for this request. These results are taken as
            they are.
        levels: By precision, the levels of these images where they were inferred before. The caller closes these
            levels.
        request: The thresholds to fit. The value is None to fit none. Fitted thresholds replace a limit of log NFA.
        labelled: The labelled images of an ``f1`` request.
        frame_rate: The expected share of good frames outside of the ranges of plain statistics, which `frame_range`
            explains. The value is None to fit no ranges and to remove those of an earlier calibration.
        pixel_range: The window to declare for images of more than 8 bits. The value is None to keep the bundle's.
        origin: The author of the change, for the history of the thresholds.
        engine: The name of the engine. The value is None for the default engine.
        threads: The number of CPU threads of one inference.
        reports: Receives the progress, one unit for each inference.

    Raises:
        CalibrationError: There are no images, an answer is not finite, ``f1`` lacks labels, or the rate is not between
            0 and 1.
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
    if frame_rate is not None:
        check_frame_rate(frame_rate)  # before the long work
    good = GoodImages(images, start.manifest.pixel_range, measures=frame_rate is not None)
    fit = _Fit(
        images=good,
        score_maxima=score_maxima and has_score_maxima(start.manifest),
        known=known or {},
        levels=levels or {},
        request=request,
        labelled=labelled,
        engine=engine,
        threads=threads,
        reports=reports,
    )
    with folder_for_next_version(opened.path) as folder:
        draft, record = fit.run(start, folder)
        checked = None if frame_rate is None else good.frame_check(frame_rate)
        before = read_record(opened)
        if before is not None:
            record = msgspec.structs.replace(record, lower_precisions=before.lower_precisions)
        record = msgspec.structs.replace(
            record,
            frame_notes=() if checked is None else checked.notes,
            good_frames={} if checked is None else good.frame_values(),
        )
        files: dict[str, Path | bytes] = {RECORD: bytes_of_record(record)}
        if draft is not start:
            files |= {graph.file: draft.path / graph.file for graph in draft.manifest.graphs}
        manifest = msgspec.structs.replace(
            _with_fits(draft.manifest, record, request),
            frame_check=None if checked is None else checked.check,
        )
        manifest = with_fit_in_history(opened.manifest, manifest, origin, record, request, labelled)
        done = replace_in_bundle(opened, manifest=manifest, files=files)
    return Calibration(bundle=Bundle(bundle.path, done.manifest), record=record)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """The inputs of one fit, which `calibrate_bundle` describes.

    Attributes:
        score_maxima: True where the family has score maxima and they are to be fitted.
    """

    images: GoodImages
    score_maxima: bool
    known: Mapping[str, FittedGraph]
    levels: Mapping[str, StoredLevels]
    request: ThresholdRequest | None
    labelled: Dataset | None
    engine: str | None
    threads: int | None
    reports: Reports

    def run(self, draft: Bundle, folder: Path) -> tuple[Bundle, CalibrationRecord]:
        """Fit every graph and leave the bundle itself as it is.

        Args:
            draft: The bundle.
            folder: The folder for a draft with patched graphs.

        Returns:
            The draft where graphs were patched, else the bundle. The record of the fit.
        """
        precisions = [graph.precision for graph in draft.manifest.graphs]
        unknown = [precision for precision in precisions if precision not in self.known]
        if unknown:
            self.reports.step(f"calibrating {', '.join(unknown)}", self._inferences(unknown))
        maxima = {precision: one.score_maxima for precision, one in self.known.items()}
        fitted = dict(self.known)
        engines: dict[str, None] = {}  # The engines' names, in the order of their use.
        with contextlib.ExitStack() as stack:
            stored: dict[str, StoredLevels] = {}
            if self.score_maxima:
                for precision in unknown:
                    # The pass that took the ranges of INT8 may have stored the levels already.
                    if precision in self.levels:
                        stored[precision] = self.levels[precision]
                    else:
                        with detector_for_fit(draft, precision, self.engine, self.threads) as detect:
                            stored[precision] = stack.enter_context(
                                stored_levels(detect, self.images, self.reports)
                            )
                    maxima[precision] = score_maxima_of_bundle(stored[precision], draft.manifest)
                draft = with_score_maxima(draft, maxima, folder)
            for precision in unknown:
                with detector_for_fit(draft, precision, self.engine, self.threads) as detect:
                    engines[detect.engine.name] = None
                    fit = fit_graph_thresholds(
                        detect, self.images, stored.get(precision), self.request, self.labelled, self.reports
                    )
                fitted[precision] = FittedGraph(
                    precision=precision,
                    score_maxima=maxima.get(precision),
                    thresholds=fit.thresholds,
                    notes=fit.notes,
                    colours=fit.colours,
                    operating_points=fit.points,
                    good_scores=kept_values(fit.good_scores),
                )
        record = CalibrationRecord(
            date=utc_now().isoformat(),
            engine=", ".join(engines),
            images=len(self.images.paths),
            images_sha256=hash_of_images(self.images.paths),
            labelled_images=len(self.labelled.samples) if self.labelled is not None else 0,
            graphs=tuple(fitted[precision] for precision in precisions),
        )
        return draft, record

    def _inferences(self, unknown: Sequence[str]) -> int:
        """Return the number of inferences, as far as it is known before the fit."""
        count = 0
        if self.request is not None and self.request.method == "f1":
            count += (len(self.labelled.samples) if self.labelled else 0) * len(unknown)
        if self.score_maxima:
            count += len(self.images.paths) * len(set(unknown) - set(self.levels))
        elif self.request is not None and self.request.method != "f1":
            count += len(self.images.paths) * len(unknown)
        return count


def detector_for_fit(draft: Bundle, precision: str, engine: str | None, threads: int | None) -> Detector:
    """Open the graph of a precision for a fit.

    Args:
        draft: The bundle, whose frame check is removed so that every frame is judged.
        precision: The precision of the graph.
        engine: The name of the engine. The value is None for the default engine.
        threads: The number of CPU threads of one inference. Without a number, several images are inferred at once.

    Raises:
        CalibrationError: The graph is the bfloat16 one, and the engine does not run it on this machine.
        EngineUnavailableError: The engine cannot run on this machine.
    """
    try:
        session = open_engine(engine, draft, precision, threads=threads_for_many(threads))
    except EngineUnavailableError as error:
        if precision != "bf16":
            raise
        raise CalibrationError(
            "the bf16 graph cannot be calibrated here. Take an engine that runs it (--engine openvino or a GPU's), "
            f"or add --bf16, which plans it anew and calibrates an emulation. ({error})"
        ) from error
    return Detector(draft, session)


def without_frame_check(bundle: Bundle) -> Bundle:
    """Return the bundle without the ranges of plain statistics, so that its detectors judge every frame."""
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, frame_check=None))


def decide_by_nfa(
    bundle: Bundle,
    threshold: NfaThreshold,
    *,
    origin: ChangeOrigin = ChangeOrigin(),  # noqa: B008 - frozen
) -> Bundle:
    """Let the number of false alarms decide in every graph of a bundle. This needs no images.

    Fitted thresholds stay stored in the bundle, but no longer decide.

    Args:
        bundle: The bundle, which is replaced.
        threshold: The form of the test and its limit.
        origin: The author of the change, for the history of the thresholds.

    Raises:
        BundleError: The graphs do not give what the form needs, or the bundle cannot be written.
    """
    check_form(bundle.manifest, threshold.form)
    graphs = tuple(
        msgspec.structs.replace(graph, thresholds=msgspec.structs.replace(graph.thresholds, nfa=threshold))
        for graph in bundle.manifest.graphs
    )
    manifest = with_history(
        bundle.manifest,
        msgspec.structs.replace(bundle.manifest, graphs=graphs),
        origin,
        chosen=[graph.precision for graph in graphs],
    )
    return replace_in_bundle(bundle, manifest=manifest)


def with_fit_in_history(
    before: Manifest,
    after: Manifest,
    origin: ChangeOrigin,
    record: CalibrationRecord,
    request: ThresholdRequest | None,
    labelled: Dataset | None = None,
) -> Manifest:
    """Return the manifest of a calibrated bundle with the fit in the history of its thresholds.

    Args:
        before: The manifest of the version that is replaced.
        after: The manifest of the calibrated version.
        origin: The author of the change.
        record: The record of the fit.
        request: The fitted thresholds. The value is None where none were fitted.
        labelled: The labelled images of an ``f1`` request.
    """
    if request is None:
        return with_history(before, after, origin)
    images, images_sha256 = record.images, record.images_sha256
    if request.method == "f1" and labelled is not None:
        images = len(labelled.samples)
        images_sha256 = hash_of_images([sample.path for sample in labelled.samples])
    return with_history(
        before,
        after,
        origin,
        chosen=[graph.precision for graph in after.graphs],
        images=images,
        images_sha256=images_sha256,
    )


def _with_fits(manifest: Manifest, record: CalibrationRecord, request: ThresholdRequest | None) -> Manifest:
    """Put the colour scales and, where a request fitted them, the thresholds into the graphs of a manifest."""
    fitted = {graph.precision: graph for graph in record.graphs}
    graphs = (
        msgspec.structs.replace(graph, colours=fitted[graph.precision].colours) for graph in manifest.graphs
    )
    if request is not None:
        graphs = (
            msgspec.structs.replace(graph, thresholds=fitted[graph.precision].thresholds) for graph in graphs
        )
    return msgspec.structs.replace(manifest, graphs=tuple(graphs))
