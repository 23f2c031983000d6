"""A result can be printed, drawn, stored and turned into plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import flowedge
from flowedge.errors import ImageError
from flowedge.manifest import NfaThreshold, Threshold, Thresholds
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.render import draw, write_png
from flowedge.runtime.result import Result
from support.command_line import flowedge as run_flowedge
from support.opened_engine import opened
from support.tiny_bundle import IMAGE_SIZE, tiny_manifest, write_tiny_bundle


def limit(value: float) -> Threshold:
    return Threshold(value=value, method="manual")


FITTED = Thresholds(image=limit(1.0), pixel=limit(0.5))


def result_of(
    folder: Path, *, score: float = 2.0, thresholds: Thresholds = FITTED, **levels: np.ndarray
) -> Result:
    """Inspect a frame whose map has a region of 2 x 3 pixels with the peak 4 and one of a pixel with the peak 3."""
    anomaly_map = np.zeros((1, *IMAGE_SIZE), np.float32)
    anomaly_map[0, 3:5, 5:8] = 2.0
    anomaly_map[0, 4, 7] = 4.0
    anomaly_map[0, 10, 20] = 3.0
    bundle = write_tiny_bundle(folder / "tiny.flowedge", thresholds=thresholds)
    engine = NullEngine(tiny_manifest(), {"score": score, "anomaly_map": anomaly_map, **levels})
    return Detector(bundle, opened(engine))(np.full((*IMAGE_SIZE, 3), 90, np.uint8))


def test_the_pixel_threshold_gives_regions_with_the_highest_peak_first(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    first, second = result.regions
    assert (first.area_px, first.top, first.left, first.height_px, first.width_px) == (6, 3, 5, 2, 3)
    assert (first.peak, first.peak_at, first.log_nfa) == (4.0, (4, 7), None)
    assert first.contour == ((5, 3), (8, 3), (8, 5), (5, 5))
    assert (second.peak, second.area_px) == (3.0, 1)
    assert result.mask is not None
    assert sum(region.area_px for region in result.regions) == result.mask.sum()


@pytest.mark.parametrize(("value", "needs_map"), [(4.1, False), (4.00001, True), (4.0, True), (3.9, True)])
def test_a_frame_without_an_anomalous_pixel_needs_no_map_over_the_frame(
    tmp_path: Path, value: float, needs_map: bool
) -> None:
    result = result_of(tmp_path, thresholds=Thresholds(image=limit(9.0), pixel=limit(value)))
    share = result.record("part").anomalous_share
    assert ("anomaly_map" in vars(result)) == ("mask" in vars(result)) == needs_map
    assert result.mask is not None
    assert share == result.mask.mean()
    np.testing.assert_array_equal(result.mask, result.anomaly_map > value)
    assert bool(result.regions) == (value < 4)


@pytest.mark.parametrize("thresholds", [Thresholds(), Thresholds(image=limit(1.0))])
def test_without_a_limit_for_pixels_there_are_no_regions(tmp_path: Path, thresholds: Thresholds) -> None:
    result = result_of(tmp_path, thresholds=thresholds)
    assert (result.mask, result.regions) == (None, ())


def test_the_number_of_false_alarms_gives_regions_with_peaks_of_the_anomaly_map(tmp_path: Path) -> None:
    level = np.zeros((1, IMAGE_SIZE[0] // 2, IMAGE_SIZE[1] // 2), np.float32)
    level[0, 1:3, 2:5] = 500.0
    result = result_of(tmp_path, thresholds=Thresholds(nfa=NfaThreshold(form="tree")), level_0=level)
    (region,) = result.regions
    assert region.log_nfa is not None
    assert region.log_nfa == pytest.approx(result.log_nfa, rel=1e-5)
    assert region.peak == result.anomaly_map[result.mask].max() == result.anomaly_map[region.peak_at]


def test_the_frame_of_a_result_is_the_one_that_was_given_and_no_copy(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    frame = np.full((30, 40, 3), 90, np.uint8)
    result = Detector(bundle, opened(NullEngine(tiny_manifest())))(frame)
    assert result.frame is frame
    assert result.frame_size == (30, 40)


@pytest.mark.parametrize("score", [2.0, 0.5, np.nan])
@pytest.mark.parametrize(
    "thresholds",
    [FITTED, Thresholds(), Thresholds(nfa=NfaThreshold(form="tree"))],
    ids=["fitted", "none", "nfa"],
)
def test_a_result_as_data_survives_json(tmp_path: Path, score: float, thresholds: Thresholds) -> None:
    result = result_of(tmp_path, score=score, thresholds=thresholds)
    data = result.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert (data["verdict"], data["score"]) == (result.verdict, None if np.isnan(score) else score)
    assert len(data["regions"]) == len(result.regions)
    assert bool(data["problem"]) == bool(np.isnan(score))


@pytest.mark.parametrize("least", [1, 4])
def test_a_result_as_data_is_what_run_prints(tmp_path: Path, least: int) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", thresholds=Thresholds(pixel=limit(-0.002)))
    image = tmp_path / "part.png"
    write_png(image, np.random.default_rng(0).integers(0, 256, (*IMAGE_SIZE, 3), np.uint8))
    done = run_flowedge("run", bundle.path, image, "--json", *(["--min-region", "4"] if least > 1 else []))
    assert done.status == 0, done.stderr
    line = json.loads(done.stdout)
    with flowedge.load(bundle.path, min_region_px=least) as detector:
        data = detector(read_image(image)).to_dict()
    assert len(data["regions"]) > 1
    assert (min(region["area_px"] for region in data["regions"]) >= 4) == (least == 4)
    assert set(line) - set(data) == {"image", "overlay", "mask"}
    differing = {key for key in data if data[key] != line[key]}
    assert differing <= {"latency_ms"}


def test_plot_draws_as_the_renderer_does(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    for style in ("overlay", "side-by-side", "mask"):
        picture = result.plot(style)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, draw(result, style=style))
    other = np.zeros(IMAGE_SIZE, np.uint8)
    np.testing.assert_array_equal(result.plot(frame=other), draw(result, frame=other))
    with pytest.raises(ValueError, match="style must be one of"):
        result.plot("heat")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has the size of the judged frame, \(.*\), got \(2, 3\)"):
        result.plot(frame=np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(TypeError, match=r"is an array .* got str"):
        result.plot(frame="frame.png")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (
            {},
            "Result(verdict='anomalous', score=2, threshold=1, frame=16x24, precision='fp32', engine='null')",
        ),
        (
            {"thresholds": Thresholds()},
            "Result(verdict='unknown', score=2, frame=16x24, precision='fp32', engine='null')",
        ),
        (
            {"score": np.nan},
            "Result(verdict='not_inspected', score=nan, threshold=1, frame=16x24, precision='fp32', engine='null', "
            'problem="the network\'s answer is not finite")',
        ),
    ],
)
def test_a_result_prints_its_findings_on_one_line(
    tmp_path: Path, values: dict[str, Any], wanted: str
) -> None:
    assert repr(result_of(tmp_path, **values)) == wanted


def test_a_result_by_the_number_of_false_alarms_prints_it(tmp_path: Path) -> None:
    text = repr(result_of(tmp_path, thresholds=Thresholds(nfa=NfaThreshold(form="tree", log_nfa=-2))))
    assert ", log_nfa=" in text
    assert ", limit=-2," in text


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.jpeg"])
def test_a_result_is_saved_as_a_picture(tmp_path: Path, name: str) -> None:
    result = result_of(tmp_path)
    (tmp_path / name).write_bytes(b"of an earlier run")
    result.save(str(tmp_path / name), style="side-by-side")
    with Image.open(tmp_path / name) as image:
        assert image.format == ("PNG" if name.lower() == "a.png" else "JPEG")
        error = np.abs(np.asarray(image, int) - result.plot("side-by-side"))
    assert error.mean() < (1e-9 if name.lower() == "a.png" else 3)


def test_a_result_is_saved_as_data(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    result.save(tmp_path / "a.json")
    with pytest.raises(ValueError, match="style must be one of"):
        result.save(tmp_path / "b.json", "heat")  # type: ignore[arg-type]
    assert not (tmp_path / "b.json").exists()
    assert json.loads((tmp_path / "a.json").read_text()) == result.to_dict()


@pytest.mark.parametrize("name", ["a.bmp", "a", "png", ".png"])
def test_a_name_of_another_kind_is_a_mistake(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"saved as \.png, \.jpg or \.json, got"):
        result_of(tmp_path).save(tmp_path / name)


@pytest.mark.parametrize("name", ["absent/a.png", "absent/a.jpg", "absent/a.json"])
def test_a_result_that_cannot_be_saved_says_why(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match=r"cannot be written: No such file .* Check that its folder exists"):
        result_of(tmp_path).save(tmp_path / name)
