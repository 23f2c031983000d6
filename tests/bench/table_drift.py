"""Simulate the false alarms of the watch for drift, and its delay on real tiles.

    PYTHONPATH=tests python tests/bench/table_drift.py [BUNDLE]      prints five tables in Markdown

BUNDLE is the tile checkpoint of ``../shared``, exported and calibrated on its good training images. Without it, the
script makes one, which takes a minute. Frames are drawn from the 100 good test tiles, which the calibration has not
seen, independently and with replacement. A moved camera is a picture that is shifted by a share of its sides to the
right and down, with its border mirrored.
"""

from __future__ import annotations

import datetime
import math
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

import flowedge
from flowedge.calibration.calibrate import calibrate_bundle
from flowedge.calibration.dataset import good_images
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.export.pipeline import ExportOptions, export_bundle
from flowedge.runtime.frames.frame_check import frame_statistics
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.protocols import Frame
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.watch import WatchSettings
from flowedge.runtime.station.watch.drift import DriftWatch
from flowedge.runtime.station.watch.frame_gate import FrameGate
from flowedge.runtime.station.watch.quantities import QUANTITIES, picture_values
from flowedge.runtime.station.watch.reference import Reference, reference_of
from flowedge.runtime.station.watch.sequential import SequentialTest

SHARED = Path(__file__).resolve().parents[3] / "shared"
TILES = SHARED / "data" / "magnetic_tile"
LIMIT = 1000
BEFORE = 500  # good frames before a change
MOST = 5000  # frames after a change
RUNS = 20

Floats: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.uint8]


def wandering(noise: Floats, memory: float) -> Floats:
    """Return a first-order autoregressive series of unit variance, or several in columns."""
    values = np.empty_like(noise)
    values[0] = noise[0]
    for place in range(1, len(noise)):
        values[place] = memory * values[place - 1] + math.sqrt(1 - memory**2) * noise[place]
    return values


def print_one_test() -> None:
    print(
        "\n| values | reference | values seen | alarms, at most | alarms, measured |\n|---|---|---|---|---|"
    )
    kinds: Mapping[str, Callable[[np.random.Generator, int], Floats]] = {
        "normal": lambda rng, count: rng.normal(size=count),
        "lognormal": lambda rng, count: rng.lognormal(size=count),
        "five levels": lambda rng, count: rng.integers(0, 5, count).astype(float),
        "normal, correlation 0.5": lambda rng, count: wandering(rng.normal(size=count), 0.5),
        "normal, correlation 0.9": lambda rng, count: wandering(rng.normal(size=count), 0.9),
    }
    runs, length = 20, 10_000
    for name, draw in kinds.items():
        for count in (50, 250):
            alarms = 0
            for run in range(runs):
                rng = np.random.default_rng([run, count])
                test = SequentialTest.against(draw(rng, count), random.Random(run))
                for value in draw(rng, length):
                    test.add(value)
                    if test.evidence >= LIMIT:
                        alarms += 1
                        test.forget()
            print(
                f"| {name} | {count} | {runs * length:,} | {runs * length / LIMIT:g} | {alarms} |", flush=True
            )


def drifts(watch: DriftWatch, rows: Floats, start: int = 0) -> Iterator[tuple[int, Event]]:
    for number, row in enumerate(rows, start):
        if watch.is_next_watched():
            for event in watch.take(str(number), row):
                if event.kind == "drift":
                    yield number, event


def print_whole_watch() -> None:
    print(
        "\n| correlation of neighbours | spacing found | frames watched | alarms, at most | alarms of the test alone | "
        "alarms with `smallest_shift = 0.5` |\n|---|---|---|---|---|---|"
    )
    for memory, frames in ((0.0, 10_000), (0.5, 40_000), (0.8, 160_000), (0.95, 500_000)):
        spacings: Counter[int] = Counter()
        watched, alarms = 0, {0.0: 0, 0.5: 0}
        for smallest in alarms:
            settings = WatchSettings(frames_per_false_alarm=LIMIT, smallest_shift=smallest, reference="line")
            for run in range(3):
                noise = np.random.default_rng([run, 7]).normal(size=(frames, len(QUANTITIES)))
                watch = DriftWatch(settings, Reference(), rng=random.Random(run))
                alarms[smallest] += sum(1 for _ in drifts(watch, wandering(noise, memory)))
                if smallest:
                    spacings[watch.state.spacing] += 1
                    watched += watch.state.watched["score"].test.values
        found = ", ".join(str(spacing) for spacing in sorted(spacings))
        print(
            f"| {memory:g} | {found} | {watched:,} | {watched / LIMIT:.0f} | {alarms[0.0]} | {alarms[0.5]} |",
            flush=True,
        )


def brightness(factor: float) -> Callable[[Pixels], Pixels]:
    return lambda frame: np.clip(frame * factor + 0.5, 0, 255).astype(np.uint8)


def blur(sigma: float) -> Callable[[Pixels], Pixels]:
    return lambda frame: np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma), np.uint8)


def moved(share: float) -> Callable[[Pixels], Pixels]:
    def move(frame: Pixels) -> Pixels:
        height, width = frame.shape[:2]
        down, right = round(share * height), round(share * width)
        framed = cv2.copyMakeBorder(frame, down, 0, right, 0, cv2.BORDER_REFLECT_101)
        return np.ascontiguousarray(framed[:height, :width], np.uint8)

    return move


CHANGES: Mapping[str, Callable[[Pixels], Pixels]] = {
    "none": lambda frame: frame,
    "10 % darker": brightness(0.9),
    "20 % darker": brightness(0.8),
    "30 % darker": brightness(0.7),
    "20 % brighter": brightness(1.2),
    "blur, sigma 0.7 pixels": blur(0.7),
    "blur, sigma 1 pixel": blur(1),
    "blur, sigma 2 pixels": blur(2),
    "moved by 5 %": moved(0.05),
    "moved by 10 %": moved(0.1),
    "moved by 20 %": moved(0.2),
}


def rows_of(detector: flowedge.Detector, change: Callable[[Pixels], Pixels]) -> tuple[Floats, float]:
    """Return the values of the good test tiles after a change, and the share that the bundle does not accept."""
    rows, rejected = [], 0
    for path in sorted((TILES / "test" / "good").iterdir()):
        frame = change(read_image(path))
        result = detector(frame)
        rejected += result.verdict != "ok"
        if result.verdict != "not_inspected":
            score = result.score if result.verdict == "ok" else math.nan
            rows.append([score, *picture_values(frame_statistics(frame))])
    return np.array(rows), rejected / 100


def print_tiles(bundle: Path) -> None:
    with flowedge.load(bundle, threads=2) as detector:
        limit = detector.thresholds.image
        assert limit is not None
        calibration = reference_of(detector.bundle, "fp32", accepted_below=limit.value)
        cases = {name: rows_of(detector, change) for name, change in CHANGES.items()}
    good = cases["none"][0]
    print(
        "\n| reference | `frames_per_false_alarm` | frames | alarms, at most | alarms, measured |\n"
        "|---|---|---|---|---|"
    )
    references: dict[Literal["calibration", "line"], Reference] = {
        "calibration": calibration,
        "line": Reference(),
    }
    for kind, reference in references.items():
        for frames_per_alarm in (1000, 10_000_000):
            settings = WatchSettings(
                frames_per_false_alarm=frames_per_alarm, reference=kind, smallest_shift=0
            )
            alarms = 0
            for run in range(RUNS):
                rng = np.random.default_rng([run, 1])
                watch = DriftWatch(settings, reference, rng=random.Random(run))
                alarms += sum(1 for _ in drifts(watch, good[rng.integers(len(good), size=2000)]))
            frames = RUNS * 2000
            print(
                f"| {kind} | {frames_per_alarm:,} | {frames:,} | {frames / frames_per_alarm:g} | {alarms} |",
                flush=True,
            )
    print(
        "\n| change | rejected by the bundle | frames until the alarm (median, least to most), calibration | line | "
        "found by |\n|---|---|---|---|---|"
    )
    for name, (changed, rejected) in cases.items():
        cells, found = [], Counter[str]()
        for kind, reference in references.items():
            delays = []
            for run in range(RUNS):
                rng = np.random.default_rng([run, 2])
                watch = DriftWatch(WatchSettings(reference=kind), reference, rng=random.Random(run))
                assert not list(drifts(watch, good[rng.integers(len(good), size=BEFORE)]))
                after = changed[rng.integers(len(changed), size=MOST)]
                number, event = next(drifts(watch, after, 1), (math.inf, None))
                delays.append(number)
                if event is not None:
                    found[event.data["quantity"].partition(" ")[0]] += 1
            cells.append(_delays(delays))
        print(
            f"| {name} | {rejected:.0%} | {' | '.join(cells)} | {', '.join(one for one, _ in found.most_common(2))} |",
            flush=True,
        )


def print_cost() -> None:
    """Print the processor time of one thread for a frame of 1024x1024, which other load hardly changes."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (1024, 1024, 3), np.uint8) for _ in range(4)]
    watch, gate = (
        DriftWatch(WatchSettings(learn=50, reference="line"), Reference()),
        FrameGate(WatchSettings()),
    )
    now = datetime.datetime.now(datetime.timezone.utc)
    times: dict[str, list[float]] = {}

    def measure(name: str, work: Callable[[], object]) -> None:
        begun = time.thread_time()
        work()
        times.setdefault(name, []).append(1000 * (time.thread_time() - begun))

    for number in range(300):
        pixels = frames[number % len(frames)]
        frame = Frame(pixels=pixels, id=str(number), time=now, source="camera")
        record = Record(
            station="s", run="r", time=now, monotonic_ns=0, source="camera", source_id=str(number), score=rng.normal(),
            verdict="ok", signal="ok", reason="",
        )  # fmt: skip
        measure("frozen, stale and empty frames", lambda: gate(frame, pixels, has_ranges=False))  # noqa: B023
        measure("drift", lambda: watch.seen(record, pixels))  # noqa: B023
        measure("of it, the statistics of the frame", lambda: frame_statistics(pixels))  # noqa: B023
    print("\n| part of the watch | processor time for a frame of 1024x1024, ms (median) |\n|---|---|")
    for name, each in times.items():
        print(f"| {name} | {statistics.median(each[-200:]):.2f} |")


def _delays(delays: list[float]) -> str:
    reached = [one for one in delays if one < math.inf]
    if not reached:
        return f"none in {MOST:,}"
    words = f"{statistics.median(reached):.0f} ({min(reached):.0f} to {max(reached):.0f})"
    return words if len(reached) == len(delays) else f"{len(reached)} of {len(delays)} runs: {words}"


def main(bundle: Path | None) -> None:
    print_cost()
    print_one_test()
    print_whole_watch()
    checkpoint = SHARED / "checkpoints" / "cflow_magnetic_tile.ckpt"
    if bundle is not None:
        print_tiles(bundle)
    elif checkpoint.is_file():
        with tempfile.TemporaryDirectory() as folder:
            exported = export_bundle(checkpoint, Path(folder) / "tile.flowedge", ExportOptions()).bundle
            calibrate_bundle(exported, good_images(TILES), request=ThresholdRequest())
            print_tiles(exported.path)
    else:
        print(f"{checkpoint} is not beside this checkout: no tables for it", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
