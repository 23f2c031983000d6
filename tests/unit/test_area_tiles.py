"""Tiles of a large frame give the map of the whole frame, without seams and in bounded memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import flowedge
from flowedge.bundle import Bundle
from flowedge.errors import ImageError, SettingsError
from flowedge.manifest import NfaThreshold, Preprocessing, Threshold, Thresholds
from flowedge.runtime.area.area import Area
from flowedge.runtime.area.detector import AreaDetector
from flowedge.runtime.area.settings import AreaSettings, TileSettings
from flowedge.runtime.area.tiles import grid_of
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.frames.preprocess import Preprocessor
from flowedge.runtime.opening.engine_contract import Opened
from support.opened_engine import opened
from support.tiny_bundle import IMAGENET, tiny_answer, tiny_manifest, write_tiny_bundle

FRAME = (70, 101)
TILE = (16, 24)
COLOURS: dict[str, Any] = {**IMAGENET}
PREPROCESSING = Preprocessing(resize=TILE, method="float_bilinear", **COLOURS)
FITTED = Thresholds(
    image=Threshold(value=-0.02, method="manual"), pixel=Threshold(value=-0.2, method="manual")
)


def a_frame(size: tuple[int, int] = FRAME, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def tiled(**settings: Any) -> AreaSettings:
    return AreaSettings(tiles=TileSettings(**{"overlap": 12, **settings}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiles") / "tiny.flowedge", thresholds=FITTED).path


@pytest.mark.parametrize("frame", [FRAME, TILE, (16, 101), (17, 25)])
@pytest.mark.parametrize("overlap", [0, 1, 7, 12])
def test_the_weights_of_all_tiles_of_a_pixel_sum_to_one(frame: tuple[int, int], overlap: int) -> None:
    grid = grid_of(Area(np.ones(frame, np.bool_)), TILE, overlap, PREPROCESSING)
    total = np.zeros(frame)
    for tile in grid.tiles:
        weights = tile.row_weights * tile.column_weights
        assert weights.shape == TILE
        total[tile.rows, tile.columns] += weights
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    tops = sorted({tile.rows.start for tile in grid.tiles})
    assert tops[0] == 0
    assert tops[-1] == frame[0] - TILE[0]
    assert all(low + TILE[0] - high >= overlap for low, high in itertools.pairwise(tops))


def test_the_stitched_map_of_a_local_network_is_that_of_the_whole_frame(bundle: Path) -> None:
    # The tiny graph sees 4x4 pixels for a cell, and its resize half a cell beyond. The starts of the tiles are
    # multiples of 8 and 16, so that a tile's cells are those of the frame.
    size = (72, 104)
    frame = a_frame(size)
    whole = Preprocessor(Preprocessing(resize=size, method="float_bilinear", **COLOURS))(frame)
    untiled = tiny_answer(whole[None].astype(np.float64))["anomaly_map"][0, 0]
    with flowedge.load(bundle) as detector:
        with_overlap = AreaDetector(detector, tiled(overlap=8))(frame).anomaly_map
        without = AreaDetector(detector, tiled(overlap=0))(frame).anomaly_map
    assert with_overlap.shape == size
    np.testing.assert_allclose(with_overlap, untiled, atol=2e-6)
    assert np.abs(without - untiled).max() > 0.05


def test_a_tiled_frame_has_no_seams_where_the_tiles_agree(bundle: Path) -> None:
    plain = np.full((*FRAME, 3), (90, 120, 200), np.uint8)
    with flowedge.load(bundle) as whole, AreaDetector(whole, tiled()) as detector:
        expected = whole(plain).network_map
        assert np.ptp(expected) < 1e-6
        result = detector(plain)
    np.testing.assert_allclose(result.anomaly_map, expected[0, 0], atol=1e-6)
    assert result.mask is not None
    assert len(result.regions) == int(result.mask.any())


def test_the_score_of_the_tiles_is_the_largest_of_each_alone(bundle: Path) -> None:
    frame = a_frame()
    with flowedge.load(bundle) as whole, AreaDetector(whole, tiled()) as detector:
        grid = grid_of(detector.area(FRAME), TILE, 12, PREPROCESSING)
        alone = [whole(np.ascontiguousarray(tile.cut(frame))).score for tile in grid.tiles]
        result = detector(frame)
    assert result.score == pytest.approx(max(alone), rel=1e-6)
    assert result.verdict == ("anomalous" if max(alone) > -0.02 else "ok")
    assert result.levels == ()


def test_the_frame_decides_by_the_largest_value_of_its_own_map(bundle: Path) -> None:
    with flowedge.load(bundle) as whole, AreaDetector(whole, tiled(decide="frame")) as detector:
        result = detector(a_frame())
    assert result.score == result.anomaly_map.max()


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_the_number_of_tiles_at_once_changes_no_answer(bundle: Path, at_once: int) -> None:
    frame = a_frame()
    with flowedge.load(bundle) as whole:
        one = AreaDetector(whole, tiled(at_once=5))(frame)
        other = AreaDetector(whole, tiled(at_once=at_once))(frame)
    np.testing.assert_allclose(other.anomaly_map, one.anomaly_map, atol=1e-6)
    assert other.score == pytest.approx(one.score, abs=1e-6)


def test_tiles_without_a_judged_pixel_are_not_computed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corner = AreaSettings(
        frame_size=FRAME,
        inspect=(((60, 50), (101, 50), (101, 70), (60, 70)),),
        tiles=TileSettings(overlap=4, at_once=1),
    )
    with flowedge.load(bundle) as whole, AreaDetector(whole, corner) as detector:
        runs: list[int] = []
        infer = type(detector.engine).infer

        def counted(self: Opened, *inputs: Any) -> dict[str, NDArray[np.float32]]:
            runs.append(len(inputs[0]))
            return infer(self, *inputs)

        monkeypatch.setattr(type(detector.engine), "infer", counted)
        result = detector(a_frame())
        tiles = grid_of(detector.area(FRAME), TILE, 4, PREPROCESSING).tiles
        everywhere = grid_of(Area(np.ones(FRAME, np.bool_)), TILE, 4, PREPROCESSING).tiles
    assert len(runs) == len(tiles) < len(everywhere) / 2
    assert np.isfinite(result.anomaly_map[50:, 60:]).all()
    assert np.isnan(result.anomaly_map[:50]).all()
    assert np.isfinite(result.network_map).all()


def test_a_defect_in_an_ignored_part_of_a_tile_counts_nothing(bundle: Path) -> None:
    grey = np.full((*FRAME, 3), 124, np.uint8)
    defect = grey.copy()
    defect[20:30, 40:52] = (255, 0, 255)
    ignored = AreaSettings(
        frame_size=FRAME,
        ignore=(((36, 16), (56, 16), (56, 34), (36, 34)),),
        tiles=TileSettings(overlap=8),
    )
    with flowedge.load(bundle) as whole:
        assert AreaDetector(whole, tiled())(defect).verdict == "anomalous"
        with AreaDetector(whole, ignored) as detector:
            assert detector(defect).verdict == "ok"
            assert detector(defect).score == detector(grey).score


def test_tiles_have_the_three_steps(bundle: Path) -> None:
    frames = [a_frame(seed=1), a_frame(seed=2)]
    with AreaDetector(flowedge.load(bundle), tiled()) as detector:
        pixels, image = detector.prepare(frames)
        results = detector.judge(pixels, detector.infer(image), preprocess_ms=0, infer_ms=0)
        assert [result.score for result in results] == [detector(frame).score for frame in frames]
        with pytest.raises(ImageError, match="must have one size"):
            detector.prepare([frames[0], frames[1][:60]])


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("fastflow", {"overlap": 16}, "overlap is 16 pixels, and a tile has 16x24"),
        ("csflow", {"decide": "frame"}, 'Use decide = "tile"'),
        ("msflow", {}, "tiles of a frame share no scale"),
    ],
)
def test_tiles_that_do_not_suit_the_bundle_are_refused(
    tmp_path: Path, family: Any, settings: dict[str, Any], said: str
) -> None:
    manifest = tiny_manifest(family=family)
    whole = Detector(Bundle(tmp_path, manifest), opened(NullEngine(manifest)))
    with pytest.raises(SettingsError, match=said):
        AreaDetector(whole, tiled(**settings))


@pytest.mark.parametrize("decide", ["tile", "frame"])
def test_the_number_of_false_alarms_of_a_frame_is_that_of_its_surest_tile(
    tmp_path: Path, decide: str
) -> None:
    manifest = tiny_manifest(thresholds=Thresholds(nfa=NfaThreshold(form="tree")))
    level = np.full((8, 12), 0.5, np.float32)
    level[2:5, 4:8] = 500
    answers: dict[str, Any] = {"anomaly_map": 0.25, "level_0": level, "level_1": 0.5}
    whole = Detector(Bundle(tmp_path, manifest), opened(NullEngine(manifest, answers)))
    (alone,) = whole.detect_batch([a_frame(TILE)])
    size = (16, 40)
    tiles = TileSettings(overlap=8, decide=decide)  # type: ignore[arg-type]
    result = AreaDetector(whole, AreaSettings(tiles=tiles))(a_frame(size))
    assert alone.log_nfa is not None
    assert result.log_nfa == pytest.approx(
        alone.log_nfa + (np.log10(2) if decide == "frame" else 0), abs=1e-3
    )
    assert result.verdict == "anomalous"
    assert len(result.regions) == 2
    right = ((36, 0), (40, 0), (40, 16), (36, 16))  # right of the spot of the second tile
    kept = AreaSettings(tiles=tiles, frame_size=size, inspect=(right,))
    assert AreaDetector(whole, kept)(a_frame(size)).regions == ()


def test_a_frame_with_no_tile_or_too_many_is_refused(bundle: Path) -> None:
    with flowedge.load(bundle) as whole:
        with pytest.raises(ImageError, match="the frame is 15x101 pixels, smaller than a tile of 16x24"):
            AreaDetector(whole, tiled())(a_frame((15, 101)))
        with pytest.raises(ImageError, match="would have 62500 tiles, and 4096 are allowed"):
            AreaDetector(whole, tiled(size=(2, 2), overlap=0))(a_frame((500, 500)))


def test_a_crop_of_the_bundle_leaves_no_gap_between_the_tiles(tmp_path: Path) -> None:
    cropped = Preprocessing(resize=(20, 30), method="float_bilinear", crop=TILE, **COLOURS)
    bundle = write_tiny_bundle(tmp_path / "cropped.flowedge", preprocessing=cropped, thresholds=FITTED).path
    middle = (((6, 5), (95, 5), (95, 65), (6, 65)),)
    with flowedge.load(bundle) as whole:
        for settings in (
            AreaSettings(tiles=TileSettings(size=(20, 30), overlap=8), frame_size=FRAME),
            AreaSettings(tiles=TileSettings(size=(20, 30), overlap=0), frame_size=FRAME, inspect=middle),
        ):
            with pytest.raises(SettingsError, match="pixels of the area unseen"):
                AreaDetector(whole, settings)
        settings = AreaSettings(
            tiles=TileSettings(size=(20, 30), overlap=8), frame_size=FRAME, inspect=middle
        )
        with AreaDetector(whole, settings) as detector:
            assert np.isfinite(detector(a_frame()).anomaly_map[5:65, 6:95]).all()
