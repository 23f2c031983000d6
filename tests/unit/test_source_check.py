"""A preprocessing that contradicts the ranges in the checkpoint is reported, and a right one is not."""

from __future__ import annotations

import shutil
from math import comb
from pathlib import Path

import msgspec
import numpy as np
import pytest

import flowedge
from flowedge.bundle import Bundle, open_bundle, replace_in_bundle
from flowedge.calibration.source_check import FEWEST_IMAGES, _contradictions, preprocessing_doubt
from flowedge.manifest import Assumed, PartScale, Preprocessing, SourceScale
from flowedge.runtime.frames.images import read_image
from support.block_graph import write_photographs
from support.command_line import flowedge as run_flowedge
from support.tiny_bundle import tiny_manifest, write_tiny_bundle


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return write_photographs(tmp_path_factory.mktemp("photographs") / "good", 30)


def scores_of(bundle: Bundle, images: tuple[Path, ...]) -> list[float]:
    with flowedge.load(bundle.path) as detect:
        return [detect(read_image(path)).score for path in images]


def doubt_of(bundle: Bundle, images: tuple[Path, ...]) -> str:
    with flowedge.load(bundle.path) as detect:
        return preprocessing_doubt(detect, images)


RIGHT = tiny_manifest().preprocessing
LEVELS_OF_255 = msgspec.structs.replace(RIGHT, std=(0.001, 0.001, 0.001))


@pytest.fixture(scope="module")
def scale(tmp_path_factory: pytest.TempPathFactory, photographs: tuple[Path, ...]) -> SourceScale:
    """Give the ranges of a source that saw ten photographs, and defects half way from them to the largest score, 0."""
    made = write_tiny_bundle(tmp_path_factory.mktemp("source") / "tiny.flowedge", preprocessing=RIGHT)
    scores = scores_of(made, photographs[:10])
    part = PartScale(
        threshold=max(scores) * 0.8, minimum=min(scores), maximum=max(scores) * 0.5, sensitivity=0.5
    )
    return SourceScale(rule="2.7", image=part, pixel=part)


def exported(
    folder: Path, scale: SourceScale | None, preprocessing: Preprocessing = RIGHT, **changes: object
) -> Bundle:
    """Export the source's network with an assumed preprocessing."""
    bundle = write_tiny_bundle(folder / "tiny.flowedge", preprocessing=preprocessing)
    manifest = msgspec.structs.replace(bundle.manifest, source_scale=scale, **changes)
    return replace_in_bundle(bundle, manifest=manifest)


def test_good_images_with_the_right_preprocessing_raise_no_doubt(
    tmp_path: Path, scale: SourceScale, photographs: tuple[Path, ...]
) -> None:
    assert doubt_of(exported(tmp_path, scale), photographs[10:]) == ""


@pytest.mark.parametrize(
    "changes",
    [{"std": (0.001, 0.001, 0.001)}, {"mean": (-2.0, -2.0, -2.0)}, {"std": (9.0, 9.0, 9.0)}],
    ids=["levels of 0 to 255", "another mean", "too large a deviation"],
)
def test_a_wrong_normalisation_is_noticed_with_the_numbers(
    tmp_path: Path,
    scale: SourceScale,
    photographs: tuple[Path, ...],
    changes: dict[str, tuple[float, float, float]],
) -> None:
    doubt = doubt_of(exported(tmp_path, scale, msgspec.structs.replace(RIGHT, **changes)), photographs)
    for word in ("source's range", f"{scale.image.maximum:.4g}", "--transform-from"):
        assert word in doubt


def test_assumed_values_of_the_preprocessing_are_named_and_others_are_not(
    tmp_path: Path, scale: SourceScale, photographs: tuple[Path, ...]
) -> None:
    assumed = (
        Assumed(name="mean", value=[0.5, 0.5, 0.5], given=False, why="The default."),
        Assumed(name="clamp", value=1.9, given=False, why="The default."),
    )
    doubt = doubt_of(exported(tmp_path, scale, LEVELS_OF_255, assumed=assumed), photographs)
    assert "mean=[0.5, 0.5, 0.5]" in doubt
    assert "clamp" not in doubt


def test_good_images_that_the_source_would_stop_are_noticed_within_its_range(
    tmp_path: Path, scale: SourceScale, photographs: tuple[Path, ...]
) -> None:
    wide = msgspec.structs.replace(scale.image, minimum=-1e9, maximum=1e9, threshold=-0.9e9)
    rule = SourceScale(rule="0.x-1.x", image=wide, pixel=PartScale())
    assert "source's own threshold" in doubt_of(exported(tmp_path, rule), photographs)


@pytest.mark.parametrize(("shift", "is_doubted"), [(0.0, False), (1.0, False), (5.0, True), (-5.0, True)])
def test_a_mean_and_a_deviation_of_the_source_serve_as_its_range(shift: float, is_doubted: bool) -> None:
    logs = np.random.default_rng(0).normal(-2.0, 0.3, 32)
    part = PartScale(threshold=50.0, log_mean=-2.0 - shift * 0.3, log_std=0.3)
    rule = SourceScale(rule="0.x-cdf", image=part, pixel=part)
    assert bool(list(_contradictions(np.exp(logs), np.exp(logs), rule))) is is_doubted


def test_nothing_is_said_of_few_images_or_without_a_source_scale(
    tmp_path: Path, scale: SourceScale, photographs: tuple[Path, ...]
) -> None:
    wrong = exported(tmp_path, scale, LEVELS_OF_255)
    assert doubt_of(wrong, photographs[: FEWEST_IMAGES - 1]) == ""
    unreadable = tuple(tmp_path / f"{n}.png" for n in range(30))
    assert doubt_of(wrong, unreadable) == ""
    manifest = msgspec.structs.replace(wrong.manifest, source_scale=None)
    assert doubt_of(replace_in_bundle(wrong, manifest=manifest), photographs) == ""


@pytest.mark.parametrize("images", [FEWEST_IMAGES, 23, 27, 32])
def test_the_rules_err_as_rarely_as_stated(images: int) -> None:
    source = 10
    outside = -(-3 * images // 4)
    # The share of all orders of new and old images with that many new ones at one end, for two ends and two ranges.
    one_end = comb(images + source - outside, source) / comb(images + source, source)
    assert 4 * one_end < 0.01
    stopped = -(-4 * images // 5)
    assert sum(comb(images, n) for n in range(stopped, images + 1)) / 2**images < 0.01


def test_both_commands_warn_and_still_do_their_work(
    tmp_path: Path, scale: SourceScale, photographs: tuple[Path, ...]
) -> None:
    data = tmp_path / "data"
    for place in ("train/good", "test/good", "test/dent"):
        (data / place).mkdir(parents=True)
        for path in photographs[:20]:
            shutil.copy(path, data / place)
    for preprocessing, is_doubted in ((RIGHT, False), (LEVELS_OF_255, True)):
        folder = tmp_path / str(is_doubted)
        folder.mkdir()
        bundle = exported(folder, scale, preprocessing)
        for command in (("calibrate", bundle.path, "--data", data), ("eval", bundle.path, data)):
            done = run_flowedge(*command)
            assert done.status == 0, done.stderr
            assert ("--transform-from" in done.stderr) is is_doubted


def test_a_calibration_without_a_display_returns_the_doubt(
    tmp_path: Path, scale: SourceScale, photographs: tuple[Path, ...]
) -> None:
    bundle = exported(tmp_path, scale, LEVELS_OF_255)
    assert "--transform-from" in flowedge.calibrate(bundle.path, photographs[0].parent).doubt


def test_the_real_checkpoint_with_its_own_preprocessing_raises_no_doubt(
    calibrated_tile_bundle: Path, tiles: Path
) -> None:
    for folder in ("train", "test"):
        images = sorted((tiles / folder / "good").iterdir())[::4]
        assert len(images) >= FEWEST_IMAGES
        assert doubt_of(open_bundle(calibrated_tile_bundle), tuple(images)) == ""
