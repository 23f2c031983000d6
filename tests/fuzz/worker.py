"""Run fuzz cases in a process that may be ended: numbers come on stdin, one JSON line an outcome goes to stdout."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from fuzz.cases import BrokenPromiseError, Seeds, clear, leftovers, load_seeds, run_case


def main() -> None:
    """Warm up on the seeds, then run each case whose number is read, and report its outcome."""
    seeds_folder, seed, place = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    outcomes = os.fdopen(os.dup(1), "w", buffering=1)
    # Libraries that print by themselves must not reach the line of outcomes: what they print is counted as a fault.
    noise = (place.parent / f"{place.name}.noise").open("w+b")
    os.dup2(noise.fileno(), 1)
    os.dup2(noise.fileno(), 2)
    warnings.simplefilter("error")
    os.chdir(place)
    tempfile.tempdir = str(place)
    seeds = load_seeds(seeds_folder)
    for number in (0, 1, 2):
        _run(seeds, seed, number, place, lambda: None)
    print(json.dumps({"base_kb": _status_kb("VmRSS"), "ready": True}), file=outcomes)

    def ask_for_time() -> None:
        print(json.dumps({"needs_time": True}), file=outcomes)

    for line in sys.stdin:
        noise.seek(0)
        noise.truncate()
        _forget_peak()
        begun = time.monotonic()
        outcome, fault = _run(seeds, seed, int(line), place, ask_for_time)
        seconds = time.monotonic() - begun
        noise.seek(0)
        if not fault and (printed := noise.read()):
            fault = f"a library printed {printed[:500]!r}"
        report = {"number": int(line), "outcome": outcome, "fault": fault, "seconds": seconds}
        print(json.dumps({**report, "peak_kb": _status_kb("VmHWM")}), file=outcomes)


def _run(
    seeds: Seeds, seed: int, number: int, place: Path, ask_for_time: Callable[[], None]
) -> tuple[str, str]:
    """Return what happened and what was wrong with it, which is empty where nothing was."""
    outcome, fault = "", ""
    try:
        outcome = run_case(seeds, seed, number, place, ask_for_time)
        if left := leftovers(place):
            fault = f"left behind: {', '.join(left[:5])}"
    except BrokenPromiseError as error:
        fault = str(error)
    except BaseException:
        fault = traceback.format_exc()
    if fault:
        _keep_input(place, seed, number)
    clear(place)
    return outcome, fault


def _keep_input(place: Path, seed: int, number: int) -> None:
    """Move the input of a failed case to where somebody can look at it."""
    kept = place.parent / "failed" / f"{seed}-{number}"
    kept.mkdir(parents=True, exist_ok=True)
    for path in place.glob("input*"):
        if not (kept / path.name).exists():
            os.replace(path, kept / path.name)


def _forget_peak() -> None:
    """Set the kernel's record of this process's peak memory back to the present."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    main()
