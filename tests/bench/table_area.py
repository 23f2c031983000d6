"""Measure areas and tiles: the speed-up where an area is computed alone, and the memory of large frames.

``make area`` runs it and writes ``bench-out/area/area.md``. The whole network and the part of it take turns in one
process, and a ratio is the median of the turns' ratios. Differences are those of the maps inside of the area. A frame
of 4096x3000 pixels is inspected in tiles in a process of its own, whose peak memory the system counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

import flowedge
from bench.full_size import MODELS, write_checkpoint
from bench.turns import median_ratio, processor
from flowedge.bundle import open_bundle
from flowedge.errors import SettingsError
from flowedge.runtime.area.detector import AreaDetector
from flowedge.runtime.area.settings import AreaSettings, Polygon, TileSettings

MODEL: Final = MODELS["cflow-anomalib-resnet18"]
LARGE: Final = (3000, 4096)
AREAS: Final[dict[str, tuple[float, float, float, float]]] = {
    "a quarter, in a corner": (0, 0, 0.5, 0.5),
    "a quarter, in the middle": (0.25, 0.25, 0.75, 0.75),
    "a quarter, a strip at the border": (0, 0, 1, 0.25),
    "a sixteenth, in a corner": (0, 0, 0.25, 0.25),
}
"""Left, top, right and bottom, as shares of the frame."""


def bundle_of(size: int, out: Path) -> Path:
    """Export the model with random weights for an input size and calibrate it on noise, or take what is there."""
    target = out / f"{MODEL.name}-{size}.flowedge"
    if not target.is_dir():
        folder = out / str(size)
        checkpoint = write_checkpoint(replace(MODEL, size=size), folder)
        command = [
            str(Path(sys.executable).with_name("flowedge")),
            "export",
            str(checkpoint),
            "-o",
            str(target),
        ]
        subprocess.run(
            [*command, "--image-size", str(size), str(size)], check=True, stdout=subprocess.DEVNULL
        )
        good = folder / "good"
        good.mkdir(exist_ok=True)
        for number in range(8):
            cv2.imwrite(str(good / f"{number}.png"), noise((size, size), number))
        flowedge.calibrate(target, good)
    return target


def noise(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Make a frame of smooth noise."""
    small = np.random.default_rng(seed).integers(
        60, 190, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8
    )
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def polygon_of(share: tuple[float, float, float, float], size: tuple[int, int]) -> Polygon:
    """Return a rectangle that is a share of the frame."""
    height, width = size
    left, top, right, bottom = share
    x0, x1, y0, y1 = left * width, right * width, top * height, bottom * height
    return (x0, y0), (x1, y0), (x1, y1), (x0, y1)


def area_row(bundle: Path, precision: str, name: str, rounds: int, threads: int) -> str:
    """Compare one area with the whole frame."""
    size = open_bundle(bundle).manifest.image_size
    polygon = polygon_of(AREAS[name], size)
    settings = AreaSettings(frame_size=size, inspect=(polygon,))
    frame = noise(size, 99)
    with (
        flowedge.load(bundle, engine="onnxruntime-cpu", precision=precision, threads=threads) as detector,
        flowedge.load(bundle, engine="onnxruntime-cpu", precision=precision, threads=threads) as other,
    ):
        whole = AreaDetector(detector, settings)
        try:
            alone = AreaDetector(other, AreaSettings(frame_size=size, inspect=(polygon,), only_inside=True))
        except SettingsError as error:
            return f"| {bundle.stem} {precision} | {name} | refused: {error} | | | | |"
        _, image = whole.prepare([frame])
        times: dict[AreaDetector, list[float]] = {whole: [], alone: []}
        for _ in range(rounds):
            for one, taken in times.items():
                begun = time.perf_counter()
                one.infer(image)
                taken.append(1000 * (time.perf_counter() - begun))
        expected, found = whole(frame), alone(frame)
        difference = float(np.nanmax(np.abs(found.anomaly_map - expected.anomaly_map)))
        share = alone.engine.reason.partition("computes ")[2].partition(" ")[0]
    return (
        f"| {bundle.stem} {precision} | {name} | {share} | {statistics.median(times[whole]):.1f} | "
        f"{statistics.median(times[alone]):.1f} | {median_ratio(times[whole], times[alone]):.2f} | {difference:.1e} |"
    )


def inspect_large(bundle: Path, at_once: int) -> dict[str, Any]:
    """Inspect one large frame in tiles, and return the time and the peak memory of this process."""
    detector = AreaDetector(
        flowedge.load(bundle, engine="onnxruntime-cpu", threads=os.cpu_count()),
        AreaSettings(tiles=TileSettings(overlap=32, at_once=at_once)),
    )
    detector.warm_up()
    frame = noise(LARGE, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, worked = time.perf_counter(), time.process_time()
    result = detector(frame)
    mask = result.mask
    seconds, processor_seconds = time.perf_counter() - begun, time.process_time() - worked
    assert mask is None or mask.shape == LARGE
    assert result.anomaly_map.shape == LARGE
    return {
        "at_once": at_once,
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "before_mb": before / 1024,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "is_whole": bool(np.isfinite(result.anomaly_map).all()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-out/area"))
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 512])
    parser.add_argument("--bundles", type=Path, nargs="*", default=[], help="further calibrated bundles")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("FLOWEDGE_CACHE_DIR", str(out.absolute() / "cache"))
    if given.large is not None:
        print(json.dumps(inspect_large(bundle_of(256, out), given.large)))
        return
    bundles = [*(bundle_of(size, out) for size in given.sizes), *given.bundles]
    lines = [
        f"{processor()}. ONNX Runtime on {given.threads} thread(s), batch 1, {given.rounds} turns.",
        "",
        "| bundle | area | computation | whole, ms | area alone, ms | speed-up | largest difference inside |",
        "|---|---|---|---|---|---|---|",
    ]
    for bundle in bundles:
        precisions = [one.precision for one in open_bundle(bundle).manifest.graphs]
        for precision in (one for one in precisions if one in ("fp32", "int8-cpu")):
            for name in AREAS:
                lines.append(area_row(bundle, precision, name, given.rounds, given.threads))
                print(lines[-1], flush=True)
    lines += [
        "",
        f"{LARGE[1]}x{LARGE[0]} pixels in tiles of 256x256 with an overlap of 32, {os.cpu_count()} cores:",
        "",
        "| tiles at once | s | s of the processor | peak memory, MB | of it before the frame, MB |",
        "|---|---|---|---|---|",
    ]
    for at_once in (1, 8, 32):
        command = [sys.executable, "-m", "bench.table_area", "--out", str(out), "--large", str(at_once)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        one = json.loads(done.stdout.splitlines()[-1])
        assert one["is_whole"]
        lines.append(f"| {at_once} | {one['seconds']:.1f} | {one['peak_mb']:.0f} | {one['before_mb']:.0f} |")
        print(lines[-1], flush=True)
    (out / "area.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
