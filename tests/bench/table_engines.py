"""Time the five families on this machine's CPU by engine and precision, beside anomalib's ONNX and PyTorch.

    make engines      or: PYTHONPATH=tests python tests/bench/table_engines.py [--peer PYTHON] [--out FOLDER] [NAME ...]

Each model has random weights (``full_size``). Lower precisions are added on the demo's photographs. The
limits of the gate let every block have them, because the answers of random weights mean nothing and only speed counts.
Then ``flowedge bench`` times everything in turns, with the checkpoint in PyTorch and, with ``--peer``, anomalib's own
ONNX of the same weights beside it: on ONNX Runtime, on OpenVINO, and in INT8 through NNCF on the same photographs. Each
model is kept in the output folder. Remove its folder to compute it again. The table names the command of each model.
Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from bench.full_size import BACKBONE, MODELS, FullSize, write_checkpoint
from bench.turns import processor
from flowedge.export.demo.photos import PhotoPlan, write_photos

HERE = Path(__file__).resolve().parent
ROWS: Final[dict[str, FullSize]] = {
    **{
        str(model.family): model
        for model in (
            MODELS["cflow-anomalib-resnet18"],
            MODELS["fastflow-anomalib-resnet18"],
            MODELS["uflow-anomalib-resnet18"],
            FullSize(family="msflow", layout="official", network="resnet18", size=256),
            FullSize(family="csflow", layout="anomalib", network="efficientnet_b5", size=256, hidden=64),
        )
    },
    "cflow-paper": MODELS["cflow-anomalib-wide_resnet50_2"],
    "fastflow-paper": MODELS["fastflow-official-wide_resnet50_2"],
    "msflow-paper": MODELS["msflow-official-wide_resnet50_2"],
    "uflow-paper": MODELS["uflow-official-mcait"],
    "csflow-paper": MODELS["csflow-anomalib-efficientnet_b5"],
}
"""The models by the name of their row. The papers' own configurations take long."""
PHOTOS = PhotoPlan(train=1, calibration=2, test_good=1, test_per_defect=1)
ANY: Final = ("map_correlation=-1", "map_error=1e9", "rank_agreement=-1", "flips=1")
REPORT = "bench.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--peer", type=Path, help="a Python with anomalib 2.7, for its own ONNX")
    parser.add_argument("--out", type=Path, default=Path("bench-out/engines"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--engines", default="onnxruntime-cpu,openvino", metavar="A,B", help="the engines to time"
    )
    parser.add_argument(
        "--without-int8",
        action="store_true",
        help="fp32 and bf16 alone: planning INT8 takes long on the largest models",
    )
    options = parser.parse_args()
    for name in options.names:
        if not (options.out / name / REPORT).exists():
            print(f"{name} …", flush=True)
            measure(
                ROWS[name],
                options.out / name,
                options.peer,
                options.threads,
                options.engines,
                int8=not options.without_int8,
            )
    write_table(options.out, options.names)


def measure(
    model: FullSize, folder: Path, peer: Path | None, threads: int, engines: str, *, int8: bool
) -> None:
    """Make a model's bundle and time it. The report stays in the model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = write_checkpoint(model, folder)
    bundle = folder / "bundle.flowedge"
    shutil.rmtree(bundle, ignore_errors=True)
    export = ["export", str(checkpoint), "-o", str(bundle), *model.export_options(folder)]
    good = write_photos(folder / "photos", PHOTOS).calibration[0].parent
    if int8:
        export += ["--int8", "--calib-data", str(good), *(f"--gate={limit}" for limit in ANY)]
    run(*export, "--bf16")
    bench = ["bench", str(bundle), "--engines", engines, "--batch", "1"]
    bench += ["--precisions", "fp32,bf16,int8" if int8 else "fp32,bf16"]
    bench += ["--threads", str(threads), "--against", str(checkpoint)]
    if model.has_backbone_file:
        bench += ["--backbone-weights", str(folder / BACKBONE)]
    if peer is not None and model.layout == "anomalib" and (model.family != "csflow" or model.hidden == 1024):
        command = [peer, HERE / "peer_onnx.py", model.family, model.size, checkpoint, folder / "peer"]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        bench += ["--peer", str(folder / "peer" / "model.onnx")]
        if int8:
            bench += ["--peer-images", str(good), "--peer-python", str(peer)]
    (folder / "command.txt").write_text(f"flowedge {shlex.join(bench)}\n", encoding="utf-8")
    with (folder / REPORT).open("wb") as report:
        run(*bench, "--json", output=report)


def run(*arguments: str, output: BinaryIO | None = None) -> None:
    """Run ``flowedge``. A bench whose output is kept may fail: it has its report even where it found a wrong answer."""
    command = [sys.executable, "-c", "from flowedge.cli import main; main()", *arguments]
    subprocess.run(
        command,
        check=output is None,
        stdout=subprocess.DEVNULL if output is None else output,
        env={**os.environ, "COLUMNS": "200"},
    )


def write_table(out: Path, names: Sequence[str]) -> None:
    """Write ``engines.md`` from the reports in the models' folders."""
    lines = [f"{processor()}.", ""]
    lines += [
        "| model | what | answers | map correlation | p50, ms | fastest, ms | as fast as fp32 | as fast as the peer "
        "| as the peer's best | cold start, s | overhead, ms |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|"]
    for name in names:
        report = json.loads((out / name / REPORT).read_text(encoding="utf-8"))
        lines += lines_of(name, report)
    lines += ["", *(f"- {name}: `{(out / name / 'command.txt').read_text().strip()}`" for name in names)]
    (out / "engines.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def lines_of(name: str, report: dict[str, Any]) -> list[str]:
    """Return the rows of one model in the table, from the report of its bench.

    The ratios are those of the fastest run of each row. All rows take turns, so that the fastest runs are those that
    other work on the machine slowed least.
    """
    rows = [row for row in report["rows"] if row["timings"] and row["timings"][0]["p50_ms"]]
    peers = {(row["engine"], row["precision"]): _fastest_ms(row) for row in rows if row["kind"] == "peer"}
    fp32 = {
        (row["kind"], row["engine"]): _fastest_ms(row) for row in rows if row["precision"] in ("fp32", "")
    }
    model = ROWS[name]
    lines = []
    for row in rows:
        parity, fastest = row["parity"], _fastest_ms(row)
        correlation = row["own_correlation"] if parity is None else parity["correlation"]
        cells = [f"{name}: {model.network}, {model.size}", _what(row)]
        cells += ["-" if parity is None else "WRONG" if parity["failed"] else "right"]
        cells += ["-" if correlation is None else f"{correlation:.5f}"]
        cells += [
            f"{row['timings'][0]['p50_ms']:.1f}",
            f"{fastest:.1f}",
            _speed_beside_fp32(row, fp32.get((row["kind"], row["engine"]))),
            _times_as_fast(peers.get(("onnxruntime-cpu", "")), fastest),
            _times_as_fast(min(peers.values(), default=None), fastest),
        ]
        cells += ["-" if row["cold_start_ms"] is None else f"{row['cold_start_ms'] / 1000:.1f}"]
        cells += ["-" if row["stages"] is None else f"{row['stages']['overhead_ms']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _what(row: dict[str, Any]) -> str:
    """Name a row of the table by its kind, engine and precision."""
    if row["kind"] == "torch":
        return "PyTorch, to the levels"
    if row["kind"] != "peer":
        return f"{row['engine']}, {row['precision']}"
    if row["engine"] == "onnxruntime-cpu":
        return "anomalib's ONNX, ONNX Runtime"
    precision = "INT8 by NNCF" if row["precision"] == "int8" else row["precision"]
    return f"anomalib's ONNX, OpenVINO {precision}"


def _fastest_ms(row: dict[str, Any]) -> float:
    return float(row["timings"][0]["percentiles_ms"][0])


def _times_as_fast(other_ms: float | None, ms: float) -> str:
    return "-" if other_ms is None else f"{other_ms / ms:.2f}x"


def _speed_beside_fp32(row: dict[str, Any], fp32_ms: float | None) -> str:
    """Return how many times as fast as fp32 on the same engine a lower precision is, for each side by itself.

    A lower precision exists for its speed alone, so one that is slower than fp32 is marked.
    """
    if row["kind"] == "torch" or row["precision"] in ("fp32", "") or fp32_ms is None:
        return "-"
    speed = fp32_ms / _fastest_ms(row)
    return f"{'SLOWER: ' if speed < 1 else ''}{speed:.2f}x"


if __name__ == "__main__":
    main()
