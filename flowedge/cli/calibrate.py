"""``flowedge calibrate`` fits the score maxima and the thresholds of a bundle on images of good parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowedge.bundle import open_bundle
from flowedge.cli.output import (
    RESULTS,
    EngineName,
    Json,
    Threads,
    print_json,
    table,
)
from flowedge.cli.places import check_bundle, check_folder
from flowedge.cli.precision import (
    Bf16,
    CalibratorOption,
    Fp16,
    GateOption,
    Int8,
    LabelledOption,
    maxima_text,
    precision_request,
    print_fitted,
    print_reports,
)
from flowedge.cli.progress import progress_bar
from flowedge.errors import FlowEdgeError
from flowedge.frame_quantities import DEFAULT_FRAME_RATE
from flowedge.manifest import Manifest, NfaForm, NfaThreshold

if TYPE_CHECKING:
    from flowedge.calibration.calibration_record import CalibrationRecord
    from flowedge.calibration.threshold import ThresholdRequest
    from flowedge.runtime.frames.pixel_range import PixelRange

NAME = "calibrate"

_DEFAULTS = {"quantile": (0.99, 0.9995), "target-fpr": (0.01, 0.0005), "f1": (None, None)}
_NFA_FORMS: dict[str, NfaForm] = {"nfa": "tree", "nfa-tree": "tree", "nfa-block": "block"}


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle. It is updated in place.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="A folder of good images, or a dataset with train/good. The nfa thresholds need none.",
            show_default=False,
        ),
    ] = None,
    score_maxima: Annotated[
        bool,
        typer.Option(
            "--reference/--no-reference",
            help="Fit the score maxima, by which CFLOW and MSFlow normalise their scores.",
        ),
    ] = True,
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold",
            help="The rule for the thresholds: quantile, target-fpr, f1 (needs a labelled dataset), nfa-tree (or nfa), "
            "nfa-block, or none.",
        ),
    ] = "quantile",
    image: Annotated[
        float | None,
        typer.Option(
            "--image",
            help="The quantile of the scores of good images, or the target rate of false alarms.",
            show_default="quantile 0.99, rate 0.01",
        ),
    ] = None,
    pixel: Annotated[
        float | None,
        typer.Option(
            "--pixel",
            help="The quantile of the pixels of good maps, or the target rate of false pixels.",
            show_default="quantile 0.9995, rate 0.0005",
        ),
    ] = None,
    log_nfa: Annotated[
        float | None,
        typer.Option(
            "--log-nfa",
            help="The limit of the nfa thresholds: log10 of the false alarms that are expected in an image.",
            show_default="0",
        ),
    ] = None,
    frame_check: Annotated[
        str,
        typer.Option(
            "--frame-check",
            metavar="RATE|off",
            help="Fit how good frames look (mean, contrast, sharpness and others). A frame outside those ranges is not "
            "inspected. RATE is the expected share of good frames outside.",
        ),
    ] = str(DEFAULT_FRAME_RATE),
    fp16: Fp16 = False,
    bf16: Bf16 = False,
    int8: Int8 = False,
    calibrator: CalibratorOption = "percentile",
    gate: GateOption = None,
    labelled: LabelledOption = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="pixel_range=LOW,HIGH",
            help="Declare the grey levels that become 0 and 255, for images of more than 8 bits.",
        ),
    ] = None,
    engine: EngineName = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Fit the score maxima and the thresholds of every precision, and store them in the bundle.

    With --fp16, --bf16 or --int8, graphs of these precisions are added first, planned and judged on the images.
    """
    check_bundle(bundle, data)
    check_folder(data)
    check_folder(labelled)
    from flowedge.calibration.plan import CalibrationPlan, carry_out
    from flowedge.runtime.device.device_cache import device_cache

    nfa = _nfa_threshold(threshold, log_nfa)
    plan = CalibrationPlan(
        thresholds=_threshold_request(threshold, image, pixel),
        nfa=nfa,
        score_maxima=score_maxima,
        frame_rate=_frame_rate(frame_check),
        pixel_range=_pixel_range(assignments or []),
        precisions=precision_request(
            fp16=fp16, bf16=bf16, int8=int8, calibrator=calibrator, gate=gate, labelled=labelled
        ),
    )
    asked = [name for name, is_asked in (("--fp16", fp16), ("--bf16", bf16), ("--int8", int8)) if is_asked]
    if data is None and plan.needs_images:
        what = f"{', '.join(asked)} is planned and judged" if asked else f"--threshold {threshold} is fitted"
        raise FlowEdgeError(f"{what} on images of good parts: name their folder with --data.")
    if asked and plan.pixel_range is not None:
        raise FlowEdgeError(
            "--set pixel_range changes the images that every precision is planned on. Run flowedge calibrate with it "
            "and without --fp16, --bf16 and --int8 first."
        )
    opened = open_bundle(bundle)
    with progress_bar() as reports:
        result = carry_out(
            plan,
            opened,
            data,
            engine=engine,
            threads=threads,
            cache=device_cache() if asked else None,
            reports=reports,
        )
    if not json:
        print_reports(result.added)
    if nfa is not None:
        _print_nfa(bundle, result.bundle.manifest, nfa, result.record, json=json)
    elif result.record is not None and json:
        print_json(result.record)
    elif result.record is not None:
        print_fitted(result.record, bundle)


def _pixel_range(assignments: Sequence[str]) -> PixelRange | None:
    """Return the range of grey levels that the user declares, or None."""
    from flowedge.runtime.frames.pixel_range import PIXEL_RANGE_FORM, pixel_range_from

    if not assignments:
        return None
    name, _, text = assignments[-1].partition("=")
    if len(assignments) > 1 or name != "pixel_range":
        raise FlowEdgeError(f"calibrate takes one --set pixel_range=LOW,HIGH, got {', '.join(assignments)}.")
    try:
        return pixel_range_from(text)
    except ValueError as error:
        raise FlowEdgeError(f"--set {assignments[-1]}: pixel_range is {PIXEL_RANGE_FORM}.") from error


def _nfa_threshold(threshold: str, log_nfa: float | None) -> NfaThreshold | None:
    """Return the limit that ``--threshold nfa`` sets, or None for another rule."""
    if threshold not in _NFA_FORMS:
        if log_nfa is not None:
            raise FlowEdgeError(f"--log-nfa belongs to --threshold nfa, got --threshold {threshold}.")
        return None
    if log_nfa is not None and not math.isfinite(log_nfa):
        raise FlowEdgeError(f"--log-nfa must be finite, got {log_nfa}.")
    return NfaThreshold(form=_NFA_FORMS[threshold], log_nfa=log_nfa or 0.0)


def _frame_rate(option: str) -> float | None:
    """Return the expected share of good frames outside their ranges, or None for ``off``."""
    if option == "off":
        return None
    try:
        rate = float(option)
    except ValueError:
        rate = math.nan
    if not 0 < rate < 1:
        raise FlowEdgeError(
            f"--frame-check takes off or a rate between 0 and 1, such as 0.001, got {option!r}."
        )
    return rate


def _threshold_request(threshold: str, image: float | None, pixel: float | None) -> ThresholdRequest | None:
    """Return the thresholds to fit, or None where none is fitted."""
    from flowedge.calibration.threshold import ThresholdRequest

    if threshold not in (*_DEFAULTS, *_NFA_FORMS, "none"):
        raise FlowEdgeError(
            f"--threshold is one of {', '.join((*_DEFAULTS, *_NFA_FORMS))} or none, got {threshold!r}."
        )
    if threshold not in ("quantile", "target-fpr") and (image is not None or pixel is not None):
        raise FlowEdgeError(f"--threshold {threshold} takes no --image and no --pixel.")
    if threshold not in _DEFAULTS:
        return None
    for name, value in (("--image", image), ("--pixel", pixel)):
        if value is not None and not 0 < value < 1:
            raise FlowEdgeError(f"{name} must lie between 0 and 1, got {value}.")
    image_default, pixel_default = _DEFAULTS[threshold]
    return ThresholdRequest(
        method=threshold,  # type: ignore[arg-type]
        image=image_default if image is None else image,
        pixel=pixel_default if pixel is None else pixel,
    )


def _print_nfa(
    bundle: Path, manifest: Manifest, nfa: NfaThreshold, fitted: CalibrationRecord | None, *, json: bool
) -> None:
    """Print the limit that decides now, and the score maxima where they were fitted beside it."""
    fitted_maxima = {} if fitted is None else {graph.precision: graph.score_maxima for graph in fitted.graphs}
    if json:
        graphs = [
            {
                "precision": graph.precision,
                "reference": fitted_maxima.get(graph.precision),
                "thresholds": graph.thresholds,
            }
            for graph in manifest.graphs
        ]
        print_json({"graphs": graphs})
        return
    if fitted is not None and any(fitted_maxima.values()):
        rows = table("precision", "score maxima")
        for precision, score_maxima in fitted_maxima.items():
            rows.add_row(precision, maxima_text(score_maxima))
        RESULTS.print(rows)
        RESULTS.print(f"{bundle}: score maxima fitted on {fitted.images} good images")
    RESULTS.print(
        f"{bundle}: a region is anomalous where its log NFA by the {nfa.form} form is below {nfa.log_nfa:g}, in "
        f"{', '.join(graph.precision for graph in manifest.graphs)}"
    )
