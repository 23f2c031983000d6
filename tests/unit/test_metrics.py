"""Compare the streaming metrics with scikit-learn, and with direct code that keeps every value."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.measure import label
from sklearn.metrics import precision_recall_curve, roc_auc_score

from flowedge.calibration.metrics import (
    PixelMetrics,
    ValueHistogram,
    curve_from_histograms,
    curve_from_scores,
)
from support.oracles.auroc_bound import auroc_error

Images = tuple[NDArray[np.float32], NDArray[np.bool_]]
SHARED = Path(__file__).resolve().parents[3] / "shared"
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def f1_at_best(values: NDArray[np.float64], anomalous: NDArray[np.bool_]) -> float:
    precision, recall, _ = precision_recall_curve(anomalous, values)
    sums = precision + recall
    return float(np.max(np.divide(2 * precision * recall, sums, out=np.zeros_like(sums), where=sums > 0)))


def connected(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number the connected regions from 1, where pixels are neighbours by an edge or a corner."""
    return np.asarray(label(mask, connectivity=2), np.int64)  # type: ignore[no-untyped-call]


def direct_aupro(maps: NDArray[np.float32], masks: NDArray[np.bool_], limit: float = 0.3) -> float:
    """Compute AUPRO with every distinct value as a threshold, and measure every region on its own."""
    normal = np.sort(maps[~masks])
    regions = [
        np.sort(anomaly_map[labels == index])
        for anomaly_map, labels in zip(maps, map(connected, masks), strict=True)
        for index in range(1, labels.max() + 1)
    ]
    thresholds = np.unique(maps)[::-1]

    def share_at_least(ordered: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.append(0.0, 1 - np.searchsorted(ordered, thresholds, side="left") / ordered.size)

    false_alarms = share_at_least(normal)
    overlap = np.mean([share_at_least(region) for region in regions], axis=0)
    area = 0.0
    for index in range(1, false_alarms.size):
        x0, x1 = false_alarms[index - 1 : index + 1]
        y0, y1 = overlap[index - 1 : index + 1]
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
        if x1 == limit:
            break
    return float(area / limit)


def synthetic(shape_of_values: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Images:
    """Make twelve 96x96 maps of smooth noise with discs and lines that stand out a little, and their masks."""
    rng = np.random.default_rng(20)
    maps, masks = [], []
    for index in range(12):
        noise = cv2.GaussianBlur(rng.normal(size=(96, 96)), (0, 0), 3) * 8
        mask = np.zeros((96, 96), np.uint8)
        if index % 3:
            for _ in range(3):
                centre = (int(rng.integers(96)), int(rng.integers(96)))
                cv2.circle(mask, centre, int(rng.integers(1, 9)), 1, -1)
            cv2.line(mask, (0, 5 * index), (40, 5 * index + 30), 1, 1)
        maps.append(shape_of_values(noise + 1.2 * mask).astype(np.float32))
        masks.append(mask.astype(np.bool_))
    return np.stack(maps), np.stack(masks)


RANGES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "narrow, as CFLOW's": lambda x: 1.2 + 1.7 / (1 + np.exp(-x)),
    "a narrow band far from zero": lambda x: 100 + 0.25 * np.tanh(x / 3),
    "crowded just below one": lambda x: -np.expm1(-np.exp(x / 2) - 6),
    "negative": lambda x: -np.exp(-x),
    "both signs": lambda x: x,
    "forty orders of magnitude": lambda x: np.exp(np.clip(8 * x, -43, 43)),
    "few distinct values": lambda x: np.round(x),
}


def streamed(images: Images) -> PixelMetrics:
    metrics = PixelMetrics()
    for anomaly_map, mask in zip(*images, strict=True):
        metrics.add(anomaly_map, mask if mask.any() else None)
    return metrics


@pytest.mark.parametrize("values", RANGES.values(), ids=RANGES)
def test_pixel_metrics_agree_with_exact_ones_whatever_the_range(
    values: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> None:
    maps, masks = synthetic(values)
    metrics = streamed((maps, masks))
    curve = metrics.curve()
    best = curve.best_f1()
    auroc, error = curve.auroc(), auroc_error(curve)
    assert best is not None
    assert error is not None
    exact = roc_auc_score(masks.ravel(), maps.ravel())
    assert auroc == pytest.approx(exact, abs=1e-6)
    assert abs(auroc - exact) <= error + 1e-12
    assert metrics.aupro() == pytest.approx(direct_aupro(maps, masks), abs=1e-5)
    assert best[0] == pytest.approx(f1_at_best(maps.ravel().astype(np.float64), masks.ravel()), abs=1e-4)


def test_pixel_metrics_of_real_maps_agree_with_exact_ones() -> None:
    expected = SHARED / "checkpoints/cflow_magnetic_tile.expected.npz"
    data = SHARED / "data/magnetic_tile"
    if not expected.is_file() or not data.is_dir():
        pytest.skip("needs the shared magnetic tile images and the recorded maps")
    with np.load(expected) as record:
        names = [str(record["names"][index]) for index in record["map_index"]]
        maps = record["anomaly_map"]
    masks = np.zeros(maps.shape, np.bool_)
    for mask, name in zip(masks, names, strict=True):
        file = data / name.replace("test/", "ground_truth/").replace(".png", "_mask.png")
        if file.is_file():
            pixels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
            assert pixels is not None
            mask[:] = cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_NEAREST) > 0
    metrics = streamed((maps, masks))
    error = auroc_error(metrics.curve())
    assert metrics.regions >= 3
    assert error is not None
    assert error < 1e-5
    assert metrics.curve().auroc() == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-7)
    assert metrics.aupro() == pytest.approx(direct_aupro(maps, masks), abs=1e-6)


def test_the_stated_bound_holds_when_the_bins_are_far_too_wide() -> None:
    rng = np.random.default_rng(3)
    normal, defect = rng.normal(2.0, 0.3, 20000), rng.normal(2.2, 0.3, 3000)
    histograms = ValueHistogram(max_bins=16), ValueHistogram(max_bins=16)
    for histogram, values in zip(histograms, (normal, defect), strict=True):
        for part in np.split(values, 10):
            histogram.add(part)
    curve = curve_from_histograms(*histograms)
    labels = np.repeat([False, True], [normal.size, defect.size])
    exact = roc_auc_score(labels, np.concatenate([normal, defect]).astype(np.float32))
    auroc, error = curve.auroc(), auroc_error(curve)
    assert auroc is not None
    assert error is not None
    assert curve.thresholds.size < 40
    assert 1e-5 < abs(auroc - exact) <= error < 0.1


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40))
def test_image_metrics_are_exact_with_ties(values: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in values], np.float64)
    anomalous = np.array([is_anomalous for _, is_anomalous in values])
    curve = curve_from_scores(scores, anomalous)
    best = curve.best_f1()
    if anomalous.all() or not anomalous.any():
        assert curve.auroc() is None
        assert best is None
        return
    pairs = scores[anomalous][:, None] - scores[~anomalous]
    assert curve.auroc() == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)), abs=1e-12)
    assert best is not None
    assert best[0] == pytest.approx(f1_at_best(scores, anomalous), abs=1e-12)
    called = scores > best[1]
    assert best[0] == pytest.approx(2 * np.sum(called & anomalous) / (called.sum() + anomalous.sum()))


@given(st.lists(FLOATS, min_size=1, max_size=60), st.integers(1, 20))
def test_a_histogram_keeps_the_order_of_all_finite_floats(values: list[float], max_bins: int) -> None:
    histogram = ValueHistogram(max_bins)
    for value in values:
        histogram.add(value)
    ordered = np.sort(np.array(values, np.float32))
    assert histogram.total == len(values)
    for rank, value in enumerate(ordered):
        limit = histogram.value_at(rank)
        assert value <= limit <= ordered[-1]
        # The threshold is an edge, so the share above it is exact however wide the bins are.
        assert histogram.share_above(limit) == pytest.approx(np.mean(ordered > limit))


@given(st.lists(FLOATS, min_size=1, max_size=60), st.randoms())
def test_the_order_of_adding_does_not_matter(values: list[float], random: object) -> None:
    together, apart = ValueHistogram(8), ValueHistogram(8)
    together.add(values)
    for value in reversed(values):
        apart.add(value)
    ranks = range(len(values))
    assert [together.value_at(r) for r in ranks] == [apart.value_at(r) for r in ranks]


def test_the_two_zeros_are_one_value() -> None:
    curve = curve_from_scores([0.0, -0.0], [True, False])
    histograms = ValueHistogram(), ValueHistogram()
    histograms[0].add(-0.0)
    histograms[1].add(0.0)
    assert curve.auroc() == curve_from_histograms(*histograms).auroc() == 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_value_without_a_place_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        ValueHistogram().add([1.0, value])
    if not np.isfinite(value):
        with pytest.raises(ValueError, match="finite"):
            curve_from_scores([1.0, value], [True, False])


def test_each_region_weighs_the_same_in_aupro_and_corners_connect() -> None:
    mask = np.zeros((20, 20), np.bool_)
    mask[1:9, 1:9] = True
    mask[12, 12] = mask[13, 13] = True
    anomaly_map = np.zeros((20, 20), np.float32)
    anomaly_map[12, 12] = anomaly_map[13, 13] = 1.0
    metrics = PixelMetrics()
    metrics.add(anomaly_map, mask)
    assert metrics.regions == 2
    # One of two regions is found without a false alarm. The rest is one tie, a straight line to (1, 1).
    assert metrics.aupro() == pytest.approx(0.5 + 0.5 * 0.3 / 2)


def test_perfect_and_inverted_maps_score_one_and_zero() -> None:
    mask = np.zeros((10, 10), np.bool_)
    mask[3:5, 3:5] = True
    for sign, expected in ((1.0, 1.0), (-1.0, 0.0)):
        metrics = PixelMetrics()
        metrics.add((sign * mask).astype(np.float32), mask)
        assert metrics.curve().auroc() == expected
    perfect = PixelMetrics()
    perfect.add(mask.astype(np.float32), mask)
    assert perfect.aupro() == pytest.approx(1.0)


def test_one_class_only_has_no_metric() -> None:
    normal, defect = PixelMetrics(), PixelMetrics()
    normal.add(np.ones((4, 4), np.float32), None)
    defect.add(np.ones((4, 4), np.float32), np.ones((4, 4), np.bool_))
    for metrics in (normal, defect):
        assert metrics.curve().auroc() is None
        assert metrics.curve().best_f1() is None
        assert metrics.aupro() is None


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask is \(3, 4\)"):
        PixelMetrics().add(np.ones((4, 4), np.float32), np.zeros((3, 4), np.bool_))


def test_memory_does_not_grow_with_the_number_of_pixels() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((128, 128), np.bool_)
    mask[:20, :20] = True
    metrics = PixelMetrics()

    def held_after(images: int) -> int:
        for _ in range(images):
            metrics.add(rng.random((128, 128), np.float32), mask)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        held = [held_after(20) for _ in range(5)]
    finally:
        tracemalloc.stop()
    assert max(held) < 5e6
    assert held[-1] < held[0] + 1e6


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_metrics_do_not_change_under_a_monotone_transform(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 30, (2, 12, 12)).astype(np.float32)
    masks = rng.random((2, 12, 12)) < 0.2
    plain, transformed = streamed((maps, masks)), streamed((np.exp(maps / 10) - 5, masks))
    assert plain.curve().auroc() == transformed.curve().auroc()
    assert plain.aupro() == pytest.approx(transformed.aupro(), abs=1e-12)
    assert plain.aupro() == pytest.approx(direct_aupro(maps, masks), abs=1e-9)
