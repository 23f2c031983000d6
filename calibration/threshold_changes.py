"""Set or fit the thresholds of a bundle alone. Score maxima, frame check and colour scale stay as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Final

import msgspec

from flowedge.bundle import Bundle, check_replaceable, open_bundle, replace_in_bundle
from flowedge.calibration.calibrate import detector_for_fit, without_frame_check
from flowedge.calibration.calibration_images import GoodImages, hash_of_images, stored_levels
from flowedge.calibration.calibration_record import FittedGraph
from flowedge.calibration.dataset import good_images, read_dataset
from flowedge.calibration.graph_thresholds import fit_graph_thresholds
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.calibration.threshold_history import ChangeOrigin, with_history
from flowedge.errors import BundleChangedError, CalibrationError
from flowedge.manifest import Manifest, NfaForm, NfaThreshold, Threshold, Thresholds
from flowedge.progress import SILENT, Reports
from flowedge.runtime.nfa import check_form

ALL: Final = "all"
"""The word for every precision of a bundle."""

_ATTEMPTS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class NewThresholds:
    """The values that a user sets by hand. A value of None keeps what the bundle has.

    An image or pixel threshold decides from then on, so it removes a limit of log NFA. A limit of log NFA decides in
    place of image and pixel threshold, which stay in the bundle.

    Attributes:
        image: The image threshold, in units of the score.
        pixel: The pixel threshold, in units of the anomaly map.
        log_nfa: The limit of log NFA.
        form: The form of the test. The value is None for the form that the bundle has, or else the tree form.

    Raises:
        CalibrationError: There is no value, a value is not finite, or a limit of log NFA comes with a threshold.
    """

    image: float | None = None
    pixel: float | None = None
    log_nfa: float | None = None
    form: NfaForm | None = None

    def __post_init__(self) -> None:
        values = {"image": self.image, "pixel": self.pixel, "log NFA": self.log_nfa}
        given = {name: value for name, value in values.items() if value is not None}
        if not given:
            raise CalibrationError(
                "no threshold is given. Give an image or pixel threshold or a limit of log NFA."
            )
        for name, value in given.items():
            if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
                raise CalibrationError(f"the {name} threshold must be a finite number, got {value!r}.")
        if self.log_nfa is not None and len(given) > 1:
            raise CalibrationError(
                "a limit of log NFA decides in place of image and pixel threshold. Set one or the other."
            )
        if self.form is not None and self.log_nfa is None:
            raise CalibrationError("the form of the NFA needs a limit of log NFA beside it.")

    def apply(self, old: Thresholds) -> Thresholds:
        """Return the thresholds of a graph with these values."""
        if self.log_nfa is not None:
            form = self.form or ("tree" if old.nfa is None else old.nfa.form)
            return msgspec.structs.replace(old, nfa=NfaThreshold(form=form, log_nfa=float(self.log_nfa)))
        image, pixel = old.image, old.pixel
        if self.image is not None:
            image = Threshold(value=float(self.image), method="manual")
        if self.pixel is not None:
            pixel = Threshold(value=float(self.pixel), method="manual")
        return Thresholds(image=image, pixel=pixel)


def set_thresholds(
    path: str | PathLike[str],
    values: NewThresholds,
    *,
    reason: str,
    precision: str | None = None,
    by: str | None = None,
    command: str = "flowedge.calibration.set_thresholds",
) -> Bundle:
    """Set thresholds of a bundle by hand, and put author and reason into its history.

    Where another process replaces the bundle at that moment, the change is made again on the new version. So no entry
    of the history is lost.

    Args:
        path: The bundle's folder.
        values: The new values.
        reason: The reason, which is the only explanation that the bundle has of such a value.
        precision: The precision of the graph, or ``"all"``. Scores differ by precision, so a bundle of several graphs
            needs it for image and pixel threshold. The value None is for a bundle of one graph. A limit of log NFA is
            set in every graph by default.
        by: The author. The value is None for the user and the host of this process.
        command: The command that makes the change.

    Raises:
        CalibrationError: The reason is empty or too long, or the precision is missing.
        BundleError: The bundle has no such graph, its graphs lack what the form of the NFA needs, or the bundle cannot
            be trusted or written.
    """
    if not reason.strip():
        raise CalibrationError("a threshold that is set by hand needs a reason, got an empty text.")
    origin = ChangeOrigin(command=command, by=by, reason=reason)
    for attempt in range(_ATTEMPTS):
        bundle = open_bundle(path)
        manifest = _with_values(bundle.manifest, values, precision, origin)
        try:
            return replace_in_bundle(bundle, manifest=manifest)
        except BundleChangedError:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the loop returns or raises")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdFit:
    """The result of `fit_thresholds`.

    Attributes:
        bundle: The bundle with the new thresholds.
        graphs: The fitted numbers of each precision.
        images: The number of images of the fit.
    """

    bundle: Bundle
    graphs: tuple[FittedGraph, ...]
    images: int


def fit_thresholds(
    path: str | PathLike[str],
    data: str | PathLike[str],
    request: ThresholdRequest = ThresholdRequest(),  # noqa: B008 - frozen
    *,
    precision: str | None = None,
    origin: ChangeOrigin = ChangeOrigin(command="flowedge.calibration.fit_thresholds"),  # noqa: B008 - frozen
    engine: str | None = None,
    threads: int | None = None,
    reports: Reports = SILENT,
) -> ThresholdFit:
    """Fit the thresholds of a bundle on images. The result equals that of a calibration with the same score maxima.

    Args:
        path: The bundle's folder.
        data: A folder of good images, or a dataset in MVTec AD's layout. An ``f1`` request needs a dataset with
            labelled test images.
        request: The thresholds to fit. They replace a limit of log NFA.
        precision: The precision of the only graph to fit. The value None and ``"all"`` fit every graph.
        origin: The author of the change, for the history of the thresholds.
        engine: The name of the engine. The value is None for the default engine.
        threads: The number of CPU threads of one inference.
        reports: Receives the progress, one unit for each inference.

    Raises:
        DataError: The folder is not there or holds no images.
        CalibrationError: An answer is not finite, or ``f1`` lacks a class.
        BundleChangedError: Another process replaced the bundle meanwhile.
        BundleError: The bundle has no such graph, or cannot be trusted or written.
        ImageError: An image cannot be read.
        EngineUnavailableError: The engine cannot run on this machine.
    """
    bundle = open_bundle(path)
    check_replaceable(bundle)  # before the images, which may be many
    precisions = _precisions(bundle.manifest, precision or ALL)
    labelled = read_dataset(Path(data)) if request.method == "f1" else None
    paths = good_images(Path(data)) if labelled is None else tuple(one.path for one in labelled.samples)
    good = GoodImages(paths, bundle.manifest.pixel_range, measures=False)
    start = without_frame_check(bundle)
    reports.step(f"fitting the thresholds of {', '.join(precisions)}", len(paths) * len(precisions))
    fitted: dict[str, FittedGraph] = {}
    for name in precisions:
        with detector_for_fit(start, name, engine, threads) as detect:
            normalisation = bundle.manifest.graph(name).scoring.normalisation
            # A calibration computes scores of stored levels where there are score maxima, and so does this fit.
            if labelled is None and normalisation == "fixed_reference":
                with stored_levels(detect, good, reports) as stored:
                    fit = fit_graph_thresholds(detect, good, stored, request, None, reports)
            else:
                fit = fit_graph_thresholds(detect, good, None, request, labelled, reports)
        notes = fit.notes
        if normalisation == "per_image":
            notes = (
                *notes,
                "each image divides its score by its own maximum, so scores of two images share no scale and no "
                "threshold separates them well. Run flowedge calibrate, which fits score maxima.",
            )
        fitted[name] = FittedGraph(
            precision=name,
            score_maxima=bundle.manifest.graph(name).scoring.score_maxima,
            thresholds=fit.thresholds,
            notes=notes,
            operating_points=fit.points,
        )
    graphs = tuple(
        msgspec.structs.replace(graph, thresholds=fitted[graph.precision].thresholds)
        if graph.precision in fitted
        else graph
        for graph in bundle.manifest.graphs
    )
    manifest = with_history(
        bundle.manifest,
        msgspec.structs.replace(bundle.manifest, graphs=graphs),
        origin,
        chosen=precisions,
        images=len(paths),
        images_sha256=hash_of_images(paths),
    )
    done = replace_in_bundle(bundle, manifest=manifest)
    return ThresholdFit(bundle=done, graphs=tuple(fitted.values()), images=len(paths))


def _with_values(
    manifest: Manifest, values: NewThresholds, precision: str | None, origin: ChangeOrigin
) -> Manifest:
    """Return the manifest with the values in the chosen graphs and in the history."""
    if precision is None and values.log_nfa is None and len(manifest.graphs) > 1:
        have = ", ".join(graph.precision for graph in manifest.graphs)
        raise CalibrationError(
            f"scores differ by precision, and the bundle has {have}. Name the precision that the value belongs to, or "
            f"{ALL!r} to set it in each."
        )
    chosen = _precisions(manifest, precision or ALL)
    graphs = tuple(
        msgspec.structs.replace(graph, thresholds=values.apply(graph.thresholds))
        if graph.precision in chosen
        else graph
        for graph in manifest.graphs
    )
    for graph in graphs:
        if graph.thresholds.nfa is not None and values.log_nfa is not None:
            check_form(manifest, graph.thresholds.nfa.form)
    return with_history(manifest, msgspec.structs.replace(manifest, graphs=graphs), origin, chosen=chosen)


def _precisions(manifest: Manifest, precision: str) -> tuple[str, ...]:
    """Return the precisions that a word means in a bundle.

    Raises:
        BundleError: The bundle has no such graph.
    """
    if precision == ALL:
        return tuple(graph.precision for graph in manifest.graphs)
    return (manifest.graph(precision).precision,)
