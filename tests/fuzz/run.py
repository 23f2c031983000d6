"""Fuzz the product: run numbered cases in worker processes, and fail on every broken promise.

    make fuzz N=100000            any number of cases
    make fuzz N=1 FIRST=4711      one case again

A case fails when the product shows a traceback, takes longer than 10 s, needs more than 1 GB above what its process
needed before, leaves a file behind, or accepts a wrong answer (a damaged bundle that answers otherwise than before,
or a picture that is read with other pixels than Pillow's).
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

TESTS: Final = Path(__file__).resolve().parent.parent
HANG_S: Final = 10.0
LONG_HANG_S: Final = 180.0  # for an export, which traces and verifies a network
MOST_EXTRA_KB: Final = 1 << 20
_START_S: Final = 180.0


@dataclass
class Tally:
    """The outcomes and faults of a run's cases.

    Attributes:
        outcomes: The count of each outcome.
        faults: The number of each failed case, and why it failed.
        slowest_s: The longest time of a case, in seconds.
        largest_extra_kb: The most memory of a case above its process's own, in kilobytes.
    """

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    largest_extra_kb: int = 0


class Worker:
    """One process that runs cases, started again whenever it had to be ended."""

    def __init__(self, seeds: Path, seed: int, place: Path) -> None:
        self._seeds, self._seed, self._place = seeds, seed, place
        self._process: subprocess.Popen[bytes] | None = None
        self._base_kb = 0

    def run(self, number: int, tally: Tally) -> None:
        """Run one case and add its outcome."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()
        report, why = self._report(process, HANG_S)
        if report is not None and "needs_time" in report:
            report, why = self._report(process, LONG_HANG_S)
        if report is None:
            tally.faults.append((number, why))
            self.stop()
            return
        extra_kb = report["peak_kb"] - self._base_kb
        tally.outcomes[report["outcome"] or "failed"] += 1
        tally.slowest_s = max(tally.slowest_s, report["seconds"])
        tally.largest_extra_kb = max(tally.largest_extra_kb, extra_kb)
        if report["fault"]:
            tally.faults.append((number, report["fault"]))
        elif extra_kb > MOST_EXTRA_KB:
            tally.faults.append((number, f"took {extra_kb / 1e6:.1f} GB above the process's own"))

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # which waits for its end and closes the pipes
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        shutil.rmtree(self._place, ignore_errors=True)
        (self._place / "home" / "cache").mkdir(parents=True)
        home = self._place / "home"
        surroundings = {
            **os.environ,
            "PYTHONPATH": str(TESTS),
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "FLOWEDGE_CACHE": str(home / "cache" / "flowedge"),
            "OMP_NUM_THREADS": "1",
        }
        arguments = [sys.executable, "-m", "fuzz.worker", str(self._seeds), str(self._seed), str(self._place)]
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=surroundings
        )
        ready, why = self._report(self._process, _START_S)
        if ready is None:
            raise RuntimeError(f"the fuzz worker did not start: {why}; see {self._place}.noise")
        self._base_kb = ready["base_kb"]
        return self._process

    def _report(self, process: subprocess.Popen[bytes], limit_s: float) -> tuple[dict[str, Any] | None, str]:
        """Wait for the next line of the process, while its memory stays within bounds."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            end = time.monotonic() + limit_s
            while time.monotonic() < end:
                if selector.select(timeout=0.1):
                    line = process.stdout.readline()
                    if line:
                        return json.loads(line), ""
                    status = process.wait()
                    return None, f"a native library crashed: the process ended with status {status}"
                if self._base_kb and _resident_kb(process.pid) - self._base_kb > 2 * MOST_EXTRA_KB:
                    return None, "took more than 2 GB above the process's own"
        return None, f"hung for more than {limit_s:.0f} s"


def _resident_kb(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4
    except (OSError, IndexError, ValueError):
        return 0


def fuzz(
    count: int,
    *,
    first: int = 0,
    seed: int = 0,
    seeds: Path,
    folder: Path,
    minutes: float = math.inf,
    say: bool = True,
) -> Tally:
    """Run cases one after the other and return what they came to.

    Args:
        count: The number of cases.
        first: The number of the first one.
        seed: The seed of the run. Equal seeds and numbers give equal cases.
        seeds: The folder that `fuzz.seeds.write_seeds` filled.
        folder: A folder for the work. The inputs of failed cases stay in the subfolder ``failed/``.
        minutes: No case begins after so many minutes.
        say: Print every fault and a line a thousand cases.
    """
    worker, tally = Worker(seeds, seed, folder / "work"), Tally()
    seen = 0
    try:
        for number in _numbers(first, count, minutes, say):
            worker.run(number, tally)
            for which, why in tally.faults[seen:] if say else ():
                print(f"case {which}: {why}", flush=True)
            seen = len(tally.faults)
    finally:
        worker.stop()
    return tally


def _numbers(first: int, count: int, minutes: float, say: bool) -> Iterator[int]:
    begun = time.monotonic()
    for done in range(count):
        if time.monotonic() - begun > 60 * minutes:
            return
        if say and done and done % 1000 == 0:
            print(f"{done} cases in {time.monotonic() - begun:.0f} s", flush=True)
        yield first + done


def main() -> int:
    """Parse the command line, fuzz, and return 1 where a case failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no case later")
    parser.add_argument("--out", type=Path, help="keep seeds and failed inputs here")
    options = parser.parse_args()
    from fuzz.seeds import write_seeds  # PyTorch, which --help does without

    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        if options.out is not None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        folder = folder.resolve()
        write_seeds(folder / "seeds")
        tally = fuzz(
            options.count,
            first=options.first,
            seed=options.seed,
            seeds=folder / "seeds",
            folder=folder,
            minutes=options.minutes,
        )
    for outcome, times in sorted(tally.outcomes.items()):
        print(f"{times:8} {outcome}")
    seconds = time.monotonic() - begun
    print(
        f"{sum(tally.outcomes.values())} cases from {options.first}, seed {options.seed}, in {seconds:.0f} s: "
        f"{len(tally.faults)} failed, the slowest took {tally.slowest_s:.1f} s, "
        f"the largest {tally.largest_extra_kb / 1e6:.2f} GB above the process's own"
    )
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
