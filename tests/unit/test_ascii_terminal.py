"""A terminal that has only ASCII shows every output, with what it lacks escaped."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from support.small_dataset import write_dataset
from support.tiny_bundle import write_tiny_bundle

COMMAND = [sys.executable, "-c", "from flowedge.cli import main; main()"]
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "TERM": "xterm"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files whose names are not ASCII: a bundle, an image, a dataset."""
    write_tiny_bundle(tmp_path / "bündel.flowedge")
    (tmp_path / "bilder").mkdir()
    _, picture = cv2.imencode(".png", np.full((16, 24, 3), 60, np.uint8))
    (tmp_path / "bilder" / "größe→²….png").write_bytes(picture.tobytes())
    write_dataset(tmp_path / "dätä")
    (tmp_path / "dätä" / "test").joinpath("kratzer²").mkdir()
    image = next((tmp_path / "dätä" / "test" / "good").iterdir())
    shutil.copy(image, tmp_path / "dätä" / "test" / "kratzer²" / "ä.png")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("run bündel.flowedge bilder", 0),
        ("run bündel.flowedge bilder --json", 0),
        ("run bündel.flowedge bilder --out übersicht -v", 0),
        ("run bündel.flowedge mïssing", 2),
        ("run bilder bündel.flowedge", 2),
        ("eval bündel.flowedge dätä --html sëite.html", 0),
        ("info bündel.flowedge", 0),
        ("info mïssing", 2),
        ("rün", 2),
        ("run --öut", 2),
        ("doctor", 0),
        ("bench bündel.flowedge --engines onnxruntime-cpu --batch 1 --seconds 0", 0),
        ("calibrate bündel.flowedge --data dätä", 0),
    ],
)
def test_every_output_is_shown(folder: Path, arguments: str, status: int) -> None:
    cache = {"FLOWEDGE_CACHE_DIR": str(folder / "cäche")}
    done = subprocess.run(
        [*COMMAND, *map(os.fsencode, arguments.split())],
        cwd=folder,
        env={**os.environ, **ASCII, **cache},
        capture_output=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert b"Error:" not in done.stderr or status == 2
    assert b"Traceback" not in done.stderr


def test_bars_and_tables_are_drawn_on_a_terminal(folder: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = [os.fsencode(word) for word in ("eval", "bündel.flowedge", "dätä")]
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env={**os.environ, **ASCII}, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        try:
            while data := os.read(ours, 65536):
                seen += data
        except OSError:  # the terminal is closed when the command has ended
            pass
    os.close(ours)
    assert process.returncode == 0, seen
    assert seen.isascii()
    assert rb"kratzer\udcc2\udcb2" in seen
