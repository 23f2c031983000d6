"""A clock that is wrong by any amount stops no command."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from flowedge.clock import local_minute, utc_moment, utc_now
from flowedge.manifest_json import json_from_manifest, manifest_from_json
from flowedge.runtime.device.npz import npz_from_arrays
from flowedge.runtime.image_files import frame_of_file
from flowedge.runtime.opening.selftest import files_of_selftest
from support.tiny_bundle import tiny_manifest, write_tiny_bundle
from support.wall_clock import WallClock

YEAR_1901, YEAR_1975, YEAR_2200, YEAR_10000 = -2177452800, 157766400, 7258118400, 253402300800
CLOCKS = [-1e18, -1e12, YEAR_1901, -1, 0, YEAR_1975, YEAR_2200, YEAR_10000 - 1, YEAR_10000, 1e12, 1e18]


@pytest.mark.parametrize("seconds", CLOCKS)
def test_a_manifest_can_hold_the_moment_of_any_clock(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "clock_gettime", lambda clock: float(seconds))
    manifest = msgspec.structs.replace(tiny_manifest(), created=utc_now().isoformat())
    assert manifest_from_json(json_from_manifest(manifest)) == manifest


@pytest.mark.parametrize("seconds", CLOCKS)
def test_a_frame_can_be_read_at_any_time(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "clock_gettime", lambda clock: float(seconds))
    frame = frame_of_file(Path("a.png"), lambda path: np.zeros((2, 3, 3), np.uint8))
    assert frame.time == utc_moment()


@pytest.mark.parametrize("seconds", [*CLOCKS, float("nan")])
def test_any_time_of_a_file_can_be_shown(seconds: float) -> None:
    assert local_minute(seconds)


@pytest.mark.parametrize("seconds", CLOCKS)
def test_arrays_are_packed_the_same_at_any_time(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"frame_0": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "names": np.array(["é", ""])}
    packed = npz_from_arrays(arrays)
    monkeypatch.setattr(time, "time", lambda: float(seconds))
    assert npz_from_arrays(arrays) == packed
    with np.load(io.BytesIO(packed), allow_pickle=False) as stored:
        assert {name: stored[name].tolist() for name in stored.files} == {
            name: array.tolist() for name, array in arrays.items()
        }


def test_a_self_test_is_written_before_1980(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: float(YEAR_1975))
    frames = [np.zeros((4, 4, 3), np.uint8)]
    assert len(files_of_selftest(frames, {"level_0": np.zeros((1, 1, 2, 2), np.float32)})) == 2


@pytest.fixture(scope="module")
def wall_clock(tmp_path_factory: pytest.TempPathFactory) -> WallClock:
    """Make a wall clock that a test sets."""
    made = WallClock(tmp_path_factory.mktemp("clock"))
    if made.problem:
        pytest.skip(made.problem)
    return made


@pytest.mark.parametrize("seconds", [-(10**10), YEAR_1901, YEAR_1975, YEAR_10000])
def test_a_command_runs_at_any_time(wall_clock: WallClock, tmp_path: Path, seconds: int) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    wall_clock.shift(seconds - time.time())
    script = "from flowedge.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "info", str(bundle.path)],
        env={**os.environ, **wall_clock.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_shifted_clock_is_really_another_one(wall_clock: WallClock) -> None:
    wall_clock.shift(YEAR_2200 - time.time())
    done = subprocess.run(
        [sys.executable, "-c", "import time; print(int(time.time()))"],
        env={**os.environ, **wall_clock.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert abs(int(done.stdout) - YEAR_2200) < 1000
