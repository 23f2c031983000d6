"""Measure ``flowedge batch`` on many small images: a plain loop, one process, two processes, and two actors of Ray.

``make batch-bench`` runs it and writes ``bench-out/batch/batch.md``. The images are a few pictures of noise as JPEG.
Each copy has a comment of its own, so that no two files are equal. The detector is small, so that the table shows the
cost of the batch itself. With ``--bundle`` a real one is measured. The last part kills a job twice, and counts its
rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import duckdb
import numpy as np

from bench.turns import processor
from flowedge.manifest import Threshold, Thresholds
from support.tiny_bundle import write_tiny_bundle

SIDE = 256
PICTURES = 8
FOLDERS = 20

# The loop that a person would write: read, judge, keep, and write one file at the end.
LOOP = """
import sys
from pathlib import Path
import pyarrow
from pyarrow import parquet
import flowedge
bundle, folder, out = sys.argv[1:]
rows = []
with flowedge.load(bundle) as detector:
    for path in sorted(Path(folder).rglob("*.jpg")):
        result = detector(path)
        rows.append({"image": str(path), "score": result.score, "verdict": result.verdict})
parquet.write_table(pyarrow.Table.from_pylist(rows), out)
"""


def write_images(folder: Path, count: int) -> None:
    """Write JPEGs of ``SIDE`` pixels with different bytes and few different pixels."""
    if folder.is_dir() and sum(1 for _ in folder.rglob("*.jpg")) == count:
        return
    shutil.rmtree(folder, ignore_errors=True)
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        coarse = random.integers(60, 200, (16, 16, 3), np.uint8)
        smooth = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        pictures.append(cv2.imencode(".jpg", smooth)[1].tobytes())
    for number in range(count):
        place = folder / f"{number % FOLDERS:02}"
        place.mkdir(parents=True, exist_ok=True)
        picture = pictures[number % PICTURES]
        comment = f"{number:08}".encode()
        # A comment segment behind the start of the image: its length counts itself.
        content = picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + picture[2:]
        (place / f"{number:06}.jpg").write_bytes(content)


def measured(command: Sequence[str]) -> tuple[float, float]:
    """Run a command, and return its wall time and the processor time of it and of all processes below it.

    The processes of Ray are never waited for, so the times are read from ``/proc`` once a second.
    """
    begun = time.monotonic()
    seen: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        while job.poll() is None:
            seen |= times_below(job.pid)
            time.sleep(1)
    if job.returncode:
        raise RuntimeError(f"{command} ended with status {job.returncode}")
    return time.monotonic() - begun, sum(seen.values())


def times_below(top: int) -> dict[int, float]:
    """Return the processor seconds of a process and of all processes that it or they have started."""
    parents, times = {}, {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        parents[int(place.parent.name)] = int(fields[1])
        times[int(place.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    below, found = {top}, {top}
    while found:
        found = {one for one, parent in parents.items() if parent in found}
        below |= found
    return {one: times[one] for one in below if one in times}


def rows_of(out: Path) -> tuple[int, int]:
    """Return the number of rows of an output, and of different images in it."""
    if not out.is_file() and not list(out.glob("*.parquet")):
        return 0, 0
    place = str(out) if out.is_file() else f"{out}/*.parquet"
    found = duckdb.execute("SELECT count(*), count(DISTINCT image) FROM read_parquet(?)", [place]).fetchall()[
        0
    ]
    return int(found[0]), int(found[1])


def killed_twice(command: Sequence[str], out: Path, count: int) -> list[str]:
    """Kill a job when a third and two thirds of its rows are there, let it end, and return lines for the table."""
    lines = []
    for share in (1 / 3, 2 / 3):
        job = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while job.poll() is None and rows_of(out)[0] < share * count:
            time.sleep(2)
        if job.poll() is not None:
            raise RuntimeError("the job ended before it was killed: give more images")
        # Only the process that the user started is killed. Whatever it started must end by itself.
        job.send_signal(signal.SIGKILL)
        job.wait()
        lines.append(f"killed with SIGKILL when {rows_of(out)[0]} rows were there")
        time.sleep(3)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout)
    rows, images = rows_of(out)
    if (rows, images) != (count, count):
        raise AssertionError(f"{rows} rows for {images} images, and not {count}")
    return [
        *lines,
        f"the third run judged {summary['judged']} images: {rows} rows of {images} different images",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-out/batch"))
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--only", nargs="*", help="the rows of the table to measure")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder, count = options.out / "images", options.images
    write_images(folder, count)
    bundle = options.bundle
    if bundle is None:
        bundle = options.out / "small.flowedge"
        if not bundle.is_dir():
            fitted = Thresholds(image=Threshold(value=-0.03, method="manual"))
            write_tiny_bundle(bundle, image_size=(SIDE, SIDE), thresholds=fitted)
    python = sys.executable
    batch = [str(Path(python).with_name("flowedge")), "batch", str(folder), "-b", str(bundle), "--json", "-q"]
    results = {name: options.out / f"{name}.parquet" for name in ("loop", "one", "two", "ray")}
    commands = {
        "loop": [python, "-c", LOOP, str(bundle), str(folder), str(results["loop"])],
        "one": [*batch, "-o", str(results["one"]), "--workers", "1"],
        "two": [*batch, "-o", str(results["two"]), "--workers", "2"],
        "ray": [*batch, "-o", str(results["ray"]), "--workers", "2", "--ray", "local"],
    }
    names = {
        "loop": "plain loop",
        "one": "flowedge batch --workers 1",
        "two": "flowedge batch --workers 2",
        "ray": "flowedge batch --workers 2 --ray local",
    }
    lines = [
        f"{count} JPEGs of {SIDE}x{SIDE}, {bundle.name}, {processor()}, {os.cpu_count()} CPUs.",
        "",
        "| | seconds | images/s | CPU s | load before |",
        "|---|---|---|---|---|",
    ]
    for name in options.only or commands:
        if name == "killed":
            continue
        results[name].unlink(missing_ok=True)
        load = os.getloadavg()[0]
        wall, cpu = measured(commands[name])
        rows, images = rows_of(results[name])
        if (rows, images) != (count, count):
            raise AssertionError(f"{name}: {rows} rows for {images} images, and not {count}")
        lines.append(f"| {names[name]} | {wall:.1f} | {count / wall:.0f} | {cpu:.1f} | {load:.1f} |")
        print(lines[-1], flush=True)
    if options.only is None or "killed" in options.only:
        out = options.out / "killed"
        shutil.rmtree(out, ignore_errors=True)
        lines += ["", *killed_twice([*batch, "-o", str(out), "--workers", "2", "--ray", "local"], out, count)]
        print("\n".join(lines[-3:]), flush=True)
    (options.out / "batch.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
