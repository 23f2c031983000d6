"""An area restricts score, map, mask and regions to the pixels that were drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.draw import polygon2mask

import flowedge
from flowedge.bundle import Bundle
from flowedge.errors import ImageError, SettingsError
from flowedge.manifest import NfaThreshold, Preprocessing, Scoring, Threshold, Thresholds
from flowedge.runtime.aggregate import aggregate
from flowedge.runtime.area.area import Area, area_of, covered_pixels
from flowedge.runtime.area.detector import AreaDetector
from flowedge.runtime.area.polygons import pixels_in_any, pixels_in_polygon
from flowedge.runtime.area.result import AreaResult
from flowedge.runtime.area.score import score_inside
from flowedge.runtime.area.settings import AreaSettings, TileSettings
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.regions import find_regions
from flowedge.runtime.settings import read_settings
from support.opened_engine import opened
from support.tiny_bundle import IMAGENET, tiny_manifest, write_tiny_bundle

FRAME = (32, 48)
COLOURS: dict[str, Any] = {**IMAGENET}
LEFT = ((0.0, 0.0), (24.0, 0.0), (24.0, 32.0), (0.0, 32.0))


def a_frame(seed: int = 0, size: tuple[int, int] = FRAME) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a bundle whose image threshold lies among the scores of random frames."""
    return write_tiny_bundle(
        tmp_path_factory.mktemp("area") / "tiny.flowedge",
        thresholds=Thresholds(
            image=Threshold(value=-0.02, method="manual"), pixel=Threshold(value=-0.2, method="manual")
        ),
    ).path


# Polygons -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_pixels_of_a_polygon_are_those_of_scikit_image(seed: int) -> None:
    corners = np.random.default_rng(seed).uniform(0, 30, (7, 2))  # most of them cross themselves
    theirs: Any = polygon2mask((30, 30), corners[:, ::-1] - 0.5)  # type: ignore[no-untyped-call]
    np.testing.assert_array_equal(pixels_in_polygon(corners.tolist(), (30, 30)), theirs)


def test_pixels_of_a_polygon_are_those_that_opencv_calls_inside() -> None:
    corners = np.array([[2.3, 1.2], [25.1, 4.9], [14.2, 11.6], [21.7, 27.3], [3.9, 22.2]], np.float32)
    ours = pixels_in_polygon(corners.tolist(), (30, 28))
    for row in range(30):
        for column in range(28):
            inside = cv2.pointPolygonTest(corners, (column + 0.5, row + 0.5), False) > 0
            assert ours[row, column] == inside


def test_neighbouring_polygons_share_no_pixel_and_leave_none_out() -> None:
    ridge = [(10.5, 0.0), (14.5, 20.5), (3.5, 40.0)]
    left = pixels_in_polygon([(0, 0), *ridge, (0, 40)], (40, 30))
    right = pixels_in_polygon([(30, 0), *ridge, (30, 40)], (40, 30))
    assert (left ^ right).all()


def test_the_contour_of_a_region_encloses_exactly_its_pixels() -> None:
    mask = cv2.circle(np.zeros((40, 40), np.uint8), (17, 20), 9, 1, -1).astype(np.bool_)
    (region,) = find_regions(mask, mask.astype(np.float32))
    np.testing.assert_array_equal(pixels_in_polygon(region.contour, (40, 40)), mask)


# Cells --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(resize=(16, 24), method="float_bilinear", **COLOURS),
        Preprocessing(resize=(20, 30), method="pil_bilinear", crop=(16, 24), **COLOURS),
        Preprocessing(resize=(40, 40), method="cv2_bilinear", crop=(48, 24), **COLOURS),
    ],
    ids=["resize", "crop", "padding"],
)
@pytest.mark.parametrize("size", [(16, 24), (5, 7)])
def test_a_cell_belongs_to_the_area_where_it_covers_a_judged_pixel(
    preprocessing: Preprocessing, size: tuple[int, int]
) -> None:
    frame = (37, 53)
    rows, columns = covered_pixels(preprocessing, frame, size)
    # Painting one cell and laying the map over the frame by nearest neighbour finds the same pixels.
    window = preprocessing.crop or preprocessing.resize
    for covered, cells, pixels, resized, inside in zip(
        (rows, columns), size, frame, preprocessing.resize, window, strict=True
    ):
        first = round((resized - inside) / 2) if inside <= resized else -((inside - resized) // 2)
        fine = np.linspace(0, pixels, 20_001)  # positions along the frame
        cell = np.floor((fine * resized / pixels - first) * cells / inside)
        for number in range(cells):
            here = fine[cell == number]
            start, end = covered[number]
            if len(here) == 0:
                assert start == end
            else:
                assert start <= here[0]
                assert here[-1] <= end
                assert here[0] - start < 1
                assert end - here[-1] < 1 + 1e-2


def test_an_area_of_whole_cells_has_exactly_these_cells() -> None:
    inside = np.zeros(FRAME, np.bool_)
    inside[8:16, 4:20] = True
    cells = Area(inside).cells(Preprocessing(resize=(16, 24), method="float_bilinear", **COLOURS), (16, 24))
    expected = np.zeros((16, 24), np.bool_)
    expected[4:8, 2:10] = True
    np.testing.assert_array_equal(cells, expected)


# Scores -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["cflow", "csflow", "fastflow", "uflow", "msflow"])
@pytest.mark.parametrize("top_pixels", [None, 7])
def test_the_score_of_the_whole_frame_is_the_family_s_own(family: Any, top_pixels: int | None) -> None:
    scoring = tiny_manifest(family=family).graphs[0].scoring
    if family == "cflow":
        scoring = msgspec.structs.replace(scoring, top_pixels=top_pixels)
    rng = np.random.default_rng(0)
    levels = [rng.uniform(0.1, 2, (3, 1, *size)).astype(np.float32) for size in ((8, 12), (4, 6))]
    outputs = outputs_of(levels, scoring, family)
    everywhere = [np.ones(level.shape[2:], np.bool_) for level in levels]
    score = score_inside(outputs, scoring, family, np.ones((16, 24), np.bool_), everywhere)
    np.testing.assert_allclose(score, outputs["score"], rtol=1e-6)


@pytest.mark.parametrize("family", ["cflow", "csflow", "fastflow", "uflow", "msflow"])
def test_the_score_of_an_area_depends_on_nothing_outside(family: Any) -> None:
    scoring = tiny_manifest(family=family).graphs[0].scoring
    rng = np.random.default_rng(0)
    levels = [rng.uniform(0.1, 2, (1, 1, *size)).astype(np.float32) for size in ((8, 12), (4, 6))]
    outputs = outputs_of(levels, scoring, family)
    cells = np.zeros((16, 24), np.bool_)
    cells[4:12, 6:15] = True
    level_cells = [np.zeros(level.shape[2:], np.bool_) for level in levels]
    for one, step in zip(level_cells, (2, 4), strict=True):
        one[4 // step : 12 // step, 6 // step : 15 // step + 1] = True
    score = score_inside(outputs, scoring, family, cells, level_cells)
    other = {name: value.copy() for name, value in outputs.items()}
    for name in other.keys() & {"anomaly_map", "anomaly_map_mul"}:
        other[name][:, 0, ~cells] = 1e6
    for number, inside in enumerate(level_cells):
        other[f"level_{number}"][:, 0, ~inside] = 1e6
    np.testing.assert_array_equal(score_inside(other, scoring, family, cells, level_cells), score)
    assert score != outputs["score"] or family in ("fastflow", "uflow")


def outputs_of(levels: list[NDArray[np.float32]], scoring: Scoring, family: Any) -> dict[str, Any]:
    made = aggregate(levels, scoring, family, (16, 24))
    outputs: dict[str, Any] = {"score": made.score, "anomaly_map": made.anomaly_map}
    if made.anomaly_map_mul is not None:
        outputs["anomaly_map_mul"] = made.anomaly_map_mul
    return outputs | {f"level_{number}": level for number, level in enumerate(levels)}


# Detector -----------------------------------------------------------------------------------------------------------


def test_a_result_comes_from_the_area_alone(bundle: Path) -> None:
    settings = AreaSettings(frame_size=FRAME, inspect=(LEFT,), ignore=(((0, 0), (8, 0), (8, 8), (0, 8)),))
    frame = a_frame()
    with flowedge.load(bundle) as whole:
        full = whole(frame)
        with AreaDetector(whole, settings) as detector:
            result = detector(frame)
    inside = np.zeros(FRAME, np.bool_)
    inside[:, :24] = True
    inside[:8, :8] = False
    assert isinstance(result, AreaResult)
    np.testing.assert_array_equal(result.area.inside, inside)
    np.testing.assert_array_equal(np.isfinite(result.anomaly_map), inside)
    np.testing.assert_array_equal(result.anomaly_map[inside], full.anomaly_map[inside])
    assert result.mask is not None
    assert full.mask is not None
    np.testing.assert_array_equal(result.mask, full.mask & inside)
    # Every frame pixel is half as wide as a cell, so the cells of the area are every second pixel.
    assert result.score == full.network_map[inside[::2, ::2]].max()
    assert all(inside[region.peak_at] for region in result.regions)
    assert sum(region.area_px for region in result.regions) == (full.mask & inside).sum()


def test_a_defect_outside_of_the_area_changes_no_verdict(bundle: Path) -> None:
    grey = np.full((*FRAME, 3), 124, np.uint8)  # the mean of the training, which the tiny flow maps near 0
    defect = grey.copy()
    defect[4:12, 40:46] = (255, 0, 255)
    settings = AreaSettings(frame_size=FRAME, inspect=(LEFT,))
    with flowedge.load(bundle) as whole:
        assert whole(grey).verdict == "ok"
        assert whole(defect).verdict == "anomalous"
        with AreaDetector(whole, settings) as detector:
            assert detector(defect).verdict == "ok"
            assert detector(defect).score == detector(grey).score
            assert detector(np.ascontiguousarray(defect[:, ::-1])).verdict == "anomalous"


def test_a_result_keeps_its_pictures_and_its_data(bundle: Path, tmp_path: Path) -> None:
    with AreaDetector(flowedge.load(bundle), AreaSettings(frame_size=FRAME, inspect=(LEFT,))) as detector:
        result = detector(a_frame())
    assert result.plot().shape[2] == 3
    result.save(tmp_path / "found.png")
    result.save(tmp_path / "found.json")
    data = json.loads((tmp_path / "found.json").read_text())
    assert data["score"] == result.score
    assert data["verdict"] == result.verdict
    assert result.mask is not None
    assert data["anomalous_share"] == result.mask.mean()
    assert "Result(verdict=" in repr(result)


def test_the_number_of_false_alarms_is_that_of_the_area(tmp_path: Path) -> None:
    manifest = tiny_manifest(thresholds=Thresholds(nfa=NfaThreshold(form="tree")))
    level = np.full((8, 12), 0.5, np.float32)
    level[2:5, 8:11] = 500
    answers: dict[str, Any] = {"anomaly_map": 0.25, "level_0": level, "level_1": 0.5}
    whole = Detector(Bundle(tmp_path, manifest), opened(NullEngine(manifest, answers)))
    full = whole(a_frame())
    left = AreaDetector(whole, AreaSettings(frame_size=FRAME, inspect=(LEFT,)))(a_frame())
    assert (full.verdict, left.verdict) == ("anomalous", "ok")
    assert full.log_nfa is not None
    assert left.log_nfa is not None
    assert left.log_nfa > 0 > full.log_nfa
    assert left.regions == ()
    assert left.record("a.png").log_nfa == left.log_nfa


def test_the_three_steps_give_what_a_call_gives(bundle: Path) -> None:
    with AreaDetector(flowedge.load(bundle), AreaSettings(frame_size=FRAME, inspect=(LEFT,))) as detector:
        frames = [a_frame(1), a_frame(2)]
        pixels, image = detector.prepare(frames)
        results = detector.judge(pixels, detector.infer(image), preprocess_ms=0, infer_ms=0)
        for result, frame in zip(results, frames, strict=True):
            assert result.score == detector(frame).score
            np.testing.assert_array_equal(result.anomaly_map, detector(frame).anomaly_map)


def test_a_mask_is_a_picture_of_the_frame_s_size(bundle: Path, tmp_path: Path) -> None:
    picture = np.zeros(FRAME, np.uint8)
    picture[:, :24] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), picture)
    (tmp_path / "area.toml").write_text('mask = "mask.png"', encoding="utf-8")
    settings = read_settings(tmp_path / "area.toml", AreaSettings)
    with AreaDetector(flowedge.load(bundle), settings) as detector:
        np.testing.assert_array_equal(detector.area(FRAME).inside, picture > 0)


def test_a_frame_of_another_size_is_refused(bundle: Path) -> None:
    with AreaDetector(flowedge.load(bundle), AreaSettings(frame_size=FRAME, inspect=(LEFT,))) as detector:
        with pytest.raises(
            ImageError, match=r"the frame is 32x50 pixels, and the area was drawn on .* 32x48"
        ):
            detector(a_frame(size=(32, 50)))
        assert detector(a_frame()).verdict == "ok"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"inspect": (LEFT,)}, "frame_size is missing"),
        (
            {"frame_size": (32, 20), "inspect": (LEFT,)},
            r"inspect, polygon 1: the corner \[24, 0\] lies outside of a frame of 32x20",
        ),
        (
            {"frame_size": FRAME, "ignore": (((0, 0), (48, 0), (48, 33), (0, 32)),)},
            r"ignore, polygon 1: the corner \[48, 33\] .* y 0 to 32",
        ),
        (
            {"frame_size": FRAME, "ignore": (((0, 0), (48, 0), (48, 32), (0, 32)),)},
            "the area is empty: no pixel of the frame is left",
        ),
        (
            {"frame_size": FRAME, "inspect": (((5.6, 5.6), (6.4, 5.6), (6.4, 6.4)),)},
            "the area is empty",
        ),
    ],
)
def test_an_area_that_cannot_be_judged_is_refused_in_words(
    bundle: Path, settings: dict[str, Any], said: str
) -> None:
    with flowedge.load(bundle) as whole, pytest.raises(SettingsError, match=said):
        AreaDetector(whole, AreaSettings(**settings))


def test_a_mask_that_does_not_fit_is_refused(bundle: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros(FRAME, np.uint8))
    with flowedge.load(bundle) as whole:
        with pytest.raises(SettingsError, match="the area is empty"):
            AreaDetector(whole, AreaSettings(mask=tmp_path / "mask.png"))
        with pytest.raises(SettingsError, match=r"frame_size is 10x10, and the mask .* has 32x48 pixels"):
            AreaDetector(whole, AreaSettings(mask=tmp_path / "mask.png", frame_size=(10, 10)))
        with pytest.raises(SettingsError, match="the mask of the area is no picture that can be read"):
            AreaDetector(whole, AreaSettings(mask=tmp_path / "none.png"))


def test_an_area_that_the_network_does_not_see_is_refused(tmp_path: Path) -> None:
    cropped = Preprocessing(resize=(20, 30), method="float_bilinear", crop=(16, 24), **COLOURS)
    bundle = write_tiny_bundle(tmp_path / "cropped.flowedge", preprocessing=cropped).path
    middle = (((6, 5), (42, 5), (42, 27), (6, 27)),)
    with flowedge.load(bundle) as whole:
        with pytest.raises(SettingsError, match="pixels that the network does not see"):
            AreaDetector(whole, AreaSettings(frame_size=FRAME, inspect=(LEFT,)))
        with AreaDetector(whole, AreaSettings(frame_size=FRAME, inspect=middle)) as detector:
            assert np.isfinite(detector(a_frame()).anomaly_map[5:27, 6:42]).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inspekt = []", "unknown key inspekt. Did you mean inspect?"),
        ("inspect = [[[0, 0], [1, 1]]]", "[inspect] number 1: expected array of length >= 3"),
        ("inspect = [[[0, 0], [1, 1], [-1, 0]]]", "inspect"),
        ("frame_size = [0, 5]", "frame_size"),
    ],
)
def test_the_file_of_an_area_is_checked(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "area.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        read_settings(tmp_path / "area.toml", AreaSettings)
    assert said in str(error.value)


def test_an_area_is_where_its_polygons_are() -> None:
    settings = AreaSettings(frame_size=FRAME, inspect=(LEFT,), ignore=(LEFT[:3],))
    expected = pixels_in_any([LEFT], FRAME) & ~pixels_in_any([LEFT[:3]], FRAME)
    np.testing.assert_array_equal(area_of(settings, FRAME).inside, expected)
    assert area_of(settings, FRAME).share == expected.mean()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"inspect": (((0, 0), (4, 0)),)}, r"\[inspect\] number 1: expected array of length >= 3"),
        ({"frame_size": (0, 8)}, r"\[frame_size\] number 1: expected int >= 1, got 0"),
        ({"tiles": TileSettings(at_once=0)}, r"\[tiles\] at_once: expected int >= 1, got 0"),
        ({"tiles": {"overlap": -1}}, r"\[tiles\] overlap: expected int >= 0"),
        ({"mask": object()}, "a object does not exist"),
    ],
)
def test_the_area_of_a_program_has_the_limits_of_a_file(
    bundle: Path, values: dict[str, Any], problem: str
) -> None:
    with flowedge.load(bundle) as detector, pytest.raises(SettingsError, match=problem):
        AreaDetector(detector, AreaSettings(**values))


def test_polygons_of_numpy_and_a_mask_by_its_name_are_taken(bundle: Path, tmp_path: Path) -> None:
    height, width = FRAME
    mask = np.zeros(FRAME, np.uint8)
    mask[:, : width // 2] = 255
    assert cv2.imwrite(str(tmp_path / "mask.png"), mask)
    corners: Any = np.array([[[0, 0], [width / 2, 0], [width / 2, height], [0, height]]])
    name: Any = str(tmp_path / "mask.png")
    with flowedge.load(bundle) as detector:
        drawn = AreaDetector(detector, AreaSettings(frame_size=FRAME, inspect=corners))
        painted = AreaDetector(detector, AreaSettings(mask=name))
        assert drawn.area(FRAME).share == painted.area(FRAME).share == 0.5
