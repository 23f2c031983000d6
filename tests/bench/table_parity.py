"""Compare the graph of every family, source and backbone with its reference network, and count its cost.

    make parity       or: PYTHONPATH=tests python tests/bench/table_parity.py [--peer PYTHON] [--no-time] [NAME ...]

A row is a checkpoint with random weights (``full_size``), or one of the records beside the checkout where they are.
Each row is computed in a process of its own and kept in the output folder. Remove its folder to compute it again.
Timing comes last, all graphs of a row in turns: FlowEdge's, the unlowered graph (the reference in FrEIA's and timm's
modules, traced by torch.onnx.export) and, with ``--peer``, anomalib's own ONNX of the same weights. Errors are the
worst difference from the reference over the largest magnitude. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.bench_cflow import normalised, unit_image
from bench.full_size import BACKBONE, MODELS, write_checkpoint
from bench.graph_facts import file_mb, node_count, parameter_count
from bench.time_onnx import THREADS, session_of
from bench.turns import median_ratio, peak_gflops, processor, times_in_turns
from flowedge.bundle import Bundle, open_bundle
from flowedge.export.checkpoint_parity import compare_with_checkpoint
from flowedge.export.pipeline import ExportOptions, ReadModel, export_bundle, read_model
from flowedge.runtime.bench.macs import multiply_accumulates
from support.golden import RECORDS, unpack
from support.oracles.relative_difference import relative_difference
from support.oracles.scores import answer_from_levels

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared"  # beside the checkout
REAL = SHARED / "checkpoints" / "cflow_magnetic_tile.ckpt"
OURS, UNLOWERED, PEER = "bundle.flowedge/model.onnx", "unlowered.onnx", "peer/model.onnx"
FACTS, TIMES = "facts.json", "times.json"
TARGETS = (
    "Aims, FlowEdge's speed over that of anomalib's ONNX: CFLOW 2.0, FastFlow 1.15, U-Flow and CS-Flow 1.1; "
    "MSFlow, which anomalib has not, over its unlowered graph: 1.15."
)
SAME_MAP = 1e-2  # a graph that is timed beside ours must compute the same


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The cost of an ONNX file: sizes in 10^6 bytes, parameters in 10^6, multiply-accumulates in 10^9.

    Attributes:
        map_difference: From FlowEdge's map on one image, over that map's largest magnitude.
    """

    nodes: int
    parameters: float
    gmac: float
    mb: float
    map_difference: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """The facts of one checkpoint. A graph that could not be made is absent, and ``notes`` has the reason."""

    name: str
    family: str
    source: str
    backbone: str
    side: int
    score_error: float
    map_error: float
    levels_error: float
    graphs: dict[str, Graph]
    notes: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known_names())}")
    parser.add_argument("--out", type=Path, default=Path("bench-out/parity"))
    parser.add_argument("--peer", type=Path, help="Python of an environment with anomalib 2.7")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.names or known_names()
    if options.row:
        compute(names[0], options.out / names[0], options.peer)
        return
    for name in names:
        if not (options.out / name / FACTS).exists():
            print(f"{name} …", flush=True)
            peer = [] if options.peer is None else ["--peer", options.peer]
            command = [sys.executable, __file__, "--row", name, "--out", options.out, *peer]
            subprocess.run([str(part) for part in command], check=True)
    peak = None
    if not options.no_time:
        peak = peak_gflops()
        for name in names:
            measure(options.out / name, options.rounds)
    write_table(options.out, names, options.rounds, peak)


def known_names() -> list[str]:
    """Return the rows that this machine can make."""
    golden = [record.folder for record in RECORDS if (SHARED / "golden" / record.folder).is_dir()]
    return [
        *MODELS,
        *(f"golden-{folder}" for folder in golden),
        *(["magnetic_tile"] if REAL.exists() else []),
    ]


# --- one row --------------------------------------------------------------------------------------------------


def compute(name: str, folder: Path, peer: Path | None) -> None:
    """Make the row's graphs and write its facts."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, options = prepare(name, folder)
    target = folder / "bundle.flowedge"
    shutil.rmtree(target, ignore_errors=True)
    export_bundle(checkpoint, target, options)
    bundle = open_bundle(target)
    errors = errors_of(bundle, checkpoint, options.backbone_weights)
    read = read_model(checkpoint, options)
    size = read.model.image_size
    image = unit_image(size)
    mine = normalised(image, read.preprocessing)
    np.save(folder / "image.npy", image)
    np.save(folder / "normalised.npy", mine)
    notes: list[str] = []
    try:
        export_unlowered(read, folder / UNLOWERED)
    except Exception as error:  # FrEIA and the tracer may raise anything, and the row is useful without them
        traceback.print_exc()
        notes.append(f"no unlowered graph: {' '.join(str(error).split()):.120}")
    if peer is not None and read.checkpoint.repository == "anomalib" and name in MODELS:
        script = [
            peer,
            HERE / "peer_onnx.py",
            read.checkpoint.family,
            size[0],
            checkpoint,
            (folder / PEER).parent,
        ]
        with (folder / "peer.log").open("w", encoding="utf-8") as log:
            command = [str(part) for part in script]
            if subprocess.run(command, check=False, stdout=log, stderr=subprocess.STDOUT).returncode:
                notes.append("no graph of anomalib's: see peer.log")
    ours = map_of(folder / OURS, mine)
    graphs = {OURS: graph_of(folder / OURS, ours, ours)}
    for other, feed in ((UNLOWERED, mine), (PEER, image)):
        if (folder / other).exists():
            graphs[other] = graph_of(folder / other, map_of(folder / other, feed), ours)
            assert graphs[other].map_difference < SAME_MAP, f"{other}: {graphs[other].map_difference}"
    row = Row(
        name=name,
        family=read.checkpoint.family,
        source=f"{read.checkpoint.repository} {read.checkpoint.generation}",
        backbone=read.model.backbone.network,
        side=size[0],
        graphs=graphs,
        notes=tuple(notes),
        **errors,
    )
    (folder / FACTS).write_text(json.dumps(asdict(row), indent=1) + "\n", encoding="utf-8")


def prepare(name: str, folder: Path) -> tuple[Path, ExportOptions]:
    """Make or unpack the row's checkpoint, and return it with its options of the export."""
    if name in MODELS:
        model = MODELS[name]
        weights = folder / BACKBONE if model.has_backbone_file else None
        options = ExportOptions(image_size=(model.size, model.size), backbone_weights=weights)
        return write_checkpoint(model, folder), options
    if name == "magnetic_tile":
        return REAL, ExportOptions()
    record = next(one for one in RECORDS if name == f"golden-{one.folder}")
    unpacked = unpack(record, SHARED, folder)
    weights = None if record.weights is None else unpacked / record.weights
    size = (256, 256) if "--image-size" in record.options else None
    return unpacked / record.checkpoint, ExportOptions(image_size=size, backbone_weights=weights)


def errors_of(bundle: Bundle, checkpoint: Path, backbone_weights: Path | None) -> dict[str, float]:
    """Return the errors of score, map and levels against the checkpoint in FrEIA's and timm's modules."""
    checks = compare_with_checkpoint(bundle, checkpoint, backbone_weights=backbone_weights)
    worst = {
        what: max(check.value for check in checks if check.name.startswith(start))
        for what, start in (("score_error", "score"), ("map_error", "anomaly_map"), ("levels_error", "level"))
    }
    assert all(np.isfinite(value) for value in worst.values())
    return worst


class Unlowered(nn.Module):
    """Runs the reference network from an image to map and score, one image at a time."""

    def __init__(self, read: ReadModel) -> None:
        super().__init__()
        self.reference = read.reference_network()
        self._model = read.model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.reference(image)
        model = self._model
        answer = answer_from_levels(levels, model.family, model.scoring, model.image_size)
        return answer.score, answer.anomaly_map


def export_unlowered(read: ReadModel, path: Path) -> None:
    """Trace the reference network as it is."""
    example = torch.zeros(1, 3, *read.model.image_size)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Unlowered(read).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=18,
            input_names=["image"],
            output_names=["score", "anomaly_map"],
        )
    assert program is not None
    program.save(str(path), external_data=True)


def graph_of(path: Path, its_map: NDArray[Any], our_map: NDArray[Any]) -> Graph:
    return Graph(
        nodes=node_count(path),
        parameters=parameter_count(path) / 1e6,
        gmac=multiply_accumulates(path) / 1e9,
        mb=file_mb(path),
        map_difference=relative_difference(its_map.reshape(our_map.shape), our_map),
    )


def map_of(path: Path, image: NDArray[np.float32]) -> NDArray[Any]:
    session = session_of(str(path))
    answer: NDArray[Any] = session.run(["anomaly_map"], {session.get_inputs()[0].name: image})[0]
    return answer


# --- timing and the table -------------------------------------------------------------------------------------


def measure(folder: Path, rounds: int) -> None:
    """Time the row's graphs in turns and keep the milliseconds of each turn."""
    graphs = json.loads((folder / FACTS).read_text())["graphs"]
    feeds = {folder / name: folder / ("image.npy" if name == PEER else "normalised.npy") for name in graphs}
    print(f"timing {folder.name} …", flush=True)
    taken = times_in_turns(feeds, rounds)
    content = {str(graph.relative_to(folder)): turns for graph, turns in taken.items()}
    (folder / TIMES).write_text(json.dumps(content) + "\n", encoding="utf-8")


def write_table(out: Path, names: list[str], rounds: int, peak: float | None) -> None:
    """Write ``parity.md`` from the rows' folders, with dashes in a row that was not timed."""
    state = out / "machine.json"
    if peak is not None:
        state.write_text(json.dumps({"peak_gflops": peak, "rounds": rounds}) + "\n", encoding="utf-8")
    machine = json.loads(state.read_text()) if state.exists() else {"peak_gflops": None, "rounds": 0}
    lines = [
        f"{processor()}, {THREADS} threads, ONNX Runtime {ort.__version__}, fp32, batch 1"
        + (
            "; not timed."
            if machine["peak_gflops"] is None
            else f", float32 matrix peak {machine['peak_gflops']:.0f} GFLOP/s, medians of {machine['rounds']} turns."
        ),
        "Three numbers are FlowEdge's, the unlowered graph's and anomalib's.",
        "",
        TARGETS,
        "",
        "| model | source | backbone, side | worst error of score, map, levels | nodes | parameters, 10^6 | GMAC "
        "| files, MB | ms | faster than unlowered, anomalib | of the peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(line_of(out / name, machine["peak_gflops"]) for name in names),
    ]
    (out / "parity.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def line_of(folder: Path, peak: float | None) -> str:
    row = json.loads((folder / FACTS).read_text())
    times = json.loads((folder / TIMES).read_text()) if (folder / TIMES).exists() else {}
    graphs = [row["graphs"].get(name) for name in (OURS, UNLOWERED, PEER)]
    medians = [statistics.median(times[name]) if name in times else None for name in (OURS, UNLOWERED, PEER)]
    faster = [
        f"{median_ratio(times[name], times[OURS]):.2f}x" if name in times else "-"
        for name in (UNLOWERED, PEER)
    ]
    share = "-"
    if medians[0] is not None and peak is not None:
        share = f"{2000 * graphs[0]['gmac'] / medians[0] / peak:.0%}"

    def each(what: str, form: str) -> str:
        return "; ".join("-" if graph is None else format(graph[what], form) for graph in graphs)

    cells = (
        row["family"],
        row["source"],
        f"{row['backbone']}, {row['side']}" + ("" if row["name"] in MODELS else f" ({row['name']})"),
        ", ".join(f"{row[f'{what}_error']:.0e}" for what in ("score", "map", "levels")),
        each("nodes", ",d"),
        each("parameters", ".1f"),
        each("gmac", ".2f"),
        each("mb", ".0f"),
        "; ".join("-" if ms is None else f"{ms:.1f}" for ms in medians),
        ", ".join(faster),
        share,
    )
    return f"| {' | '.join(cells)} |" + "".join(f" {note}" for note in row["notes"])


if __name__ == "__main__":
    main()
