"""A file name that is no UTF-8 works for every engine and in every message between processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from flowedge.runtime.bench.protocol import Job, Problem, line_from, struct_from
from support.command_line import flowedge
from support.tiny_bundle import write_tiny_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder whose name is no UTF-8."""
    made = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        made.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    return made


@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_a_bundle_below_such_a_folder_runs(engine: str, folder: Path) -> None:
    pytest.importorskip(engine.partition("-")[0])
    bundle = write_tiny_bundle(folder / "tiny.flowedge").path
    picture = np.zeros((16, 24, 3), np.uint8)
    (folder / "0.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    done = flowedge("run", bundle, folder, "--engine", engine, "--json")
    assert done.status == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["verdict"], said["engine"]) == ("unknown", engine)
    assert said["image"].endswith("caf\\udce9/0.png")


def test_a_worker_is_told_such_a_name(folder: Path) -> None:
    job = Job(kind="bundle", path=str(folder), engine="openvino", threads=2)
    assert struct_from(line_from(job), Job) == job
    with pytest.raises(msgspec.ValidationError):
        struct_from(line_from(Problem(problem="none")), Job)
