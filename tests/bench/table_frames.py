"""Measure what the host does with one frame, as processor time of one thread, and print a table in Markdown.

    PYTHONPATH=tests python tests/bench/table_frames.py

The table has the steps between a JPEG file and the engine's input, and between the engine's answer and a record. The
pictures are those of ``station_cost``. A time is the median of many calls, as ``time.thread_time`` counts it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from bench.station_cost import write_pictures
from bench.turns import processor
from flowedge.geometry import map_to_frame
from flowedge.manifest import Preprocessing, ResizeMethod
from flowedge.runtime.frames.frame_check import frame_statistics
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.preprocess import Preprocessor

CALLS: Final = 41
SIDES: Final = (256, 448, 600, 1024, 2048)
RESIZES: Final[tuple[tuple[ResizeMethod, int], ...]] = (
    ("float_bilinear", 256),
    ("float_bilinear", 448),
    ("pil_bilinear", 256),
    ("pil_lanczos", 448),
    ("cv2_bilinear", 256),
)


def milliseconds(step: Callable[[], Any]) -> float:
    """Return the median processor time of a step."""
    taken = []
    for _ in range(CALLS):
        begun = time.thread_time_ns()
        step()
        taken.append(time.thread_time_ns() - begun)
    return statistics.median(taken) / 1e6


def steps_of(file: Path) -> dict[str, Callable[[], Any]]:
    """Return the steps for a picture by their names."""
    frame = read_image(file)
    steps: dict[str, Callable[[], Any]] = {"read and decode": lambda: read_image(file)}
    for method, side in RESIZES:
        preprocessing = Preprocessing(
            resize=(side, side), method=method, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        )
        steps[f"{method} to {side}, normalised"] = partial(Preprocessor(preprocessing), frame)
    network_map = np.random.default_rng(0).random((256, 256), np.float32)
    size = frame.shape[:2]
    steps["statistics of the frame"] = lambda: frame_statistics(frame)
    steps["map of 256x256 over the frame"] = lambda: map_to_frame(network_map, preprocessing, size)
    return steps


def main() -> None:
    """Print the table."""
    columns: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        for side in SIDES:
            write_pictures(Path(name) / str(side), side)
            steps = steps_of(Path(name) / str(side) / "000.jpg")
            columns.append({step: milliseconds(do) for step, do in steps.items()})
    print(f"{processor()}, OpenCV {cv2.__version__}, NumPy {np.__version__}, one thread.\n")
    print(f"| processor time of a frame, ms | {' | '.join(f'{side}x{side}' for side in SIDES)} |")
    print(f"|---|{'---|' * len(SIDES)}")
    for step in columns[0]:
        print(f"| {step} | {' | '.join(f'{column[step]:.2f}' for column in columns)} |")


if __name__ == "__main__":
    main()
