"""Write the bundles of a campaign: checkpoints with random weights, exported in every precision."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.full_size import FullSize, write_checkpoint
from bench.table_engines import ANY, PHOTOS, ROWS
from flowedge.export.demo.photos import write_photos

FLOWEDGE: Final = (sys.executable, "-c", "from flowedge.cli import main; main()")
BUNDLE: Final = "bundle.flowedge"
AT_ONCE: Final = 3  # since an export uses several cores
THREADS: Final = max(1, (os.cpu_count() or 1) // AT_ONCE)


def bundle_of(folder: Path, name: str) -> Path:
    """Return the place of a model's bundle."""
    return folder / name / BUNDLE


def precisions_of(bundle: Path) -> list[str]:
    """Return the precisions of a bundle that run on a GPU."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return [graph["precision"] for graph in manifest["graphs"] if graph["precision"] != "int8-cpu"]


def write_bundle(model: FullSize, place: Path, precisions: Sequence[str]) -> None:
    """Write the checkpoint and the bundle of one model, in this process and a child.

    The limits of the gate let every block have every precision, because the answers of random weights mean nothing.

    Args:
        model: The model.
        place: The folder of the checkpoint and the bundle.
        precisions: The precisions beside fp32, such as ``fp16``.

    Raises:
        CalledProcessError: The export failed.
    """
    checkpoint = write_checkpoint(model, place)
    good = write_photos(place / "photos", PHOTOS).calibration[0].parent
    arguments = ["export", str(checkpoint), "-o", str(place / BUNDLE), *model.export_options(place)]
    arguments += [*(f"--{precision}" for precision in precisions), "--calib-data", str(good)]
    arguments += [f"--gate={limit}" for limit in ANY]
    subprocess.run([*FLOWEDGE, *arguments], check=True, stdout=subprocess.DEVNULL)


class Exports:
    """The exports of several models, a few at a time, each in a process of its own."""

    def __init__(self, names: Sequence[str], folder: Path, precisions: Sequence[str]) -> None:
        self._waiting, self._folder, self._precisions = list(names), folder, precisions
        self._running: dict[str, tuple[subprocess.Popen[str], float]] = {}
        self.results: dict[str, Any] = {}

    def step(self) -> None:
        """Collect the exports that have ended and start others in their place."""
        for name, (process, begun) in list(self._running.items()):
            if process.poll() is None:
                continue
            _, errors = process.communicate()
            seconds = round(time.monotonic() - begun, 1)
            self.results[name] = (
                {"seconds": seconds} if process.returncode == 0 else {"failed": errors[-500:]}
            )
            del self._running[name]
        while self._waiting and len(self._running) < AT_ONCE:
            name = self._waiting.pop(0)
            if bundle_of(self._folder, name).exists():
                self.results[name] = {"seconds": 0}
                continue
            process = subprocess.Popen(
                [sys.executable, "-m", "gpu.models", name, str(self._folder), *self._precisions],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(THREADS)},
                start_new_session=True,  # so that the export's own process ends with it
            )
            self._running[name] = process, time.monotonic()

    def wait(self, deadline_s: float) -> dict[str, Any]:
        """Wait for all exports, and end those that take too long.

        Args:
            deadline_s: The time to wait at most, in seconds.
        """
        end = time.monotonic() + deadline_s
        self.step()
        while self._running and time.monotonic() < end:
            time.sleep(0.2)
            self.step()
        for name, (process, _) in self._running.items():
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            self.results[name] = {"failed": f"the export did not end within {deadline_s:.0f} s"}
        self.results |= {name: {"failed": "the export was not begun"} for name in self._waiting}
        self._running.clear()
        self._waiting.clear()
        return self.results


if __name__ == "__main__":
    write_bundle(ROWS[sys.argv[1]], Path(sys.argv[2], sys.argv[1]), sys.argv[3:])
