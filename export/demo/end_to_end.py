"""Run every step from photographs to a report: training, export, verification, calibration and inspection."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

import flowedge
from flowedge.bundle import Bundle
from flowedge.calibration.calibrate import calibrate_bundle
from flowedge.calibration.dataset import Dataset, Sample, read_dataset, read_mask
from flowedge.calibration.evaluation import evaluate
from flowedge.calibration.evaluation_report import EvaluationReport
from flowedge.calibration.masks import mask_on_map
from flowedge.calibration.precision import add_half_graphs
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.errors import ExportError, FlowEdgeError
from flowedge.export.checkpoint_parity import compare_with_checkpoint
from flowedge.export.demo.demo_report import write_report
from flowedge.export.demo.demo_result import DemoResult, GraphChecks, GraphMetrics, InspectedPhoto, Step
from flowedge.export.demo.photos import PhotoPlan, write_photos
from flowedge.export.demo.train import TrainPlan, train_cflow
from flowedge.export.pipeline import ExportOptions, export_bundle
from flowedge.progress import SILENT, Prefixed, Reports
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.lanes import lanes_of, threads_for_many
from flowedge.runtime.render import draw, write_png
from flowedge.runtime.report.pictures import mask_address, pictures_of
from flowedge.runtime.result import Result
from flowedge.runtime.verify import verify_bundle
from flowedge.targets import DEMO_MARK, check_demo_target

PHOTOS: Final = "photos"
CHECKPOINT: Final = "cflow_demo.ckpt"
BUNDLE: Final = "cflow_demo.flowedge"
INSPECTED: Final = "inspected"
REPORT: Final = "report.html"
EVALUATION: Final = "evaluation.html"

_MADE: Final = (PHOTOS, CHECKPOINT, BUNDLE, INSPECTED, REPORT, EVALUATION)
_PRECISIONS: Final = ("fp32", "fp16")
_COMPARED_PHOTOS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """Sizes of the demo. The default takes about three minutes on two cores.

    Attributes:
        photos: Numbers of photographs.
        training: Length of the training.
    """

    photos: PhotoPlan = field(default_factory=PhotoPlan)
    training: TrainPlan = field(default_factory=TrainPlan)


def run_demo(
    out: Path,
    plan: DemoPlan = DemoPlan(),
    *,
    force: bool = False,
    reports: Reports = SILENT,
) -> DemoResult:
    """Run all steps on the CPU, without a network connection.

    Args:
        out: The folder for all files, which is made where it does not exist.
        plan: The sizes of the demo.
        force: Replace the files of an earlier demo.
        reports: Receives the begin and the end of each step, with a note on its outcome.

    Raises:
        FlowEdgeError: ``out`` holds an earlier demo and ``force`` is False, or files that no demo made, or a step
            failed.
    """
    check_demo_target(out, force=force)
    _prepare(out)
    clock = _Clock(reports)
    with clock.step("photographs") as found:
        photos = write_photos(out / PHOTOS, plan.photos)
        dataset = read_dataset(photos.root)
        defective = sum(sample.is_anomalous for sample in dataset.samples)
        found.append(f"{len(photos.train)} good to train on, {len(photos.calibration)} good to calibrate on")
        found.append(f"{len(dataset.samples) - defective} good and {defective} defective to test on")
    with clock.step("training") as found:
        training = train_cflow(photos.train, out / CHECKPOINT, plan.training, reports=reports)
        found.extend(
            f"{one.layer} {one.first_nll:.2f} to {one.last_nll:.2f} nats/channel" for one in training
        )
    with clock.step("export") as found:
        told = Prefixed(reports, "export")
        bundle = export_bundle(
            out / CHECKPOINT,
            out / BUNDLE,
            ExportOptions(),
            extend=lambda bundle: add_half_graphs(bundle, ("fp16",), reports=told),
            reports=told,
        ).bundle
        found.extend(
            f"{graph.precision} {bundle.graph_path(graph.precision).stat().st_size / 1e6:.1f} MB"
            for graph in bundle.manifest.graphs
        )
    with clock.step("verification") as found:
        compared = [sample.path for sample in dataset.samples if sample.is_anomalous]
        compared = compared[:: -(-len(compared) // _COMPARED_PHOTOS)]
        verified = tuple(
            _verified(bundle, out / CHECKPOINT, precision, compared, reports) for precision in _PRECISIONS
        )
        found.extend(_worst(one) for one in verified)
    with clock.step("test before calibration") as found:
        before = tuple(_measured(bundle, precision, dataset, reports) for precision in _PRECISIONS)
        found.extend(map(_metrics, before))
    with clock.step("calibration") as found:
        bundle = calibrate_bundle(
            bundle, photos.calibration, request=ThresholdRequest(), reports=reports
        ).bundle
        for graph in bundle.manifest.graphs:
            assert graph.thresholds.image is not None
            found.append(f"{graph.precision} image threshold {graph.thresholds.image.value:.4f}")
    with clock.step("test after calibration") as found:
        after = tuple(
            _measured(bundle, precision, dataset, reports, out / EVALUATION if precision == "fp32" else None)
            for precision in _PRECISIONS
        )
        found.extend(map(_metrics, after))
    with clock.step("inspection") as found:
        inspected = _inspect(bundle, dataset, out / INSPECTED, reports)
        found.append(f"{len(inspected)} overlays in {out / INSPECTED}")
        wrong = sum(one.is_wrong for one in inspected)
        found.append(f"{wrong} wrong verdicts of {len(inspected)}")
    result = DemoResult(
        report=str(out / REPORT),
        photos=str(photos.root),
        checkpoint=str(out / CHECKPOINT),
        bundle=str(bundle.path),
        steps=tuple(clock.steps),
        training=training,
        verified=verified,
        measured=before + after,
    )
    links = [("Evaluation of every test image", EVALUATION)]
    write_report(out / REPORT, result, bundle.manifest, inspected, links=links)
    _mark(out, sorted(path for name in _MADE for path in (out / name, *(out / name).rglob("*"))))
    return result


class _Clock:
    """Measure the time of each step and report its outcome."""

    def __init__(self, reports: Reports) -> None:
        self.steps: list[Step] = []
        self._reports = reports

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time one step. The caller adds its outcomes to the list that this gives."""
        found: list[str] = []
        self._reports.step(name)
        start = time.perf_counter()
        yield found
        step = Step(name=name, found="; ".join(found), seconds=time.perf_counter() - start)
        self.steps.append(step)
        self._reports.note(f"{step.name}, {step.seconds:.1f} s: {step.found}")


def _prepare(out: Path) -> None:
    """Make the folder, or remove the files of an earlier demo from it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        _mark(out, [])
        for name in _MADE:
            if (out / name).is_dir() and not (out / name).is_symlink():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise FlowEdgeError(
            f"cannot write to {out}: {error.strerror}. Name another folder with --out."
        ) from error


def _mark(out: Path, written: Sequence[Path]) -> None:
    """Write the file that marks the folder of a demo, with a line for each file of a demo that is complete."""
    lines = ["flowedge demo --force replaces these files.", *(str(path.relative_to(out)) for path in written)]
    (out / DEMO_MARK).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _verified(
    bundle: Bundle, checkpoint: Path, precision: str, photos: Sequence[Path], reports: Reports
) -> GraphChecks:
    """Run the self-test, and compare the graph with the reference network on test photographs."""
    checks = verify_bundle(bundle, precision=precision)
    checks += compare_with_checkpoint(
        bundle, checkpoint, images=photos, precision=precision, reports=Prefixed(reports, precision)
    )
    failed = [check.name for check in checks if not check.passed]
    if failed:
        raise ExportError(
            f"the {precision} graph differs from the network it was made from: {', '.join(failed)}. "
            "Please report this, with the versions that flowedge doctor lists."
        )
    return GraphChecks(precision=precision, checks=checks)


def _worst(verified: GraphChecks) -> str:
    return f"{verified.precision} worst difference {max(check.value for check in verified.checks):.1e}"


def _measured(
    bundle: Bundle, precision: str, dataset: Dataset, reports: Reports, page: Path | None = None
) -> GraphMetrics:
    """Measure one graph on the test images, and write a page about it where one is named."""
    with flowedge.load(bundle.path, precision=precision, threads=threads_for_many()) as detector:
        report = None if page is None else EvaluationReport(page, detector, dataset)
        evaluation = evaluate(
            detector,
            dataset,
            thresholds=detector.thresholds,
            reports=Prefixed(reports, precision),
            observer=report,
            lanes=lanes_of(detector.engine),
        )
    if report is not None:
        report.write(evaluation, links=[("All steps of the demo", REPORT)])
    normalisation = bundle.manifest.graph(precision).scoring.normalisation
    return GraphMetrics(precision=precision, normalisation=normalisation, evaluation=evaluation)


def _metrics(measured: GraphMetrics) -> str:
    found = measured.evaluation
    assert found.image_auroc is not None
    assert found.pixel_auroc is not None
    assert found.aupro is not None
    return (
        f"{measured.precision} image AUROC {found.image_auroc:.3f}, pixel AUROC {found.pixel_auroc:.3f}, "
        f"AUPRO {found.aupro:.3f}"
    )


def _inspect(bundle: Bundle, dataset: Dataset, out: Path, reports: Reports) -> list[InspectedPhoto]:
    """Inspect every test image in fp32, and draw its anomalous pixels on the bundle's scale of colours."""
    inspected: list[InspectedPhoto] = []
    with flowedge.load(bundle.path) as detector:
        reports.step("inspecting", len(dataset.samples))
        for sample in dataset.samples:
            frame = read_image(sample.path)
            result = detector(frame)
            # These photographs are smaller than their anomaly maps.
            height, width = result.network_map.shape
            photo = np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
            enlarged = replace(result, frame=photo)
            folder = out / sample.label
            folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"{sample.path.stem}.overlay.png", draw(enlarged, captions=False))
            inspected.append(_shown(sample, frame, enlarged))
            reports.advance()
    return inspected


def _shown(sample: Sample, frame: NDArray[np.uint8], enlarged: Result) -> InspectedPhoto:
    truth = None
    if sample.mask is not None:
        height, width = enlarged.network_map.shape
        truth = mask_address(
            mask_on_map(read_mask(sample.mask, frame), enlarged.preprocessing, (height, width))
        )
    shown = (*pictures_of(enlarged.frame, enlarged), truth)
    names = ("photograph", "findings", "anomaly map", "painted defect")
    return InspectedPhoto(
        label=sample.label,
        name=sample.path.name,
        score=enlarged.score,
        verdict=enlarged.verdict,
        pictures=[(name, address) for name, address in zip(names, shown, strict=True) if address is not None],
    )
