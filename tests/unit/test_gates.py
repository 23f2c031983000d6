"""Compare the gate with direct computations on all answers, and with graphs that are wrong in one way each."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from sklearn.metrics import roc_auc_score

import flowedge
from flowedge.bundle import write_bundle
from flowedge.calibration.dataset import read_dataset
from flowedge.calibration.defects import DEFECTS
from flowedge.calibration.gate_report import DEFAULT_LIMITS, GateReport
from flowedge.calibration.gates import Gate, compare
from flowedge.calibration.metrics import PixelMetrics
from flowedge.errors import CalibrationError, ImageError
from flowedge.manifest import Preprocessing
from support.recorded_reports import RecordedReports
from support.tiny_bundle import IMAGE_SIZE, tiny_manifest, tiny_model

pytestmark = pytest.mark.usefixtures("without_proof")

LIMITS = DEFAULT_LIMITS["int8"]
SIZE = (16, 24)
PLAIN = Preprocessing(resize=SIZE, method="float_bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Answer:
    score: float
    network_map: NDArray[np.float32]
    preprocessing: Preprocessing = PLAIN
    network_log_nfa: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Pair:
    """The two answers on one image, and the kind of the image."""

    kind: str
    mask: NDArray[np.bool_] | None
    reference: Answer
    typed: Answer


def pairs_of(noise: float = 10.0) -> list[Pair]:
    """Make thirty pairs of each kind. Defects rise to a hundred times the spread of good images."""
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(90):
        kind = ("good", "defect", "labelled")[index % 3]
        mask = None
        anomaly_map = rng.normal(5, 1, SIZE)
        if kind == "defect" or (kind == "labelled" and index % 2):
            mask = np.zeros(SIZE, bool)
            mask[2:9, 3 : 6 + index % 7] = True
            anomaly_map[mask] += rng.uniform(0, 100)
        typed_map = anomaly_map * (1 + noise / 100 * rng.normal(size=SIZE)) + noise * rng.normal(size=SIZE)
        score = float(anomaly_map.max())
        typed_score = score + noise * float(rng.normal())
        pairs.append(
            Pair(
                kind,
                mask,
                Answer(score, anomaly_map.astype(np.float32)),
                Answer(typed_score, typed_map.astype(np.float32)),
            )
        )
    return pairs


def gate_of(pairs: list[Pair]) -> Gate:
    gate = Gate(LIMITS)
    for pair in pairs:
        if pair.kind == "good":
            gate.add_good(pair.reference, pair.typed)
        elif pair.kind == "defect":
            assert pair.mask is not None
            gate.add_defect(pair.reference, pair.typed, pair.mask)
        else:
            gate.add_labelled(pair.reference, pair.typed, is_anomalous=pair.mask is not None, mask=pair.mask)
    return gate


def test_every_quantity_is_that_of_all_answers_together() -> None:
    pairs = pairs_of()
    report = gate_of(pairs).report()
    assert (report.good_images, report.defect_images, report.labelled_images) == (30, 30, 30)
    maps = [
        np.stack([p.reference.network_map for p in pairs]),
        np.stack([p.typed.network_map for p in pairs]),
    ]
    scores = [np.array([p.reference.score for p in pairs]), np.array([p.typed.score for p in pairs])]
    good = np.array([p.kind == "good" for p in pairs])
    found = {quantity.name: quantity.value for quantity in report.quantities}

    assert found["map_correlation"] == pytest.approx(np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1])
    single = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*maps, strict=True)]
    assert found["worst_image_correlation"] == pytest.approx(min(single))
    units = np.maximum(maps[0][good].std(), maps[0].std(axis=(1, 2)))
    worst = np.abs(maps[1].astype(float) - maps[0]).max(axis=(1, 2))
    assert found["map_error"] == pytest.approx(np.max(worst / units), rel=1e-5)
    assert found["rank_agreement"] == pytest.approx(spearmanr(*scores).statistic)
    verdicts = [one > np.quantile(one[good], 0.99, method="higher") for one in scores]
    assert found["flips"] == np.mean(verdicts[0] != verdicts[1]) > 0

    labelled = np.array([p.kind == "labelled" for p in pairs])
    labels = np.array([p.mask is not None for p in pairs])
    aurocs = [roc_auc_score(labels[labelled], one[labelled]) for one in scores]
    assert found["image_auroc"] == pytest.approx(abs(aurocs[0] - aurocs[1]), abs=1e-12)
    masks = np.stack([np.zeros(SIZE, bool) if p.mask is None else p.mask for p in pairs])
    for chosen, prefix in ((labelled, ""), (~labelled, "synthetic_")):
        aurocs = [roc_auc_score(masks[chosen].ravel(), one[chosen].ravel()) for one in maps]
        assert found[f"{prefix}pixel_auroc"] == pytest.approx(abs(aurocs[0] - aurocs[1]), abs=1e-9)
        direct = (PixelMetrics(), PixelMetrics())
        for index in np.flatnonzero(chosen):
            for metrics, one in zip(direct, maps, strict=True):
                metrics.add(one[index], masks[index] if masks[index].any() else None)
        before, after = (metrics.aupro() for metrics in direct)
        assert before is not None
        assert after is not None
        assert found[f"{prefix}aupro"] == pytest.approx(abs(before - after), abs=1e-12)


def test_the_order_of_the_images_changes_nothing() -> None:
    pairs = pairs_of()
    ones, others = (gate_of(order).report() for order in (pairs, pairs[::-1]))
    for one, other in zip(ones.quantities, others.quantities, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-9)


def test_equal_answers_differ_in_nothing() -> None:
    report = gate_of([replace(pair, typed=pair.reference) for pair in pairs_of()]).report()
    assert report.passed
    assert report.failures == ()
    for quantity in report.quantities:
        wanted = 1.0 if quantity.name.endswith(("correlation", "agreement")) else 0.0
        assert quantity.value == pytest.approx(wanted, abs=1e-12), quantity.name


def test_an_error_in_proportion_to_a_strong_defect_is_no_error_of_the_good_range() -> None:
    """CS-Flow's maps rise without bound, so a relative error of 1e-3 there is many spreads of the good images."""
    rng = np.random.default_rng(0)
    gate = Gate(LIMITS)
    for index in range(10):
        anomaly_map = rng.normal(1, 0.1, (64, 64)).astype(np.float32)
        one = Answer(float(index), anomaly_map)
        gate.add_good(one, one)
    strong = anomaly_map.copy()
    strong[10:20, 10:20] = 1e4
    gate.add_defect(Answer(99.0, strong), Answer(99.0, strong * np.float32(1.001)), strong > 10)
    error = gate.report().quantity("map_error").value
    assert error is not None
    assert error < 0.01 < 1e-3 * 1e4 / 0.1


def test_a_report_is_json_and_reads_like_one() -> None:
    report = gate_of(pairs_of()).report()
    assert not report.passed
    assert msgspec.json.decode(msgspec.json.encode(report), type=GateReport) == report
    assert len(report.failures) == sum(not one.passed for one in report.quantities) >= 2
    assert any("map correlation: 0.8" in line and "at least 0.99" in line for line in report.failures)
    with pytest.raises(KeyError):
        report.quantity("speed")


def test_maps_without_any_variation_have_no_unit() -> None:
    flat = Answer(0.0, np.ones(SIZE, np.float32))
    gate = Gate(LIMITS)
    gate.add_good(flat, flat)
    assert gate.report().passed
    gate.add_good(flat, Answer(0.0, flat.network_map * 2))
    error = gate.report().quantity("map_error")
    assert (error.value, error.passed) == (None, False)
    assert msgspec.json.decode(msgspec.json.encode(gate.report()), type=GateReport) == gate.report()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["score", "map"])
def test_a_typed_answer_that_is_not_finite_fails_and_spoils_nothing_else(wrong: float, where: str) -> None:
    pairs = [replace(pair, typed=pair.reference) for pair in pairs_of()]
    broken = pairs[4].typed.network_map.copy()
    broken[3, 3] = wrong
    answer = (
        replace(pairs[4].typed, score=wrong)
        if where == "score"
        else replace(pairs[4].typed, network_map=broken)
    )
    report = gate_of([*pairs, replace(pairs[4], typed=answer)]).report()
    assert not report.passed
    (failure,) = report.failures
    assert failure.startswith("1 of 91 images")
    assert "NaN" in failure
    map_error = report.quantity("map_error")
    assert map_error.value == 0


def test_a_graph_that_is_nowhere_finite_fails_with_that_reason_alone() -> None:
    one = Answer(1.0, np.ones(SIZE, np.float32))
    gate = Gate(LIMITS)
    gate.add_good(one, replace(one, score=math.nan))
    report = gate.report()
    assert [quantity.name for quantity in report.quantities] == ["not_finite"]
    assert not report.passed


def test_a_reference_that_is_not_finite_cannot_be_compared_with() -> None:
    one = Answer(1.0, np.ones(SIZE, np.float32))
    with pytest.raises(
        CalibrationError, match=r"fp32 answer for a good image is not finite.*flowedge verify"
    ):
        Gate(LIMITS).add_good(replace(one, score=math.nan), one)


def test_thresholds_need_good_images() -> None:
    with pytest.raises(CalibrationError, match="at least one good image"):
        Gate(LIMITS).report()


def test_maps_of_two_shapes_are_a_mistake() -> None:
    one = Answer(1.0, np.ones(SIZE, np.float32))
    with pytest.raises(ValueError, match=r"\(16, 24\) and \(4, 4\)"):
        Gate(LIMITS).add_good(one, replace(one, network_map=np.ones((4, 4), np.float32)))


def test_without_masks_only_the_metrics_of_images_are_compared() -> None:
    gate = gate_of(pairs_of())
    one = pairs_of()[0]
    gate.add_labelled(one.reference, one.typed, is_anomalous=True)
    names = {quantity.name for quantity in gate.report().quantities}
    assert "image_auroc" in names
    assert names & {"pixel_auroc", "aupro"} == set()


@pytest.mark.parametrize(
    ("limit", "defects", "allowed"),
    [(0.03, 4, 1), (0.03, 30, 2), (0.05, 36, 2), (0.05, 37, 3), (0.07, 96, 7), (0.0, 4, 0)],
)
def test_the_limit_of_flips_is_rounded_up_to_whole_verdicts(limit: float, defects: int, allowed: int) -> None:
    flat = np.zeros(SIZE, np.float32)
    for flips in (allowed, allowed + 1):
        gate = Gate(msgspec.structs.replace(LIMITS, flips=limit))
        for index in range(4):
            one = Answer(float(index), flat)
            gate.add_good(one, one)
        for index in range(defects):
            above, below = Answer(10.0 + index, flat), Answer(-10.0 + index, flat)
            gate.add_defect(above, below if index < flips else above, np.ones(SIZE, bool))
        found, images = gate.report().quantity("flips"), 4 + defects
        assert (found.value, found.limit, found.passed) == (
            flips / images,
            allowed / images,
            flips == allowed,
        )


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    rng = np.random.default_rng(0)
    gate = Gate(LIMITS)

    def held_after(images: int) -> int:
        for _ in range(images):
            anomaly_map = rng.normal(size=(128, 128)).astype(np.float32)
            one = Answer(float(anomaly_map.max()), anomaly_map)
            gate.add_good(one, one)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        few, many = held_after(6), held_after(24)
    finally:
        tracemalloc.stop()
    assert many - few < 8 * 128 * 128 * 4  # a third of the maps that went through


@pytest.mark.parametrize("field", ["map_error", "flips", "image_auroc", "pixel_auroc", "aupro"])
def test_fewer_bits_are_allowed_more(field: str) -> None:
    fp16, bf16, int8 = (getattr(DEFAULT_LIMITS[precision], field) for precision in ("fp16", "bf16", "int8"))
    assert 0 < fp16 < bf16 < int8


# Real graphs on ONNX Runtime, each wrong in one way

NOISE = np.random.default_rng(3).normal(0, 30, (1, 1, *IMAGE_SIZE)).astype(np.float32)
ROWS = np.arange(IMAGE_SIZE[0])[::-1].copy()
WRONG: dict[str, tuple[str, str, list[Any], set[str]]] = {
    # how the graph's map or score is replaced, and the quantities that this fails
    "same": ("anomaly_map", "Identity", [], set()),
    "offset": ("anomaly_map", "Add", [np.float32(60)], {"map_error"}),
    "factor": ("anomaly_map", "Mul", [np.float32(2)], {"map_error"}),
    "noise": ("anomaly_map", "Add", [NOISE], {"map_correlation", "map_error"}),
    "upside down": ("anomaly_map", "Gather", [ROWS], {"map_correlation", "map_error"}),
    "saturated map": ("anomaly_map", "Min", [np.float32(10)], {"map_correlation", "map_error"}),
    "saturated score": ("score", "Min", [np.float32(14.6)], {"rank_agreement", "flips"}),
    "reversed score": ("score", "Neg", [], {"rank_agreement", "flips"}),
    "other unit of the score": ("score", "Mul", [np.float32(7)], set()),
    "not finite": ("anomaly_map", "Log", [], {"not_finite"}),
}


def wrong_graph(output: str, operator: str, constants: list[Any]) -> bytes:
    """Make the tiny graph with one node after its map or its score. The score is still that of the right map."""
    model = tiny_model(repeats_energies=True)
    for node in model.graph.node:
        node.output[:] = [f"right_{output}" if name == output else name for name in node.output]
        node.input[:] = [f"right_{output}" if name == output else name for name in node.input]
    names = [f"constant_{n}" for n in range(len(constants))]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, constants, strict=True)
    )
    attributes: dict[str, Any] = {"axis": 2} if operator == "Gather" else {}
    negative = [helper.make_node("Neg", [f"right_{output}"], ["negative"])] if operator == "Log" else []
    source = "negative" if negative else f"right_{output}"
    model.graph.node.extend([*negative, helper.make_node(operator, [source, *names], [output], **attributes)])
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Write twelve pictures of a smooth surface with a little noise, 48x60."""
    folder = tmp_path_factory.mktemp("good")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :60]
    paths = []
    for index in range(12):
        surface = 90 + 20 * np.sin(x / 9 + index)[..., None] + 10 * np.cos(y / 7)[..., None]
        picture = (surface + rng.normal(0, 4, (48, 60, 3))).astype(np.uint8)
        paths.append(folder / f"{index:02}.png")
        assert cv2.imwrite(str(paths[-1]), picture)
    return tuple(paths)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_graph_fails_what_it_is_wrong_in(
    name: str, photographs: tuple[Path, ...], tmp_path: Path
) -> None:
    output, operator, constants, fails = WRONG[name]
    manifest = tiny_manifest(precisions=("fp32", "int8-cpu"))
    files: dict[str, Path | bytes] = {
        "model.onnx": tiny_model(repeats_energies=True).SerializeToString(),
        "model.int8-cpu.onnx": wrong_graph(output, operator, constants),
    }
    write_bundle(tmp_path / "tiny.flowedge", manifest, files)
    with (
        flowedge.load(tmp_path / "tiny.flowedge", threads=1) as reference,
        flowedge.load(tmp_path / "tiny.flowedge", precision="int8", threads=1) as typed,
    ):
        report = compare(reference, typed, photographs, 3, LIMITS)
    assert (report.good_images, report.defect_images) == (12, 36)
    assert {one.name for one in report.quantities if not one.passed} == fails
    assert report.passed == (not fails)
    if name == "same":
        assert report.quantity("map_error").value == report.quantity("flips").value == 0


def test_every_comparison_sees_the_same_defects_of_all_kinds(photographs: tuple[Path, ...]) -> None:
    def recorder(frames: list[bytes]) -> Callable[[NDArray[np.uint8]], Answer]:
        def detect(frame: NDArray[np.uint8]) -> Answer:
            frames.append(frame.tobytes())
            return Answer(float(frame.mean()), frame[:16, :24, 0].astype(np.float32))

        return detect

    seen: list[list[bytes]] = [[], [], [], []]
    reports = RecordedReports()
    for first in (0, 2):
        compare(
            recorder(seen[first]),
            recorder(seen[first + 1]),
            photographs[:3],
            len(DEFECTS) + 1,
            LIMITS,
            reports=reports,
        )
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert len(set(seen[0])) == 3 * (len(DEFECTS) + 2)
    assert reports.counts == [(1, 3), (2, 3), (3, 3)] * 2


def test_labelled_images_are_read_with_their_masks(photographs: tuple[Path, ...], tmp_path: Path) -> None:
    for label in ("good", "hole"):
        (tmp_path / "test" / label).mkdir(parents=True)
        for index, path in enumerate(photographs[:4]):
            picture = cv2.imread(str(path))
            assert picture is not None
            mask = np.zeros(picture.shape[:2], np.uint8)
            if label == "hole":
                mask[10:30, 10:30] = 255
                (tmp_path / "ground_truth" / "hole").mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(tmp_path / "ground_truth" / "hole" / f"{index}_mask.png"), mask)
            picture[mask > 0] = 255
            assert cv2.imwrite(str(tmp_path / "test" / label / f"{index}.png"), picture)

    def detect(frame: NDArray[np.uint8]) -> Answer:
        small = cv2.resize(frame[..., 0], SIZE[::-1]).astype(np.float32)
        return Answer(float(small.max()), small)

    def blind(frame: NDArray[np.uint8]) -> Answer:
        answer = detect(frame)
        return replace(answer, network_map=-answer.network_map)

    report = compare(detect, blind, photographs, 0, LIMITS, read_dataset(tmp_path))
    assert (report.defect_images, report.labelled_images) == (0, 8)
    changes = {one.name: one.value for one in report.quantities}
    assert changes["image_auroc"] == 0
    assert changes["pixel_auroc"] == pytest.approx(1.0, abs=0.05)
    assert not report.quantity("pixel_auroc").passed
    assert not report.quantity("aupro").passed


def test_a_picture_too_small_for_a_defect_is_said(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "small.png"), np.zeros((8, 8, 3), np.uint8))

    def detect(frame: NDArray[np.uint8]) -> Answer:
        return Answer(0.0, np.zeros(SIZE, np.float32))

    with pytest.raises(ImageError, match=r"small\.png: .* 8x8 is too small"):
        compare(detect, detect, [tmp_path / "small.png"], 1, LIMITS)

    def broken(frame: NDArray[np.uint8]) -> Answer:
        return Answer(math.nan, np.zeros(SIZE, np.float32))

    with pytest.raises(CalibrationError, match=r"small\.png: the fp32 answer for a good image is not finite"):
        compare(broken, detect, [tmp_path / "small.png"], 0, LIMITS)
    with pytest.raises(ValueError, match="-1"):
        compare(detect, detect, [], -1, LIMITS)
