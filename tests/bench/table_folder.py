"""Compare ``flowedge run`` with anomalib's inferencer from a folder of JPEG files of 1024x1024 to verdicts.

    make folder-bench    or: PYTHONPATH=tests python tests/bench/table_folder.py --peer .venv-peer/bin/python

The model is the CFLOW on resnet18 at 256x256 of ``station_cost``. Both sides open, decode, resize, infer and decide
on the same files. ``flowedge run`` also finds regions, prints a line of JSON for each image and writes a file of CSV.
All sides take turns within one run. Neither the start of a process nor its first images count. A time is the median
over the turns, and a ratio the median of the turns' ratios. The processor time includes all threads of a process.
Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from bench.station_cost import HERE, Worker, cpu_seconds, flowedge_program, link_files, prepared
from bench.turns import processor
from flowedge.runtime.bench.peer_int8 import peer_int8

SIDE: Final = 1024
BASIS: Final = "anomalib, OpenVINO f32"
_SETTLED: Final = 16  # images at the start of a process that are not counted
_CALIBRATED: Final = 12  # images for NNCF


@dataclass
class Turns:
    """The times of one side.

    Attributes:
        ms: The milliseconds of an image on the clock, by turn.
        cpu_ms: The milliseconds of an image on the processor, by turn.
    """

    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        faster: The images per second beside those of anomalib in float32.
        cheaper: The processor time of an image of anomalib in float32, over that of this side.
    """

    who: str
    images_per_second: float
    cpu_ms: float
    faster: float
    cheaper: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--peer", type=Path, required=True, help="a Python with anomalib 2.7, OpenVINO and NNCF"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-out/station"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=60, help="the images of one turn")
    parser.add_argument("--bundle", type=Path, help="by default the bundle of station_cost")
    parser.add_argument("--engines", nargs="+", default=["onnxruntime-cpu", "openvino"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4], help="the images of one inference")
    options = parser.parse_args()
    out = options.out.resolve()
    bundle, peer_model = prepared(out, options.peer)
    assert peer_model is not None
    pictures = out / f"jpeg-{SIDE}"
    note = quantised(out / "peer-int8", peer_model, pictures, options.peer)
    program = options.peer, HERE / "peer_inferencer.py"
    peers = {
        BASIS: Worker(*program, peer_model, 256, "f32"),
        "anomalib, OpenVINO's own choice": Worker(*program, peer_model, 256),
        "anomalib, NNCF INT8": Worker(*program, out / "peer-int8" / "int8.xml", 256, "f32"),
    }
    own = list(itertools.product(options.precisions, options.engines, options.batches))
    turns: dict[str, Turns] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="flowedge-folder-") as name:
            folder = Path(name) / "images"
            link_files(pictures, folder, options.images + _SETTLED)
            for number in range(options.rounds):
                for precision, engine, batch in own:
                    who = f"FlowEdge, {engine} {precision}" + f", batches of {batch}" * (batch > 1)
                    asked = ["--engine", engine, "--precision", precision, "--batch", str(batch)]
                    add_run(turns.setdefault(who, Turns()), options.bundle or bundle, folder, asked)
                for who, peer in peers.items():
                    answer = peer.ask("predict", folder, options.images)
                    one = turns.setdefault(who, Turns())
                    one.ms.append(answer["wall_ms"] / options.images)
                    one.cpu_ms.append(answer["cpu_ms"] / options.images)
                print(f"turn {number + 1} of {options.rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
    finally:
        for peer in peers.values():
            peer.close()
    write_table(out, rows_of(turns), note, options)


def quantised(folder: Path, model: Path, pictures: Path, python: Path) -> str:
    """Let NNCF make its INT8 file of the peer's model once, and return a sentence about it."""
    kept = folder / "note.txt"
    if not kept.exists():
        made = peer_int8(
            model, sorted(pictures.glob("*.jpg"))[:_CALIBRATED], None, python=python, folder=folder
        )
        kept.write_text(f"{made.note}, lowest map correlation on them {made.correlation}.", encoding="utf-8")
    return kept.read_text(encoding="utf-8")


def add_run(turns: Turns, bundle: Path, folder: Path, asked: Sequence[str]) -> None:
    """Run ``flowedge run`` over a folder, and note the times of an image after the first ones.

    Raises:
        RuntimeError: The command fails, or does not judge every image.
    """
    count = len(list(folder.iterdir()))
    csv = str(folder.parent / "run.csv")
    options = [*asked, "--json", "--csv", csv, "--force", "--quiet"]
    command = [flowedge_program(), "run", str(bundle), str(folder), *options]
    moments: list[float] = []
    cpu: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            moments.append(time.monotonic())
            if json.loads(line)["verdict"] == "not_inspected":
                process.kill()
                raise RuntimeError(f"an image was not inspected: {line!r}")
            if len(moments) in (_SETTLED, count):
                cpu.append(cpu_seconds(process.pid))
    if process.returncode or len(moments) != count:
        raise RuntimeError(
            f"the command ended with {process.returncode} after {len(moments)} of {count} images"
        )
    turns.ms.append(1000 * (moments[-1] - moments[_SETTLED - 1]) / (count - _SETTLED))
    turns.cpu_ms.append(1000 * (cpu[1] - cpu[0]) / (count - _SETTLED))


def rows_of(turns: Mapping[str, Turns]) -> list[Row]:
    """Make the lines of the table."""
    basis = turns[BASIS]
    return [
        Row(
            who=who,
            images_per_second=1000 / statistics.median(one.ms),
            cpu_ms=statistics.median(one.cpu_ms),
            faster=ratio(basis.ms, one.ms),
            cheaper=ratio(basis.cpu_ms, one.cpu_ms),
        )
        for who, one in turns.items()
    ]


def ratio(basis: Sequence[float], own: Sequence[float]) -> float:
    """Return the median of the turns' ratios."""
    return statistics.median(one / other for one, other in zip(basis, own, strict=True))


def write_table(out: Path, rows: list[Row], note: str, options: argparse.Namespace) -> None:
    """Write the table as Markdown and as JSON."""
    lines = [
        f"CFLOW on resnet18, 256x256, JPEG files of {SIDE}x{SIDE}, {processor()} with {os.cpu_count()} cores, "
        f"{options.rounds} turns of {options.images} images. {note}",
        "",
        "| | images/s | processor, ms/image | images/s beside anomalib in f32 | processor time beside it |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.who} | {row.images_per_second:.1f} | {row.cpu_ms:.1f} | {row.faster:.2f}x | {row.cheaper:.2f}x |"
        for row in rows
    ]
    (out / "folder.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "folder.json").write_text(
        json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
