"""A checkpoint exported with --nfa goes through every command that uses the number of false alarms."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import flowedge as package
from flowedge.bundle import open_bundle, replace_in_bundle
from flowedge.export.pipeline import ExportOptions, read_model
from flowedge.export.reference.answers import reference_answers
from flowedge.manifest import NfaOutputs
from flowedge.runtime.nfa import tree_log_nfa
from flowedge.runtime.opening.selftest import ANSWERS
from support.command_line import flowedge


@pytest.fixture(scope="module")
def exported(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the small CFLOW with ``--nfa`` in both precisions. A test copies the bundle before it changes it."""
    bundle = tmp_path_factory.mktemp("nfa") / "small.flowedge"
    done = flowedge("export", small_checkpoint, "--nfa", "--fp16", "-o", bundle)
    assert done.status == 0, done.stderr
    for name in ("energy 0", "energy 1", "count 0", "count 1"):
        assert done.stdout.count(f"{name} against the expected answers") == 2
    return bundle


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """Copy the exported bundle, so that a test can change it."""
    return Path(shutil.copytree(exported, tmp_path / "small.flowedge"))


def test_the_manifest_says_what_is_counted(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.nfa == NfaOutputs(energies=True, window=5, probability=0.9)
    assert "window 5, probability 0.9" in flowedge("info", bundle).stdout


def test_energies_and_counts_verify_against_the_checkpoint(bundle: Path, small_checkpoint: Path) -> None:
    for precision in ("fp32", "fp16"):
        done = flowedge("verify", bundle, "--against", small_checkpoint, "--precision", precision)
        assert done.status == 0, done.stdout + done.stderr
        assert "count 1 against the checkpoint" in done.stdout


def test_the_reference_runs_once_for_levels_energies_and_counts(small_checkpoint: Path) -> None:
    read = read_model(small_checkpoint, ExportOptions())
    runs: list[int] = []
    read.backbone.register_forward_hook(lambda _module, inputs, _output: runs.append(len(inputs[0])))
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    answers = reference_answers(
        read.reference_network(), images, NfaOutputs(energies=True, window=5, probability=0.9)
    )
    assert runs == [1, 1]
    assert answers.keys() == {f"{kind}_{n}" for kind in ("level", "energy", "count") for n in (0, 1)}
    assert reference_answers(read.reference_network(), images, None).keys() == {"level_0", "level_1"}


@pytest.mark.parametrize("name", ["energy_1", "count_1"])
def test_a_self_test_with_other_answers_fails(bundle: Path, name: str) -> None:
    opened = open_bundle(bundle)
    with np.load(io.BytesIO(opened.read(ANSWERS))) as stored:
        answers = {key: stored[key] for key in stored.files}
    answers[name][0, 0, 2, 2] += 0.05 * 128 * 9  # 5 % of what a window of 128 channels can count
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **answers)
    replace_in_bundle(opened, files={ANSWERS: buffer.getvalue()})
    done = flowedge("verify", bundle)
    assert done.status == 1
    failed = [line for line in done.stdout.splitlines() if "FAILED" in line or "failed" in line]
    assert [name.replace("_", " ") in line for line in failed] == [True]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("form", ["tree", "block"])
def test_both_forms_decide_in_both_precisions(bundle: Path, form: str, precision: str) -> None:
    assert flowedge("calibrate", bundle, "--threshold", f"nfa-{form}").status == 0
    frames = [np.random.default_rng(n).integers(0, 256, (80, 60, 3), dtype=np.uint8) for n in range(3)]
    with package.load(bundle, precision=precision) as detector:
        batch = detector.detect_batch(frames)
        for frame, result in zip(frames, batch, strict=True):
            alone = detector(frame)
            assert result.log_nfa == pytest.approx(alone.log_nfa, rel=1e-3)
            assert result.verdict == ("anomalous" if result.log_nfa < 0 else "ok")
            assert result.mask is not None
            assert result.mask.shape == (80, 60)


def test_the_tree_of_a_cflow_takes_its_energies(bundle: Path) -> None:
    assert flowedge("calibrate", bundle, "--threshold", "nfa").status == 0
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with package.load(bundle) as detector:
        given: dict[str, np.ndarray] = {}
        engine = detector.engine.engine
        infer = engine.infer

        def kept(*inputs: np.ndarray) -> dict[str, np.ndarray]:
            given.update(infer(*inputs))
            return given

        engine.infer = kept  # type: ignore[method-assign]
        result = detector(frame)
    energies = [given["energy_0"][0, 0], given["energy_1"][0, 0]]
    assert result.network_log_nfa is not None
    np.testing.assert_array_equal(result.network_log_nfa, tree_log_nfa(energies, [64, 128], (64, 64)))


def test_the_reference_that_is_fitted_beside_it_is_printed(bundle: Path, tmp_path: Path) -> None:
    for number in range(2):
        image = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    arguments: tuple[str | Path, ...] = ("calibrate", bundle, "--threshold", "nfa", "--data", tmp_path)
    done = flowedge(*arguments)
    assert done.status == 0, done.stderr
    assert "score maxima fitted on 2 good images" in done.stdout
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if re.match(r"fp\d+ +-?\d", line)}
    graphs = open_bundle(bundle).manifest.graphs
    for graph in graphs:
        assert graph.scoring.score_maxima is not None
        for value in (*graph.scoring.score_maxima.level_max, graph.scoring.score_maxima.map_max):
            assert f"{value:.4f}" in rows[graph.precision]
    printed = json.loads(flowedge(*arguments, "--json").stdout)["graphs"]
    assert [one["reference"]["map_max"] for one in printed] == [
        graph.scoring.score_maxima.map_max for graph in graphs if graph.scoring.score_maxima is not None
    ]
    assert "score maxima fitted" not in flowedge(*arguments, "--no-score-maxima").stdout


def test_a_bundle_exported_without_it_is_refused_by_both_forms(small_bundle: Path) -> None:
    for form in ("tree", "block"):
        done = flowedge("calibrate", small_bundle, "--threshold", f"nfa-{form}")
        assert done.status == 2
        assert "Export the checkpoint again with --nfa" in " ".join(done.stderr.split())


def test_eval_lists_the_rules_side_by_side(bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for label in ("good", "spot"):
        folder = tmp_path / "data" / "test" / label
        folder.mkdir(parents=True)
        masks = tmp_path / "data" / "ground_truth" / label
        for number in range(3):
            image = rng.integers(90, 110, (64, 64, 3), dtype=np.uint8)
            if label == "spot":
                masks.mkdir(parents=True, exist_ok=True)
                image[20:40, 20:40] = 255
                mask = np.zeros((64, 64), np.uint8)
                mask[20:40, 20:40] = 255
                assert cv2.imwrite(str(masks / f"{number}_mask.png"), mask)
            assert cv2.imwrite(str(folder / f"{number}.png"), image)
    good = tmp_path / "data" / "test" / "good"
    assert flowedge("calibrate", bundle, "--data", good).status == 0
    assert flowedge("calibrate", bundle, "--threshold", "nfa-block", "--log-nfa", "-3").status == 0
    done = flowedge("eval", bundle, tmp_path / "data", "--json")
    assert done.status == 0, done.stderr
    decisions = json.loads(done.stdout)["decisions"]
    assert [(one["rule"], one["log_nfa"]) for one in decisions] == [
        ("fitted", None),
        ("best F1", None),
        ("nfa-block", 0.0),
        ("nfa-block", -3.0),
    ]
    assert all(0 <= one["pixel_iou"] <= 1 for one in decisions)
    assert "pixel IoU" in flowedge("eval", bundle, tmp_path / "data").stdout
