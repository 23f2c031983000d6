"""The bench times a foreign model on ONNX Runtime and OpenVINO, and in the INT8 that NNCF would make of it."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from flowedge.errors import EngineUnavailableError
from flowedge.runtime.bench import measure, plan
from flowedge.runtime.bench.combination import Combination
from flowedge.runtime.bench.peer_int8 import peer_int8
from flowedge.runtime.bench.peers import image_size_of, peer_of
from flowedge.runtime.bench.plan import BenchOptions, combinations_of
from flowedge.runtime.bench.protocol import Job
from flowedge.runtime.device.denormals import flushing_denormals
from flowedge.runtime.opening.selftest import read_selftest
from support.command_line import flowedge
from support.recorded_reports import RecordedReports
from support.tiny_bundle import tiny_model, write_tiny_bundle

NNCF = """
import numpy as np
import openvino as ov
from openvino import opset13

__version__ = "9.9"


class TargetDevice:
    CPU = "CPU"


class Dataset:
    def __init__(self, images, transform):
        self.items = [transform(image) for image in images]


def quantize(model, dataset, target_device):
    assert target_device == "CPU"
    assert all(item.shape == (1, 3, 16, 24) and 0 <= item.min() and item.max() <= 1 for item in dataset.items)
    rounded = []
    for port in model.outputs:
        steps = opset13.constant(np.float32(STEPS))
        coarse = opset13.round(opset13.multiply(port.get_node().input_value(0), steps), "half_to_even")
        coarse.output(0).set_names(port.get_names())
        rounded.append(coarse)
    return ov.Model(rounded, model.get_parameters())
"""
"""A module in the place of NNCF, which rounds the outputs to whole steps of known size."""


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    onnx.save(tiny_model(), str(tmp_path / "peer.onnx"))
    return tmp_path / "peer.onnx"


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, ...]:
    rng = np.random.default_rng(0)
    (tmp_path / "good").mkdir()
    files = tuple(tmp_path / "good" / f"{number}.png" for number in range(3))
    for file in files:
        assert cv2.imwrite(str(file), rng.integers(0, 256, (16, 24, 3), np.uint8))
    return files


def python_with(folder: Path, nncf: str) -> Path:
    """Write a program that runs this Python with a module ``nncf`` of the given text."""
    (folder / "packages").mkdir()
    (folder / "packages/nncf.py").write_text(nncf)
    code = (
        "import runpy, sys; "
        f"sys.path.insert(0, {str(folder / 'packages')!r}); "
        "sys.argv = sys.argv[2:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    program.chmod(0o755)
    return program


def test_a_peer_runs_on_both_libraries_and_in_int8(
    peer: Path, images: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "has_bfloat16", lambda: True)
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    python = python_with(tmp_path, NNCF.replace("STEPS", "[2.0]"))
    options = BenchOptions(
        engines=("openvino", "onnxruntime-cpu"),
        peers=(peer,),
        peer_images=images,
        peer_python=python,
        threads=1,
    )
    runs = [run for run in combinations_of([bundle.path], options, tmp_path) if run.job.kind == "peer"]
    assert [run.label for run in runs] == [
        "peer.onnx onnxruntime-cpu",
        "peer.onnx openvino fp32",
        "peer.onnx openvino bf16",
        "peer.onnx openvino int8",
    ]
    assert [run.problem for run in runs] == [""] * 4
    *_, int8 = runs
    assert int8.notes == [f"INT8 by NNCF 9.9, calibrated on 3 images of {images[0].parent}"]
    session = ort.InferenceSession(str(peer), providers=["CPUExecutionProvider"])
    frames = read_selftest(bundle).frames
    correlations = []
    for frame in frames:
        resized = cv2.resize(frame, (24, 16), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        (exact,) = session.run(["anomaly_map"], {"image": resized.transpose(2, 0, 1)[None]})
        correlations.append(np.corrcoef(exact.ravel(), np.round(exact.ravel() * 2))[0, 1])
    assert int8.own_correlation == pytest.approx(min(correlations), abs=1e-6)
    for run in (runs[1], int8):
        with flushing_denormals():  # in its own process a peer leaves the thread flushing them
            model = peer_of(run.job)
            answers = model.work(2)()
        assert model.started.precision == run.job.precision
        assert {key.get_any_name() for key in answers} >= {"anomaly_map", "score"}  # type: ignore[attr-defined]


def test_the_named_engines_and_precisions_hold_for_peers_too(
    peer: Path, images: tuple[Path, ...], tmp_path: Path
) -> None:
    def labels(**options: object) -> list[str]:
        chosen = BenchOptions(peers=(peer,), **options)  # type: ignore[arg-type]
        return [run.label for run in combinations_of([], chosen, tmp_path)]

    assert labels(engines=("onnxruntime-cpu",), peer_images=images) == ["peer.onnx onnxruntime-cpu"]
    assert labels(engines=("tensorrt",)) == ["peer.onnx onnxruntime-cpu"]
    assert labels(engines=("openvino",), precisions=("fp32",), peer_images=images) == [
        "peer.onnx openvino fp32"
    ]


def test_a_flat_map_has_no_correlation(
    peer: Path, images: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = python_with(tmp_path, NNCF.replace("STEPS", "[0.0]"))
    monkeypatch.chdir(tmp_path)
    made = peer_int8(peer, images, None, python=python, folder=Path("int8"))  # also by a relative path
    assert made.correlation is None
    assert made.file.is_file()


def test_without_nncf_the_reason_names_what_to_install(
    peer: Path, images: tuple[Path, ...], tmp_path: Path
) -> None:
    python = python_with(tmp_path, "raise ModuleNotFoundError(\"No module named 'nncf'\")")
    options = BenchOptions(
        engines=("openvino",), precisions=("int8",), peers=(peer,), peer_images=images, peer_python=python
    )
    fp32, int8 = combinations_of([], options, tmp_path / "runs")
    assert fp32.problem == ""
    assert f"{python} -m pip install nncf openvino" in int8.problem
    assert int8.job.graph == ""


def test_a_python_that_does_not_start_is_said(peer: Path, images: tuple[Path, ...], tmp_path: Path) -> None:
    (tmp_path / "python").touch()
    with pytest.raises(EngineUnavailableError, match="cannot be started"):
        peer_int8(peer, images, None, python=tmp_path / "python", folder=tmp_path / "int8")


def test_a_peer_that_takes_no_images_cannot_be_quantised(tmp_path: Path) -> None:
    taken = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, "open"])
    given = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, "open"])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [taken], [given])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "open.onnx"))
    with pytest.raises(EngineUnavailableError, match="images are one tensor"):
        image_size_of(tmp_path / "open.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not an ONNX file")
    with pytest.raises(EngineUnavailableError, match="OpenVINO cannot load"):
        image_size_of(tmp_path / "broken.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny.flowedge", "--peer-images", "good"), "--peer-images goes with --peer FILE"),
        (("--peer", "peer.onnx", "--peer-python", "python"), "--peer-python goes with --peer-images"),
        (("--peer", "peer.onnx", "--peer-images", "nowhere"), "nowhere does not exist"),
    ],
)
def test_options_of_peers_that_make_no_sense_are_refused(
    arguments: tuple[str, ...], message: str, peer: Path, tmp_path: Path
) -> None:
    done = flowedge("bench", *arguments, cwd=tmp_path)
    assert done.status == 2
    assert message in done.stderr


def test_what_is_slow_here_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "bfloat16 is slow here."
    monkeypatch.setattr(measure, "slow_precisions", lambda: {"bf16": sentence})
    jobs = [
        Job(kind="bundle", engine="openvino", precision="bf16"),
        Job(kind="bundle", engine="openvino", precision="fp32"),
        Job(kind="bundle", engine="tensorrt", precision="bf16"),
        Job(kind="torch", engine="torch", precision="bf16"),
        Job(kind="peer", engine="openvino", precision="bf16"),
    ]
    runs = [Combination(job=job, label="", frame_size=(8, 8)) for job in jobs]
    reports = RecordedReports()
    measure._tell_what_is_slow(runs, reports)
    assert [run.notes for run in runs] == [[sentence], [], [], [], [sentence]]
    assert reports.notes == [sentence]
