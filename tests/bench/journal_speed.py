"""Measure a station's journal: the time of a commit, records per second, and the size of a record.

    python tests/bench/journal_speed.py FOLDER

The folder must be on the disk that a station would use. A file system in memory hides the cost of a commit.
"""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.record import Record, RecordedRegion

REGION = RecordedRegion(
    area_px=92,
    top=138,
    left=418,
    height_px=5,
    width_px=28,
    centroid=(140.304, 431.587),
    peak=1.815,
    length_px=28.018,
    area_mm2=0.92,
    length_mm=2.802,
)


def record(number: int) -> Record:
    """Make a record as a camera's frame gives it. One in ten has two regions."""
    is_nok = number % 10 == 0
    return Record(
        station="line-1",
        run="6ff7d50a-r1",
        time=datetime.datetime.now(datetime.timezone.utc),
        monotonic_ns=time.monotonic_ns(),
        source="rtsp://10.0.0.7/live",
        source_id=f"rtsp://10.0.0.7/live#{number}",
        part=f"4711-{number:06d}",
        bundle_sha256="4cd8ca41af776a2ab02f5a25ee08f80eaacb0e034bcb75292a939bed252dc6dd",
        engine="onnxruntime-cpu",
        engine_version="1.32.0",
        engine_reason="the first that opens here",
        precision="fp32",
        threshold=2.0409,
        threshold_version=1,
        score=1.8217506408691406,
        verdict="anomalous" if is_nok else "ok",
        signal="nok" if is_nok else "ok",
        reason="score 1.822 is not above the threshold 2.041",
        regions=(REGION, REGION) if is_nok else (),
        stages_ms={
            "capture": 2.221,
            "wait": 1.675,
            "prepare": 3.685,
            "infer": 24.06,
            "decide": 1.146,
            "total": 34.9,
        },
    )


def row(name: str, times: list[float]) -> str:
    """Return one row of the table: records per second, and the time of an append in ms."""
    p50, p99 = np.percentile(np.array(times) * 1e3, (50, 99))
    return f"| {name} | {p50:.2f} ms | {p99:.2f} ms |"


def timed(write: Callable[[int], object], count: int) -> list[float]:
    """Return the time of each call in seconds."""
    times = []
    for number in range(count):
        begun = time.perf_counter()
        write(number)
        times.append(time.perf_counter() - begun)
    return times


def main(folder: Path) -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory(dir=folder) as place, Journal(Path(place) / "journal.sqlite") as journal:
        print("| append | median | 99 of 100 are below |\n|---|---|---|")
        with open(Path(place) / "bare", "wb", buffering=0) as bare:

            def to_disk(number: int) -> None:
                bare.write(bytes(4096))
                os.fdatasync(bare.fileno())

            print(row("4 kB to a file and to the disk (fdatasync), without a journal", timed(to_disk, 1000)))
        print(row("one record", timed(lambda number: journal.append([record(number)]), 1000)))
        print(row("ten records in one call", timed(lambda one: journal.append(map(record, range(10))), 300)))
        of_threads: list[float] = []
        threads = [
            threading.Thread(
                target=lambda: of_threads.extend(timed(lambda number: journal.append([record(number)]), 300))
            )
            for _ in range(8)
        ]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = len(of_threads) / (time.perf_counter() - begun)
        print(row(f"one record, by 8 threads at once ({rate:.0f} records a second)", of_threads))
        made = [record(number) for number in range(20000)]
        before, begun = journal.used_bytes, time.perf_counter()
        for waiting in [journal.submit([one]) for one in made]:
            waiting.result()
        rate = len(made) / (time.perf_counter() - begun)
        print(f"\nwithout waiting for each: {rate:.0f} records a second")
        print(f"size: {(journal.used_bytes - before) / len(made):.0f} bytes a record")
        begun = time.perf_counter()
        read, after = 0, 0
        while found := journal.records(after):
            read, after = read + len(found), found[-1].number
        print(f"reading in order, 1000 at once: {read / (time.perf_counter() - begun):.0f} records a second")
        begun = time.perf_counter()
        for number in range(500):
            journal.records(part=f"4711-{number:06d}", limit=1)
        print(f"finding a part: {(time.perf_counter() - begun) / 500 * 1e3:.2f} ms")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
