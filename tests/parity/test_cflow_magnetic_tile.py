"""Compare the export of a checkpoint trained on real photographs with anomalib's answers to each of them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

import flowedge
from flowedge.export.pipeline import ExportOptions, read_model
from flowedge.runtime import Detector
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.preprocess import Preprocessor
from support.command_line import flowedge as run_flowedge

Recorded: TypeAlias = dict[str, NDArray[Any]]
# The limit of scores and maps that reach 2.4. Both sides compute in float32.
TOLERANCE = 1e-4
# AUROCs of the same network with levels normalised by the maxima over good images (the paper's way, over
# the test set, gives 0.8350 and 0.8247, and each image by its own maximum gives 0.7999 and 0.7740).
IMAGE_AUROC, PIXEL_AUROC = 0.834, 0.823


@pytest.fixture(scope="module")
def expected(tile_checkpoint: Path) -> Recorded:
    """Read ``names`` and ``score`` ``(240,)``, and the input ``x`` and ``anomaly_map`` of the images ``map_index``."""
    with np.load(tile_checkpoint.with_suffix(".expected.npz")) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def detector(tile_bundle: Path) -> Iterator[Detector]:
    with flowedge.load(tile_bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def calibrated(calibrated_tile_bundle: Path) -> Iterator[Detector]:
    with flowedge.load(calibrated_tile_bundle) as opened:
        yield opened


def paths(expected: Recorded, tiles: Path) -> list[Path]:
    return [tiles / "test" / str(name).removeprefix("test/") for name in expected["names"]]


def some_frames(expected: Recorded, tiles: Path) -> list[NDArray[np.uint8]]:
    """Read the six images with recorded maps, which differ in size."""
    files = paths(expected, tiles)
    return [read_image(files[int(index)]) for index in expected["map_index"]]


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_every_score_is_what_anomalib_answers(
    detector: Detector, expected: Recorded, tiles: Path, step: int
) -> None:
    scores = [detector(read_image(path)).score for path in paths(expected, tiles)[::step]]
    assert len(scores) == 240 // step
    np.testing.assert_allclose(scores, expected["score"][::step], rtol=0, atol=TOLERANCE)


def test_the_recorded_inputs_and_maps_are_what_anomalib_answers(
    detector: Detector, expected: Recorded, tiles: Path
) -> None:
    frames = some_frames(expected, tiles)
    preprocess = Preprocessor(detector.bundle.manifest.preprocessing)
    inputs = np.stack([preprocess(frame) for frame in frames])
    np.testing.assert_allclose(inputs, expected["x"].reshape(inputs.shape), rtol=0, atol=1e-5)
    maps = np.stack([detector(frame).network_map for frame in frames])
    np.testing.assert_allclose(maps, expected["anomaly_map"].reshape(maps.shape), rtol=0, atol=TOLERANCE)


def test_a_calibrated_bundle_separates_as_well_as_the_papers_code(
    calibrated_tile_bundle: Path, tiles: Path
) -> None:
    done = run_flowedge("eval", calibrated_tile_bundle, tiles, "--json")
    assert done.status == 0, done.stderr
    result = json.loads(done.stdout)
    print(f"image AUROC {result['image_auroc']:.4f}, pixel AUROC {result['pixel_auroc']:.4f}")
    assert result["image_auroc"] >= IMAGE_AUROC
    assert result["pixel_auroc"] >= PIXEL_AUROC


@pytest.mark.parametrize("kind", ["as exported", "calibrated"])
@pytest.mark.parametrize(
    "batch", [(0, 1), (1, 0), (5, 4, 3, 2, 1, 0), (2, 2, 2), (0, 1, 2, 3, 4, 5)], ids=str
)
def test_an_image_gets_the_same_answer_alone_and_in_any_batch(
    kind: str,
    batch: tuple[int, ...],
    detector: Detector,
    calibrated: Detector,
    expected: Recorded,
    tiles: Path,
) -> None:
    chosen = detector if kind == "as exported" else calibrated
    frames = some_frames(expected, tiles)
    together = chosen.detect_batch([frames[index] for index in batch])
    for index, result in zip(batch, together, strict=True):
        alone = chosen(frames[index])
        assert result.score == pytest.approx(alone.score, rel=1e-6)
        assert result.verdict == alone.verdict
        scale = float(np.abs(alone.network_map).max())
        np.testing.assert_allclose(result.network_map, alone.network_map, rtol=0, atol=1e-6 * scale)


def test_a_good_frame_passes_and_verdicts_follow_the_threshold(
    calibrated: Detector, expected: Recorded, tiles: Path
) -> None:
    limit = calibrated.thresholds.image
    assert limit is not None
    results = [calibrated(frame) for frame in some_frames(expected, tiles)]
    assert [r.verdict for r in results] == ["anomalous" if r.score > limit.value else "ok" for r in results]


class BlockedError(Exception):
    """Code under test opened a socket."""


def test_reading_a_checkpoint_and_building_its_backbone_opens_no_socket(
    tile_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_named: object) -> NoReturn:
        raise BlockedError

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    assert read_model(tile_checkpoint, ExportOptions()).model.backbone.network == "tf_efficientnet_lite0"


@pytest.mark.slow  # test_telemetry.py counts an export's system calls
def test_export_works_where_there_is_no_network_at_all(small_checkpoint: Path, tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if (
        unshare is None
        or subprocess.run([unshare, "--net", "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("taking the network away needs unshare(1) and the right to use it")
    command = [unshare, "--net", sys.executable, "-c", "import flowedge.cli; flowedge.cli.main()"]
    command += ["export", str(small_checkpoint), "-o", str(tmp_path / "small.flowedge")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
