"""Make one page of every kind from small data whose names try to become markup."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import cv2
import numpy as np

import flowedge
from flowedge.bundle import Bundle
from flowedge.calibration.calibration_record import BlockChoice
from flowedge.calibration.dataset import read_dataset
from flowedge.calibration.evaluation import evaluate
from flowedge.calibration.evaluation_report import EvaluationReport
from flowedge.calibration.gate_page import MapTriple, page_from_gate
from flowedge.calibration.gate_report import DEFAULT_LIMITS, GateQuantity, GateReport
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.bench.protocol import Parity
from flowedge.runtime.bench.timing_page import page_of
from flowedge.runtime.bench.timing_report import BatchTiming, Environment, Report, Row
from flowedge.runtime.inspection import inspect
from flowedge.runtime.protocols import Frame
from flowedge.runtime.report.run_report import RunReport
from support.tiny_bundle import write_tiny_bundle

KINDS: Final = ("run", "evaluation", "gate", "bench", "demo")
EVIL: Final = "<script>document.title='x'</script>\"'<img src=x onerror=\"document.title='x'\">\u202e&amp;"
GOOD_IMAGES: Final = 30
RUN_IMAGES: Final = 130

_DATE: Final = datetime(2026, 1, 1, tzinfo=timezone.utc)


def write_pages(folder: Path) -> dict[str, Path]:
    """Write the pages, and return them by kind."""
    limit = Threshold(value=3.2, method="quantile", parameter=0.99, images=40)
    bundle = write_tiny_bundle(folder / "tiny.flowedge", thresholds=Thresholds(image=limit, pixel=limit))
    made = {kind: folder / f"{kind}.html" for kind in KINDS}
    write_run(made["run"], bundle)
    write_evaluation(made["evaluation"], bundle, folder / "data")
    made["gate"].write_text(gate_page(), encoding="utf-8")
    made["bench"].write_text(bench_page(), encoding="utf-8")
    write_demo(made["demo"], bundle)
    return made


def write_run(file: Path, bundle: Bundle, images: int = RUN_IMAGES) -> None:
    """Write the page of a run in which every 13th frame cannot be read and one image is missing."""
    with flowedge.load(bundle.path) as detector:
        report = RunReport(file, detector, source=f"line {EVIL}", images=images + 1)
        for frame in frames(images):
            report.put(frame, *inspect(detector, frame))
        report.close()


def frames(images: int) -> Iterator[Frame]:
    """Give noise of different contrast, so that some frames are anomalous."""
    random = np.random.default_rng(0)
    for number in range(images):
        spread = 20 + number % 100
        pixels = np.clip(random.normal(120, spread, (32, 48, 3)), 0, 255).astype(np.uint8)
        problem = f"it holds {EVIL}" if number % 13 == 12 else ""
        yield Frame(
            pixels=np.zeros((0, 0, 3), np.uint8) if problem else pixels,
            id=f"line/{number:03} {EVIL}.png",
            time=_DATE,
            source="line",
            problem=problem,
        )


def write_evaluation(file: Path, bundle: Bundle, root: Path) -> None:
    """Write the page of an evaluation of a small dataset, with names that are no text and a file that is no image."""
    random = np.random.default_rng(1)
    masks = root / "ground_truth" / "scratch <b>"
    masks.mkdir(parents=True)
    for label, count in (("good", GOOD_IMAGES), ("scratch <b>", 12)):
        (root / "test" / label).mkdir(parents=True)
        for number in range(count):
            image = random.integers(90, 150, (32, 48, 3)).astype(np.uint8)
            name = f"{number:03}"
            if label != "good":
                image[8:14, 8:30] = 255 if number % 2 else 140
                mask = np.zeros((32, 48), np.uint8)
                mask[8:14, 8:30] = 255
                assert cv2.imwrite(str(masks / f"{name}_mask.png"), mask)
            assert cv2.imwrite(str(root / "test" / label / f"{name}.png"), image)
    (root / "test" / "good" / "000.png").rename(root / "test" / "good" / "evil <script>'\u202e.png")
    (root / "test" / "good" / "001.png").rename(root / "test" / "good" / os.fsdecode(b"byte \xff\x01.png"))
    (root / "test" / "good" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = read_dataset(root)
    with flowedge.load(bundle.path) as detector:
        report = EvaluationReport(file, detector, dataset)
        report.write(evaluate(detector, dataset, thresholds=detector.thresholds, observer=report))


def gate_page() -> str:
    """Return the page of a gate."""
    random = np.random.default_rng(2)
    report = GateReport(
        passed=False,
        limits=DEFAULT_LIMITS["int8"],
        good_images=3,
        defect_images=2,
        labelled_images=0,
        quantities=tuple(
            GateQuantity(name=name, value=value, limit=1.0, passed=value < 1, summary=f"{EVIL} " * 4)
            for name, value in (("map_error", 0.5), ("flips", 2.0), (EVIL, 0.1))
        ),
    )
    blocks = [
        BlockChoice(
            name=f"backbone/{number}/{EVIL}",
            macs_share=0.1,
            sensitivity=number / 7,
            precision="int8",
            reason=EVIL,
        )
        for number in range(6)
    ]
    maps = [
        MapTriple(
            name=f"{number} {EVIL}",
            frame=random.integers(0, 256, (40, 60, 3)).astype(np.uint8),
            fp32=random.uniform(0, 1, (40, 60)).astype(np.float32),
            converted=random.uniform(0, 1, (40, 60)).astype(np.float32),
        )
        for number in range(3)
    ]
    return page_from_gate(f"bottle {EVIL}", report, blocks, maps)


def bench_page() -> str:
    """Return the page of a benchmark with a wrong row and a row that did not run."""
    machine = Environment(
        cpu=EVIL, cores=2, memory_gb=16, platform="Linux", python="3.11", gflops=50, copy_gb_s=9
    )
    rows = []
    for number in range(4):
        timings = tuple(
            BatchTiming(
                batch=batch,
                runs=10,
                p50_ms=10.0 * (4 - number),
                p90_ms=50.0,
                p99_ms=60.0,
                images_per_s=100.0 * batch / (number + 1),
                percentiles_ms=tuple(float(one) for one in range(5, 106)),
                settled=True,
            )
            for batch in (1, 4)
        )
        rows.append(
            Row(
                kind="bundle",
                name=f"folder/{number} {EVIL}.flowedge",
                engine="onnxruntime-cpu",
                precision="fp32",
                date=_DATE.isoformat(),
                command=EVIL,
                machine=machine,
                problem="" if number < 3 else EVIL,
                timings=timings if number < 3 else (),
                parity=Parity(
                    is_right=number != 1, worst_error=10.0 ** -(number + 3), limit=1e-3, correlation=0.9
                )
                if number < 3
                else None,
            )
        )
    report = Report(
        schema=1,
        flowedge_version="0",
        date=_DATE.isoformat(),
        command=EVIL,
        machine=machine,
        seconds=1,
        rows=tuple(rows),
        wrong=(rows[1].label,),
    )
    return page_of(report)


def write_demo(file: Path, bundle: Bundle) -> None:
    """Write the page of a demo."""
    from flowedge.calibration.evaluation_result import Evaluation
    from flowedge.export.demo.demo_report import write_report
    from flowedge.export.demo.demo_result import DemoResult, GraphChecks, GraphMetrics, InspectedPhoto, Step
    from flowedge.export.demo.train import LevelTraining
    from flowedge.runtime.report.pictures import jpeg_address
    from flowedge.runtime.verify import Check

    found = Evaluation(
        good_images=3,
        anomalous_images=3,
        not_inspected=0,
        not_inspected_files=(),
        image_auroc=0.9,
        image_f1=0.8,
        pixel_auroc=0.7,
        aupro=0.6,
        pixel_f1=None,
        image_threshold=None,
        pixel_threshold=None,
        false_alarm_rate=0.1,
        detection_rate=0.5,
        pixel_false_alarm_rate=None,
        pixel_detection_rate=None,
        classes=(),
        decisions=(),
        notes=(),
    )
    result = DemoResult(
        report=str(file),
        photos=EVIL,
        checkpoint=EVIL,
        bundle=str(bundle.path),
        steps=(Step(name="training", found=f"{EVIL}; " * 3, seconds=1.5),),
        training=(
            LevelTraining(layer="blocks.2", channels=40, columns=9, steps=3, first_nll=2.0, last_nll=1.0),
        ),
        verified=(GraphChecks(precision="fp32", checks=(Check(name=EVIL, value=1e-6, limit=1e-4),)),),
        measured=(GraphMetrics(precision="fp32", normalisation="fixed_reference", evaluation=found),),
    )
    address = jpeg_address(np.full((48, 48, 3), 120, np.uint8))
    inspected = [
        InspectedPhoto(
            label=label,
            name=f"{number}{EVIL}.png",
            score=1.0 + number,
            verdict="ok",
            pictures=[
                (name, address) for name in ("photograph", "findings", "anomaly map", "painted defect")
            ],
        )
        for label in ("good", "scratch")
        for number in range(3)
    ]
    links = [("Evaluation of every test image", "evaluation.html")]
    write_report(file, result, bundle.manifest, inspected, links=links)
