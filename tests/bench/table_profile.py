"""Profile the five families on this machine's CPU: the share of convolutions in the time of all nodes, and the rest.

    make profile   or: PYTHONPATH=tests python tests/bench/table_profile.py [--out FOLDER] [--before FOLDER] [NAME ...]

Each model has random weights (``full_size``). Its graph in fp32 and its graph in INT8 with every block run on ONNX
Runtime and on OpenVINO with FlowEdge's settings. The engines' own profilers time each node. The graphs stay in the
output folder, and are made anew by each call. With ``--before``, the graphs of an earlier call run in turns with the
new ones in one process, and a second table tells how many times as fast the new graphs are. Nothing here passes or
fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from bench.full_size import BACKBONE, FullSize, write_checkpoint
from bench.node_times import NODES, RUNS, NodeTime
from bench.table_engines import PHOTOS, ROWS
from bench.turns import processor
from flowedge.calibration.precision.converted_graph import PrecisionConverter, tensors_for_conversion
from flowedge.calibration.precision.ranges import Observer
from flowedge.export.demo.photos import write_photos
from flowedge.export.graph.onnx_export import onnx_from_model
from flowedge.export.graph.passes import lower
from flowedge.export.pipeline import ExportOptions, read_model
from flowedge.manifest import GraphFile
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.preprocess import Preprocessor

FAMILIES: Final = ("cflow", "fastflow", "uflow", "msflow", "csflow")
FILES: Final = {"fp32": "fp32.onnx", "int8": "int8-cpu.onnx"}
INPUT: Final = "input.npy"
SHOWN: Final = 5  # kinds of other nodes in the table
SECONDS: Final = 6.0  # of turns for one comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=FAMILIES, metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--out", type=Path, default=Path("bench-out/profile"))
    parser.add_argument("--before", type=Path, help="the output folder of an earlier call")
    parser.add_argument("--runs", type=int, default=20, help="the number of profiled runs of each graph")
    options = parser.parse_args()
    profiles, speeds = [], []
    for name in options.names:
        folder = options.out / name
        write_graphs(ROWS[name], folder)
        image = np.load(folder / INPUT)
        for precision, file in FILES.items():
            for engine, nodes_of in NODES.items():
                nodes = nodes_of(folder / file, image, 1, options.runs)
                profiles.append(profile_of(name, engine, precision, nodes))
                if options.before is not None:
                    pair = (options.before / name / file, folder / file)
                    speeds += [speed_of(name, engine, precision, pair, image, n) for n in (1, 2)]
        write_tables(options.out, profiles, speeds)
    print((options.out / "profile.md").read_text(encoding="utf-8"))


def write_graphs(model: FullSize, folder: Path) -> None:
    """Write a model's graphs in fp32 and INT8, and one input of them."""
    checkpoint = write_checkpoint(model, folder)
    weights = folder / BACKBONE if model.has_backbone_file else None
    read = read_model(checkpoint, ExportOptions(image_size=(model.size,) * 2, backbone_weights=weights))
    fp32, lowered = folder / FILES["fp32"], lower(read.model)
    onnx_from_model(lowered, read.backbone, fp32)
    preprocess = Preprocessor(read.preprocessing)
    images = [
        preprocess(read_image(path))[None] for path in write_photos(folder / "photos", PHOTOS).calibration
    ]
    np.save(folder / INPUT, images[0])
    tensors, counted = tensors_for_conversion(fp32, ["int8-cpu"])
    observer = Observer(fp32, tensors, counted=counted, threads=1)
    for image in images:
        observer(image)
    opset = onnx.load(str(fp32), load_external_data=False).opset_import[0].version
    described = GraphFile(precision="fp32", file=fp32.name, opset=opset, scoring=lowered.scoring)
    converter = PrecisionConverter(fp32, described, observer.ranges)
    converter.write("int8-cpu", tuple(converter.blocks("int8-cpu")), folder / FILES["int8"])


def profile_of(name: str, engine: str, precision: str, nodes: Sequence[NodeTime]) -> dict[str, Any]:
    """Sum the time of the nodes: all of them, the convolutions and matrix products, and the others by kind."""
    kinds: dict[str, float] = {}
    for node in nodes:
        if not node.is_product:
            kinds[node.kind] = kinds.get(node.kind, 0.0) + node.ms
    total = sum(node.ms for node in nodes)
    return {
        "model": name,
        "engine": engine,
        "precision": precision,
        "ms": total,
        "products_ms": total - sum(kinds.values()),
        "others_ms": dict(sorted(kinds.items(), key=lambda kind: -kind[1])),
        "nodes": [asdict(node) for node in nodes],
    }


def speed_of(
    name: str,
    engine: str,
    precision: str,
    graphs: tuple[Path, Path],
    image: NDArray[np.float32],
    threads: int,
) -> dict[str, Any]:
    """Run the graph of before and the new one in turns, and compare their times.

    One thread is measured in processor time, which other work on the machine changes least. Several threads wait for
    each other, so they are measured by the clock.
    """
    now = time.process_time if threads == 1 else time.perf_counter
    runs = [RUNS[engine](graph, image, threads) for graph in graphs]
    taken: tuple[list[float], list[float]] = ([], [])
    for run in runs * 3:
        run()
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for run, times in zip(runs, taken, strict=True):
            start = now()
            run()
            times.append(1000 * (now() - start))
    before, after = taken
    return {
        "model": name,
        "engine": engine,
        "precision": precision,
        "threads": threads,
        "before_ms": min(before),
        "after_ms": min(after),
        "ratio_of_minima": min(before) / min(after),
        "median_ratio": statistics.median(old / new for old, new in zip(before, after, strict=True)),
    }


def write_tables(out: Path, profiles: Sequence[dict[str, Any]], speeds: Sequence[dict[str, Any]]) -> None:
    """Write ``profile.json`` and ``profile.md``."""
    stored = {"processor": processor(), "profiles": profiles, "speeds": speeds}
    (out / "profile.json").write_text(json.dumps(stored, indent=1), encoding="utf-8")
    lines = [f"{processor()}, one thread, batch 1.", ""]
    lines += [
        "| model | engine | precision | all nodes, ms | convolutions and products | largest others, ms |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for row in profiles:
        others = [f"{kind} {ms:.2f}" for kind, ms in list(row["others_ms"].items())[:SHOWN]]
        cells = [row["model"], row["engine"], row["precision"], f"{row['ms']:.1f}"]
        cells += [f"{100 * row['products_ms'] / row['ms']:.0f} %", ", ".join(others)]
        lines.append(f"| {' | '.join(cells)} |")
    if speeds:
        lines += [
            "",
            "| model | engine | precision | threads | before, ms | after, ms | ratio of minima | median ratio |",
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
    for row in speeds:
        cells = [row["model"], row["engine"], row["precision"], str(row["threads"])]
        cells += [f"{row['before_ms']:.1f}", f"{row['after_ms']:.1f}"]
        cells += [f"{row['ratio_of_minima']:.2f}x", f"{row['median_ratio']:.2f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    (out / "profile.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
