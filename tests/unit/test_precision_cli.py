"""Commands export, calibrate, verify and run graphs of lower precision, or refuse them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flowedge.bundle import open_bundle
from flowedge.calibration.calibration_record import read_record
from flowedge.calibration.score_maxima import constants_of
from flowedge.cli.precision import precision_request, print_slow_precisions
from support.block_graph import write_photographs
from support.command_line import flowedge
from support.oracles.stored_constants import read_constants

LOOSE = ("--gate", "map_correlation=0.9", "--gate", "map_error=20", "--gate", "rank_agreement=0")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs") / "good"
    write_photographs(folder, 3)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(small_bundle: Path, tmp_path: Path) -> Callable[[], Path]:
    return lambda: Path(shutil.copytree(small_bundle, tmp_path / "small.flowedge"))


def test_export_with_images_writes_the_graphs_with_what_was_found(
    small_checkpoint: Path, photographs: Path, tmp_path: Path, cache: Path
) -> None:
    target = tmp_path / "int8.flowedge"
    done = flowedge(
        "export", small_checkpoint, "-o", target, "--int8", "--calib-data", photographs, *LOOSE, "--json"
    )
    assert done.status == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [report["precision"] for report in answer["precisions"]] == ["int8-gpu", "int8-cpu"]
    assert set(answer["checks"]) == {"fp32", "int8-gpu", "int8-cpu"}
    assert all(report["gate"]["passed"] for report in answer["precisions"])
    assert all(report["bytes_share"] < 0.4 for report in answer["precisions"])
    bundle = open_bundle(target)
    stored = {file.path for file in bundle.manifest.files}
    assert {"model.int8.onnx", "model.int8-cpu.onnx", "gate.int8-cpu.html", "calibration.json"} <= stored
    assert {"selftest/answers.int8-gpu.npz", "selftest/answers.int8-cpu.npz"} <= stored
    for engine in ("onnxruntime-cpu", "openvino"):
        verified = flowedge("verify", target, "--precision", "int8", "--engine", engine, "--json")
        assert verified.status == 0, verified.stdout
        assert "against the recorded int8-cpu answers" in verified.stdout
    (entry,) = bundle.manifest.threshold_history
    assert (entry.command, entry.images) == ("flowedge export", 3)
    assert [change.precision for change in entry.changes] == ["fp32", "int8-gpu", "int8-cpu"]
    record = read_record(bundle)
    assert record is not None
    assert [report.calibrator for report in record.lower_precisions] == ["percentile", "percentile"]
    assert "those of the calibrator percentile" in (target / "gate.int8-cpu.html").read_text()
    shown = flowedge("info", target)
    assert shown.status == 0
    assert " ".join(shown.stdout.split()).count("ranges by percentile") == 2
    assert len(list((cache / "ranges").iterdir())) == 2, "for the graph as it was, and calibrated"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_calibrate_adds_int8_and_every_precision_gets_its_own_reference(
    copy: Callable[[], Path], photographs: Path
) -> None:
    bundle = copy()
    done = flowedge("calibrate", bundle, "--data", photographs, "--int8", "--calibrator", "mse", *LOOSE)
    assert done.status == 0, done.stderr
    for part in ("int8-gpu: ", "int8-cpu: ", "map_correlation", "ok", "image threshold", "on 3 good images"):
        assert part in done.stdout
    assert done.stderr.count("3 good images are too few for a quantile of 0.99: the image threshold") == 1, (
        "said once for all precisions"
    )
    opened = open_bundle(bundle)
    (entry,) = opened.manifest.threshold_history
    assert entry.command == "flowedge calibrate", "and the rounds of the search leave no entry"
    assert [change.after for change in entry.changes] == [
        graph.thresholds for graph in opened.manifest.graphs
    ]
    references = []
    for graph in opened.manifest.graphs:
        reference = graph.scoring.score_maxima
        assert reference is not None
        assert graph.thresholds.image is not None
        references.append(reference.map_max)
        expected = constants_of(reference)
        stored = read_constants(opened.path / graph.file, expected)
        assert all(np.array_equal(stored[name], expected[name]) for name in expected)
    assert len(set(references)) == 3, "fp32 and both INT8 graphs"
    assert max(references) < 1.1 * min(references)

    limits = {
        name: flowedge("verify", bundle, "--precision", "int8", "--data", photographs, "--engine", name)
        for name in ("onnxruntime-cpu", "openvino")
    }
    for done in limits.values():
        assert "int8 against fp32, 3 images of" in done.stdout.replace("\n", "").replace("  ", "")
        assert done.status == (1 if "FAILED" in done.stdout else 0)
    assert limits["onnxruntime-cpu"].stdout.count("map_correlation") == 1

    run = flowedge("run", bundle, photographs / "00.png", "--precision", "int8", "--json")
    assert run.status == 0, run.stderr
    answer = json.loads(run.stdout)
    assert (answer["precision"], answer["engine"]) == ("int8-cpu", "onnxruntime-cpu")
    assert answer["engine_reason"]
    assert answer["threshold"] == opened.manifest.graph("int8-cpu").thresholds.image.value  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--int8"], "--int8 needs images of good parts: name their folder with --calib-data"),
        (["--fp16", "--opset", "17"], "a lower precision needs --opset 18 or more, got 17"),
        (["--fp16", "--gate", "flips=0.1"], "name a folder with --calib-data"),
        (["--calib-data", "GOOD"], "--calib-data goes with --fp16, --bf16, --int8 or --prune"),
        (
            ["--int8", "--calib-data", "GOOD", "--gate", "nonsense"],
            "--gate takes NAME=NUMBER, got 'nonsense'",
        ),
        (
            ["--int8", "--calib-data", "GOOD", "--gate", "nonsense=1"],
            "--gate takes one of map_correlation, map_error",
        ),
        (["--int8", "--calib-data", "GOOD", "--gate", "flips=-1"], "got 'flips=-1'"),
        (["--int8", "--calib-data", "GOOD", "--gate", "flips=nan"], "got 'flips=nan'"),
        (["--int8", "--calib-data", "GOOD", "--gate", "map_correlation=-1.5"], "got 'map_correlation=-1.5'"),
        (["--int8", "--calib-data", "GOOD", "--gate", "map_correlation=1.5"], "got 'map_correlation=1.5'"),
        (["--int8", "--calib-data", "GOOD", "--calibrator", "nonsense"], "min-max, percentile, mse, entropy"),
        (["--int8", "--calib-data", "EMPTY"], "EMPTY"),
    ],
)
def test_an_option_that_cannot_be_is_one_message_before_any_work(
    small_checkpoint: Path, photographs: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    (tmp_path / "EMPTY").mkdir()
    named = {"GOOD": str(photographs), "EMPTY": str(tmp_path / "EMPTY")}
    target = tmp_path / "none.flowedge"
    done = flowedge("export", small_checkpoint, "-o", target, *(named.get(word, word) for word in options))
    assert done.status == 2
    assert reason in " ".join(done.stderr.split())
    assert not target.exists()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (
            ["calibrate", "--int8"],
            "graphs for --int8 are planned and judged on images of good parts: name their folder",
        ),
        (["verify", "--precision", "auto"], "verify checks one graph: name its precision"),
        (["verify", "--precision", "int8"], "or add it with flowedge calibrate --data GOOD --int8"),
    ],
)
def test_what_a_bundle_cannot_do_names_what_can(
    copy: Callable[[], Path], command: list[str], reason: str
) -> None:
    done = flowedge(command[0], copy(), *command[1:])
    assert done.status == 2
    assert reason in " ".join(done.stderr.split())


def test_an_export_that_is_told_to_end_leaves_nothing(
    small_checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "from flowedge.cli import main; main()"]
    command += ["export", str(small_checkpoint), "-o", str(tmp_path / "killed.flowedge")]
    with subprocess.Popen([*command, "--int8", "--calib-data", str(photographs), *LOOSE]) as export:
        while not list(tmp_path.iterdir()):  # until it has begun to write
            assert export.poll() is None
            time.sleep(0.01)
        export.send_signal(signal.SIGTERM)
        assert export.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_gate_that_cannot_pass_ends_with_its_reason_and_changes_nothing(
    copy: Callable[[], Path], photographs: Path, tmp_path: Path
) -> None:
    bundle = copy()
    before = {path: path.read_bytes() for path in sorted(bundle.rglob("*")) if path.is_file()}
    impossible = ("--gate", "map_correlation=1", "--gate", "map_error=0")
    done = flowedge("calibrate", bundle, "--data", photographs, "--fp16", *impossible)
    assert done.status == 1
    assert "fp16 cannot pass its gate" in done.stderr
    assert "must be at most 0" in done.stderr
    assert "Nothing was written" in done.stderr
    assert {path: path.read_bytes() for path in sorted(bundle.rglob("*")) if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} <= {"small.flowedge", "cache"}


def test_a_bundle_with_bfloat16_says_how_it_is_calibrated(
    small_checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "small.flowedge"
    assert flowedge("export", small_checkpoint, "-o", target, "--bf16").status == 0
    before = (target / "manifest.json").read_bytes()
    done = flowedge("calibrate", target, "--data", photographs, "--engine", "onnxruntime-cpu")
    assert done.status == 2
    assert "--engine openvino" in done.stderr
    assert "or add --bf16" in done.stderr
    assert (target / "manifest.json").read_bytes() == before


def test_a_precision_that_is_slow_here_is_told_before_it_is_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {"bf16": "bfloat16 is slow here.", "int8-cpu": "INT8 is slow here."}
    monkeypatch.setattr("flowedge.runtime.device.machine.slow_precisions", lambda: slow)
    print_slow_precisions(bf16=True, int8=False)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "bfloat16 is slow here. The graph may still be worth it on another device.\n"
    print_slow_precisions(bf16=False, int8=True)
    assert capsys.readouterr().err.startswith("INT8 is slow here.")


def test_a_correlation_may_have_any_limit() -> None:
    gate = ["map_correlation=-1", "rank_agreement=-0.5"]
    request = precision_request(fp16=True, bf16=False, int8=False, calibrator="mse", gate=gate, labelled=None)
    assert request is not None
    limits = request.limits["fp16"]
    assert (limits.map_correlation, limits.rank_agreement) == (-1.0, -0.5)
