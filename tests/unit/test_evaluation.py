"""Evaluation gives the right metrics for detectors whose answers are known beforehand."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score

from flowedge.calibration.dataset import Dataset, Sample, read_dataset
from flowedge.calibration.evaluation import evaluate
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.calibration.masks import mask_on_map, resize_mask
from flowedge.calibration.metrics import PixelMetrics
from flowedge.errors import CalibrationError
from flowedge.manifest import NfaThreshold, Preprocessing, Threshold, Thresholds
from support.recorded_reports import RecordedReports

SIZE = (16, 24)
PLAIN = Preprocessing(resize=SIZE, method="float_bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Answer:
    score: float
    network_map: NDArray[np.float32]
    preprocessing: Preprocessing = PLAIN
    network_log_nfa: NDArray[np.float64] | None = None
    problem: str = ""


def noisy_map(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a 16x24 map that depends on the image only, and is higher where the image is bright."""
    small = cv2.resize(image[..., 0], SIZE[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    noise = np.random.default_rng(int(image.sum())).normal(0, 60, SIZE)
    return (small + noise).astype(np.float32)


def detect(image: NDArray[np.uint8]) -> Answer:
    anomaly_map = noisy_map(image)
    return Answer(score=float(anomaly_map.max()), network_map=anomaly_map)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write twelve good images, eight with a bright square and six with a bright line, of varying size."""
    rng = np.random.default_rng(1)
    for label, count in (("good", 12), ("square", 8), ("line", 6)):
        for index in range(count):
            image = rng.integers(0, 90, (32 + index, 48)).astype(np.uint8)
            mask = np.zeros_like(image)
            if label == "square":
                mask[4:18, 10 : 20 + index] = 255
            elif label == "line":
                mask[20:22, :30] = 255
            image[mask > 0] = 200
            (tmp_path / "test" / label).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(tmp_path / "test" / label / f"{index:03}.png"), image)
            if label != "good":
                (tmp_path / "ground_truth" / label).mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(tmp_path / "ground_truth" / label / f"{index:03}_mask.png"), mask)
    return tmp_path


@dataclass
class Recorded:
    """Every answer of ``detect`` on a dataset, kept for direct computations."""

    labels: NDArray[np.str_]
    scores: NDArray[np.float64]
    maps: NDArray[np.float32]
    masks: NDArray[np.bool_]


def recorded(root: Path) -> Recorded:
    labels, scores, maps, masks = [], [], [], []
    for path in sorted((root / "test").glob("*/*.png")):
        image = cv2.imread(str(path))
        assert image is not None
        answer = detect(np.asarray(image, np.uint8))
        mask = np.zeros(image.shape[:2], np.uint8)
        file = root / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        if file.is_file():
            pixels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
            assert pixels is not None
            mask = np.asarray(pixels, np.uint8)
        rows = (np.arange(SIZE[0]) * mask.shape[0]) // SIZE[0]
        columns = (np.arange(SIZE[1]) * mask.shape[1]) // SIZE[1]
        labels.append(path.parent.name)
        scores.append(answer.score)
        maps.append(answer.network_map)
        masks.append(mask[np.ix_(rows, columns)] > 0)
    return Recorded(np.array(labels), np.array(scores), np.stack(maps), np.stack(masks))


def test_the_metrics_are_those_of_all_answers_together(root: Path) -> None:
    every = recorded(root)
    anomalous = every.labels != "good"
    result = evaluate(detect, read_dataset(root))
    assert (result.good_images, result.anomalous_images, result.not_inspected) == (12, 14, 0)
    assert result.image_auroc == pytest.approx(roc_auc_score(anomalous, every.scores), abs=1e-12)
    assert result.pixel_auroc == pytest.approx(
        roc_auc_score(every.masks.ravel(), every.maps.ravel()), abs=1e-9
    )
    direct = PixelMetrics()
    for anomaly_map, mask in zip(every.maps, every.masks, strict=True):
        direct.add(anomaly_map, mask)
    assert result.aupro == direct.aupro()
    for f1, threshold, values, truth in (
        (result.image_f1, result.image_threshold, every.scores, anomalous),
        (result.pixel_f1, result.pixel_threshold, every.maps.ravel(), every.masks.ravel()),
    ):
        assert threshold is not None
        assert f1 == pytest.approx(f1_score(truth, values > threshold.value))
        precision, recall, _ = precision_recall_curve(truth, values)
        assert f1 == pytest.approx(np.max(2 * precision * recall / (precision + recall + 1e-300)))


def test_the_operating_points_count_the_images_above_each_threshold(root: Path) -> None:
    every = recorded(root)
    good = every.labels == "good"
    given = Thresholds(image=Threshold(value=float(np.median(every.scores)), method="manual"))
    result = evaluate(detect, read_dataset(root), thresholds=given)
    assert [point.name for point in result.operating_points] == [*("now", "no false alarm", "best F1")]
    for point in result.operating_points:
        assert point.threshold is not None
        assert point.detections is not None
        above = every.scores.astype(np.float32) > point.threshold
        assert point.false_alarms.hits == np.sum(above & good)
        assert point.detections.hits == np.sum(above & ~good)
    assert result.operating_points[0].false_alarms.rate == result.false_alarm_rate


def test_each_class_is_measured_against_all_good_images(root: Path) -> None:
    every = recorded(root)
    result = evaluate(detect, read_dataset(root))
    assert [row.label for row in result.classes] == ["line", "square"]
    assert result.image_threshold is not None
    for row in result.classes:
        chosen = np.isin(every.labels, ["good", row.label])
        assert row.images == np.sum(every.labels == row.label)
        assert row.image_auroc == pytest.approx(
            roc_auc_score(every.labels[chosen] != "good", every.scores[chosen]), abs=1e-12
        )
        above = every.scores[every.labels == row.label] > result.image_threshold.value
        assert row.detection_rate == pytest.approx(np.mean(above))


def test_rates_belong_to_the_bundles_thresholds_when_it_has_them(root: Path) -> None:
    every = recorded(root)
    image, pixel = float(np.median(every.scores)), float(np.quantile(every.maps, 0.9))
    given = Thresholds(
        image=Threshold(value=image, method="manual"), pixel=Threshold(value=pixel, method="manual")
    )
    result = evaluate(detect, read_dataset(root), thresholds=given)
    good = every.labels == "good"
    assert (result.image_threshold, result.pixel_threshold) == (given.image, given.pixel)
    assert result.false_alarm_rate == pytest.approx(np.mean(every.scores[good] > image))
    assert result.detection_rate == pytest.approx(np.mean(every.scores[~good] > image))
    assert result.pixel_false_alarm_rate == pytest.approx(np.mean(every.maps[~every.masks] > pixel))
    assert result.pixel_detection_rate == pytest.approx(np.mean(every.maps[every.masks] > pixel))
    assert result.notes == ()


def test_a_threshold_found_on_the_test_images_is_said_to_be_optimistic(root: Path) -> None:
    notes = " ".join(evaluate(detect, read_dataset(root)).notes)
    assert "no image threshold" in notes
    assert "no pixel threshold" in notes
    assert "optimistic" in notes


def test_without_masks_pixel_metrics_are_unavailable_with_the_reason(root: Path) -> None:
    for path in (root / "ground_truth/line").iterdir():
        path.unlink()
    result = evaluate(detect, read_dataset(root))
    assert result.image_auroc == evaluate(detect, read_dataset(root)).image_auroc is not None
    assert (result.pixel_auroc, result.aupro, result.pixel_f1, result.pixel_threshold) == (None,) * 4
    assert "No pixel metric: no masks for line." in result.notes


@pytest.mark.parametrize("missing", ["good", "anomalous"])
def test_one_class_only_leaves_image_metrics_unavailable_with_the_reason(root: Path, missing: str) -> None:
    dataset = read_dataset(root)
    kept = tuple(sample for sample in dataset.samples if sample.is_anomalous == (missing == "good"))
    result = evaluate(detect, only(dataset, kept))
    assert (result.image_auroc, result.image_f1, result.image_threshold) == (None, None, None)
    assert f"No image metric: the dataset has no {missing} image that was inspected." in result.notes


def only(dataset: Dataset, samples: tuple[Sample, ...]) -> Dataset:
    return Dataset(root=dataset.root, samples=samples, classes_without_masks=dataset.classes_without_masks)


def failing(bad: Callable[[Answer], Answer], *, every: int) -> Callable[[NDArray[np.uint8]], Answer]:
    count = 0

    def detect_or_fail(image: NDArray[np.uint8]) -> Answer:
        nonlocal count
        count += 1
        return bad(detect(image)) if count % every == 0 else detect(image)

    return detect_or_fail


@pytest.mark.parametrize(
    "bad",
    [
        lambda answer: Answer(float("nan"), answer.network_map),
        lambda answer: Answer(float("inf"), answer.network_map),
        lambda answer: Answer(answer.score, np.where(np.eye(*SIZE), np.nan, answer.network_map)),
    ],
    ids=["score NaN", "score infinite", "map NaN"],
)
def test_images_without_a_finite_answer_are_left_out_and_counted(
    root: Path, bad: Callable[[Answer], Answer]
) -> None:
    dataset = read_dataset(root)
    lost = dataset.samples[4::5]
    result = evaluate(failing(bad, every=5), dataset)
    rest = evaluate(detect, only(dataset, tuple(s for s in dataset.samples if s not in lost)))
    assert result.not_inspected == len(lost) == 5
    assert result.not_inspected_files == tuple(s.path.relative_to(root).as_posix() for s in lost)
    assert any("5 images were not inspected" in note and "not finite" in note for note in result.notes)
    assert (result.image_auroc, result.pixel_auroc, result.aupro, result.classes) == (
        rest.image_auroc,
        rest.pixel_auroc,
        rest.aupro,
        rest.classes,
    )


def test_no_finite_answer_at_all_is_an_error(root: Path) -> None:
    with pytest.raises(CalibrationError, match="none of the 26 images"):
        evaluate(
            failing(lambda answer: Answer(float("nan"), answer.network_map), every=1), read_dataset(root)
        )


def test_defects_that_vanish_at_the_networks_size_are_noted(root: Path) -> None:
    for index in (1, 4):
        path = root / f"ground_truth/line/{index:03}_mask.png"
        mask = np.zeros((32 + index, 48), np.uint8)
        mask[3, 3] = 255  # between the pixels that nearest neighbour takes
        assert cv2.imwrite(str(path), mask)
    notes = evaluate(detect, read_dataset(root)).notes
    assert any(note.startswith("2 anomalous images have no defect pixel") for note in notes)


@pytest.mark.parametrize(
    ("frame", "resize", "keep_aspect", "crop", "rows", "columns"),
    [
        ((16, 32), (8, 8), False, None, slice(0, None, 2), slice(0, None, 4)),
        ((16, 16), (8, 8), False, (4, 4), slice(4, 12, 2), slice(4, 12, 2)),
        ((16, 32), (8, 8), True, (8, 8), slice(0, None, 2), slice(8, 24, 2)),
        ((32, 16), (8, 8), True, (6, 4), slice(10, 22, 2), slice(4, 12, 2)),
    ],
)
def test_a_mask_is_cropped_where_its_image_is(
    frame: tuple[int, int],
    resize: tuple[int, int],
    keep_aspect: bool,
    crop: tuple[int, int] | None,
    rows: slice,
    columns: slice,
) -> None:
    preprocessing = msgspec.structs.replace(PLAIN, resize=resize, keep_aspect=keep_aspect, crop=crop)
    mask = np.random.default_rng(4).random(frame) < 0.5
    expected = mask[rows, columns]
    np.testing.assert_array_equal(mask_on_map(mask, preprocessing, crop or resize), expected)
    coarse = mask_on_map(mask, preprocessing, (expected.shape[0] // 2, expected.shape[1] // 2))
    np.testing.assert_array_equal(coarse, expected[::2, ::2])


def test_around_an_image_smaller_than_the_crop_there_is_no_defect() -> None:
    preprocessing = msgspec.structs.replace(PLAIN, resize=(4, 4), crop=(8, 10))
    expected = np.pad(np.ones((4, 4), np.bool_), ((2, 2), (3, 3)))
    np.testing.assert_array_equal(mask_on_map(np.ones((4, 4), np.bool_), preprocessing, (8, 10)), expected)


def test_a_mask_is_resized_by_nearest_neighbour() -> None:
    mask = np.random.default_rng(2).random((37, 61)) < 0.5
    for height, width in ((16, 16), (37, 61), (74, 122), (50, 20)):
        rows, columns = (np.arange(height) * 37) // height, (np.arange(width) * 61) // width
        np.testing.assert_array_equal(resize_mask(mask, (height, width)), mask[np.ix_(rows, columns)])


def test_progress_is_told_after_each_image(root: Path) -> None:
    reports = RecordedReports()
    evaluate(detect, read_dataset(root), reports=reports)
    assert reports.counts == [(done, 26) for done in range(1, 27)]


def test_an_evaluation_survives_json(root: Path) -> None:
    result = evaluate(detect, read_dataset(root))
    assert msgspec.json.decode(msgspec.json.encode(result), type=Evaluation) == result


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    assert cv2.imwrite(str(image), np.zeros((48, 48), np.uint8))
    assert cv2.imwrite(str(mask), np.pad(np.full((10, 10), 255, np.uint8), 19))
    good = Sample(path=image, label="good", is_anomalous=False, mask=None)
    bad = Sample(path=image, label="bad", is_anomalous=True, mask=mask)
    rng = np.random.default_rng(0)

    def answer(_: NDArray[np.uint8]) -> Answer:
        return Answer(float(rng.random()), rng.integers(0, 999, (24, 24)).astype(np.float32))

    def peak(images: int) -> int:
        dataset = Dataset(root=tmp_path, samples=(good, bad) * (images // 2), classes_without_masks=())
        tracemalloc.start()
        try:
            evaluate(answer, dataset)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(1200) < peak(150) + 200_000 < 2_000_000


def detect_with_log_nfa(image: NDArray[np.uint8]) -> Answer:
    """Detect as ``detect`` does, with a log NFA that is lower where the map is brighter."""
    answer = detect(image)
    return dataclasses.replace(answer, network_log_nfa=100 - answer.network_map.astype(np.float64))


def test_each_rules_rates_and_iou_are_those_of_the_whole_dataset_counted_directly(root: Path) -> None:
    all_of = recorded(root)
    good = all_of.labels == "good"
    thresholds = Thresholds(
        image=Threshold(value=190.0, method="manual"),
        pixel=Threshold(value=120.0, method="manual"),
        nfa=NfaThreshold(form="tree", log_nfa=-60.0),
    )
    found = evaluate(detect_with_log_nfa, read_dataset(root), thresholds=thresholds)
    assert [(one.rule, one.log_nfa) for one in found.decisions] == [
        ("fitted", None),
        ("best F1", None),
        ("nfa-tree", 0.0),
        ("nfa-tree", -60.0),
    ]
    best = evaluate(detect, read_dataset(root))
    assert best.image_threshold is not None
    assert best.pixel_threshold is not None
    limits = [  # limits of score and map, where a log NFA below x is a map above 100 - x
        (190.0, 120.0),
        (best.image_threshold.value, best.pixel_threshold.value),
        (100.0, 100.0),
        (160.0, 160.0),
    ]
    for one, (image_limit, pixel_limit) in zip(found.decisions, limits, strict=True):
        called, marked = all_of.scores > image_limit, all_of.maps > pixel_limit
        assert one.false_alarm_rate == pytest.approx(called[good].mean())
        assert one.detection_rate == pytest.approx(called[~good].mean())
        both, either = (marked & all_of.masks).sum(), (marked | all_of.masks).sum()
        assert one.pixel_iou == pytest.approx(both / either)
        assert 0 < both < either


def test_each_defect_is_counted_by_the_rule_that_decides(root: Path) -> None:
    all_of = recorded(root)
    middle = float(np.median(all_of.scores[all_of.labels != "good"]))  # between two of 14 scores
    nfa = NfaThreshold(form="tree", log_nfa=100 - middle)
    for image in (None, Threshold(value=150.0, method="manual")):
        thresholds = Thresholds(image=image, nfa=nfa)
        found = evaluate(detect_with_log_nfa, read_dataset(root), thresholds=thresholds)
        rates = {one.label: one.detection_rate for one in found.classes}
        called = all_of.scores > middle
        assert rates == {
            label: pytest.approx(called[all_of.labels == label].mean()) for label in ("line", "square")
        }
        assert called[all_of.labels != "good"].mean() == 0.5
        (deciding,) = (one for one in found.decisions if one.log_nfa == nfa.log_nfa)
        assert deciding.detection_rate == 0.5
        # The rates of the evaluation are those of the rule that decides, and no other threshold stands beside them.
        assert (found.image_threshold, found.pixel_threshold, found.is_decided) == (None, None, True)
        assert found.detection_rate == 0.5
        assert found.false_alarm_rate == pytest.approx(called[all_of.labels == "good"].mean())
        marked = all_of.maps > middle
        assert found.pixel_detection_rate == pytest.approx(marked[all_of.masks].mean())
        assert found.pixel_false_alarm_rate == pytest.approx(marked[~all_of.masks].mean())
        assert not any("threshold" in note for note in found.notes)


def test_an_image_without_a_log_nfa_was_not_inspected_where_that_decides(root: Path) -> None:
    found = evaluate(detect_with_log_nfa, read_dataset(root), thresholds=NFA)
    missing = evaluate(
        detect_of_every_second(detect_with_log_nfa, detect), read_dataset(root), thresholds=NFA
    )
    assert (found.not_inspected, missing.not_inspected) == (0, 13)
    assert missing.good_images + missing.anomalous_images == 13


NFA = Thresholds(nfa=NfaThreshold(form="block"))


def detect_of_every_second(
    one: Callable[[NDArray[np.uint8]], Answer], other: Callable[[NDArray[np.uint8]], Answer]
) -> Callable[[NDArray[np.uint8]], Answer]:
    turns = itertools.cycle([one, other])
    return lambda image: next(turns)(image)
