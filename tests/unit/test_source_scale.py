"""Compare anomalib's scale with each version's formulas, written out in torch in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import flowedge
from flowedge.bundle import open_bundle, write_bundle
from flowedge.errors import BundleError
from flowedge.manifest import Family, PartScale, SourceRule, SourceScale
from flowedge.runtime.detector import Detector
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.source_scale import Scaled, scaled_map, scaled_score, source_thresholds
from support.command_line import flowedge as run_flowedge
from support.tiny_bundle import IMAGE_SIZE, tiny_answer, tiny_manifest, tiny_model, tiny_selftest

BY_RANGE: Final[tuple[SourceRule, ...]] = ("0.x-1.x", "2.0-2.6", "2.7")
NAN: Final = float("nan")


def scale_of(rule: SourceRule, image: PartScale, pixel: PartScale | None = None) -> SourceScale:
    return SourceScale(rule=rule, image=image, pixel=pixel or image)


def tensor(value: float | None) -> Tensor:
    """Make a buffer of anomalib, which is NaN where no value was fitted."""
    return torch.tensor(NAN if value is None else value)


# --- transcriptions --------------------------------------------------------------------------------------------


def min_max_before_2(v: Tensor, part: PartScale) -> tuple[Tensor, Tensor]:
    """Return value and label by the rule of anomalib before 2. The label compares the model's own value."""
    threshold, low, high = tensor(part.threshold), tensor(part.minimum), tensor(part.maximum)
    normalised = torch.clamp((v - threshold) / (high - low) + 0.5, 0, 1)
    return normalised, v >= threshold


def cdf_score(v: Tensor, scale: SourceScale) -> Tensor:
    standard = (torch.log(v) - tensor(scale.image.log_mean)) / tensor(scale.image.log_std)
    value: Tensor = torch.special.ndtr(standard - tensor(scale.image.threshold))
    return value


def cdf_map(v: Tensor, scale: SourceScale) -> Tensor:
    """Standardise a map with the mean of the image scores, and normalise it twice, as anomalib 0.7 does."""
    standard = (torch.log(v) - tensor(scale.image.log_mean)) / tensor(scale.pixel.log_std)
    once = torch.special.ndtr(standard - tensor(scale.pixel.threshold))
    twice: Tensor = torch.special.ndtr(once - tensor(scale.pixel.threshold))
    return twice


def since_2(v: Tensor, part: PartScale, *, handles_no_range: bool) -> tuple[Tensor, Tensor | None]:
    """Return value and label by the rule of anomalib 2, where a normalised value equal to the limit is good."""
    threshold, low, high = tensor(part.threshold), tensor(part.minimum), tensor(part.maximum)
    if torch.isnan(low) or torch.isnan(high):
        normalised = v
    else:
        if torch.isnan(threshold):
            threshold = (high + low) / 2
        if handles_no_range and high == low:
            normalised = torch.where(v > threshold, 1.0, torch.where(v < threshold, 0.0, 0.5))
        else:
            normalised = ((v - threshold) / (high - low) + 0.5).clamp(0, 1)
    if part.sensitivity is None:
        return normalised, None
    return normalised, normalised > torch.tensor(1.0) - part.sensitivity


def by_transcription(rule: SourceRule, v: Tensor, part: PartScale) -> tuple[Tensor, Tensor | None]:
    if rule == "0.x-1.x":
        return min_max_before_2(v, part)
    return since_2(v, part, handles_no_range=rule == "2.7")


def assert_same(found: Scaled, value: Tensor, label: Tensor | None) -> None:
    np.testing.assert_array_equal(found.value, value.numpy())
    assert found.value.dtype == np.float32
    if label is None:
        assert found.is_anomalous is None
    else:
        assert found.is_anomalous is not None
        np.testing.assert_array_equal(found.is_anomalous, label.numpy())


# --- the formulas ----------------------------------------------------------------------------------------------

float32s = st.floats(-100, 100, width=32)


@pytest.mark.parametrize("rule", BY_RANGE)
@given(
    values=st.lists(float32s, min_size=1, max_size=20),
    threshold=float32s,
    bounds=st.tuples(float32s, float32s).map(sorted),
    sensitivity=st.floats(0, 1),
)
def test_values_by_a_range_are_those_of_the_version_to_the_last_bit(
    rule: SourceRule, values: list[float], threshold: float, bounds: list[float], sensitivity: float
) -> None:
    part = PartScale(
        threshold=threshold,
        minimum=bounds[0],
        maximum=bounds[1],
        sensitivity=None if rule == "0.x-1.x" else sensitivity,
    )
    v = np.array([*values, threshold], np.float32)  # equality among them
    expected = by_transcription(rule, torch.from_numpy(v), part)
    assert_same(scaled_score(v, scale_of(rule, part)), *expected)
    assert_same(scaled_map(v, scale_of(rule, PartScale(), part)), *expected)


@pytest.mark.parametrize(
    ("rule", "anomalous", "value"), [("0.x-1.x", True, 0.5), ("2.0-2.6", False, 0.5), ("2.7", False, 0.5)]
)
def test_the_versions_differ_at_equality(rule: SourceRule, anomalous: bool, value: float) -> None:
    part = PartScale(threshold=1.25, minimum=1, maximum=2, sensitivity=None if rule == "0.x-1.x" else 0.5)
    scaled = scaled_score(np.array([1.25], np.float32), scale_of(rule, part))
    assert scaled.value == [value]
    assert scaled.is_anomalous is not None
    assert bool(scaled.is_anomalous[0]) is anomalous


@pytest.mark.parametrize("rule", ["2.0-2.6", "2.7"])
@pytest.mark.parametrize(
    "part",
    [
        PartScale(minimum=0.5, maximum=2, sensitivity=0.5),
        PartScale(threshold=1.0, sensitivity=0.5),
        PartScale(threshold=1.0, minimum=0.5, sensitivity=0.5),
        PartScale(threshold=1.0, minimum=0.5, maximum=2),
        PartScale(threshold=1.0, minimum=1.0, maximum=1.0, sensitivity=0.25),
    ],
    ids=["no threshold", "no range", "half a range", "no labels", "an empty range"],
)
def test_what_was_not_fitted_falls_back_as_the_version_does(rule: SourceRule, part: PartScale) -> None:
    v = np.array([0.25, 0.5, 0.99, 1.0, 1.01, 1.25, 2.0, 3.0], np.float32)
    expected = by_transcription(rule, torch.from_numpy(v), part)
    assert_same(scaled_score(v, scale_of(rule, part)), *expected)


def test_before_2_a_score_without_a_range_stays_and_is_still_compared() -> None:
    scaled = scaled_score(np.array([0.5, 1.0], np.float32), scale_of("0.x-1.x", PartScale(threshold=1.0)))
    np.testing.assert_array_equal(scaled.value, [0.5, 1.0])
    np.testing.assert_array_equal(scaled.is_anomalous, [False, True])


CDF: Final = SourceScale(
    rule="0.x-cdf",
    image=PartScale(threshold=0.75, log_mean=-0.5, log_std=0.25),
    pixel=PartScale(threshold=-0.5, log_mean=-1.5, log_std=0.75),
)


def test_the_normal_distribution_of_version_0_is_reproduced() -> None:
    v = np.exp(np.linspace(-4, 3, 57, dtype=np.float32))
    score, anomaly_map = scaled_score(v, CDF), scaled_map(v, CDF)
    np.testing.assert_allclose(score.value, cdf_score(torch.from_numpy(v), CDF), rtol=0, atol=3e-7)
    np.testing.assert_allclose(anomaly_map.value, cdf_map(torch.from_numpy(v), CDF), rtol=0, atol=3e-7)
    assert score.value.min() < 0.01
    assert score.value.max() > 0.99
    np.testing.assert_array_equal(score.is_anomalous, score.value >= 0.5)


def test_the_logarithm_of_a_negative_map_is_no_answer() -> None:
    assert np.isnan(scaled_map(np.array([-0.5], np.float32), CDF).value[0])
    assert scaled_map(np.array([0.0], np.float32), CDF).value[0] == pytest.approx(
        float(torch.special.ndtr(torch.tensor(0.5)))
    )


@pytest.mark.parametrize("rule", ["0.x-1.x", "0.x-cdf", "2.0-2.6", "2.7"])
def test_a_value_above_the_limit_is_what_is_labelled(rule: SourceRule) -> None:
    part = PartScale(threshold=1.0, minimum=0.5, maximum=2.5, sensitivity=0.375)
    scale = CDF if rule == "0.x-cdf" else scale_of(rule, part)
    v = np.linspace(0.0625, 3, 48, dtype=np.float32)  # the threshold is among them
    limits = source_thresholds(scale)
    for scaled, limit in (
        (scaled_score(v, scale), limits.image),
        (scaled_map(v, scale), limits.pixel),
    ):
        assert limit is not None
        assert limit.method == "source"
        np.testing.assert_array_equal(scaled.value > limit.value, scaled.is_anomalous)


def test_nothing_fitted_is_no_limit() -> None:
    for rule in BY_RANGE:
        limits = source_thresholds(scale_of(rule, PartScale()))
        assert (limits.image, limits.pixel) == (None, None)


# --- a detector on that scale ----------------------------------------------------------------------------------


def write(folder: Path, scale: SourceScale | None, family: Family = "fastflow") -> Path:
    folder.mkdir(exist_ok=True)
    manifest = msgspec.structs.replace(tiny_manifest(family=family), source_scale=scale)
    model = {"model.onnx": tiny_model().SerializeToString()}
    return write_bundle(folder / "b", manifest, {**model, **tiny_selftest(manifest)}).path


def test_a_detector_gives_the_sources_score_map_verdict_and_mask(tmp_path: Path) -> None:
    frame = np.random.default_rng(3).integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    raw = tiny_answer(((frame / 255 - mean) / std).transpose(2, 0, 1)[None])
    score, anomaly_map = float(raw["score"][0]), raw["anomaly_map"][0, 0]
    image = PartScale(threshold=score - 1, minimum=score - 4, maximum=score + 4, sensitivity=0.5)
    lowest, middle = float(anomaly_map.min()), float(anomaly_map.min() + score) / 2
    pixel = PartScale(threshold=middle, minimum=lowest, maximum=score, sensitivity=0.25)
    bundle = write(tmp_path, scale_of("2.7", image, pixel))
    plain = flowedge.load(bundle)(frame)
    assert plain.score == pytest.approx(score, rel=1e-5)
    assert plain.verdict == "unknown"
    result = flowedge.load(bundle, source_scale=True)(frame)
    assert result.score == pytest.approx(1 / 8 + 0.5, abs=1e-5)
    assert result.verdict == "anomalous"
    expected = np.clip((anomaly_map - middle) / (score - lowest) + 0.5, 0, 1)
    np.testing.assert_allclose(result.network_map, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.anomaly_map, expected, rtol=0, atol=1e-5)
    assert result.mask is not None
    np.testing.assert_array_equal(result.mask, result.anomaly_map > 0.75)
    assert 0 < result.mask.mean() < 1


@pytest.mark.parametrize(("rule", "verdict"), [("2.0-2.6", "not_inspected"), ("2.7", "ok")])
def test_an_answer_that_the_scale_has_no_value_for_was_not_inspected(
    rule: SourceRule, verdict: str, tmp_path: Path
) -> None:
    black = np.zeros((*IMAGE_SIZE, 3), np.uint8)
    score = flowedge.load(write(tmp_path / "plain", None))(black).score
    image = PartScale(threshold=score, minimum=1.0, maximum=1.0, sensitivity=0.5)  # 0 / 0
    bundle = write(tmp_path / "scaled", scale_of(rule, image, PartScale(sensitivity=0.5)))
    assert flowedge.load(bundle, source_scale=True)(black).verdict == verdict


def test_a_bundle_without_such_a_scale_or_calibrated_to_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no scale of its source"):
        flowedge.load(without := write(tmp_path / "none", None), source_scale=True)
    done = run_flowedge("run", without, without / "manifest.json", "--source-scale")
    assert done.status == 2
    assert "has no scale of its source" in " ".join(done.stderr.split())
    calibrated = open_bundle(
        write(tmp_path / "fixed", scale_of("2.7", PartScale(threshold=1.0)), family="cflow")
    )
    engine = open_unproven(None, calibrated, "fp32")  # a FastFlow's graph, which is all the same here
    with pytest.raises(BundleError, match=r"calibrated to score maxima.*Export the checkpoint again"):
        Detector(calibrated, engine, source_scale=True)


def test_info_shows_the_scale(tmp_path: Path) -> None:
    part = PartScale(threshold=0.625, minimum=0.25, maximum=1.5, sensitivity=0.5)
    shown = " ".join(run_flowedge("info", write(tmp_path, scale_of("2.7", part))).stdout.split())
    assert "anomalib 2.7: threshold 0.625, minimum 0.25, maximum 1.5, sensitivity 0.5" in shown
