"""A detector gives the graph's answer at the frame's size, and never calls a part good by accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

import flowedge
from flowedge.bundle import Bundle, write_bundle
from flowedge.errors import BundleError, EngineUnavailableError, ImageError
from flowedge.manifest import Preprocessing, Threshold, Thresholds
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines.null import NullEngine
from support.opened_engine import opened
from support.tiny_bundle import IMAGE_SIZE, tiny_answer, tiny_manifest, tiny_model, write_tiny_bundle

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROPPED = Preprocessing(resize=(20, 30), method="float_bilinear", crop=IMAGE_SIZE, mean=MEAN, std=STD)


def frame_of(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def limit(value: float) -> Threshold:
    return Threshold(value=value, method="manual")


def fixed(score: float, map_value: float = 0.0) -> NullEngine:
    """Make an engine that gives every image of a batch this score, and a map with one pixel of this value."""
    anomaly_map = np.zeros((1, *IMAGE_SIZE), np.float32)
    anomaly_map[0, 3, 5] = map_value
    return NullEngine(tiny_manifest(), {"score": score, "anomaly_map": anomaly_map})


def detector_with(
    folder: Path, engine: NullEngine, thresholds: Thresholds, preprocessing: Preprocessing | None = None
) -> Detector:
    bundle = write_tiny_bundle(folder / "tiny.flowedge", thresholds=thresholds, preprocessing=preprocessing)
    return Detector(bundle, opened(engine))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Write the tiny bundle: images of 16 x 24, two levels, no thresholds."""
    return write_tiny_bundle(tmp_path / "tiny.flowedge")


def test_a_frame_of_the_networks_size_gets_the_graphs_own_answer(bundle: Bundle) -> None:
    frame = frame_of(*IMAGE_SIZE)
    image = ((frame / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
    wanted = tiny_answer(image)
    with flowedge.load(bundle.path) as detector:
        result = detector(frame)
    assert result.score == pytest.approx(float(wanted["score"][0]), rel=1e-5)
    np.testing.assert_allclose(result.network_map, wanted["anomaly_map"][0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.anomaly_map, result.network_map, rtol=1e-6)
    for level in range(2):
        np.testing.assert_allclose(result.levels[level], wanted[f"level_{level}"][0, 0], rtol=1e-4, atol=1e-5)
    assert (result.precision, result.engine) == ("fp32", "onnxruntime-cpu")
    assert (result.verdict, result.is_anomalous, result.mask) == ("unknown", None, None)


@pytest.mark.parametrize("size", [(16, 24), (50, 70), (7, 200), (1, 1)])
def test_the_map_has_the_frames_size(bundle: Bundle, size: tuple[int, int]) -> None:
    result = flowedge.load(bundle.path)(frame_of(*size))
    assert result.anomaly_map.shape == size
    assert result.network_map.shape == IMAGE_SIZE
    assert result.anomaly_map.dtype == result.network_map.dtype == np.float32
    assert result.anomaly_map is result.anomaly_map


def test_frames_of_different_sizes_in_one_batch_get_the_answers_they_get_alone(bundle: Bundle) -> None:
    frames = [frame_of(16, 24, 0), frame_of(50, 70, 1), frame_of(33, 20, 2)]
    detector = flowedge.load(bundle.path)
    for frame, result in zip(frames, detector.detect_batch(frames), strict=True):
        alone = detector(frame)
        assert result.score == alone.score
        np.testing.assert_array_equal(result.anomaly_map, alone.anomaly_map)
    assert detector.detect_batch([]) == []


def test_the_frame_is_not_modified(bundle: Bundle) -> None:
    frame = frame_of(30, 40)
    frame.flags.writeable = False
    flowedge.load(bundle.path)(frame)


@pytest.mark.parametrize(
    ("score", "map_value", "image_limit", "verdict", "is_anomalous"),
    [
        (0.5, 0.5, 1.0, "ok", False),
        (1.0, 0.5, 1.0, "ok", False),
        (1.5, 0.5, 1.0, "anomalous", True),
        (-0.5, 0.0, -1.0, "anomalous", True),
        (1.5, 0.5, None, "unknown", None),
        (np.nan, 0.5, 1.0, "not_inspected", None),
        (np.nan, 0.5, None, "not_inspected", None),
        (-np.inf, 0.5, 1.0, "not_inspected", None),
        (np.inf, 0.5, 1.0, "not_inspected", None),
        (0.5, np.nan, 1.0, "not_inspected", None),
        (0.5, -np.inf, 1.0, "not_inspected", None),
    ],
)
def test_only_a_finite_answer_at_or_below_the_limit_is_ok(
    tmp_path: Path,
    score: float,
    map_value: float,
    image_limit: float | None,
    verdict: str,
    is_anomalous: bool | None,
) -> None:
    thresholds = Thresholds(image=None if image_limit is None else limit(image_limit), pixel=limit(0.25))
    result = detector_with(tmp_path, fixed(score, map_value), thresholds)(frame_of(*IMAGE_SIZE))
    assert (result.verdict, result.is_anomalous) == (verdict, is_anomalous)
    assert (result.mask is None) == (verdict == "not_inspected")


def test_the_mask_holds_the_pixels_above_the_pixel_limit(tmp_path: Path) -> None:
    detector = detector_with(tmp_path, fixed(1.0, 2.0), Thresholds(pixel=limit(1.0)))
    mask = detector(frame_of(*IMAGE_SIZE)).mask
    assert mask is not None
    assert mask.shape == IMAGE_SIZE
    assert mask.dtype == np.bool_
    assert list(zip(*np.nonzero(mask), strict=True)) == [(3, 5)]


def test_what_a_crop_leaves_out_is_nan_in_the_map_and_false_in_the_mask(tmp_path: Path) -> None:
    detector = detector_with(tmp_path, fixed(1.0, 2.0), Thresholds(pixel=limit(-1.0)), CROPPED)
    result = detector(frame_of(20, 30))
    # A centre crop of 16 x 24 from 20 x 30 leaves a border of 2 rows and 3 columns.
    inside = np.zeros((20, 30), bool)
    inside[2:18, 3:27] = True
    np.testing.assert_array_equal(np.isfinite(result.anomaly_map), inside)
    np.testing.assert_array_equal(result.mask, inside)
    assert result.anomaly_map[2 + 3, 3 + 5] == 2.0


def test_each_precision_decides_with_its_own_limits(tmp_path: Path) -> None:
    manifest = tiny_manifest(precisions=("fp32", "fp16"))
    graphs = tuple(
        msgspec.structs.replace(graph, thresholds=Thresholds(image=limit(value)))
        for graph, value in zip(manifest.graphs, (1.0, 3.0), strict=True)
    )
    model = tiny_model().SerializeToString()
    bundle = write_bundle(
        tmp_path / "b",
        msgspec.structs.replace(manifest, graphs=graphs),
        {"model.onnx": model, "model.fp16.onnx": model},
    )
    frame = frame_of(*IMAGE_SIZE)
    assert Detector(bundle, opened(fixed(2.0)))(frame).verdict == "anomalous"
    assert Detector(bundle, opened(fixed(2.0), "fp16"))(frame).verdict == "ok"
    with pytest.raises(BundleError, match="no int8 graph"):
        Detector(bundle, opened(fixed(2.0), "int8"))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((16, 24), np.uint8),
        np.zeros((16, 24, 4), np.uint8),
        np.zeros((16, 24, 3), np.float32),
        np.zeros((0, 24, 3), np.uint8),
        None,
    ],
)
def test_what_is_not_a_frame_is_refused(bundle: Bundle, frame: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError):
        flowedge.load(bundle.path)(frame)


@pytest.mark.parametrize("frames", [None, iter(()), {}, 3])
def test_what_is_no_list_of_frames_is_refused(bundle: Bundle, frames: Any) -> None:
    with (
        Detector(bundle, opened(fixed(2.0))) as detector,
        pytest.raises(ImageError, match="list of frames"),
    ):
        detector.detect_batch(frames)


def test_a_frame_that_does_not_become_the_networks_input_is_refused(tmp_path: Path) -> None:
    keeps_aspect = Preprocessing(
        resize=(16, 16), keep_aspect=True, method="float_bilinear", mean=MEAN, std=STD
    )
    detector = detector_with(tmp_path, fixed(1.0), Thresholds(), keeps_aspect)
    assert detector(frame_of(32, 48)).score == 1.0
    with pytest.raises(ImageError, match=r"a frame of 48x32 becomes 24x16 pixels .* takes 16x24"):
        detector(frame_of(48, 32))


def test_leaving_the_context_closes_the_engine(tmp_path: Path) -> None:
    engine = fixed(1.0)
    image = np.zeros((1, 3, *IMAGE_SIZE), np.float32)
    with detector_with(tmp_path, engine, Thresholds()) as detector:
        engine.infer(image)
    with pytest.raises(ValueError, match="closed"):
        engine.infer(image)
    assert detector.engine.engine is engine


def test_a_closed_detector_says_so(bundle: Bundle) -> None:
    detector = flowedge.load(bundle.path, threads=1)
    detector.close()
    detector.close()
    for use in (detector, lambda frame: detector.detect_batch([frame]), lambda _: detector.detect_batch([])):
        with pytest.raises(ValueError, match=r"was closed\. Load the bundle again"):
            use(frame_of(16, 24))


def test_a_batch_may_be_one_array(bundle: Bundle) -> None:
    frames = [frame_of(30, 40, seed) for seed in range(3)]
    with flowedge.load(bundle.path, threads=1) as detector:
        found = [result.score for result in detector.detect_batch(np.stack(frames))]
        assert found == [result.score for result in detector.detect_batch(frames)]
        assert detector.detect_batch(np.empty((0, 30, 40, 3), np.uint8)) == []
        with pytest.raises(
            ImageError, match=r"got an array \(30, 40, 3\) uint8\. Put a single frame into a list"
        ):
            detector.detect_batch(frames[0])


@pytest.mark.parametrize("threads", ["2", 2.0])
def test_threads_that_are_no_whole_number_are_a_mistake(bundle: Bundle, threads: object) -> None:
    with pytest.raises(TypeError, match=f"threads must be a whole number or None, got {threads!r}"):
        flowedge.load(bundle.path, threads=threads)  # type: ignore[arg-type]


def test_the_timings_of_a_batch_are_shares_of_it(bundle: Bundle) -> None:
    results = flowedge.load(bundle.path).detect_batch([frame_of(50, 70, seed) for seed in range(4)])
    assert len({id(result.timings) for result in results}) == 1
    timings = results[0].timings
    assert 0 < timings.preprocess_ms < 1000
    assert 0 < timings.infer_ms < 1000
    assert 0 < timings.decide_ms < 1000


def test_a_result_prints_on_one_line(bundle: Bundle) -> None:
    text = repr(flowedge.load(bundle.path)(frame_of(50, 70)))
    assert "score=" in text
    assert "array" not in text
    assert "\n" not in text


def test_loading_reports_what_is_missing(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        flowedge.load(tmp_path / "nothing.flowedge")
    with pytest.raises(BundleError, match="no int8 graph"):
        flowedge.load(bundle.path, precision="int8")
    with pytest.raises(EngineUnavailableError, match="no engine 'abacus'"):
        flowedge.load(bundle.path, engine="abacus")


def test_a_bundle_can_be_moved_and_loaded_from_a_name_relative_to_the_working_folder(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = frame_of(50, 70)
    score = flowedge.load(bundle.path)(frame).score
    bundle.path.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert flowedge.load("moved", engine="onnxruntime-cpu", threads=1)(frame).score == score
