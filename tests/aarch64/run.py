"""Run FlowEdge's doctor, verify and run on an ARM device under QEMU, and compare its answers with this machine's.

    make aarch64      or: PYTHONPATH=tests python -m aarch64.run [--cpus A,B] [--versions ORT/NUMPY] [--bundle FOLDER]

The device is in the folder ``build/aarch64`` (``aarch64.userland``): Debian's Python 3.11, wheels for ARM, and the
files by which a Jetson is known. Its downloads are kept there. The exit status is 1 where a command failed, a verdict
was another one, or an answer in fp32 was off by more than ``LIMIT``. Answers in INT8 are judged by ``flowedge verify``,
because a value that falls on the other side of a rounding is no fault. The times under QEMU mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aarch64.userland import PROCESSORS, Device, find_qemu, make_root, make_wheels
from flowedge.export.demo.photos import PhotoPlan, write_photos

FOLDER: Final = Path("build/aarch64")
JETSON_VERSIONS: Final = "1.23.2/2.2.6"
"""The newest ONNX Runtime and NumPy with wheels for Python 3.10, which JetPack 6 has."""
NEWEST: Final = "1.32.0/2.4.6"
PICTURES: Final = ("train/good/calibration_000.png", "test/good/000.png", "test/scratch/000.png")
LIMIT: Final = 1e-4
HEAD: Final = (
    "ONNX Runtime",
    "NumPy",
    "Python",
    "CPU",
    "doctor",
    "precision",
    "verify",
    "run",
    "largest difference",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cpus", default="cortex-a76", metavar="A,B", help=", ".join(PROCESSORS))
    parser.add_argument("--versions", default=f"{JETSON_VERSIONS},{NEWEST}", metavar="ORT/NUMPY,...")
    parser.add_argument("--bundle", type=Path, help="another bundle than the one with random weights")
    options = parser.parse_args()
    if unknown := set(options.cpus.split(",")) - PROCESSORS.keys():
        parser.error(
            f"there is no processor {', '.join(sorted(unknown))}. Choose of: {', '.join(PROCESSORS)}"
        )
    qemu, version = find_qemu()
    folder = FOLDER.resolve()
    make_root(folder)
    bundle = options.bundle.resolve() if options.bundle else made_bundle(folder / "cflow")
    write_photos(folder / "photos", PhotoPlan(train=1, calibration=1, test_good=1, test_per_defect=1))
    pictures = [folder / "photos" / name for name in PICTURES]
    precisions = cpu_precisions(json.loads((bundle / "manifest.json").read_text(encoding="utf-8")))
    here = {one: answers_here(bundle, one, folder / f"here-{one}.npz", pictures) for one in precisions}
    rows: list[Mapping[str, str]] = []
    failed: list[str] = []
    for pair in options.versions.split(","):
        onnxruntime, _, numpy = pair.partition("/")
        wheels = make_wheels(folder, onnxruntime, numpy, dependencies())
        for processor in options.cpus.split(","):
            device = Device(folder=folder, qemu=qemu, processor=processor, wheels=wheels)
            doctor = command(device, "doctor", "--json")
            for precision in precisions:
                row, problems = tried(device, bundle, precision, pictures, here[precision], doctor)
                rows.append(row)
                failed += [f"{pair} on {processor}, {precision}: {one}" for one in problems]
                print(" | ".join(row.values()), flush=True)
    print(f"\nQEMU {version}, {bundle.name}, {len(pictures)} pictures\n")
    print(
        "\n".join(
            f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *(r.values() for r in rows))
        )
    )
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def made_bundle(folder: Path) -> Path:
    """Export a CFLOW with random weights in fp32 and INT8, unless this is done already, and return the bundle.

    The input has 64 x 64 pixels, since QEMU computes each product of two numbers in software.
    """
    from bench.full_size import FullSize  # imported here, since another bundle needs no PyTorch
    from gpu.models import BUNDLE, write_bundle

    bundle = folder / BUNDLE
    if not bundle.exists():
        print("exporting a CFLOW with random weights …", flush=True)
        write_bundle(
            FullSize(family="cflow", layout="anomalib", network="resnet18", size=64), folder, ["int8"]
        )
    return bundle


def cpu_precisions(manifest: Mapping[str, Any]) -> list[str]:
    """Return the precisions of a bundle that a CPU is made for: fp32, and INT8 where the bundle has it."""
    return [one["precision"] for one in manifest["graphs"] if one["precision"] in ("fp32", "int8-cpu")]


def dependencies() -> list[str]:
    """Return the requirements of the installed FlowEdge without those of its extras."""
    return [one for one in importlib.metadata.requires("flowedge") or () if "extra ==" not in one]


def answers_here(bundle: Path, precision: str, file: Path, pictures: list[Path]) -> Path:
    """Inspect the pictures on this machine, and return the file of the answers."""
    arguments = ["-m", "aarch64.answers", str(bundle), precision, str(file), *map(str, pictures)]
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return file


def command(device: Device, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of FlowEdge on the device."""
    return device.run("-c", "from flowedge.cli import main; main()", *arguments)


def tried(
    device: Device,
    bundle: Path,
    precision: str,
    pictures: list[Path],
    here: Path,
    doctor: subprocess.CompletedProcess[str],
) -> tuple[dict[str, str], list[str]]:
    """Try one precision of a bundle on a device, and return a row of the table and what was wrong.

    Args:
        device: The device.
        bundle: The bundle.
        precision: A precision of the bundle.
        pictures: The pictures to inspect.
        here: The file of this machine's answers.
        doctor: The doctor's answer.
    """
    problems: list[str] = []
    chosen = ["--engine", "onnxruntime-cpu", "--precision", precision, "--json"]
    verify = command(device, "verify", bundle, *chosen)
    ran = command(device, "run", bundle, *pictures, *chosen)
    there = device.folder / f"there-{precision}.npz"
    there.unlink(missing_ok=True)
    answered = device.run("-m", "aarch64.answers", bundle, precision, there, *pictures)
    if told(doctor).startswith("not ready"):
        problems.append("the doctor finds that the device is not ready")
    for name, done in {"doctor": doctor, "verify": verify, "run": ran, "answers": answered}.items():
        if done.returncode:
            problems.append(
                f"{name} ended with {done.returncode}: {(done.stderr or done.stdout)[-400:].strip()}"
            )
    worst = ""
    if answered.returncode == 0:
        with np.load(here) as expected, np.load(there) as got:
            difference, same = compared(got, expected)
        worst = f"{difference:.1e} of the map's maximum"
        if precision == "fp32" and not difference <= LIMIT:
            problems.append(
                f"the answers differ by {difference:.1e} of the map's maximum, and {LIMIT:g} is the limit"
            )
        if not same:
            problems.append("a verdict is another one than here")
    versions = json.loads(answered.stdout) if answered.returncode == 0 else {}
    row = (
        *(versions.get(name, "?") for name in ("onnxruntime", "numpy", "python")),
        f"{device.processor}, {versions.get('machine', '?')}",
        told(doctor),
        precision,
        verified(verify),
        "FAILED" if ran.returncode else f"{len(ran.stdout.splitlines())} pictures",
        worst or "FAILED",
    )
    return dict(zip(HEAD, row, strict=True)), problems


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Return the outcome of ``flowedge doctor --json`` for the table, with the JetPack that the doctor found."""
    if done.returncode:
        return "FAILED"
    answer = json.loads(done.stdout)
    jetson = answer["machine"]["jetson"]
    return f"{'ready' if answer['ready'] else 'not ready'}, JetPack {jetson['jetpack'] if jetson else 'not found'}"


def verified(done: subprocess.CompletedProcess[str]) -> str:
    """Return the outcome of ``flowedge verify --json`` for the table: the number of its checks, or that it failed."""
    if done.returncode:
        return "FAILED"
    return f"{len(json.loads(done.stdout)['checks'])} checks passed"


def compared(got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> tuple[float, bool]:
    """Compare the answers of two machines.

    Returns:
        The largest difference of a score or map from the expected one, as a share of the largest expected value, and
        True where all verdicts are the same. The difference is NaN where an answer is.
    """
    shares = [
        np.abs(got[name] - expected[name]).max() / np.abs(expected[name]).max()
        for name in ("score", "anomaly_map")
    ]
    return float(np.max(shares)), bool(np.array_equal(got["verdict"], expected["verdict"]))


if __name__ == "__main__":
    main()
