"""``flowedge eval`` measures how well a bundle detects the defects of a labelled dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from flowedge.bundle_files import pack_around
from flowedge.cli.build import build_first
from flowedge.cli.output import (
    MESSAGES,
    PROBLEMS,
    RESULTS,
    Build,
    EngineName,
    Force,
    Json,
    PrecisionOption,
    Threads,
    number,
    print_json,
    table,
)
from flowedge.cli.places import check_bundle, check_folder
from flowedge.cli.products import ProductName, folder_of_product
from flowedge.cli.progress import progress_bar
from flowedge.cli.threshold_text import print_points
from flowedge.targets import check_file_target
from flowedge.text import images_words

NAME = "eval"


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle, or a pack.", show_default=False)],
    dataset: Annotated[
        Path, typer.Argument(help="A labelled dataset in the layout of MVTec AD.", show_default=False)
    ],
    product: ProductName = None,
    engine: EngineName = None,
    precision: PrecisionOption = "fp32",
    threads: Threads = None,
    build: Build = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with curves, pictures and intervals."),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure a bundle on a labelled dataset: AUROC of images and pixels, AUPRO and F1.

    Memory does not grow with the number of images.

    The exit status is 1 when an image was not inspected.
    """
    bundle = folder_of_product(bundle, product)
    check_bundle(bundle, dataset)
    check_folder(dataset)
    if html is not None:
        check_file_target(html, force=force)
    import flowedge
    from flowedge.calibration.dataset import read_dataset
    from flowedge.calibration.evaluation import evaluate
    from flowedge.calibration.evaluation_report import EvaluationReport
    from flowedge.calibration.operating_points import with_commands
    from flowedge.calibration.source_check import preprocessing_doubt
    from flowedge.runtime.lanes import lanes_of, threads_for_many

    samples = read_dataset(dataset)
    if build:
        build_first(bundle, engine, precision)
    with (
        flowedge.load(
            bundle, engine=engine, precision=precision, threads=threads_for_many(threads), build=build
        ) as detector,
        progress_bar() as reports,
    ):
        report = None if html is None else EvaluationReport(html, detector, samples)
        result = evaluate(
            detector,
            samples,
            thresholds=detector.thresholds,
            reports=reports,
            pixel_range=detector.bundle.manifest.pixel_range,
            observer=report,
            lanes=lanes_of(detector.engine),
        )
        points = with_commands(result.operating_points, bundle, detector.precision, str(dataset))
        result = msgspec.structs.replace(result, operating_points=points)
        thresholds, result_precision = detector.thresholds, detector.precision
        doubt = preprocessing_doubt(detector, [one.path for one in samples.samples if not one.is_anomalous])
    if report is not None:
        report.write(result, doubt=doubt)
        MESSAGES.print(f"wrote {html}", soft_wrap=True)
    if doubt:
        PROBLEMS.print(f"warning: {doubt}", soft_wrap=True)
    if json:
        print_json(result)
        raise typer.Exit(1 if result.not_inspected else 0)
    RESULTS.print(f"{bundle}, {result_precision}, on {dataset}", soft_wrap=True)
    rows = table("metric", ">image", ">pixel")
    rows.add_row("AUROC", number(result.image_auroc), number(result.pixel_auroc))
    rows.add_row("AUPRO (to 0.3)", "", number(result.aupro))
    rows.add_row("best F1", number(result.image_f1), number(result.pixel_f1))
    if thresholds.nfa is None:
        # Without a threshold in the bundle the rates are those of the best F1, which nobody must take for a fit.
        rows.add_row(
            "threshold",
            *(
                f"{'' if given else 'best F1 '}{number(None if used is None else used.value)}"
                for used, given in (
                    (result.image_threshold, thresholds.image),
                    (result.pixel_threshold, thresholds.pixel),
                )
            ),
        )
    else:
        rows.add_row(
            "limit", f"log NFA < {thresholds.nfa.log_nfa:g}", f"log NFA < {thresholds.nfa.log_nfa:g}"
        )
    rows.add_row("false alarms", number(result.false_alarm_rate), number(result.pixel_false_alarm_rate))
    rows.add_row("detected", number(result.detection_rate), number(result.pixel_detection_rate))
    RESULTS.print(rows)
    if result.classes:
        classes = table("defect", ">images", ">image AUROC", ">detected")
        for one in result.classes:
            classes.add_row(one.label, str(one.images), number(one.image_auroc), number(one.detection_rate))
        RESULTS.print(classes)
    decisions = table(
        "decision",
        ">limit",
        ">false alarms",
        ">detected",
        ">pixel IoU",
        title="images called anomalous, by rule",
    )
    for rule in result.decisions:
        limit = "" if rule.log_nfa is None else f"log NFA < {rule.log_nfa:g}"
        rates = (rule.false_alarm_rate, rule.detection_rate, rule.pixel_iou)
        decisions.add_row(rule.rule, limit, *(number(rate) for rate in rates))
    RESULTS.print(decisions)
    print_points({result_precision: points})
    if any(point.chosen_here for point in points):
        RESULTS.print(
            "Each threshold but the present one was chosen on these very images, so new images may show more false "
            "alarms and fewer defects. The intervals hold for images like these.",
            soft_wrap=True,
        )
    if pack_around(bundle) is not None:
        RESULTS.print("A threshold is set in the bundle that was packed. Pack it again afterwards.")
    RESULTS.print(f"{result.good_images} good and {result.anomalous_images} anomalous images inspected")
    if result.not_inspected:
        PROBLEMS.print(
            f"not inspected ({images_words(result.not_inspected)}): {', '.join(result.not_inspected_files)}",
            soft_wrap=True,
        )
    if result.good_outside or result.anomalous_outside:
        MESSAGES.print(
            f"not inspected by the frame check, and counted in the metrics all the same: {result.good_outside} good "
            f"and {result.anomalous_outside} anomalous images",
            soft_wrap=True,
        )
        for line in result.outside_files:
            MESSAGES.print(f"  {line}", soft_wrap=True)
    for note in result.notes:
        MESSAGES.print(note, soft_wrap=True)
    raise typer.Exit(1 if result.not_inspected else 0)
