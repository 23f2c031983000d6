"""Ray, Dask and Spark judge the images of a folder with the same class, and give the rows of one process.

These tests need an environment of their own, which ``make cluster`` makes, and half a minute each.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pyarrow import dataset

from flowedge.runtime.batch.job import BatchSettings, run_batch
from support.tiny_bundle import write_tiny_bundle

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = REPOSITORY / ".venv-cluster" / "bin" / "python"
LOCAL = {"SPARK_LOCAL_IP": "127.0.0.1", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="make cluster has not made .venv-cluster"),
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(9):
        assert cv2.imwrite(str(folder / f"{number}.png"), random.integers(0, 255, (20, 30, 3), np.uint8))
    (folder / "junk.png").write_bytes(b"no picture")
    return folder


def run(*command: str | Path) -> None:
    environment = {**os.environ, **LOCAL}
    done = subprocess.run(
        [str(PYTHON), *map(str, command)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


def rows_of(out: Path) -> list[dict[str, Any]]:
    files = sorted(str(path) for path in out.rglob("*.parquet")) if out.is_dir() else [str(out)]
    rows: list[dict[str, Any]] = dataset.dataset(files).to_table().to_pylist()
    # Spark writes the path as an address.
    return sorted(
        (row | {"image": Path(row["image"].removeprefix("file:")).name, "latency_ms": None} for row in rows),
        key=lambda row: str(row["image"]),
    )


def expected(bundle: Path, photos: Path, tmp_path: Path) -> list[dict[str, Any]]:
    out = tmp_path / "expected.parquet"
    run_batch([str(photos)], str(out), BatchSettings(bundle=str(bundle), workers=1))
    assert {row["verdict"] for row in rows_of(out)} == {"unknown", "not_inspected"}
    return rows_of(out)


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted) == 10
    for one, other in zip(found, wanted, strict=True):
        score = other["score"]
        assert one["score"] == (score if score is None else pytest.approx(score, rel=1e-5))
        names = ("image", "sha256", "verdict", "bundle_sha256", "problem")
        assert [one[name] for name in names] == [other[name] for name in names]
        assert len(one["regions"]) == len(other["regions"])


@pytest.mark.parametrize("library", ["ray", "dask", "spark"])
def test_the_class_serves_the_library(library: str, photos: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge").path
    program = REPOSITORY / "examples" / "cluster" / f"{library}_images.py"
    run(program, bundle, photos, tmp_path / "out")
    assert_same(rows_of(tmp_path / "out"), expected(bundle, photos, tmp_path))


def test_the_command_on_ray_gives_the_rows_of_one_process_and_goes_on(photos: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge").path
    program = PYTHON.with_name("flowedge")
    command: tuple[str | Path, ...] = (program, "batch", photos, "-b", bundle, "-o", tmp_path / "out")
    command += ("--ray", "local", "--workers", "2", "--part", "4", "--fail-on", "none")
    run(*command)
    assert_same(rows_of(tmp_path / "out"), expected(bundle, photos, tmp_path))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    run(*command)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
