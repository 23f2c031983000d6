"""Time the engine in a bare loop, and a detector that takes one file after the other: ``station_cost`` starts it.

PYTHONPATH=tests python tests/bench/cost_worker.py BUNDLE PRECISION [THREADS]

Each line of the standard input is a task, ``bare FOLDER COUNT`` or ``one FOLDER COUNT``. The answer is a line of JSON
with the milliseconds of each frame and the processor's time of all.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flowedge
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.images import read_image

_WARM_UP = 5


def timed(works: list[Callable[[], Any]]) -> dict[str, Any]:
    """Return the milliseconds of each work and the processor time of all, after a few calls that are not counted."""
    for work in works[:_WARM_UP]:
        work()
    taken = []
    cpu = time.process_time()
    for work in works:
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return {"ms": taken, "cpu_ms": 1000 * (time.process_time() - cpu)}


def inspected(detector: Detector, file: Path) -> Any:
    """Inspect a file as far as a record needs it."""
    return detector(file).regions


def main() -> None:
    bundle, precision = sys.argv[1:3]
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else None
    with flowedge.load(bundle, precision=precision, threads=threads) as detector:
        print(json.dumps({"engine": detector.engine_name}), flush=True)
        for line in sys.stdin:
            task, folder, count = line.split()
            files = sorted(Path(folder).glob("*.jpg"))
            files = [files[number % len(files)] for number in range(int(count))]
            if task == "bare":
                _, image = detector.prepare([read_image(files[0])])
                works: list[Callable[[], Any]] = [partial(detector.engine.infer, image)] * len(files)
            else:
                works = [partial(inspected, detector, file) for file in files]
            print(json.dumps(timed(works)), flush=True)


if __name__ == "__main__":
    main()
