"""Write the files of a small station, and run stations in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from flowedge.manifest import Threshold, Thresholds
from support.tiny_bundle import write_tiny_bundle


def write_photos(folder: Path, count: int, *, first: int = 0) -> None:
    """Write pictures of noise that differ from one another, named after their number."""
    folder.mkdir(exist_ok=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{number:04d}.png"), pixels)


def write_station(folder: Path, *, photos: int = 8, tables: str = "", **inspect: Any) -> Path:
    """Write a bundle with a threshold, pictures and a station's file that names them.

    Args:
        folder: The folder of all files.
        photos: The number of pictures.
        tables: More text of the station's file.
        inspect: Values of the table ``[inspect]``.
    """
    limit = Threshold(value=0.0, method="manual")
    write_tiny_bundle(folder / "tiny.flowedge", thresholds=Thresholds(image=limit, pixel=limit))
    write_photos(folder / "photos", photos)
    more = "\n".join(f"{key} = {msgspec.json.encode(value).decode()}" for key, value in inspect.items())
    file = folder / "station.toml"
    file.write_text(
        '[station]\nname = "line-3"\nstate = "state"\n'
        f'[inspect]\nbundle = "tiny.flowedge"\n{more}\n'
        '[source]\naddress = "photos"\n'
        + ("" if "[page]" in tables else "[page]\nenabled = false\n")
        + '[[sinks]]\nkind = "jsonl"\npath = "verdicts.jsonl"\nbegin = "oldest"\n'
        + tables,
        encoding="utf-8",
    )
    return file


def lines_of(file: Path) -> list[dict[str, Any]]:
    """Read the lines of JSON of a file. The list is empty where there is no file."""
    if not file.exists():
        return []
    # A line that a killed process has not finished is none.
    whole = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [msgspec.json.decode(line, type=dict[str, Any]) for line in whole]


@contextmanager
def running(file: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``flowedge station run`` in a process of its own, which is killed at the end where it still runs."""
    code = "from flowedge.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "station", "run", str(file), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
