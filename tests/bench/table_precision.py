"""Measure the cost of float16, bfloat16 and INT8 for every family, on trained models and labelled photographs.

    make precision    or: PYTHONPATH=tests python tests/bench/table_precision.py [--families NAME ...] [--out FOLDER]

Each model is exported, given its lower precisions and calibrated on good images alone, as ``flowedge export --fp16
--bf16 --int8 --calib-data`` does, and every graph is evaluated on the test images, on ONNX Runtime's CPU (bfloat16,
which that does not run, on OpenVINO's). The tile checkpoint is that of ``../shared``. The other models are trained
here, in minutes, on the demo's photographs, all but the demo's own on backbones with random weights. Each row is
computed in a process of its own and kept in the output folder. Remove its folder to compute it again. Nothing here
passes or fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch

from bench.full_size import MODEL, FullSize
from bench.train_flows import options_of, train_flow
from bench.turns import processor
from flowedge.bundle import Bundle
from flowedge.calibration.agreement import PairMoments
from flowedge.calibration.calibration_record import PrecisionReport
from flowedge.calibration.dataset import Dataset, good_images, read_dataset
from flowedge.calibration.evaluation import evaluate
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.calibration.gate_report import DEFAULT_LIMITS
from flowedge.calibration.precision import PrecisionRequest, add_precisions
from flowedge.calibration.precision.precision_request import Wanted
from flowedge.errors import PrecisionError
from flowedge.export.demo.photos import PhotoPlan, write_photos
from flowedge.export.demo.train import TrainPlan, train_cflow
from flowedge.export.pipeline import ExportOptions, export_bundle
from flowedge.progress import Reports
from flowedge.runtime.detector import Detector
from flowedge.runtime.device.device_cache import DeviceCache
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.result import Result

SHARED = Path(__file__).resolve().parents[3] / "shared"  # beside the checkout
TILE = SHARED / "checkpoints" / "cflow_magnetic_tile.ckpt"
TILES = SHARED / "data" / "magnetic_tile"
ENGINES = {"bf16": "openvino"}  # the others on ONNX Runtime's CPU
FACTS = "facts.json"
RANGES_BYTES = 1 << 30  # kept of one row
METRICS = ("image_auroc", "pixel_auroc", "aupro")
SMALL: dict[str, tuple[FullSize, int]] = {
    model.family: (model, epochs)
    for model, epochs in (
        (FullSize(family="fastflow", layout="anomalib", network="resnet18", size=128), 8),
        (FullSize(family="uflow", layout="anomalib", network="resnet18", size=128), 10),
        (FullSize(family="msflow", layout="official", network="resnet18", size=128), 12),
        (FullSize(family="csflow", layout="anomalib", network="efficientnet_b5", size=256, hidden=64), 12),
    )
}
"""The models that are trained here, and the number of epochs of each."""
PHOTOS = PhotoPlan(test_good=100, test_per_defect=17)
ROWS = ("cflow-tiles", "cflow-demo", *SMALL)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained model, how it is exported, the good images to calibrate on, and the dataset to test on."""

    checkpoint: Path
    options: ExportOptions
    good: Sequence[Path]
    dataset: Path


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One graph on the test images.

    Attributes:
        metrics: Image AUROC, pixel AUROC and AUPRO.
        flips: The share of the test images whose verdict is not that of fp32, each with its own threshold.
        correlation: With fp32's maps, over all pixels of all test images.
        file: The graph's size over that of fp32.
        blocks: The number of blocks that have the precision, and the number of all blocks.
        macs: The share of these blocks in the multiply-accumulates.
        beyond: The values on the test images that are beyond the default limits of the gate.
    """

    precision: str
    metrics: tuple[float, float, float]
    flips: float = 0.0
    correlation: float = 1.0
    file: float = 1.0
    blocks: tuple[int, int] | None = None
    macs: float | None = None
    beyond: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--families", nargs="+", default=ROWS, choices=ROWS, metavar="NAME", help=", ".join(ROWS)
    )
    parser.add_argument("--out", type=Path, default=Path("bench-out/precision"))
    parser.add_argument("--threads", type=int, default=1, help="more than one only on a machine of one's own")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        torch.set_num_threads(options.threads)
        compute(options.families[0], options.out / options.families[0], options.threads)
        return
    names = []
    for name in options.families:
        if name == "cflow-tiles" and not TILE.is_file():
            print(f"{name} left out: {TILE} is not beside this checkout", flush=True)
            continue
        names.append(name)
        if not (options.out / name / FACTS).exists():
            print(f"{name} …", flush=True)
            command = [sys.executable, __file__, "--row", "--families", name, "--out", options.out]
            command += ["--threads", options.threads]
            subprocess.run(
                [str(part) for part in command],
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
            )
    write_table(options.out, names)


class PrintedSteps:
    """Reports that print each step with the time."""

    def step(self, name: str, total: int | None = None) -> None:
        print(f"  {time.strftime('%X')} {name}", flush=True)

    def advance(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)


# --- one row --------------------------------------------------------------------------------------------------


def compute(name: str, folder: Path, threads: int) -> None:
    """Train, export, plan and evaluate, and write the row's facts."""
    folder.mkdir(parents=True, exist_ok=True)
    told = PrintedSteps()
    subject, trained = prepare(name, folder)
    target = folder / "bundle.flowedge"
    shutil.rmtree(target, ignore_errors=True)
    exported = export_bundle(subject.checkpoint, target, subject.options, reports=told).bundle
    start = time.perf_counter()
    bundle, reports, refused = add(
        exported, subject.good, threads, DeviceCache(folder / "cache", RANGES_BYTES), told
    )
    seconds = time.perf_counter() - start
    told.step("evaluating")
    dataset = read_dataset(subject.dataset)
    facts = {
        "name": name,
        "backbone": bundle.manifest.backbone,
        "side": bundle.manifest.image_size[0],
        "good_images": len(subject.good),
        "test_images": len(dataset.samples),
        "trained": trained,
        "planned_seconds": seconds,
        "refused": refused,
        "graphs": [asdict(one) for one in measure(bundle, dataset, reports, threads)],
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def prepare(name: str, folder: Path) -> tuple[Subject, str]:
    """Return the row's model, trained where it is missing, and the result of its training."""
    if name == "cflow-tiles":
        return Subject(checkpoint=TILE, options=ExportOptions(), good=good_images(TILES), dataset=TILES), ""
    photos = write_photos(folder / "photos", PHOTOS)
    said = folder / "trained.txt"
    if not said.exists():
        start = time.perf_counter()
        if name == "cflow-demo":
            levels = train_cflow(photos.train, folder / MODEL, TrainPlan())
            losses = "; ".join(f"{one.first_nll:.2f} to {one.last_nll:.2f}" for one in levels)
        else:
            model, epochs = SMALL[name]
            result = train_flow(model, photos.train, folder, epochs=epochs)
            losses = f"{result.first_nll:.2f} to {result.last_nll:.2f}"
        seconds = time.perf_counter() - start
        said.write_text(f"{losses} nats per dimension in {seconds:.0f} s", encoding="utf-8")
    options = ExportOptions() if name == "cflow-demo" else options_of(SMALL[name][0], folder)
    subject = Subject(
        checkpoint=folder / MODEL, options=options, good=photos.calibration, dataset=photos.root
    )
    return subject, said.read_text(encoding="utf-8")


def add(
    bundle: Bundle, good: Sequence[Path], threads: int, cache: DeviceCache, told: Reports
) -> tuple[Bundle, tuple[PrecisionReport, ...], list[str]]:
    """Add all precisions, or those that pass, and return the reason of each refusal."""
    wanted: tuple[Wanted, ...] = ("fp16", "bf16", "int8")
    refused: list[str] = []
    while wanted:
        try:
            done, reports = add_precisions(
                bundle, good, PrecisionRequest(wanted=wanted), threads=threads, cache=cache, reports=told
            )
        except PrecisionError as error:
            refused.append(str(error))
            print(f"  {error}", flush=True)
            wanted = tuple(one for one in wanted if not str(error).startswith(one))
        else:
            return done, reports, refused
    return bundle, (), refused


def measure(
    bundle: Bundle, dataset: Dataset, reports: Sequence[PrecisionReport], threads: int
) -> list[Measured]:
    """Measure every graph of the bundle on the test images, fp32 first."""
    evaluation, expected = answers(bundle, "fp32", dataset, threads)
    fp32 = Measured(precision="fp32", metrics=_metrics(evaluation))
    measured = [fp32]
    for report in reports:
        evaluation, got = answers(bundle, report.precision, dataset, threads)
        pairs = PairMoments()
        for before, now in zip(expected, got, strict=True):
            pairs.add(before.network_map, now.network_map)
        flips = sum(before.verdict != now.verdict for before, now in zip(expected, got, strict=True))
        low = [block for block in report.blocks if not block.reason]
        one = Measured(
            precision=report.precision,
            metrics=_metrics(evaluation),
            flips=flips / len(got),
            correlation=pairs.correlation(),
            file=report.bytes_share,
            blocks=(len(low), len(report.blocks)),
            macs=sum(block.macs_share for block in low),
        )
        measured.append(replace(one, beyond=_beyond(one, fp32)))
    return measured


def answers(
    bundle: Bundle, precision: str, dataset: Dataset, threads: int
) -> tuple[Evaluation, list[Result]]:
    """Return the evaluation with the graph's own thresholds, and every answer in the dataset's order."""
    kept: list[Result] = []
    engine = open_unproven(ENGINES.get(precision, "onnxruntime-cpu"), bundle, precision, threads=threads)
    with Detector(bundle, engine) as detector:

        def remembered(frame: Any) -> Result:
            kept.append(detector(frame))
            return kept[-1]

        return evaluate(remembered, dataset, thresholds=detector.thresholds), kept


def _metrics(evaluation: Evaluation) -> tuple[float, float, float]:
    found = (evaluation.image_auroc, evaluation.pixel_auroc, evaluation.aupro)
    image, pixel, aupro = (float("nan") if value is None else value for value in found)
    return image, pixel, aupro


def _beyond(one: Measured, fp32: Measured) -> tuple[str, ...]:
    limits = DEFAULT_LIMITS[one.precision.partition("-")[0]]
    changes = zip(METRICS, one.metrics, fp32.metrics, strict=True)
    found = [name for name, now, before in changes if abs(now - before) > getattr(limits, name)]
    found += ["flips"] if one.flips > limits.flips else []
    found += ["map_correlation"] if one.correlation < limits.map_correlation else []
    return tuple(found)


# --- the table ------------------------------------------------------------------------------------------------


def write_table(out: Path, names: Sequence[str]) -> None:
    """Write ``precision.md`` from the rows' folders."""
    rows = [json.loads((out / name / FACTS).read_text(encoding="utf-8")) for name in names]
    lines = [
        f"{processor()}, ONNX Runtime {ort.__version__}; every graph on its CPU engine; bf16 on OpenVINO's.",
        "",
        "| model | precision | image AUROC, pixel AUROC, AUPRO | change | verdicts flipped | map correlation "
        "| file | blocks, their share of the MACs | beyond its limit |",
        "|---|---|---|---|---|---|---|---|---|",
        *(line for row in rows for line in _lines(row)),
        "",
        *(_note(row) for row in rows),
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "precision.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _lines(row: dict[str, Any]) -> list[str]:
    fp32 = row["graphs"][0]
    lines = []
    for graph in row["graphs"]:
        metrics = ", ".join(f"{value:.4f}" for value in graph["metrics"])
        cells = [f"{row['name']}, {row['backbone']}, {row['side']}", graph["precision"], metrics]
        if graph is fp32:
            cells += ["", "", "", "1", "", ""]
        else:
            changes = zip(graph["metrics"], fp32["metrics"], strict=True)
            cells += [
                ", ".join(f"{now - before:+.4f}" for now, before in changes),
                f"{graph['flips']:.1%}",
                f"{graph['correlation']:.6f}",
                f"{graph['file']:.2f}",
                f"{graph['blocks'][0]} of {graph['blocks'][1]}, {graph['macs']:.0%}",
                ", ".join(graph["beyond"]) or "-",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _note(row: dict[str, Any]) -> str:
    training = f"trained from {row['trained']}; " if row["trained"] else ""
    planning = f"planned in {row['planned_seconds']:.0f} s on {row['good_images']} good images"
    refused = "".join(f" Refused: {why}" for why in row["refused"])
    return f"- {row['name']}: {training}{planning}, tested on {row['test_images']}.{refused}"


if __name__ == "__main__":
    main()
