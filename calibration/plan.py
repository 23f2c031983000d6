"""Carry out a whole calibration: lower precisions, score maxima, thresholds, frame check and the limit of log NFA."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowedge.bundle import Bundle, check_replaceable
from flowedge.calibration.calibrate import calibrate_bundle, decide_by_nfa
from flowedge.calibration.calibration_record import CalibrationRecord, PrecisionReport, read_record
from flowedge.calibration.dataset import good_images, read_dataset
from flowedge.calibration.source_check import preprocessing_doubt
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.calibration.threshold_history import ChangeOrigin
from flowedge.errors import CalibrationError
from flowedge.frame_quantities import DEFAULT_FRAME_RATE
from flowedge.manifest import NfaThreshold
from flowedge.packages import explain_missing
from flowedge.progress import SILENT, Reports
from flowedge.runtime.detector import Detector
from flowedge.runtime.device.device_cache import DeviceCache
from flowedge.runtime.frames.pixel_range import PixelRange, with_pixel_range
from flowedge.runtime.nfa import check_form
from flowedge.runtime.opening.opening import open_engine

if TYPE_CHECKING:
    from flowedge.calibration.precision import PrecisionRequest

_QUANTILES = ThresholdRequest()


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPlan:
    """Lists the steps of one calibration.

    Attributes:
        thresholds: The thresholds to fit. The value is None where none is fitted.
        nfa: The limit of log NFA that decides in the end. The value is None where thresholds decide.
        score_maxima: True fits the score maxima too, where the family's score has them.
        frame_rate: The expected share of good frames that the frame check stops, above 0 and below 1. The value is None
            to fit no frame check and to remove an earlier one.
        pixel_range: The window to declare for images of more than 8 bits. The value is None to keep the bundle's.
        precisions: The precisions to add first. The added graphs get the thresholds and the frame check of the plan.

    Examples:
        >>> CalibrationPlan(thresholds=None, nfa=NfaThreshold(form="tree")).needs_images
        False
    """

    thresholds: ThresholdRequest | None = _QUANTILES
    nfa: NfaThreshold | None = None
    score_maxima: bool = True
    frame_rate: float | None = DEFAULT_FRAME_RATE
    pixel_range: PixelRange | None = None
    precisions: PrecisionRequest | None = None

    @property
    def needs_images(self) -> bool:
        """True unless the plan sets the limit of log NFA and no other step.

        Such a plan fits the score maxima only where images are given.
        """
        others = (self.thresholds, self.pixel_range, self.precisions)
        return self.nfa is None or any(other is not None for other in others)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """The result of a calibration plan.

    Attributes:
        bundle: The calibrated bundle.
        record: The fitted values. The value is None where no images were given.
        added: The reports of the added precisions.
        doubt: Why the images contradict the source's preprocessing. The text is empty where they do not.
    """

    bundle: Bundle
    record: CalibrationRecord | None = None
    added: tuple[PrecisionReport, ...] = ()
    doubt: str = ""


def carry_out(
    plan: CalibrationPlan,
    bundle: Bundle,
    data: Path | None = None,
    *,
    origin: ChangeOrigin = ChangeOrigin(),  # noqa: B008 - frozen
    engine: str | None = None,
    threads: int | None = None,
    cache: DeviceCache | None = None,
    reports: Reports = SILENT,
) -> PlanResult:
    """Calibrate a bundle as a plan says, and store the result in the bundle.

    Args:
        plan: The steps.
        bundle: The bundle, which is replaced.
        data: A folder of good images, or a dataset in MVTec AD's layout. An ``f1`` request needs a dataset. The value
            may be None where the plan needs no images.
        origin: The author of the change, for the history of the thresholds.
        engine: The name of the engine. The value is None for the default engine.
        threads: The number of CPU threads of one inference.
        cache: The cache that keeps the ranges of INT8. The value is None to observe them anew.
        reports: Receives the progress of each step, and a note where the images contradict the source's
            preprocessing.

    Raises:
        CalibrationError: The plan needs images and has none, changes the pixel range and adds precisions at once, or
            its fit fails.
        PrecisionError: A precision cannot pass its gate.
        BundleError: The bundle cannot be replaced, or its graphs lack the outputs of the NFA's form.
        DataError: The folder is not there or holds no images.
        ImageError: An image cannot be read.
        MissingPackageError: Precisions are to be added and a package for that is missing.
    """
    check_replaceable(bundle)  # before the images, which may be many
    if plan.nfa is not None:
        check_form(bundle.manifest, plan.nfa.form)
        if data is None and not plan.needs_images:
            return PlanResult(bundle=decide_by_nfa(bundle, plan.nfa, origin=origin))
    if data is None:
        raise CalibrationError("the plan needs images of good parts. Name their folder.")
    if plan.precisions is not None and plan.pixel_range is not None:
        raise CalibrationError(
            "a pixel range changes the images that every precision is planned on. Declare it with a calibration that "
            "adds no precision first."
        )
    images = good_images(data)
    request = plan.thresholds
    labelled = read_dataset(data) if request is not None and request.method == "f1" else None
    if doubt := _doubt(bundle, images, plan.pixel_range, engine, threads):
        reports.note(f"warning: {doubt}")

    added: tuple[PrecisionReport, ...] = ()
    if plan.precisions is not None:
        on_good = request if labelled is None else None
        with explain_missing("calibrate"):
            from flowedge.calibration.precision import add_precisions
        wanted = dataclasses.replace(
            plan.precisions, thresholds=on_good or ThresholdRequest(), frame_rate=plan.frame_rate
        )
        bundle, added = add_precisions(
            bundle, images, wanted, origin=origin, threads=threads, cache=cache, reports=reports
        )
        # Adding precisions fits everything on good images, so nothing else is left to do for a plan without more.
        if on_good is not None and plan.score_maxima and plan.nfa is None:
            return PlanResult(bundle=bundle, record=read_record(bundle), added=added, doubt=doubt)

    result = calibrate_bundle(
        bundle,
        images,
        score_maxima=plan.score_maxima,
        request=request,
        labelled=labelled,
        frame_rate=plan.frame_rate,
        pixel_range=plan.pixel_range,
        origin=origin,
        engine=engine,
        threads=threads,
        reports=reports,
    )
    decided = result.bundle if plan.nfa is None else decide_by_nfa(result.bundle, plan.nfa, origin=origin)
    return PlanResult(bundle=decided, record=result.record, added=added, doubt=doubt)


def _doubt(
    bundle: Bundle,
    images: Sequence[Path],
    pixel_range: PixelRange | None,
    engine: str | None,
    threads: int | None,
) -> str:
    """Return why the images contradict the ranges of the source's training, or an empty text."""
    if bundle.manifest.source_scale is None:
        return ""
    bundle = Bundle(bundle.path, with_pixel_range(bundle.manifest, pixel_range))
    with Detector(bundle, open_engine(engine, bundle, "fp32", threads=threads)) as detect:
        return preprocessing_doubt(detect, images)
