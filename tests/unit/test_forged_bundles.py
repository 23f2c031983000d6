"""A bundle with forged content and fitting hashes is refused by name, at little cost."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import flowedge
from flowedge.errors import BundleError, EngineUnavailableError, FlowEdgeError
from flowedge.runtime.device.npz import arrays_from_npz, npz_from_arrays
from flowedge.runtime.opening.selftest import ANSWERS, FRAMES
from support.command_line import flowedge as command
from support.edited_manifest import edit_manifest
from support.tiny_bundle import write_tiny_bundle

ENGINES = ("onnxruntime-cpu", "openvino")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("forged") / "whole").path


def forged(whole: Path, folder: Path, path: str, content: bytes) -> Path:
    """Copy a bundle with another content of one file, and with the hashes of this content."""
    shutil.copytree(whole, folder)
    (folder / path).write_bytes(content)

    def enter(manifest: dict[str, Any]) -> None:
        for file in manifest["files"]:
            if file["path"] == path:
                file.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    edit_manifest(folder, enter)
    return folder


def frames_of(*shapes: tuple[int, ...]) -> bytes:
    return npz_from_arrays(
        {f"frame_{number}": np.zeros(shape, np.uint8) for number, shape in enumerate(shapes)}
    )


@pytest.mark.parametrize("path", [FRAMES, ANSWERS])
@pytest.mark.parametrize(
    "content", [b"", b"not an archive", npz_from_arrays({}), npz_from_arrays({"x": np.zeros(())})]
)
def test_a_self_test_that_is_none_is_refused_by_name(
    path: str, content: bytes, whole: Path, tmp_path: Path
) -> None:
    folder = forged(whole, tmp_path / "b", path, content)
    with pytest.raises(BundleError, match=path):
        flowedge.load(folder)
    for arguments in (("verify", folder), ("run", folder, whole, "--precision", "auto")):
        done = command(*arguments)
        assert (done.status, "Traceback" in done.stderr) == (2, False)
        assert path in done.stderr or "no images" in done.stderr


@pytest.mark.parametrize("shape", [(0, 0, 3), (1, 2000, 3), (40_000, 40, 3)])
def test_frames_of_a_self_test_that_no_graph_takes_are_the_bundles_fault(
    shape: tuple[int, ...], whole: Path, tmp_path: Path
) -> None:
    folder = forged(whole, tmp_path / "b", FRAMES, frames_of(shape, shape, shape))
    with pytest.raises(BundleError, match=str(folder)):
        flowedge.load(folder)


def test_a_self_test_of_many_frames_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="5000 frames"):
        flowedge.load(forged(whole, tmp_path / "b", FRAMES, frames_of(*[(8, 8, 3)] * 5000)))


@pytest.mark.parametrize("value", [0.0, np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("engine", ENGINES)
def test_answers_that_no_engine_gives_are_refused_without_a_warning_of_numpys(
    value: float, engine: str, whole: Path, tmp_path: Path
) -> None:
    pytest.importorskip(engine.partition("-")[0])
    answers = arrays_from_npz((whole / ANSWERS).read_bytes(), largest=1 << 20)
    content = npz_from_arrays({name: np.full_like(answer, value) for name, answer in answers.items()})
    with pytest.raises(EngineUnavailableError, match="judges no part"):
        flowedge.load(forged(whole, tmp_path / "b", ANSWERS, content), engine=engine)


@pytest.mark.parametrize(
    "edit",
    [
        {"resize": [16384, 16384]},
        {"crop": [16384, 16384]},
        {"resize": [16384, 16384], "method": "cv2_bilinear"},
        {"resize": [16384, 16384], "keep_aspect": True},
    ],
)
def test_a_preprocessing_that_does_not_fit_the_graph_is_not_computed_first(
    edit: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(whole, folder)
    edit_manifest(folder, lambda manifest: manifest["preprocessing"].update(edit))
    begun = time.process_time()
    with pytest.raises(BundleError, match=str(folder)):
        flowedge.load(folder)
    assert time.process_time() - begun < 5, "the resize took half a minute and 3 GB"


def outside(model: onnx.ModelProto) -> None:
    (weight,) = (one for one in model.graph.initializer if one.name == "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=".")


def escaping(model: onnx.ModelProto) -> None:
    model.graph.node[0].name = "\x1b[31mred\n"
    model.graph.node[0].op_type = "\x1b[31mNo"


@pytest.mark.parametrize("edit", [outside, escaping])
def test_the_runtimes_own_lines_do_not_reach_the_terminal(
    edit: Callable[[onnx.ModelProto], None], whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(str(whole / "model.onnx"))
    edit(model)
    folder = forged(whole, tmp_path / "b", "model.onnx", model.SerializeToString())
    with pytest.raises(FlowEdgeError):
        flowedge.load(folder, engine="onnxruntime-cpu")
    assert tuple(capfd.readouterr()) == ("", "")
