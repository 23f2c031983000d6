"""Compare the exported graphs with the answers of the five official implementations to two images."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from flowedge.bundle import open_bundle
from flowedge.export.pipeline import ExportOptions
from support.command_line import flowedge
from support.golden import PARAMETERS, RECORDS, WITHOUT_AN_EXPORT, ExportedRecord, exported_record, unpack
from support.lowered_network import lowered_answers


@pytest.fixture(scope="module", params=PARAMETERS)
def exported(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> ExportedRecord:
    return exported_record(request.param, shared, tmp_path_factory)


def compare(
    shared: Path, made: ExportedRecord, tolerance: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    """Run the records' own comparison in this process, and return its exit status and what it printed."""
    tool = shared / "tools" / "check_golden.py"
    spec = importlib.util.spec_from_file_location("check_golden", tool)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec.loader.exec_module(module)
    arguments = [str(tool), str(made.bundle), str(made.folder), "--tol", tolerance]
    monkeypatch.setattr(sys, "argv", arguments)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status: int = module.main()
    return status, printed.getvalue()


def test_levels_map_and_score_are_those_of_the_official_implementation(
    shared: Path, exported: ExportedRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, printed = compare(shared, exported, "3e-5", monkeypatch)
    assert status == 0, printed


@pytest.mark.parametrize("name", WITHOUT_AN_EXPORT)
def test_the_lowered_network_answers_as_the_official_one(shared: Path, tmp_path: Path, name: str) -> None:
    (record,) = (one for one in RECORDS if one.folder == name)
    folder = unpack(record, shared, tmp_path)
    options = ExportOptions(
        image_size=(256, 256) if "--image-size" in record.options else None,
        backbone_weights=None if record.weights is None else folder / record.weights,
    )
    with np.load(folder / "golden.npz") as golden:
        found, _ = lowered_answers(folder / record.checkpoint, options, golden["x"])
        compared = {"score": "score", **{f"level_{n}": f"z_mean_sq_{n}" for n in range(3)}}
        if "anomaly_map" in golden:
            compared["anomaly_map"] = "anomaly_map"
        for ours, theirs in compared.items():
            expected = golden[theirs].astype(np.float64)
            limit = 3e-5 * np.abs(expected).max()
            np.testing.assert_allclose(found[ours].reshape(expected.shape), expected, rtol=0, atol=limit)


def test_the_comparison_can_fail(
    shared: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest = exported_record(RECORDS[0], shared, tmp_path_factory)
    assert compare(shared, fastest, "1e-12", monkeypatch)[0] == 1


@pytest.mark.slow  # test_cflow_magnetic_tile.py compares such a graph with anomalib's answers
def test_a_graph_without_the_outputs_for_false_alarms_is_right_as_well(
    shared: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without these outputs the last rotation is dropped, which only CFLOW has."""
    with_counts = exported_record(RECORDS[0], shared, tmp_path_factory)
    bundle = tmp_path / "plain.flowedge"
    done = flowedge("export", with_counts.checkpoint, "-o", bundle, *with_counts.record.options)
    assert done.status == 0, done.stderr
    plain = ExportedRecord(with_counts.record, with_counts.folder, bundle)
    status, printed = compare(shared, plain, "3e-5", monkeypatch)
    assert status == 0, printed


def test_verify_refuses_a_photograph_that_the_network_cannot_take(
    exported: ExportedRecord, tmp_path: Path
) -> None:
    preprocessing = open_bundle(exported.bundle).manifest.preprocessing
    if not preprocessing.keep_aspect:
        pytest.skip("it takes photographs of any shape")
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((60, 90, 3), np.uint8))
    options = ("--against", exported.checkpoint, "--data", tmp_path, *exported.weights())
    done = flowedge("verify", exported.bundle, *options)
    assert done.status == 2
    assert "a frame of 60x90 becomes" in done.stderr
    assert "Crop" in done.stderr


def test_the_bundle_verifies_against_the_checkpoint_in_freia_and_timm(exported: ExportedRecord) -> None:
    done = flowedge("verify", exported.bundle, "--against", exported.checkpoint, *exported.weights())
    assert done.status == 0, done.stdout + done.stderr
