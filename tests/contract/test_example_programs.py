"""The programs in ``examples/`` run as their first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from support.small_dataset import write_dataset

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(program: str, *arguments: Path | str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / program), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_a_folder_is_inspected_and_a_broken_picture_is_no_good_part(
    small_bundle: Path, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "data")
    photos = tmp_path / "data" / "test" / "good"
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = run("inspect_folder.py", small_bundle, photos, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["000.png", "001.png", "broken.png"]
    assert [line[1] for line in lines] == ["unknown", "unknown", "not_inspected"]


def test_a_video_is_inspected_frame_by_frame(small_bundle: Path, tmp_path: Path) -> None:
    video = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for _ in range(3):
        writer.write(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    writer.release()
    done = run("camera_loop.py", small_bundle, video, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[:2] for line in done.stdout.splitlines()] == [
        [str(n), "unknown"] for n in range(3)
    ]


def test_a_camera_that_is_not_there_is_named(small_bundle: Path, tmp_path: Path) -> None:
    done = run("camera_loop.py", small_bundle, "missing.avi", cwd=tmp_path)
    assert done.returncode == 1
    assert "missing.avi" in done.stderr
