"""Measure the memory and the time of the largest exports.

    PYTHONPATH=tests python tests/bench/export_memory.py [--out FOLDER] [NAME ...]

Writes each checkpoint (random weights, kept in the folder for the next time), exports it in a process of its own,
and prints that process's largest resident memory, which counts the mapped checkpoint too, and its time. The aim
is below 6 GB and five minutes each; the exit status is 1 where one misses it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

# This process imports nothing large: Linux counts what a parent holds when it starts a child as the child's.
NAMES = ("cflow-anomalib-wide_resnet50_2", "csflow-official-efficientnet_b5", "uflow-official-mcait")
MOST_GB, MOST_SECONDS = 6.0, 300.0

WRITE = "import sys; from pathlib import Path; from bench.full_size import MODELS, write_checkpoint; \
write_checkpoint(MODELS[sys.argv[1]], Path(sys.argv[2]))"
OPTIONS = "import sys; from pathlib import Path; from bench.full_size import MODELS; \
print(*MODELS[sys.argv[1]].export_options(Path(sys.argv[2])), sep='\\n')"
EXPORT = "from flowedge.cli import main; main()"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("bench-out/memory"))
    options = parser.parse_args()
    missed = False
    for name in options.names:
        folder = options.out / name
        checkpoint = folder / "model.pt"
        if not checkpoint.exists():
            folder.mkdir(parents=True, exist_ok=True)
            run(WRITE, name, folder)
        more = run(OPTIONS, name, folder).split()
        bundle = folder / "bundle.flowedge"
        shutil.rmtree(bundle, ignore_errors=True)
        gb, seconds, busy = cost([sys.executable, "-c", EXPORT, "export", checkpoint, "-o", bundle, *more])
        missed |= gb > MOST_GB or seconds > MOST_SECONDS
        size = sum(file.stat().st_size for file in bundle.glob("model.onnx*")) / 1e9
        print(
            f"{name}: peak {gb:.2f} GB resident, {seconds:.0f} s ({busy:.0f} s of CPU time), graph {size:.2f} GB",
            flush=True,
        )
    return int(missed)


def cost(command: list[str | Path]) -> tuple[float, float, float]:
    """Return largest resident memory in 10^9 bytes, wall-clock seconds and CPU seconds of a command."""
    start = time.perf_counter()
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with status {child.returncode}")
    return usage.ru_maxrss * 1024 / 1e9, time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def run(code: str, name: str, folder: Path) -> str:
    command = [sys.executable, "-c", code, name, str(folder)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
