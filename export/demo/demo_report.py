"""Write the demo's report: one HTML page with all pictures inside, which opens offline and can be mailed."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from flowedge.clock import utc_now
from flowedge.export.demo.demo_result import DemoResult, GraphChecks, GraphMetrics, InspectedPhoto
from flowedge.manifest import Manifest
from flowedge.runtime.device.cores import usable_cores
from flowedge.runtime.report.charts import Series, charts, histogram
from flowedge.runtime.report.markup import Markup, element, joined
from flowedge.runtime.report.pages import write_page
from flowedge.runtime.report.pictures import gallery, picture_button
from flowedge.runtime.report.provenance import threshold_words
from flowedge.runtime.report.shell import facts, figures, list_of, page_of, paragraph, section
from flowedge.runtime.report.tables import table
from flowedge.version import __version__

_SHOWN_PER_KIND: Final = 3

_LIMITS: Final = (
    "The defects are painted in. The report shows that every step works, not how well a detector "
    "would do on a real line.",
    "All images are crops of one 512x512 photograph, and crops of one set overlap: 100 test images are far from "
    "100 independent parts. Training, calibration and test crops share no pixel.",
    "The thresholds were fitted on good calibration images only; no test image was used for them. The best F1 "
    "before calibration is taken on the test images themselves, because there is no threshold yet.",
    "The flow was trained for a minute or two on a CPU, by FlowEdge in FrEIA's modules; anomalib only lent the "
    "checkpoint's layout.",
    "Times are wall-clock times of this machine, with whatever else it was doing.",
)


def write_report(
    path: Path,
    result: DemoResult,
    manifest: Manifest,
    inspected: Sequence[InspectedPhoto],
    *,
    links: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the report as one HTML page.

    Args:
        path: The HTML file.
        result: The files and measurements of the demo.
        manifest: The manifest of the calibrated bundle.
        inspected: The test images, inspected in fp32.
        links: The names and relative addresses of the pages beside this one.
    """
    calibrated = next(one for one in result.measured if one.normalisation == "fixed_reference")
    threshold = manifest.graph("fp32").thresholds.image
    sections = [
        _headline(result, calibrated, inspected),
        section("The steps", _steps(result)),
        section("What the detector sees", *_pictures(inspected)),
        section("Image scores", _scores(inspected, None if threshold is None else threshold.value)),
        section("Before and after calibration", *_calibration(result, calibrated, manifest)),
        section("Is the graph the network?", *_verification(result)),
        section("Training", *_training(result, manifest)),
        section("What was assumed", _assumed(manifest)),
        section("How far to trust this", list_of(_LIMITS)),
        section(
            "Files",
            facts(
                [("photographs", result.photos), ("checkpoint", result.checkpoint), ("bundle", result.bundle)]
            ),
        ),
    ]
    lead = (
        "A small CFLOW, trained on photographs of brick, exported to ONNX, verified, calibrated and run on this "
        f"machine's CPU. {_machine()}."
    )
    write_page(path, page_of("FlowEdge demo", sections, lead=lead, links=links))


def _headline(result: DemoResult, calibrated: GraphMetrics, inspected: Sequence[InspectedPhoto]) -> Markup:
    found = calibrated.evaluation
    right = sum(not one.is_wrong for one in inspected)
    return joined(
        figures(
            [
                ("image AUROC", _number(found.image_auroc)),
                ("pixel AUROC", _number(found.pixel_auroc)),
                ("AUPRO to 0.3", _number(found.aupro)),
                ("verdicts right", f"{right} of {len(inspected)}"),
                ("for all steps", f"{sum(step.seconds for step in result.steps):.0f} s"),
            ]
        ),
        paragraph(
            f"fp32 graph after calibration, on {found.good_images} good and {found.anomalous_images} defective images "
            "that neither training nor calibration saw.",
            soft=True,
        ),
    )


def _steps(result: DemoResult) -> Markup:
    rows = [(step.name, step.found, f"{step.seconds:.1f}") for step in result.steps]
    return table("The steps with their outcomes and times", ("step", "outcome", ">seconds"), rows)


def _pictures(inspected: Sequence[InspectedPhoto]) -> list[Markup]:
    """Return the first images of each kind, the defects before the good ones."""
    labels = sorted({one.label for one in inspected}, key=lambda label: (label == "good", label))
    parts = [
        paragraph(
            f"The first {_SHOWN_PER_KIND} images of each kind, not chosen. All maps share one scale of colours. A "
            "click enlarges the pictures. The page of the evaluation has every image, the worst first."
        )
    ]
    for label in labels:
        ones = [one for one in inspected if one.label == label][:_SHOWN_PER_KIND]
        parts += [element("h3", label), gallery([_figure(one) for one in ones])]
    return parts


def _figure(one: InspectedPhoto) -> Markup:
    verdict = f"{one.verdict.replace('_', ' ')}{', wrong' if one.is_wrong else ''}"
    name = f"{one.label}/{one.name}"
    caption = joined(
        f"{name}, score {one.score:.3f}: ", element("span", verdict, class_="wrong" if one.is_wrong else "ok")
    )
    return picture_button(name, one.pictures, caption)


def _scores(inspected: Sequence[InspectedPhoto], threshold: float | None) -> Markup:
    series = [
        Series(name=name, style=style, x=[one.score for one in inspected if one.is_defective == is_defective])
        for name, style, is_defective in (("good", "good", False), ("defective", "bad", True))
    ]
    return charts(histogram("How often each score occurs", series, "score", limit=threshold))


def _calibration(result: DemoResult, calibrated: GraphMetrics, manifest: Manifest) -> list[Markup]:
    measured = []
    for one in result.measured:
        found, is_fixed = one.evaluation, one.normalisation == "fixed_reference"
        measured.append(
            (
                one.precision,
                one.normalisation.replace("_", " "),
                *map(_number, (found.image_auroc, found.pixel_auroc, found.aupro, found.image_f1)),
                *(
                    _number(rate if is_fixed else None)
                    for rate in (found.false_alarm_rate, found.detection_rate)
                ),
            )
        )
    limits = [
        (graph.precision, name, threshold_words(limit))
        for graph in manifest.graphs
        for name, limit in (("image", graph.thresholds.image), ("pixel", graph.thresholds.pixel))
        if limit is not None
    ]
    classes = [
        (one.label, one.images, _number(one.image_auroc), _number(one.detection_rate))
        for one in calibrated.evaluation.classes
    ]
    return [
        paragraph(
            "Before, each image is normalised by its own maximum (per image): what the checkpoint's source computes "
            "for one image alone, and a score has no fixed scale. Calibration replaces the maxima by constants fitted "
            "on good images (fixed reference) and fits the thresholds. That makes a score mean the same on every "
            "image. AUROC gains by it or not, depending on the images."
        ),
        table(
            "Metrics of each graph. False alarms and detected are shares above the fitted threshold.",
            (
                *("graph", "score", ">image AUROC", ">pixel AUROC", ">AUPRO", ">best F1"),
                *(">false alarms", ">detected"),
            ),
            measured,
        ),
        table("Kinds of defects", ("kind", ">images", ">image AUROC", ">detected"), classes, sortable=True),
        element("h3", "Thresholds"),
        table("Fitted thresholds", ("graph", "of", "value and method"), limits),
    ]


def _verification(result: DemoResult) -> list[Markup]:
    return [
        paragraph(
            "The self-test of the bundle, and test photographs through the checkpoint in FrEIA's and timm's own "
            "modules (the reference network). The number is the worst absolute difference, relative to the largest "
            "magnitude."
        ),
        *(_checks(one, is_open=number == 0) for number, one in enumerate(result.verified)),
    ]


def _checks(one: GraphChecks, *, is_open: bool) -> Markup:
    passed = sum(check.passed for check in one.checks)
    rows = [
        (
            check.name,
            f"{check.value:.1e}",
            f"{check.limit:.0e}",
            _outcome(check.passed),
        )
        for check in one.checks
    ]
    return element(
        "details",
        element("summary", f"{one.precision}: {len(one.checks)} checks, {passed} passed"),
        table(f"Checks of the {one.precision} graph", ("check", ">worst", ">limit", "outcome"), rows),
        open=is_open,
    )


def _outcome(passed: bool) -> Markup:
    return element("span", "passed" if passed else "failed", class_="ok" if passed else "wrong")


def _training(result: DemoResult, manifest: Manifest) -> list[Markup]:
    rows = [
        (one.layer, one.channels, one.columns, one.steps, _number(one.first_nll), _number(one.last_nll))
        for one in result.training
    ]
    height, width = manifest.image_size
    return [
        table(
            "Negative log-likelihood per channel in nats, as a mean over the epoch",
            ("layer", ">channels", ">feature columns", ">steps", ">first epoch", ">last epoch"),
            rows,
        ),
        paragraph(f"Backbone {manifest.backbone} with ImageNet weights, input {height}x{width}.", soft=True),
    ]


def _assumed(manifest: Manifest) -> Markup:
    if not manifest.assumed:
        return paragraph("Nothing: the checkpoint holds every value that the export needed.")
    rows = [(one.name, one.value, "you" if one.given else "default", one.why) for one in manifest.assumed]
    return table("Assumed values", ("name", "value", "by", "why"), rows)


def _machine() -> str:
    return (
        f"FlowEdge {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{usable_cores()} CPUs, {utc_now():%Y-%m-%d %H:%M} UTC"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
