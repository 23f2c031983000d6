"""``flowedge calibrate`` fits the score maxima and the thresholds of a bundle on images of good parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
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
from flowedge.cli.places import check_bundle, check_folder, print_left_out_subfolders, signature_noted
from flowedge.cli.precision import (
    Bf16,
    CalibratorOption,
    Fp16,
    GateOption,
    Int8,
    LabelledOption,
    PruneOption,
    fraction_from,
    maxima_text,
    precision_request,
    print_fitted,
    print_reports,
    print_slow_precisions,
)
from flowedge.cli.progress import progress_bar
from flowedge.cli.threshold_options import (
    FITTED_RULES,
    NFA_FORMS,
    By,
    ImageQuantile,
    ImageRate,
    OldImage,
    OldPixel,
    PixelQuantile,
    PixelRate,
    Reason,
    origin_of,
    threshold_request,
)
from flowedge.cli.threshold_text import with_graph_commands
from flowedge.errors import FlowEdgeError
from flowedge.frame_quantities import DEFAULT_FRAME_RATE
from flowedge.manifest import Manifest, NfaThreshold

if TYPE_CHECKING:
    from flowedge.calibration.calibration_record import CalibrationRecord
    from flowedge.runtime.frames.pixel_range import PixelRange

NAME = "calibrate"


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
            "--score-maxima/--no-score-maxima",
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
    image_quantile: ImageQuantile = None,
    pixel_quantile: PixelQuantile = None,
    image_rate: ImageRate = None,
    pixel_rate: PixelRate = None,
    old_image: OldImage = None,
    old_pixel: OldPixel = None,
    old_reference: Annotated[bool | None, typer.Option("--reference/--no-reference", hidden=True)] = None,
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
    prune: PruneOption = None,
    calibrator: CalibratorOption = "auto",
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
    reason: Reason = "",
    by: By = None,
    engine: EngineName = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Fit the score maxima and the thresholds of every precision, and store them in the bundle.

    With --prune, --fp16, --bf16 or --int8, such graphs are added first, planned and judged on the images.
    """
    check_bundle(bundle, data)
    check_folder(data)
    check_folder(labelled)
    from flowedge.calibration.plan import CalibrationPlan, carry_out
    from flowedge.runtime.device.device_cache import device_cache

    if old_reference is not None:
        raise FlowEdgeError(
            "--reference and --no-reference have other names now: write --score-maxima or --no-score-maxima."
        )
    if threshold not in (*FITTED_RULES, *NFA_FORMS, "none"):
        raise FlowEdgeError(
            f"--threshold is one of {', '.join((*FITTED_RULES, *NFA_FORMS))} or none, got {threshold!r}."
        )
    nfa = _nfa_threshold(threshold, log_nfa)
    plan = CalibrationPlan(
        thresholds=threshold_request(
            threshold,
            image_quantile=image_quantile,
            pixel_quantile=pixel_quantile,
            image_rate=image_rate,
            pixel_rate=pixel_rate,
            old_image=old_image,
            old_pixel=old_pixel,
        ),
        nfa=nfa,
        score_maxima=score_maxima,
        frame_rate=_frame_rate(frame_check),
        pixel_range=_pixel_range(assignments or []),
        precisions=precision_request(
            fp16=fp16,
            bf16=bf16,
            int8=int8,
            prune=prune,
            calibrator=calibrator,
            gate=gate,
            labelled=labelled,
        ),
    )
    options = (("--prune", prune is not None), ("--fp16", fp16), ("--bf16", bf16), ("--int8", int8))
    asked = [name for name, is_asked in options if is_asked]
    if data is None and plan.needs_images:
        what = (
            f"graphs for {', '.join(asked)} are planned and judged"
            if asked
            else f"--threshold {threshold} is fitted"
        )
        raise FlowEdgeError(f"{what} on images of good parts: name their folder with --data.")
    if asked and plan.pixel_range is not None:
        raise FlowEdgeError(
            "--set pixel_range changes the images that every precision is planned on. Run flowedge calibrate with it "
            "and without --prune, --fp16, --bf16 and --int8 first."
        )
    opened = open_bundle(bundle)
    print_slow_precisions(bf16=bf16, int8=int8)
    print_left_out_subfolders(data)
    with signature_noted(bundle), progress_bar() as reports:
        result = carry_out(
            plan,
            opened,
            data,
            origin=origin_of("calibrate", by, reason),
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
        print_json(
            msgspec.structs.replace(result.record, graphs=with_graph_commands(result.record.graphs, bundle))
        )
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
    if threshold not in NFA_FORMS:
        if log_nfa is not None:
            raise FlowEdgeError(f"--log-nfa belongs to --threshold nfa, got --threshold {threshold}.")
        return None
    if log_nfa is not None and not math.isfinite(log_nfa):
        raise FlowEdgeError(f"--log-nfa must be finite, got {log_nfa}.")
    return NfaThreshold(form=NFA_FORMS[threshold], log_nfa=log_nfa or 0.0)


def _frame_rate(option: str) -> float | None:
    """Return the expected share of good frames outside their ranges, or None for ``off``."""
    if option == "off":
        return None
    rate = fraction_from(option)
    if rate is None:
        raise FlowEdgeError(
            f"--frame-check takes off or a rate between 0 and 1, such as 0.001, got {option!r}."
        )
    return rate


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
    # A limit far from 0 is no number that a float holds.
    expected = f"{10**nfa.log_nfa:.3g}" if abs(nfa.log_nfa) <= 3 else f"10^{nfa.log_nfa:g}"
    RESULTS.print(
        f"{bundle}: {expected} false alarm{' is' if expected == '1' else 's are'} expected in an image of a good "
        "part, if its latents are standard normal. No image has checked this. "
        "flowedge eval counts on a labelled dataset.",
        soft_wrap=True,
    )
    RESULTS.print(
        f"{bundle}: a region is anomalous where its log NFA by the {nfa.form} form is below {nfa.log_nfa:g}, in "
        f"{', '.join(graph.precision for graph in manifest.graphs)}"
    )
