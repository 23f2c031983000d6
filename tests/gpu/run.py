"""Run FlowEdge on a real GPU and report what is right, what breaks and how fast it is.

    make gpu      or: PYTHONPATH=tests python -m gpu.run [--device cuda|cpu] [--out FOLDER] [--models A,B]

The campaign needs no network and ends within its limit, 8 minutes by default. It writes ``gpu-report.json`` after each
stage and ``gpu-report.md`` at the end. With ``--device cpu`` it runs as far as a machine without a GPU allows, which
tries the campaign itself. Nothing passes or fails by a time. The exit status is 1 where a stage failed or an answer
was wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from bench.table_engines import ROWS
from gpu import compiled
from gpu.models import FLOWEDGE, Exports, bundle_of, precisions_of
from gpu.report import Report, is_bad

SMALL: Final = ("cflow", "fastflow", "uflow", "msflow", "csflow")
LIMIT_S: Final = 480.0
EXPORT_S: Final = 200.0
PICTURES: Final = 200
MODULE_S: Final = 240.0
COMMAND_S: Final = 120.0
_ENDS: Final = {"at": math.inf}  # on the monotonic clock, once a campaign has begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-out"))
    parser.add_argument("--models", default=",".join(SMALL), help=", ".join(ROWS))
    parser.add_argument("--add", default="fp16,bf16,int8", help="the precisions beside fp32")
    parser.add_argument("--peer", type=Path, help="a folder with anomalib's ONNX of a model as NAME.onnx")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="the JPEGs of the folder run")
    options = parser.parse_args()
    names, device = options.models.split(","), options.device
    report, work = Report(options.out, options.limit), options.out / "work"
    _ENDS["at"] = time.monotonic() + options.limit
    engine = f"onnxruntime-{device}"
    # Engines that are built belong to this campaign, and are built anew by the next one elsewhere.
    os.environ["FLOWEDGE_CACHE_DIR"] = str((work / "cache").resolve())

    report.stage("machine", machine, device)
    report.stage("doctor", doctor)
    exports = Exports(names, work, options.add.split(","))
    exports.step()  # the exports go on beside the next stages
    if device == "cuda":
        report.stage("CUDA's calls", check, "cuda_calls", device, "-")
    report.stage("exports", exports.wait, min(EXPORT_S, report.left_s))
    made = [name for name in names if bundle_of(work, name).exists()]
    for name in made:
        report.stage(f"parity {name}", check, "parity", device, bundle_of(work, name))
        report.stage(f"verify {name}", verified, bundle_of(work, name), engine)
    for name in made:
        report.stage(f"speed {name}", speed, device, work, name, options.peer, needs_s=40)
    if made:
        first, bundle = made[0], bundle_of(work, made[0])
        report.stage("CUDA graphs", module, "gpu.fast", "bound", device, bundle)
        report.stage("two in flight", module, "gpu.fast", "in_flight", device, bundle)
        report.stage("peaks", peaks, device, bundle, needs_s=40)
        report.stage("eight threads", check, "threads", device, bundle)
        report.stage("twenty reloads", check, "reloads", device, bundle)
        report.stage("faults", faults, device, bundle, work / first)
        jpegs = write_jpegs(work, options.pictures)
        report.stage("JPEGs to verdicts", module, "gpu.fast", "folder", device, bundle, jpegs, needs_s=30)
        report.stage("a folder of JPEGs", folder_run, bundle, engine, jpegs, needs_s=30)
        on_gpu = ("run", bundle, jpegs, "--engine", engine, "--jpeg-decoder", "gpu", "--csv", "-")
        report.stage("JPEGs decoded on the GPU", decoded_on_gpu, *on_gpu, needs_s=30)
        for library in compiled.ENGINES:  # each takes minutes, so one model is enough
            report.stage(f"built {library} {first}", module, "gpu.compiled", library, bundle, needs_s=60)
        report.stage("compiled by PyTorch", speed, device, work, first, None, "--compile", needs_s=90)
    report.keep("end", {"seconds": round(options.limit - report.left_s)})
    report.write_tables(
        f"FlowEdge on {report.results['machine'].get('gpu') or report.results['machine']['processor']}"
    )
    sys.exit(1 if any(is_bad(found) for found in report.results.values()) else 0)


def machine(device: str) -> dict[str, Any]:
    """Describe the computer by its own tools."""
    from flowedge.runtime.device.machine import cpu_name

    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm", "--format=csv,noheader"]
    gpu = (
        subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
        if device == "cuda"
        else ""
    )
    return {"processor": cpu_name(), "cores": os.cpu_count(), "gpu": gpu, "python": sys.version.split()[0]}


def command(
    *arguments: object, environment: dict[str, str] | None = None, ends_with: Collection[int] = (0,)
) -> dict[str, Any]:
    """Run a command of FlowEdge and return its status, its time and the end of what it printed.

    Args:
        arguments: The command.
        environment: Variables beside those of this process.
        ends_with: The statuses that are right. Another one counts as a failure of the stage.
    """
    begun = time.monotonic()
    done = subprocess.run(
        [*FLOWEDGE, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=_at_most(COMMAND_S),
        env=os.environ | (environment or {}),
    )
    found: dict[str, Any] = {"status": done.returncode, "seconds": round(time.monotonic() - begun, 2)}
    if done.returncode not in ends_with:
        found["failed"] = f"{arguments[0]} ended with status {done.returncode}"
    try:
        found["answer"] = json.loads(done.stdout)
    except ValueError:
        found["printed"] = (done.stdout + done.stderr)[-600:]
    return found


def doctor() -> dict[str, Any]:
    """Run ``flowedge doctor``, which may find what this machine lacks."""
    return command("doctor", "--json", ends_with=range(256))


def decoded_on_gpu(*arguments: object) -> dict[str, Any]:
    """Run a command that decodes on the GPU, and which is refused where nvImageCodec or a driver is missing."""
    return command(*arguments, ends_with=(0, 2))


def _at_most(seconds: float) -> float:
    """Return the time that a process may take, in seconds: no more than is left of the campaign."""
    return max(1.0, min(seconds, _ENDS["at"] - time.monotonic()))


def module(name: str, *arguments: object) -> Any:
    """Run a module of this campaign in a process of its own, and return the JSON of its last line.

    Raises:
        RuntimeError: The process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", name, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=_at_most(MODULE_S),
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def check(name: str, device: str, bundle: object) -> Any:
    """Run one check of `gpu.checks`."""
    return module("gpu.checks", name, device, bundle)


def speed(device: str, work: Path, name: str, peer: Path | None, *more: str) -> Any:
    """Time one model, beside anomalib's ONNX where the folder of peers has it."""
    file = None if peer is None else peer / f"{name}.onnx"
    return module(
        "gpu.speed", device, work, name, *(("--peer", file) if file and file.exists() else ()), *more
    )


def verified(bundle: Path, engine: str) -> dict[str, Any]:
    """Run ``flowedge verify`` with every precision, and return the status and the worst value of each."""
    found: dict[str, Any] = {}
    for precision in precisions_of(bundle):
        # An engine may lack a precision, as ONNX Runtime's CPU lacks bfloat16. A check that fails is a wrong answer.
        done = command(
            "verify", bundle, "--engine", engine, "--precision", precision, "--json", ends_with=range(256)
        )
        checks = done.get("answer", {}).get("checks", [])
        found[precision] = {
            "status": done["status"],
            "wrong": sum(not one["passed"] for one in checks),
            "worst": max((one["value"] for one in checks if one.get("value") is not None), default=None),
            "printed": done.get("printed", ""),
        }
    return found


def faults(device: str, bundle: Path, folder: Path) -> dict[str, Any]:
    """Run without a visible GPU and with a batch that is too large, and return the errors in words."""
    picture = next((folder / "photos").rglob("*.png"))
    engine = f"onnxruntime-{device}"
    run = ("run", bundle, picture, "--engine")
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    # The CPU needs no GPU, so only a GPU's engine has to refuse.
    status = (0,) if device == "cpu" else (2,)
    found = {"no visible GPU": command(*run, engine, environment=hidden, ends_with=status)}
    if device == "cuda":
        found["GPU memory full"] = module("gpu.full_memory", bundle, picture)
        found["GPU 9"] = command(*run, f"{engine}:9", ends_with=status)
    return found


def peaks(device: str, bundle: Path) -> list[dict[str, Any]]:
    """Run ``flowedge bench``, and return the shares of the peaks that it measured on the same device."""
    engines = ["onnxruntime-cpu"] if device == "cpu" else ["onnxruntime-cuda", "onnxruntime-cuda-nhwc"]
    done = command(
        "bench", bundle, "--engines", ",".join(engines), "--batch", "1,8", "--seconds", "1", "--json"
    )
    if "answer" not in done:
        raise RuntimeError(done["printed"])
    names = (
        "engine",
        "precision",
        "problem",
        "macs",
        "peak_share",
        "bandwidth_share",
        "device_gflops",
        "device_copy_gb_s",
    )
    return [
        {
            **{name: row.get(name) for name in names},
            "ms": {timing["batch"]: timing["p50_ms"] for timing in row["timings"]},
            "notes": row["notes"],
        }
        for row in done["answer"]["rows"]
    ]


def write_jpegs(work: Path, pictures: int) -> Path:
    """Write JPEGs of 1024 x 1024, and return their folder."""
    folder = work / "jpegs"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(pictures):
        noise = rng.integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:04}.jpg"), cv2.GaussianBlur(noise, (9, 9), 0))
    return folder


def folder_run(bundle: Path, engine: str, folder: Path) -> dict[str, Any]:
    """Run a folder of JPEGs end to end by the command, and return the images per second with the start."""
    pictures = len(list(folder.glob("*.jpg")))
    found: dict[str, Any] = {}
    for precision in [one for one in ("fp32", "fp16") if one in precisions_of(bundle)]:
        for batch in (1, 8):
            done = command(
                "run",
                bundle,
                folder,
                "--engine",
                engine,
                "--precision",
                precision,
                "--batch",
                batch,
                "--csv",
                "-",
            )
            done["images/s with the start"] = round(pictures / done["seconds"], 1)
            done["printed"] = done.get("printed", "")[-100:]
            found[f"{precision}, batches of {batch}"] = done
    return found


if __name__ == "__main__":
    main()
