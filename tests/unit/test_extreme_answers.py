"""Any answer of a graph is judged without a warning of NumPy, and one that is not finite is not inspected."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from flowedge.manifest import PartScale, SourceRule, SourceScale, Threshold, Thresholds
from flowedge.manifest_bounds import LARGEST_FLOAT32
from flowedge.runtime.colours import heatmap
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.source_scale import scaled_map, scaled_score
from support.opened_engine import opened
from support.tiny_bundle import tiny_manifest, write_tiny_bundle

SIGNALLING_NAN = np.array([0x7FA00000], np.uint32).view(np.float32)[0]
ANSWERS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    LARGEST_FLOAT32,
    -LARGEST_FLOAT32,
    np.inf,
    -np.inf,
    np.nan,
    SIGNALLING_NAN,
)
EXTREMES = np.array(ANSWERS, np.float32)
FITTED = (None, 0.0, 1.0, -1e9, 3e38, -3e38, 1e-40)


def answering(score: np.float32) -> NullEngine:
    """Make an engine that answers every frame of the tiny bundle with one score, and one pixel of the map."""
    anomaly_map = np.ones((1, 16, 24), np.float32)
    anomaly_map[0, 3, 3] = score
    return NullEngine(
        tiny_manifest(), {"score": score, "anomaly_map": anomaly_map, "level_0": 1, "level_1": 1}
    )


def test_a_verdict_needs_a_finite_answer_and_no_warning(tmp_path: Path) -> None:
    limit = Threshold(value=2.0, method="quantile", images=5)
    bundle = write_tiny_bundle(tmp_path / "t.flowedge", thresholds=Thresholds(image=limit, pixel=limit))
    for score in EXTREMES:
        result = Detector(bundle, opened(answering(score)))(np.zeros((40, 50, 3), np.uint8))
        if not np.isfinite(score):
            assert (result.verdict, result.mask) == ("not_inspected", None)
            continue
        assert result.verdict == ("anomalous" if score > 2 else "ok")
        assert result.mask is not None
        assert result.mask.any() == (score > 2)


@pytest.mark.parametrize("rule", ["0.x-1.x", "0.x-cdf", "2.0-2.6", "2.7"])
def test_the_sources_scale_of_anything_is_a_share_or_nan(rule: SourceRule) -> None:
    for threshold, low, high in itertools.product(FITTED, repeat=3):
        if rule == "0.x-cdf" and (threshold is None or not low or low < 0):
            continue
        part = PartScale(
            threshold=threshold, minimum=low, maximum=high, log_mean=threshold, log_std=low, sensitivity=0.5
        )
        scale = SourceScale(rule=rule, image=part, pixel=part)
        for scaled in (scaled_score(EXTREMES, scale), scaled_map(EXTREMES, scale)):
            if low is not None and high is not None:
                assert not ((scaled.value < 0) | (scaled.value > 1)).any()


def test_a_map_over_all_of_float32_is_coloured_from_end_to_end() -> None:
    ends = np.array([[-LARGEST_FLOAT32, LARGEST_FLOAT32, np.nan]], np.float32)
    shown = heatmap(ends, float(ends[0, 0]), float(ends[0, 1]))
    narrow = heatmap(np.array([[0.0, 1.0, np.nan]], np.float32), 0.0, 1.0)
    np.testing.assert_array_equal(shown, narrow)
