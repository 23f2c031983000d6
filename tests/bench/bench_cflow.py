"""Compare FlowEdge's CFLOW graph with anomalib's own ONNX of the same checkpoint: speed, size and agreement.

    make bench        or: PYTHONPATH=tests python tests/bench/bench_cflow.py --peer .venv-peer/bin/python

fp32 on two threads, batch 1, 256x256, on ONNX Runtime and on OpenVINO. Beside them runs the INT8 that NNCF makes of
anomalib's file for OpenVINO, calibrated on the demo's photographs or on the tiles. Every graph has a process of its
own, and they take turns of a few runs each, so that a noisy machine hurts all alike. A time is the median over the
turns of each turn's median; a ratio is the median of the turns' ratios. What anomalib makes is kept in the output
folder and used again, FlowEdge exports anew. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino as ov
import torch
from numpy.typing import NDArray

from bench.graph_facts import file_mb, node_count
from bench.time_onnx import THREADS, session_of
from bench.turns import median_ratio, peak_gflops, processor, times_in_turns
from flowedge.bundle import open_bundle
from flowedge.export.demo.photos import PhotoPlan, write_photos
from flowedge.export.pipeline import ExportOptions, export_bundle, read_model
from flowedge.manifest import Preprocessing, SourceScale
from flowedge.runtime.bench.macs import multiply_accumulates
from flowedge.runtime.bench.peer_int8 import peer_int8
from flowedge.runtime.source_scale import scaled_map, scaled_score

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared"  # beside the checkout
REAL = SHARED / "checkpoints/cflow_magnetic_tile.ckpt"
TILES = SHARED / "data/magnetic_tile/train/good"
CALIBRATED = 24
MODELS = {"resnet18": "resnet18", "wide_resnet50_2": "wide_resnet50_2", "magnetic_tile": str(REAL)}


@dataclass(frozen=True, kw_only=True)
class Row:
    """The numbers of one model. Times are in ms, sizes in 10^6 bytes, and shares and differences have no unit.

    Attributes:
        peer_ms: What anomalib 2.7.0 exports.
        older_ms: The same module by the TorchScript exporter, as anomalib wrote before 2.7.0.
        openvino_ms: FlowEdge's graph on OpenVINO.
        peer_openvino_ms: What anomalib 2.7.0 exports, on OpenVINO.
        peer_int8_ms: The same in INT8 by NNCF, on OpenVINO.
        peer_int8_correlation: The map of the peer's INT8 with that of its own float32, None where it is flat.
        speed_up: The peer's time over FlowEdge's, and ``older_speed_up`` the older file's.
        gmac: 10^9 multiply-accumulates of FlowEdge's graph.
        share_of_peak: What FlowEdge's graph reaches of the machine's float32 matrix peak.
        map_difference: Between the two maps, relative to the peer's largest value.
        score_difference: The same of the scores.
    """

    model: str
    peer_ms: float
    older_ms: float
    flowedge_ms: float
    openvino_ms: float
    peer_openvino_ms: float
    peer_int8_ms: float
    peer_int8_correlation: float | None
    backbone_ms: float
    speed_up: float
    openvino_speed_up: float
    older_speed_up: float
    peer_nodes: int
    older_nodes: int
    flowedge_nodes: int
    peer_mb: float
    flowedge_mb: float
    gmac: float
    share_of_peak: float
    backbone_share_of_peak: float
    map_difference: float
    score_difference: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", type=Path, required=True, help="Python of an environment with anomalib 2.7")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    peak = peak_gflops()
    print(f"float32 matrix peak on {THREADS} threads: {peak:.0f} GFLOP/s", flush=True)
    rows = []
    for name in options.models:
        if MODELS[name].endswith(".ckpt") and not Path(MODELS[name]).exists():
            print(f"{name}: skipped, {MODELS[name]} is not there", flush=True)
            continue
        rows.append(measure(name, options.out / name, options.peer, options.rounds, peak))
        print(json.dumps(asdict(rows[-1])), flush=True)
    write_results(options.out, rows, peak, options.rounds)


def measure(name: str, folder: Path, peer_python: Path, rounds: int, peak: float) -> Row:
    """Export with both sides, compare the answers, and time in turns."""
    peer, older, checkpoint = folder / "model.onnx", folder / "torchscript.onnx", folder / "model.ckpt"
    if not older.exists():
        print(f"{name}: anomalib exports (minutes)", flush=True)
        log = folder.with_suffix(".log")
        with log.open("w", encoding="utf-8") as file:
            command = map(str, [peer_python, HERE / "peer_cflow.py", MODELS[name], folder])
            subprocess.run([*command], check=True, stdout=file, stderr=subprocess.STDOUT)
    bundle = folder / "bundle.flowedge"
    print(f"{name}: FlowEdge exports", flush=True)
    shutil.rmtree(bundle, ignore_errors=True)
    export_bundle(checkpoint, bundle, ExportOptions())
    ours = bundle / "model.onnx"
    backbone = folder / "backbone.onnx"
    read = read_model(checkpoint, ExportOptions())
    export_backbone(read.backbone, backbone, read.model.image_size)

    preprocessing = open_bundle(bundle).manifest.preprocessing
    image = unit_image(read.model.image_size)
    mine = normalised(image, preprocessing)
    map_difference, score_difference = differences(
        answers(peer, image), answers(ours, mine), read.checkpoint.source_scale
    )
    np.save(folder / "image.npy", image)
    np.save(folder / "normalised.npy", mine)
    print(f"{name}: NNCF quantises (minutes)", flush=True)
    shutil.rmtree(folder / "int8", ignore_errors=True)
    frame = (255 * image[0].transpose(1, 2, 0)).astype(np.uint8)
    int8 = peer_int8(peer, good_images(name, folder), [frame], python=peer_python, folder=folder / "int8")
    peer_openvino = folder / "int8" / "float32.xml"
    ov.save_model(ov.Core().read_model(peer), peer_openvino, compress_to_fp16=False)
    turns = times_in_turns(
        {
            ours: folder / "normalised.npy",
            peer: folder / "image.npy",
            older: folder / "image.npy",
            backbone: folder / "normalised.npy",
            bundle: folder / "normalised.npy",
            peer_openvino: folder / "image.npy",
            int8.file: folder / "image.npy",
        },
        rounds,
    )
    ours_ms, peer_ms, older_ms, backbone_ms, openvino_ms, peer_openvino_ms, peer_int8_ms = (
        statistics.median(taken) for taken in turns.values()
    )
    gmac, backbone_gmac = multiply_accumulates(ours) / 1e9, multiply_accumulates(backbone) / 1e9
    return Row(
        model=name,
        peer_ms=peer_ms,
        older_ms=older_ms,
        flowedge_ms=ours_ms,
        openvino_ms=openvino_ms,
        peer_openvino_ms=peer_openvino_ms,
        peer_int8_ms=peer_int8_ms,
        peer_int8_correlation=int8.correlation,
        backbone_ms=backbone_ms,
        speed_up=median_ratio(turns[peer], turns[ours]),
        openvino_speed_up=median_ratio(turns[peer_openvino], turns[bundle]),
        older_speed_up=median_ratio(turns[older], turns[ours]),
        peer_nodes=node_count(peer),
        older_nodes=node_count(older),
        flowedge_nodes=node_count(ours),
        peer_mb=file_mb(peer),
        flowedge_mb=file_mb(ours),
        gmac=gmac,
        share_of_peak=2000 * gmac / ours_ms / peak,
        backbone_share_of_peak=2000 * backbone_gmac / backbone_ms / peak,
        map_difference=map_difference,
        score_difference=score_difference,
    )


def good_images(name: str, folder: Path) -> list[Path]:
    """Return the images that NNCF calibrates on: the tiles for their checkpoint, and else the demo's photographs."""
    if MODELS[name] == str(REAL):
        return sorted(TILES.glob("*"))[:CALIBRATED]
    return [*write_photos(folder / "photos", PhotoPlan(calibration=CALIBRATED)).calibration]


def export_backbone(backbone: torch.nn.Module, path: Path, size: tuple[int, int]) -> None:
    """Export the feature extractor alone, which no pass over the flow can make faster."""
    example = (torch.zeros(1, 3, *size),)
    torch.onnx.export(backbone, example, str(path), dynamo=True, opset_version=18, verbose=False)


def unit_image(size: tuple[int, int]) -> NDArray[np.float32]:
    """Make a textured picture with a blot, ``(1, 3, H, W)`` in [0, 1]."""
    height, width = size
    rng = np.random.default_rng(11)
    rows, columns = np.mgrid[0:height, 0:width] / max(size)
    waves = 0.5 + 0.2 * np.sin(40 * rows + 9 * columns) + 0.1 * rng.standard_normal((3, height, width))
    blot = 0.4 * np.exp(-((rows - 0.6) ** 2 + (columns - 0.4) ** 2) / 0.002)
    picture: NDArray[np.float32] = np.clip(waves - blot, 0, 1).astype(np.float32)
    return picture[None]


def normalised(image: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Normalise an image of the right size, which anomalib's graph does itself."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return np.asarray((image - mean) / std, np.float32)


def answers(graph: Path, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    session = session_of(str(graph))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: image}), strict=True))


def differences(
    peer: dict[str, NDArray[Any]], ours: dict[str, NDArray[Any]], scale: SourceScale | None
) -> tuple[float, float]:
    """Return the differences of map and score, with ours put through the 0..1 scaling of anomalib's graph."""
    found = []
    pairs = (("anomaly_map", "anomaly_map", scaled_map), ("pred_score", "score", scaled_score))
    for theirs, mine, scaled in pairs:
        want = peer[theirs].astype(np.float64).ravel()
        got = ours[mine] if scale is None else scaled(ours[mine], scale).value
        assert want.std() > 0 or want.size == 1, "the peer's map is constant, which proves nothing"
        found.append(float(np.abs(got.astype(np.float64).ravel() - want).max() / np.abs(want).max()))
    return found[0], found[1]


def write_results(out: Path, rows: list[Row], peak: float, rounds: int) -> None:
    """Write ``bench.json`` with everything, and ``bench.md``, the table of docs/results.md."""
    facts = {
        "processor": processor(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "openvino": ov.__version__.partition("-")[0],
        "threads": THREADS,
        "rounds": rounds,
        "peak_gflops": peak,
    }
    (out / "bench.json").write_text(
        json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"
    )
    lines = [
        f"{facts['processor']}, {THREADS} threads, ONNX Runtime {ort.__version__}, OpenVINO {facts['openvino']}, "
        f"float32 matrix peak {peak:.0f} GFLOP/s, median of {rounds} turns. Nodes: FlowEdge; anomalib 2.7.0; "
        "TorchScript.",
        "",
        "| model | FlowEdge | anomalib 2.7.0 | faster | TorchScript export | faster | backbone alone "
        "| OpenVINO: FlowEdge | anomalib | faster | NNCF INT8, map correlation | nodes "
        "| files | GMAC | of the peak | map, score differ by |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.model} | {r.flowedge_ms:.1f} ms | {r.peer_ms:.1f} ms | {r.speed_up:.2f}x | {r.older_ms:.1f} ms "
        f"| {r.older_speed_up:.2f}x | {r.backbone_ms:.1f} ms "
        f"| {r.openvino_ms:.1f} ms | {r.peer_openvino_ms:.1f} ms | {r.openvino_speed_up:.2f}x "
        f"| {r.peer_int8_ms:.1f} ms, {r.peer_int8_correlation or float('nan'):.4f} "
        f"| {r.flowedge_nodes:,}; {r.peer_nodes:,}; {r.older_nodes:,} "
        f"| {r.flowedge_mb:.0f}; {r.peer_mb:.0f} MB | {r.gmac:.2f} "
        f"| {r.share_of_peak:.0%} | {r.map_difference:.0e}, {r.score_difference:.0e} |"
        for r in rows
    ]
    (out / "bench.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
