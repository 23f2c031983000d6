"""Time the engine in a bare loop, and a detector that takes files, for ``station_cost``.

PYTHONPATH=tests python tests/bench/cost_worker.py BUNDLE PRECISION [THREADS]

Each line of the standard input is a task, ``TASK FOLDER COUNT``. The answer is a line of JSON with the milliseconds of
each frame, the time of all frames and the processor's time of all.

* ``bare`` and ``one`` call the engine with one prepared image, and the detector with a file, one call after the other.
* ``bare-at-once`` and ``files-at-once`` do so on each core at the same time, with one thread for each inference.
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
from flowedge.runtime.lanes import in_order, lanes_of, threads_for_many

_WARM_UP = 5


def timed(works: list[Callable[[], Any]], lanes: int) -> dict[str, Any]:
    """Return the milliseconds of each work and of all, and the processor time, after a few calls that do not count."""

    def time_of(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - start)

    list(in_order(time_of, works[:_WARM_UP], lanes=lanes))
    cpu, start = time.process_time(), time.perf_counter()
    taken = list(in_order(time_of, works, lanes=lanes))
    wall_ms = 1000 * (time.perf_counter() - start)
    return {"ms": taken, "wall_ms": wall_ms, "cpu_ms": 1000 * (time.process_time() - cpu)}


def inspected(detector: Detector, file: Path) -> Any:
    """Inspect a file as far as a record needs it."""
    return detector(file).regions


def main() -> None:
    bundle, precision = sys.argv[1:3]
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else None
    with (
        flowedge.load(bundle, precision=precision, threads=threads) as alone,
        flowedge.load(bundle, precision=precision, threads=threads_for_many()) as beside,
    ):
        print(json.dumps({"engine": alone.engine_name}), flush=True)
        for line in sys.stdin:
            task, folder, count = line.split()
            files = sorted(Path(folder).glob("*.jpg"))
            files = [files[number % len(files)] for number in range(int(count))]
            detector, lanes = (beside, lanes_of(beside.engine)) if task.endswith("at-once") else (alone, 1)
            if task.startswith("bare"):
                _, image = detector.prepare([read_image(files[0])])
                works: list[Callable[[], Any]] = [partial(detector.engine.infer, image)] * len(files)
            else:
                works = [partial(inspected, detector, file) for file in files]
            print(json.dumps(timed(works, lanes)), flush=True)


if __name__ == "__main__":
    main()
