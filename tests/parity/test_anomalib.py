"""Compare exports of checkpoints that anomalib 2.7 trains here with anomalib's own answers.

The peer runs in an environment of its own (``make peer``, or ``FLOWEDGE_PEER_PYTHON`` for another one's Python), and
every answer is to one image alone: anomalib's CFLOW mixes the images of a batch.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import flowedge
from flowedge.bundle import open_bundle
from flowedge.export.checkpoints import read_checkpoint
from flowedge.export.pipeline import ExportOptions
from flowedge.runtime import Detector, Preprocessor
from flowedge.runtime.frames.images import read_image
from support.artifacts import kept, made_once
from support.command_line import flowedge as run_flowedge
from support.lowered_network import lowered_answers

# The limit is relative to the largest magnitude. Both sides compute in float32.
TOLERANCE = 1e-4
# The limit on anomalib's scale from 0 to 1, which divides by the small range of six validation images.
SCALE_TOLERANCE = 5e-4
FAMILIES = ("cflow", "fastflow", "uflow", "csflow")
REPOSITORY = Path(__file__).resolve().parents[2]
PEER_SCRIPT = Path(__file__).with_name("peer_anomalib.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The files of the peer for one family, and the bundle of its checkpoint."""

    checkpoint: Path
    photographs: tuple[Path, ...]
    answers: dict[str, NDArray[Any]]
    bundle: Path

    def of(self, name: str) -> list[NDArray[Any]]:
        """Return one of the peer's answers, photograph by photograph, without axes of length one."""
        return [self.answers[f"{name}_{n}"].squeeze() for n in range(len(self.photographs))]


@pytest.fixture(scope="session")
def peer_python() -> Path:
    """Return the Python of an environment with anomalib."""
    python = Path(os.environ.get("FLOWEDGE_PEER_PYTHON", REPOSITORY / ".venv-peer" / "bin" / "python"))
    if not python.is_file():
        pytest.skip(f"anomalib's environment is not there ({python}): make peer")
    return python


@pytest.fixture(scope="session")
def peer_folder(peer_python: Path) -> Path:
    """Give the peer's files, a folder for each family, kept until the peer's script or environment changes."""
    packages = sorted(
        path.name for path in peer_python.parent.parent.glob("lib/python*/site-packages/*-info")
    )
    assert any(name.startswith("anomalib-") for name in packages), "the packages of the peer's environment"

    def make(folder: Path) -> None:
        # One process for all families, since importing anomalib takes long.
        command = [str(peer_python), str(PEER_SCRIPT), str(folder), *FAMILIES]
        outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        outside["OMP_NUM_THREADS"] = "1"  # tiny tensors: a second thread only waits
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=outside)
        assert done.returncode == 0, done.stderr[-4000:]

    sources = (PEER_SCRIPT.read_bytes(), " ".join((*FAMILIES, *packages)).encode())
    return kept("anomalib", sources, make)


# CS-Flow's three EfficientNets take half a minute. A test of the network without an export guards them in every run.
# test_cflow_magnetic_tile.py compares another CFLOW of anomalib.
@pytest.fixture(
    scope="session",
    params=[
        pytest.param(name, marks=pytest.mark.slow if name in ("cflow", "csflow") else ()) for name in FAMILIES
    ],
)
def trained(
    request: pytest.FixtureRequest, peer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Return the peer's files and the bundle of one family."""
    family = str(request.param)
    folder = peer_folder / family
    with np.load(folder / "answers.npz") as archive:
        answers = dict(archive)

    def export(empty: Path) -> None:
        exported = run_flowedge("export", folder / "model.ckpt", "-o", empty / "model.flowedge")
        assert exported.status == 0, exported.stderr

    bundle = made_once(tmp_path_factory, f"anomalib-{family}", export) / "model.flowedge"
    photographs = tuple(folder / "asked" / str(name) for name in answers["names"])
    return Trained(checkpoint=folder / "model.ckpt", photographs=photographs, answers=answers, bundle=bundle)


@pytest.fixture
def detector(trained: Trained) -> Iterator[Detector]:
    with flowedge.load(trained.bundle) as opened:
        yield opened


def assert_close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Check that a value that is not constant is within the tolerance of the largest magnitude."""
    assert np.ptp(expected) > 0 or expected.ndim == 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max()))


def test_the_checkpoint_says_all_that_matters_itself(trained: Trained) -> None:
    manifest = open_bundle(trained.bundle).manifest
    assert (manifest.source.repository, manifest.source.generation) == ("anomalib", "2.7")
    assumed = {one.name for one in manifest.assumed}
    assert assumed == ({"clamp"} if manifest.family == "fastflow" else set())  # fixed in anomalib's code


def test_the_torch_export_says_what_the_checkpoint_says(trained: Trained) -> None:
    checkpoint = read_checkpoint(trained.checkpoint)
    exported = read_checkpoint(trained.checkpoint.with_name("export.pt"))
    assert (exported.repository, exported.generation) == ("anomalib", "2.x")
    assert exported.preprocessing == checkpoint.preprocessing
    assert exported.source_scale == checkpoint.source_scale
    assert exported.hyperparameters == checkpoint.hyperparameters
    assert exported.assumed == checkpoint.assumed
    assert exported.backbone_naming == checkpoint.backbone_naming
    np.testing.assert_equal(exported.permutations, checkpoint.permutations)
    np.testing.assert_equal(dict(exported.tensors), dict(checkpoint.tensors))


def test_the_networks_own_state_dict_has_the_same_tensors(trained: Trained) -> None:
    checkpoint = read_checkpoint(trained.checkpoint)
    inner = read_checkpoint(trained.checkpoint.with_name("inner.pt"))
    cflow = checkpoint.family == "cflow"  # by its names it may be TVTVision's, and what is assumed says so
    assert inner.repository == ("Taitran2202/TVTVision" if cflow else "anomalib")
    assert {"resize_method", "mean", "std"} <= {one.name for one in inner.assumed}
    np.testing.assert_equal(dict(inner.tensors), dict(checkpoint.tensors))


def test_a_photograph_becomes_the_input_that_anomalib_makes_of_it(
    trained: Trained, detector: Detector
) -> None:
    preprocess = Preprocessor(detector.bundle.manifest.preprocessing)
    for path, expected in zip(trained.photographs, trained.of("x"), strict=True):
        np.testing.assert_allclose(preprocess(read_image(path)), expected, rtol=0, atol=2e-5)


def test_the_graph_answers_what_anomalibs_model_answers(trained: Trained, detector: Detector) -> None:
    for n, x in enumerate(trained.of("x")):
        found = detector.engine.infer(x[None])
        assert_close(found["score"][0], trained.of("raw_score")[n])
        assert_close(found["anomaly_map"][0, 0], trained.of("raw_map")[n])


def test_csflows_lowered_network_answers_what_anomalibs_model_answers(peer_folder: Path) -> None:
    folder = peer_folder / "csflow"
    with np.load(folder / "answers.npz") as archive:
        answers = dict(archive)
    numbers = range(len(answers["names"]))
    x = np.concatenate([answers[f"x_{n}"].reshape(1, *answers[f"x_{n}"].shape[-3:]) for n in numbers])
    found, preprocessing = lowered_answers(folder / "model.ckpt", ExportOptions(), x)
    preprocess = Preprocessor(preprocessing)
    for n in numbers:
        photograph = read_image(folder / "asked" / str(answers["names"][n]))
        np.testing.assert_allclose(preprocess(photograph), x[n], rtol=0, atol=2e-5)
        assert_close(found["score"][n], answers[f"raw_score_{n}"].squeeze())
        assert_close(found["anomaly_map"][n, 0], answers[f"raw_map_{n}"].squeeze())


def test_from_the_file_on_score_and_map_are_anomalibs(trained: Trained, detector: Detector) -> None:
    for n, path in enumerate(trained.photographs):
        result = detector(read_image(path))
        assert_close(np.array(result.score), trained.of("raw_score")[n])
        assert_close(result.network_map, trained.of("raw_map")[n])


def test_on_the_sources_scale_score_map_and_label_are_those_that_anomalib_predicts(trained: Trained) -> None:
    with flowedge.load(trained.bundle, source_scale=True) as detector:
        limit = detector.thresholds.pixel
        assert limit is not None
        for n, path in enumerate(trained.photographs):
            result = detector(read_image(path))
            score, anomaly_map = trained.of("score")[n], trained.of("map")[n]
            assert result.score == pytest.approx(float(score), abs=SCALE_TOLERANCE)
            np.testing.assert_allclose(result.network_map, anomaly_map, rtol=0, atol=SCALE_TOLERANCE)
            assert result.is_anomalous == bool(trained.of("label")[n])
            sure = np.abs(anomaly_map - limit.value) > SCALE_TOLERANCE
            mask = trained.of("mask")[n].astype(bool)
            np.testing.assert_array_equal((result.network_map > limit.value)[sure], mask[sure])


def test_the_photographs_are_told_apart_on_the_sources_scale(trained: Trained) -> None:
    """Saturated values would be equal whatever the bundle answers."""
    scores = np.array(trained.of("score"))
    assert ((scores > 0) & (scores < 1)).any()
    maps = np.concatenate([one.ravel() for one in trained.of("map")])
    assert ((maps > 0) & (maps < 1)).mean() > 0.1


def test_the_command_line_reports_the_sources_verdict(trained: Trained) -> None:
    done = run_flowedge("run", trained.bundle, trained.photographs[0].parent, "--source-scale", "--json")
    assert done.status == 0, done.stderr
    found = {Path(line["image"]).name: line for line in map(json.loads, done.stdout.splitlines())}
    for path, label, score in zip(trained.photographs, trained.of("label"), trained.of("score"), strict=True):
        assert found[path.name]["verdict"] == ("anomalous" if label else "ok")
        assert found[path.name]["score"] == pytest.approx(float(score), abs=SCALE_TOLERANCE)
