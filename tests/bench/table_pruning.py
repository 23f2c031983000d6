"""Measure pruned graphs of the CFLOW of magnetic tiles: kept share, map correlation, metrics, work and time.

Every graph is calibrated on the good training images alone, and evaluated on the test images on ONNX Runtime's CPU
engine. The last rows are those that ``--prune auto``, ``--int8`` and both together choose.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bench.turns import processor
from flowedge.bundle import Bundle, clone_bundle
from flowedge.calibration.agreement import PairMoments
from flowedge.calibration.calibrate import calibrate_bundle
from flowedge.calibration.calibration_images import hash_of_images
from flowedge.calibration.calibration_record import PruningFacts
from flowedge.calibration.dataset import Dataset, good_images, read_dataset
from flowedge.calibration.evaluation import evaluate
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.calibration.gate_report import DEFAULT_LIMITS, GateLimits, GateReport
from flowedge.calibration.precision import PrecisionRequest, add_precisions
from flowedge.calibration.precision.gate_images import GateImages, judging_engine
from flowedge.calibration.precision.pruning import pruned_graph
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.export.pipeline import ExportOptions, export_bundle
from flowedge.progress import SILENT
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.opening.engine import JUDGE
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.result import Result

SHARED = Path(__file__).resolve().parents[3] / "shared"  # beside the checkout
TILE = SHARED / "checkpoints" / "cflow_magnetic_tile.ckpt"
TILES = SHARED / "data" / "magnetic_tile"
SHARES = (0.875, 0.75, 0.5, 0.375, 0.25, 0.125)
ANY = GateLimits(
    map_correlation=-1, map_error=1e9, rank_agreement=-1, flips=1, image_auroc=1, pixel_auroc=1, aupro=1
)
"""Limits that every graph keeps, so that the table shows also what the gate refuses."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One graph of the table.

    Attributes:
        name: The name of the row.
        bundle: The calibrated bundle with the fp32 graph and this graph.
        precision: The precision of the graph.
        gate: The gate's report. The value is None for fp32.
        pruning: What was left out. The value is None where nothing was.
    """

    name: str
    bundle: Bundle
    precision: str
    gate: GateReport | None = None
    pruning: PruningFacts | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, default=TILE)
    parser.add_argument("--data", type=Path, default=TILES, help="a dataset in MVTec AD's layout")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--threads", type=int, default=1, help="more than one only on a machine of one's own")
    parser.add_argument("--rounds", type=int, default=40, help="runs of each graph, in turns")
    parser.add_argument("--no-auto", action="store_true", help="measure the shares alone")
    parser.add_argument("--out", type=Path, default=Path("bench-out/pruning"))
    options = parser.parse_args()
    if not options.checkpoint.is_file():
        print(f"{options.checkpoint} is not beside this checkout")
        return
    with tempfile.TemporaryDirectory(prefix="flowedge-pruning-") as made:
        folder = Path(made)
        exported = export_bundle(options.checkpoint, folder / "fp32.flowedge", ExportOptions()).bundle
        images = good_images(options.data)
        rows = rows_of_shares(exported, images, options.shares, folder, options.threads)
        if not options.no_auto:
            rows += rows_of_plans(exported, images, folder, options.threads)
        dataset = read_dataset(options.data)
        ratios = times(rows, read_image(images[0]), options.rounds)
        expected: list[Result] = []
        lines = []
        for row, ratio in zip(rows, ratios, strict=True):
            evaluation, answers = answers_of(row, dataset, options.threads)
            expected = expected or answers
            lines.append(line(row, evaluation, expected, answers, ratio))
            print(lines[-1], flush=True)
    write_table(options.out, lines)


def rows_of_shares(
    exported: Bundle, images: Sequence[Path], shares: Sequence[float], folder: Path, threads: int
) -> list[Row]:
    """Return fp32, and the graphs that keep each share of their hidden units, whatever their gate says."""
    fitted = calibrate_bundle(
        exported, images, request=ThresholdRequest(), frame_rate=None, engine=JUDGE, threads=threads
    )
    fp32 = fitted.bundle
    known = {graph.precision: graph for graph in fitted.record.graphs}
    rows = [Row(name="fp32", bundle=fp32, precision="fp32")]
    wanted = images[:: max(1, len(images) // 48)][:48]
    with contextlib.closing(GateImages(fp32, wanted, 2, threads)) as gate:
        for share in shares:
            place = folder / f"{share}"
            place.mkdir()
            request = PrecisionRequest(wanted=(), prune=share, limits={"pruned": ANY})
            ready: list[Bundle] = []

            def calibrated(draft: Bundle, ready: list[Bundle] = ready) -> Bundle:
                done = calibrate_bundle(
                    draft,
                    images,
                    known=known,
                    request=ThresholdRequest(),
                    frame_rate=None,
                    engine=JUDGE,
                    threads=threads,
                )
                ready.append(done.bundle)
                return done.bundle

            made = pruned_graph(
                fp32, place, images, hash_of_images(images), request, gate, calibrated, threads, SILENT
            )
            report = made.report
            rows.append(
                Row(
                    name=f"{share:.1%} kept",
                    bundle=ready[-1],
                    precision="pruned",
                    gate=report.gate,
                    pruning=report.pruning,
                )
            )
    return rows


def rows_of_plans(exported: Bundle, images: Sequence[Path], folder: Path, threads: int) -> list[Row]:
    """Return the graphs that the planner chooses: pruned, in INT8, and pruned in INT8."""
    rows: list[Row] = []
    alone = clone_bundle(exported, folder / "int8.flowedge")
    both = clone_bundle(exported, folder / "both.flowedge")
    for name, bundle, request in (
        ("int8-cpu", alone, PrecisionRequest(wanted=("int8",))),
        ("auto", both, PrecisionRequest(wanted=("int8",), prune="auto")),
    ):
        done, reports = add_precisions(bundle, images, request, threads=threads)
        for report in reports:
            if report.precision != "int8-gpu":
                label = report.precision if request.prune is None else f"{name}: {report.precision}"
                rows.append(
                    Row(
                        name=label,
                        bundle=done,
                        precision=report.precision,
                        gate=report.gate,
                        pruning=report.pruning,
                    )
                )
    return rows


def times(rows: Sequence[Row], frame: NDArray[np.uint8], rounds: int) -> list[float]:
    """Return the processor time of one image in each graph, on one core, over that of the first graph.

    The graphs run in turns, and the shortest time of each counts.
    """
    image = GraphInput(rows[0].bundle.manifest)([frame])
    taken: list[list[float]] = [[] for _ in rows]
    with contextlib.ExitStack() as stack:
        engines = [
            stack.enter_context(contextlib.closing(judging_engine(row.bundle, row.precision))) for row in rows
        ]
        for _ in range(rounds + 1):
            for engine, own in zip(engines, taken, strict=True):
                begin = time.thread_time()
                engine.infer(image)
                own.append(time.thread_time() - begin)
    # The first run of an engine allocates its memory.
    shortest = [min(own[1:]) for own in taken]
    print(f"fp32: {1000 * shortest[0]:.1f} ms", flush=True)
    return [one / shortest[0] for one in shortest]


def answers_of(row: Row, dataset: Dataset, threads: int) -> tuple[Evaluation, list[Result]]:
    """Return the evaluation of a graph with its own thresholds, and every answer in the dataset's order."""
    kept: list[Result] = []
    with Detector(row.bundle, open_unproven(JUDGE, row.bundle, row.precision, threads=threads)) as detector:

        def remembered(frame: NDArray[np.uint8]) -> Result:
            kept.append(detector(frame))
            return kept[-1]

        return evaluate(remembered, dataset, thresholds=detector.thresholds), kept


def line(
    row: Row, evaluation: Evaluation, expected: Sequence[Result], answers: Sequence[Result], ratio: float
) -> str:
    """Return one row of the table in Markdown."""
    pairs = PairMoments()
    for before, now in zip(expected, answers, strict=True):
        pairs.add(before.network_map, now.network_map)
    flips = sum(before.verdict != now.verdict for before, now in zip(expected, answers, strict=True))
    metrics = (evaluation.image_auroc, evaluation.pixel_auroc, evaluation.aupro)
    shown = ", ".join("-" if value is None else f"{value:.4f}" for value in metrics)
    kept = saved = "-"
    if row.pruning is not None:
        units = sum(layer.units for layer in row.pruning.layers)
        kept = f"{sum(layer.kept for layer in row.pruning.layers) / units:.1%}"
        saved = f"{row.pruning.macs_saved:.1%}"
    cells = (row.name, kept, saved, f"{ratio:.2f}", f"{pairs.correlation():.6f}", shown)
    return f"| {' | '.join((*cells, f'{flips / len(answers):.1%}', refusal(row)))} |"


def refusal(row: Row) -> str:
    """Return the limits of the gate that a graph does not keep."""
    if row.gate is None:
        return ""
    limits = DEFAULT_LIMITS[row.precision.partition("-")[0]]
    beyond = [
        name
        for name, is_least in (("map_correlation", True), ("map_error", False), ("rank_agreement", True))
        for value in (row.gate.quantity(name).value,)
        if value is None or (value < getattr(limits, name) if is_least else value > getattr(limits, name))
    ]
    return ", ".join(beyond) or "passed"


def write_table(out: Path, lines: Sequence[str]) -> None:
    """Write ``pruning.md``."""
    head = (
        "| graph | hidden units kept | MACs saved | time over fp32 | map correlation "
        "| image AUROC, pixel AUROC, AUPRO | verdicts flipped | gate |"
    )
    text = [f"{processor()}, ONNX Runtime {ort.__version__}.", "", head, "|---" * 8 + "|", *lines, ""]
    out.mkdir(parents=True, exist_ok=True)
    (out / "pruning.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
