"""A frame unlike those of good parts is not inspected, and good frames are stopped as rarely as asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

import flowedge
from flowedge.bundle import Bundle, open_bundle, replace_in_bundle
from flowedge.calibration import calibrate_bundle
from flowedge.calibration.calibration_record import read_record
from flowedge.calibration.dataset import read_dataset
from flowedge.calibration.defects import DEFECTS, synthetic_defect
from flowedge.calibration.evaluation import evaluate
from flowedge.calibration.frame_range import (
    FEWEST_FRAMES,
    _extrapolated_limit,
    fit_frame_check,
)
from flowedge.calibration.precision import PrecisionRequest, add_precisions
from flowedge.errors import BundleError, CalibrationError
from flowedge.frame_quantities import FRAME_QUANTITIES
from flowedge.manifest import FrameCheck, FrameRange
from flowedge.manifest_json import json_from_manifest
from flowedge.runtime.frames.frame_check import FrameChecker, frame_statistics
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.inspection import inspect_images
from support.block_graph import random_layers, write_block_bundle, write_photographs
from support.command_line import flowedge as run_flowedge
from support.tiny_bundle import tiny_manifest, write_tiny_bundle

TILES = Path(__file__).resolve().parents[3] / "shared" / "data" / "magnetic_tile"
DEFECT_CLASSES = ("blowhole", "break", "crack", "fray", "uneven")
Frame = NDArray[np.uint8]

needs_tiles = pytest.mark.skipif(not TILES.is_dir(), reason="the photographs are not beside this checkout")


@pytest.fixture(scope="module")
def tile_statistics() -> dict[str, NDArray[np.float64]]:
    """Return the statistics of the photographs by the folder of the dataset, a row for each photograph."""
    folders = {
        "train/good": "train",
        "test/good": "good",
        **{f"test/{name}": name for name in DEFECT_CLASSES},
    }
    return {
        name: np.array([frame_statistics(read_image(path)) for path in sorted((TILES / folder).iterdir())])
        for folder, name in folders.items()
    }


@pytest.fixture(scope="module")
def tile_checker(tile_statistics: dict[str, NDArray[np.float64]]) -> FrameChecker:
    check = fit_frame_check(tile_statistics["train"]).check
    assert check is not None
    return FrameChecker(check)


def exposed(frame: Frame, factor: float) -> Frame:
    return np.asarray(np.clip(frame * factor, 0, 255), np.uint8)


def flat(level: int) -> Callable[[Frame], Frame]:
    return lambda frame: np.full_like(frame, level)


def blackened(frame: Frame, rows: float, columns: float) -> Frame:
    frame = frame.copy()
    frame[: int(len(frame) * rows), : int(frame.shape[1] * columns)] = 0
    return frame


def noise(frame: Frame, level: float, deviation: float) -> Frame:
    drawn = np.random.default_rng(0).normal(level, deviation, frame.shape)
    return np.clip(drawn, 0, 255).astype(np.uint8)


FAULTS: dict[str, Callable[[Frame], Frame]] = {
    **{f"grey {level}": flat(level) for level in (0, 3, 20, 70, 108, 160, 230, 255)},
    "lens cap with noise": lambda f: noise(f, 3, 2),
    "fog with noise": lambda f: noise(f, 110, 4),
    "noise": lambda f: np.random.default_rng(0).integers(0, 256, f.shape, np.uint8),
    "overexposed": lambda f: exposed(f, 5.0),
    "underexposed": lambda f: exposed(f, 0.1),
    "out of focus": lambda f: cv2.GaussianBlur(f, (0, 0), 12).astype(np.uint8),
    "no red": lambda f: f * np.array([0, 1, 1], np.uint8),
    "no blue": lambda f: f * np.array([1, 1, 0], np.uint8),
    "only green": lambda f: f * np.array([0, 1, 0], np.uint8),
    "upper half black": lambda f: blackened(f, 0.5, 1),
    "left half black": lambda f: blackened(f, 1, 0.5),
    "a quarter black": lambda f: blackened(f, 0.5, 0.5),
    "all but the top rows black": lambda f: (
        f * (np.arange(len(f)) < len(f) / 5)[:, None, None].astype(np.uint8)
    ),
}


@needs_tiles
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_frame_is_unlike_the_good_tiles(tile_checker: FrameChecker, fault: str) -> None:
    for path in sorted((TILES / "test" / "good").iterdir())[:20]:
        assert tile_checker(FAULTS[fault](read_image(path))), path.name


@needs_tiles
@pytest.mark.parametrize("factor", [0.95, 1.0, 1.05])
def test_good_tiles_and_real_defects_pass_at_a_little_more_or_less_light(
    tile_checker: FrameChecker, factor: float
) -> None:
    for folder in ("good", *DEFECT_CLASSES):
        for path in sorted((TILES / "test" / folder).iterdir())[:28]:
            assert not tile_checker(exposed(read_image(path), factor)), f"{folder}/{path.name}"


@needs_tiles
@pytest.mark.parametrize(("count", "rate"), [(10, 0.001), (30, 0.001), (200, 0.001), (30, 0.01), (200, 0.01)])
def test_tiles_that_were_left_out_are_stopped_about_as_rarely_as_stated(
    tile_statistics: dict[str, NDArray[np.float64]], count: int, rate: float
) -> None:
    good = np.concatenate([tile_statistics["train"], tile_statistics["good"]])
    rng = np.random.default_rng(0)
    stopped = images = 0
    for _ in range(40):
        order = rng.permutation(len(good))
        check = fit_frame_check(good[order[:count]], rate=rate).check
        assert check is not None
        checker = FrameChecker(check)
        stopped += sum(bool(checker.problem(row)) for row in good[order[count:]])
        images += len(good) - count
    assert stopped / images < 2.5 * rate


@pytest.mark.parametrize("count", [10, 30, 200])
@pytest.mark.parametrize("rate", [0.001, 0.01])
def test_the_limit_is_exceeded_at_the_stated_rate_where_deviations_fall_off_exponentially(
    count: int, rate: float
) -> None:
    drawn = np.sort(np.random.default_rng(count).exponential(size=(20_000, count)), axis=1)
    exceeded = np.exp([-_extrapolated_limit(row, rate) for row in drawn])
    assert exceeded.mean() == pytest.approx(rate, rel=0.06)


@pytest.mark.parametrize("count", [10, 30, 200])
def test_frames_of_independent_normal_quantities_are_stopped_about_as_rarely_as_stated(count: int) -> None:
    rng = np.random.default_rng(1)

    def statistics(frames: int) -> NDArray[np.float64]:
        centre = np.array([0.2 if name.endswith("share") else 20.0 for name in FRAME_QUANTITIES])
        spread = rng.normal(scale=0.25, size=(frames, len(FRAME_QUANTITIES)))
        return centre * np.exp(spread)

    rates = []
    for _ in range(20):
        check = fit_frame_check(statistics(count), rate=0.01).check
        assert check is not None
        checker = FrameChecker(check)
        rates.append(np.mean([bool(checker.problem(row)) for row in statistics(500)]))
    assert np.mean(rates) < 0.02


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_on_a_steady_scene_is_inspected(kind: str) -> None:
    rng = np.random.default_rng(0)
    scene = np.full((300, 300, 3), (60, 62, 58), np.uint8)
    cv2.circle(scene, (150, 150), 100, (150, 120, 90), -1)

    def taken() -> Frame:
        return np.clip(scene * rng.normal(1, 0.01) + rng.normal(0, 2, scene.shape), 0, 255).astype(np.uint8)

    check = fit_frame_check(np.array([frame_statistics(taken()) for _ in range(30)])).check
    assert check is not None
    checker = FrameChecker(check)
    drawn = [synthetic_defect(taken(), kind, np.random.default_rng(n)) for n in range(40)]
    stopped = sum(bool(checker(defect.frame)) for defect in drawn)
    assert stopped <= 8, "only what changes a fifth of the picture"
    assert checker(np.full_like(scene, 90))
    assert checker(exposed(taken(), 0.6))


def steady(count: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    clouds = cv2.resize(rng.uniform(60, 160, (6, 8, 3)), (200, 150), interpolation=cv2.INTER_LINEAR)
    frames = [
        np.clip(clouds * rng.normal(1, 0.05) + rng.normal(0, 4, clouds.shape), 0, 255).astype(np.uint8)
        for _ in range(count)
    ]
    return np.array([frame_statistics(frame) for frame in frames])


@pytest.mark.parametrize("count", [12, 60])
def test_a_black_frame_among_the_good_ones_is_named_and_stays_outside(count: int) -> None:
    black = frame_statistics(np.zeros((64, 64, 3), np.uint8))
    fitted = fit_frame_check(
        np.concatenate([steady(count), black[None]]), names=[f"{n}.png" for n in range(count + 1)]
    )
    assert len(fitted.notes) == 1
    assert fitted.notes[0].startswith(f"{count}.png: ")
    assert fitted.check is not None
    assert FrameChecker(fitted.check).problem(black)


def test_ranges_need_a_few_frames_and_a_rate_between_0_and_1() -> None:
    few = fit_frame_check(steady(FEWEST_FRAMES - 1))
    assert few.check is None
    assert f"{FEWEST_FRAMES - 1}" in few.notes[0]
    assert fit_frame_check(steady(FEWEST_FRAMES)).check is not None
    for rate in (0.0, 1.0, float("nan")):
        with pytest.raises(CalibrationError, match="between 0 and 1"):
            fit_frame_check(steady(10), rate=rate)


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_ranges_of_frames_that_are_all_one_colour_are_written_and_hold_them(level: int) -> None:
    row = frame_statistics(np.full((40, 40, 3), level, np.uint8))
    check = fit_frame_check(np.tile(row, (10, 1))).check
    assert check is not None
    json_from_manifest(msgspec.structs.replace(tiny_manifest(), frame_check=check))
    assert not FrameChecker(check).problem(row)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (2, 3), (97, 191), (1000, 3)])
def test_frames_of_every_size_are_measured(shape: tuple[int, int]) -> None:
    values = frame_statistics(np.full((*shape, 3), (10, 20, 30), np.uint8))
    assert np.isfinite(values).all()
    assert dict(zip(FRAME_QUANTITIES, values, strict=True)) == pytest.approx(
        {
            **dict.fromkeys(FRAME_QUANTITIES, 0.0),
            **{name: 20.0 for name in FRAME_QUANTITIES if name.startswith("cell") and name.endswith("mean")},
            "red mean": 10,
            "green mean": 20,
            "blue mean": 30,
            "sharpness": 1,
            "colour": 20,
        },
        abs=1e-5,
    )


def test_the_message_names_the_quantity_its_value_and_its_range() -> None:
    check = FrameCheck(
        rate=0.01,
        images=20,
        ranges=(
            FrameRange(quantity="red mean", low=30, high=50),
            FrameRange(quantity="blue mean", low=30, high=40),
        ),
    )
    checker = FrameChecker(check)
    assert checker(np.full((9, 9, 3), 35, np.uint8)) == ""
    problem = checker(np.full((9, 9, 3), 200, np.uint8))
    for word in ("blue mean", "200", "30 to 40", "1 more"):
        assert word in problem


NOT_DARK = FrameCheck(rate=0.01, images=20, ranges=(FrameRange(quantity="green mean", low=40, high=255),))
DARK, LIGHT = np.full((16, 24, 3), 3, np.uint8), np.full((16, 24, 3), 120, np.uint8)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny.flowedge")


def test_a_detector_does_not_inspect_what_is_outside_and_says_why(bundle: Bundle) -> None:
    with flowedge.load(bundle.path) as detect:
        before = detect(DARK)
    assert (before.verdict, before.problem) == ("unknown", ""), "a bundle without the field is as before"
    replace_in_bundle(bundle, manifest=msgspec.structs.replace(bundle.manifest, frame_check=NOT_DARK))
    with flowedge.load(bundle.path) as detect:
        dark, light = detect.detect_batch([DARK, LIGHT])
    assert dark.verdict == "not_inspected"
    assert "green mean" in dark.problem
    assert dark.is_anomalous is None
    assert dark.score == before.score
    assert (light.verdict, light.problem) == ("unknown", "")


def test_a_folder_reports_the_frame_that_was_not_inspected(bundle: Bundle, tmp_path: Path) -> None:
    replace_in_bundle(bundle, manifest=msgspec.structs.replace(bundle.manifest, frame_check=NOT_DARK))
    for name, frame in (("dark.png", DARK), ("light.png", LIGHT)):
        assert cv2.imwrite(str(tmp_path / name), frame)
    with flowedge.load(bundle.path) as detect:
        dark, light = inspect_images(
            detect, [tmp_path / "dark.png", tmp_path / "light.png"], out=tmp_path / "out"
        )
    assert dark.verdict == "not_inspected"
    assert "dark.png" in dark.problem
    assert "green mean" in dark.problem
    assert (dark.score, dark.mask, light.problem) == (None, None, "")
    assert dark.overlay is not None, "the picture says that the frame was not inspected"


@pytest.mark.parametrize(
    ("ranges", "word"),
    [
        ([{"quantity": "smell", "low": 0.0, "high": 1.0}], "smell"),
        ([{"quantity": "detail", "low": 0.0, "high": 1.0}] * 2, "twice"),
        ([{"quantity": "detail", "low": 1.0, "high": 1.0}], "must rise"),
        ([{"quantity": "detail", "low": -1.0, "high": 1.0}], "frame_check"),
        ([{"quantity": "detail", "low": 0.0, "high": 1e9}], "frame_check"),
    ],
)
def test_ranges_that_no_frame_has_are_refused(ranges: list[dict[str, Any]], word: str) -> None:
    check = msgspec.convert({"rate": 0.1, "images": 9, "ranges": []}, FrameCheck)
    check = msgspec.structs.replace(check, ranges=tuple(FrameRange(**one) for one in ranges))
    with pytest.raises(BundleError, match=word):
        json_from_manifest(msgspec.structs.replace(tiny_manifest(), frame_check=check))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return write_photographs(tmp_path_factory.mktemp("photographs") / "good", 12)


def test_calibration_stores_the_ranges_unless_told_not_to(
    tmp_path: Path, photographs: tuple[Path, ...]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    first = calibrate_bundle(bundle, photographs).bundle
    check = first.manifest.frame_check
    assert check is not None
    assert (check.rate, check.images, len(check.ranges)) == (0.001, 12, len(FRAME_QUANTITIES))
    second = calibrate_bundle(first, photographs, frame_rate=0.02).bundle
    assert second.manifest.frame_check is not None
    assert second.manifest.frame_check.rate == 0.02
    assert calibrate_bundle(second, photographs, frame_rate=None).bundle.manifest.frame_check is None


def test_a_bundle_is_calibrated_again_under_another_light(
    tmp_path: Path, photographs: tuple[Path, ...]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    first = calibrate_bundle(bundle, photographs).bundle
    darker = []
    for path in photographs:
        darker.append(tmp_path / path.name)
        assert cv2.imwrite(str(darker[-1]), read_image(path)[..., ::-1] // 6)
    with flowedge.load(first.path) as detect:
        assert detect(read_image(darker[0])).verdict == "not_inspected"
    second = calibrate_bundle(first, darker).bundle
    with flowedge.load(second.path) as detect:
        assert detect(read_image(darker[0])).verdict != "not_inspected"
        assert detect(read_image(photographs[0])).verdict == "not_inspected"


@pytest.mark.usefixtures("without_proof")
def test_adding_a_precision_stores_them_too_and_is_not_judged_by_those_of_before(
    tmp_path: Path, photographs: tuple[Path, ...]
) -> None:
    bundle = write_block_bundle(tmp_path / "block.flowedge", random_layers(0))
    manifest = msgspec.structs.replace(
        bundle.manifest,
        frame_check=FrameCheck(
            rate=0.1, images=9, ranges=(FrameRange(quantity="red mean", low=250, high=255),)
        ),
    )
    bundle = replace_in_bundle(bundle, manifest=manifest)
    done, _ = add_precisions(
        bundle, photographs, PrecisionRequest(wanted=("fp16",), frame_rate=0.02), threads=1
    )
    assert done.manifest.frame_check is not None
    assert (done.manifest.frame_check.rate, done.manifest.frame_check.images) == (0.02, 12)
    assert read_record(done) is not None
    off, _ = add_precisions(done, photographs, PrecisionRequest(wanted=("fp16",), frame_rate=None), threads=1)
    assert off.manifest.frame_check is None


def write_dataset(folder: Path, photographs: tuple[Path, ...]) -> Path:
    for place in ("train/good", "test/good", "test/dent"):
        (folder / place).mkdir(parents=True)
    for path in photographs:
        shutil.copy(path, folder / "train/good")
    for path in photographs[:3]:
        shutil.copy(path, folder / "test/good")
        shutil.copy(path, folder / "test/dent")
    for place in ("test/good/black.png", "test/dent/black.png", "test/dent/white.png"):
        level = 255 if "white" in place else 0
        assert cv2.imwrite(str(folder / place), np.full_like(read_image(photographs[0]), level))
    return folder


def test_the_commands_set_show_and_evaluate_the_check(tmp_path: Path, photographs: tuple[Path, ...]) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    data = write_dataset(tmp_path / "data", photographs)
    wrong = run_flowedge("calibrate", bundle.path, "--data", data, "--frame-check", "2")
    assert wrong.status != 0
    assert "--frame-check" in wrong.stderr
    assert open_bundle(bundle.path).manifest == bundle.manifest
    done = run_flowedge("calibrate", bundle.path, "--data", data, "--frame-check", "0.005")
    assert done.status == 0, done.stderr
    shown = run_flowedge("info", bundle.path).stdout
    for word in ("frame check", "0.005", "sharpness", "cell 2-3 contrast"):
        assert word in shown
    found = json.loads(run_flowedge("eval", bundle.path, data, "--json").stdout)
    assert (found["good_images"], found["anomalous_images"]) == (4, 5)
    assert (found["good_outside"], found["anomalous_outside"]) == (1, 2)
    assert sorted(line.partition(":")[0] for line in found["outside_files"]) == [
        "test/dent/black.png",
        "test/dent/white.png",
        "test/good/black.png",
    ]
    assert "1 good and 2 anomalous" in run_flowedge("eval", bundle.path, data).stderr
    black = run_flowedge("run", bundle.path, data / "test/good/black.png")
    assert black.status == 1
    assert "not_inspected" in black.stdout
    assert run_flowedge("calibrate", bundle.path, "--data", data, "--frame-check", "off").status == 0
    assert "frame check" not in run_flowedge("info", bundle.path).stdout


def test_an_evaluation_counts_what_would_be_stopped(tmp_path: Path, photographs: tuple[Path, ...]) -> None:
    data = read_dataset(write_dataset(tmp_path / "data", photographs))
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    calibrated = calibrate_bundle(bundle, photographs).bundle
    with flowedge.load(calibrated.path) as detect:
        found = evaluate(detect, data, thresholds=detect.thresholds)
    assert (found.good_images, found.good_outside, found.anomalous_outside) == (4, 1, 2)
