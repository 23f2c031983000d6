"""Blocks are reverted until the gate passes, and a precision that cannot pass is refused."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

import flowedge
from flowedge import onnx_files
from flowedge.bundle import Bundle, clone_bundle, open_bundle, replace_in_bundle, write_bundle
from flowedge.calibration import calibrate
from flowedge.calibration.calibrate import calibrate_bundle
from flowedge.calibration.calibration_images import stored_levels
from flowedge.calibration.calibration_record import FittedGraph, PrecisionReport, read_record
from flowedge.calibration.gate_report import DEFAULT_LIMITS, GateLimits, GateReport
from flowedge.calibration.precision import PrecisionRequest, add_precisions
from flowedge.calibration.precision.converted_graph import FILES, PrecisionConverter, tensors_for_conversion
from flowedge.calibration.precision.gate_images import BlockEffect, GateImages
from flowedge.calibration.precision.ranges import Observer, tensor_shapes
from flowedge.calibration.precision.search import Search
from flowedge.calibration.score_maxima import StoredLevels
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.errors import CalibrationError, PrecisionError
from flowedge.graph_files import weights_beside
from flowedge.progress import SILENT
from flowedge.runtime.detector import Detector
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.preprocess import Preprocessor
from support.block_graph import LIMITS, Layer, random_layers, write_block_bundle, write_photographs
from support.observed import observe

pytestmark = pytest.mark.usefixtures("without_proof")
IMPOSSIBLE = msgspec.structs.replace(LIMITS, map_correlation=1.0, map_error=0.0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return write_photographs(tmp_path_factory.mktemp("photographs") / "good", 8)


def request_of(*wanted: str, limits: GateLimits = LIMITS, **options: Any) -> PrecisionRequest:
    return PrecisionRequest(
        wanted=wanted,  # type: ignore[arg-type]
        limits=dict.fromkeys(("fp16", "bf16", "int8"), limits),
        defects_per_image=1,
        **options,
    )


def ruined_by_int8(layers: Sequence[Layer], number: int) -> None:
    """Change a layer so that a channel that is always zero has weights so large that they use up all steps."""
    before, layer = layers[number - 1], layers[number]
    before.weight[0] = 0
    before.bias[0] = 0
    layer.weight[:, 0] = 300.0


def listing(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def reverted(reports: Sequence[PrecisionReport], precision: str) -> set[str]:
    (report,) = (one for one in reports if one.precision == precision)
    return {block.name for block in report.blocks if block.reason}


def test_exactly_the_ruined_blocks_are_given_back(tmp_path: Path, photographs: tuple[Path, ...]) -> None:
    layers = random_layers(2, (8,) * 7)
    for number in (2, 5):
        ruined_by_int8(layers, number)
    bundle = write_block_bundle(tmp_path / "blocks.flowedge", layers)
    done, reports = add_precisions(bundle, photographs, request_of("int8"), threads=1)
    ruined = {"backbone/l2", "backbone/l5"}
    for report in reports:
        assert report.gate.passed
        assert reverted(reports, report.precision) == ruined
        costs = {block.name: block.sensitivity for block in report.blocks}
        assert None not in costs.values()
        worst = sorted(costs, key=lambda name: -(costs[name] or 0))[:2]
        assert set(worst) == ruined
        graph = done.manifest.graph(report.precision)
        assert set(graph.given_back) == ruined
        assert set(graph.int8) == {f"backbone/l{n}" for n in range(1, 7)} - ruined
        assert sum(block.macs_share for block in report.blocks) == pytest.approx(1)
    high = [[b.precision for b in report.blocks if b.reason] for report in reports]
    assert high == [["fp16", "fp16"], ["fp32", "fp32"]]
    types = {t.name: t.data_type for t in onnx.load(str(done.graph_path("int8-cpu"))).graph.initializer}
    assert [types.get(f"l{n}.weight") for n in range(7)].count(TensorProto.FLOAT) == 3, "and the image's own"


class CountingSearch(Search):
    """Searches over blocks whose cost a table gives, and runs no graph."""

    def __init__(self, costs: dict[str, float], most: float, on_a_part: float | None = None) -> None:
        self._gate: Any = SimpleNamespace(every_for_search=1 if on_a_part is None else 4)
        self._bearable_on_a_part = on_a_part
        self._blocks, self._precision, self._limits = tuple(costs), "int8-cpu", LIMITS
        self._macs = {name: int(name != "idle") for name in costs}
        self._costs, self._bearable = costs, most
        self.sensitivities, self.score_errors, self.self_test_errors = {}, {}, {}
        self.judged: list[int] = []

    def measure(self) -> None:
        self.sensitivities = dict(self._costs)

    def _judge(self, reverted: int, every: int = 1) -> GateReport:
        bearable = self._bearable
        if every == 1:
            self.judged.append(reverted)
        elif self._bearable_on_a_part is not None:
            bearable = self._bearable_on_a_part
        passed = sum(self._costs[name] for name in self.chosen(reverted)) <= bearable
        return GateReport(
            passed=passed, limits=LIMITS, good_images=1, defect_images=0, labelled_images=0, quantities=()
        )


@pytest.mark.parametrize("wanted", range(12))
def test_the_smallest_number_is_found_in_few_comparisons(wanted: int) -> None:
    costs = {f"b{n}": float((7 * n) % 12 + 1) for n in range(12)}
    order = sorted(costs, key=lambda name: -costs[name])
    search = CountingSearch(costs, sum(costs[name] for name in order[wanted:]))
    assert search.first_that_passes() == wanted
    assert set(search.chosen(wanted)) == set(order[wanted:])
    assert len(search.judged) <= 9
    assert max(search.judged) < 12, "a graph without a single block is no graph of this precision"


@pytest.mark.parametrize("wanted", range(12))
@pytest.mark.parametrize("error", [-1, 0, 1, 12])
def test_a_part_of_the_images_tells_where_to_look_and_all_images_decide(wanted: int, error: int) -> None:
    costs = {f"b{n}": float((7 * n) % 12 + 1) for n in range(12)}
    order = sorted(costs, key=lambda name: -costs[name])
    bearable = [sum(costs[name] for name in order[n:]) for n in range(13)]
    search = CountingSearch(costs, bearable[wanted], on_a_part=bearable[min(max(wanted + error, 0), 12)])
    assert search.first_that_passes() == wanted
    if abs(error) <= 1:
        assert len(search.judged) <= 5, "none of the numbers far from the right one runs on all images"


def test_what_is_given_back_later_is_the_most_sensitive_too() -> None:
    search = CountingSearch({"a": 1.0, "b": 9.0, "c": 2.0}, most=100.0)
    assert search.first_that_passes(1) == 1
    assert search.chosen(1) == ("a", "c")


def test_a_block_of_one_layout_alone_is_measured_too() -> None:
    measured: list[tuple[str, tuple[str, ...]]] = []

    def measure(graph: Any, precision: str, blocks: Sequence[str], reports: Any) -> dict[str, BlockEffect]:
        measured.append((precision, tuple(blocks)))
        return dict.fromkeys(blocks, BlockEffect(1.0, 1.0))

    gate: Any = SimpleNamespace(effects={}, measure=measure, bearable_score_noise=lambda limit: 1.0)
    blocks = {"int8-gpu": {"a": 1, "b": 1}, "int8-cpu": {"image": 1, "a": 1, "b": 1}}
    converter: Any = SimpleNamespace(blocks=blocks.__getitem__)
    graph: Any = None
    for _ in range(2):
        for layout in ("int8-gpu", "int8-cpu"):
            search = Search(converter, layout, gate, LIMITS, graph, SILENT)
            search.measure()
            assert search.chosen(0) == tuple(blocks[layout])
    assert measured == [("int8-cpu", ("a", "b")), ("int8-cpu", ("image",))], "each block once"


def test_int8_is_two_graphs_that_keep_the_same_limits() -> None:
    request = PrecisionRequest(wanted=("int8", "fp16"))
    assert request.precisions == ("int8-gpu", "int8-cpu", "fp16")
    assert {name: request.limits_of(name) for name in request.precisions} == {
        "int8-gpu": DEFAULT_LIMITS["int8"],
        "int8-cpu": DEFAULT_LIMITS["int8"],
        "fp16": DEFAULT_LIMITS["fp16"],
    }


def test_nothing_left_is_refused() -> None:
    search = CountingSearch({"a": 1.0, "b": 2.0}, most=0.5)
    with pytest.raises(PrecisionError, match=r"cannot pass its gate.*Most sensitive: b \(2\), a \(1\)"):
        search.first_that_passes()
    with pytest.raises(PrecisionError, match="none of its 2 blocks would be left"):
        CountingSearch({"a": 1.0, "b": 2.0}, most=100.0).first_that_passes(2)
    with pytest.raises(PrecisionError, match="cannot pass its gate"):
        CountingSearch({"a": 1.0, "b": 2.0, "idle": 0.0}, most=0.5).first_that_passes()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_calibrated_graph_that_fails_its_gate_reverts_one_more_block_each_time(
    tmp_path: Path, photographs: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """The search passes with every block in float16, and the gate on the calibrated graph fails at first."""
    judge, judged = GateImages.judge, []

    def judge_calibrated(self: GateImages, *arguments: Any, **options: Any) -> GateReport:
        report = judge(self, *arguments, **options)
        judged.append(report)
        return msgspec.structs.replace(report, passed=len(judged) > failures)

    monkeypatch.setattr(GateImages, "judge", judge_calibrated)
    bundle = write_block_bundle(tmp_path / "blocks.flowedge", random_layers(4, (8,) * 5))
    _, reports = add_precisions(bundle, photographs[:2], request_of("fp16"), threads=1)
    assert len(judged) == failures + 1
    assert len(reverted(reports, "fp16")) == failures


@pytest.mark.parametrize("wanted", ["fp16", "bf16", "int8"])
def test_what_cannot_pass_leaves_nothing_behind(
    tmp_path: Path, photographs: tuple[Path, ...], wanted: str
) -> None:
    bundle = write_block_bundle(tmp_path / "blocks.flowedge", random_layers(1, (4, 4)))
    before = listing(tmp_path)
    with pytest.raises(PrecisionError, match=r"cannot pass its gate.*Nothing was written"):
        add_precisions(bundle, photographs[:2], request_of(wanted, limits=IMPOSSIBLE), threads=1)
    assert listing(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["blocks.flowedge"]
    with pytest.raises(CalibrationError, match=f"{wanted}: .* need images of good parts, got none"):
        add_precisions(bundle, (), request_of(wanted))
    assert listing(tmp_path) == before


def test_the_ranges_are_kept_for_the_same_graph_images_and_preprocessing_alone(
    tmp_path: Path, photographs: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    kept = device_cache().folder / "ranges"
    observed: list[int] = []

    def counted(graph: Path, tensors: Sequence[str], **options: Any) -> Observer:
        observed.append(len(tensors))
        return Observer(graph, tensors, **options)

    monkeypatch.setattr("flowedge.calibration.precision.observed_graph.Observer", counted)

    def add(number: int, *, weights: int = 1, images: int = 2, crop: bool = False) -> bytes:
        bundle = write_block_bundle(tmp_path / f"{number}.flowedge", random_layers(weights, (4, 4)))
        if crop:
            changed = msgspec.structs.replace(bundle.manifest.preprocessing, mean=(0.4, 0.4, 0.4))
            manifest = msgspec.structs.replace(bundle.manifest, preprocessing=changed)
            bundle = replace_in_bundle(bundle, manifest=manifest)
        done, _ = add_precisions(
            bundle, photographs[:images], request_of("int8"), threads=1, cache=device_cache()
        )
        return done.read("model.int8-cpu.onnx")

    first = add(0)
    assert len(observed) == 1
    assert add(1) == first
    assert len(observed) == 1, "the second run found them"
    for number, change in enumerate(({"weights": 2}, {"images": 3}, {"crop": True}), start=2):
        add(number, **change)  # type: ignore[arg-type]
        assert len(observed) == number
    (stored, *_) = kept.iterdir()
    for file in kept.iterdir():
        file.write_bytes(b"damaged")
    assert add(5) == first
    assert len(observed) == 5
    assert stored.suffix == ".npz"
    assert device_cache().clear() > 0
    assert not kept.exists()
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("a file in the way")
    assert add(6) == first


def test_the_pass_that_takes_ranges_gives_fp32_its_reference(
    small_bundle: Path, tmp_path: Path, photographs: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "cflow.flowedge"
    clone_bundle(open_bundle(small_bundle), path)
    alone = calibrate_bundle(
        clone_bundle(open_bundle(small_bundle), tmp_path / "alone.flowedge"),
        photographs,
        request=ThresholdRequest(),
        engine="onnxruntime-cpu",
        threads=1,
    ).record.graphs[0]
    inferred: list[str] = []

    def recorded(detect: Detector, *arguments: Any) -> StoredLevels:
        inferred.append(detect.precision)
        return stored_levels(detect, *arguments)

    monkeypatch.setattr(calibrate, "stored_levels", recorded)

    def fitted() -> FittedGraph:
        done, _ = add_precisions(
            open_bundle(path), photographs, request_of("int8"), threads=1, cache=device_cache()
        )
        record = read_record(done)
        assert record is not None
        return record.graphs[0]

    def values(graph: FittedGraph) -> list[float]:
        assert graph.score_maxima is not None
        assert graph.thresholds.image is not None
        assert graph.thresholds.pixel is not None
        thresholds = (graph.thresholds.image.value, graph.thresholds.pixel.value)
        return [*graph.score_maxima.level_max, graph.score_maxima.map_max, *thresholds]

    first = fitted()
    assert inferred == ["int8-gpu", "int8-cpu"], "fp32 was not inferred again"
    np.testing.assert_allclose(values(first), values(alone), rtol=1e-5)
    second = fitted()
    assert inferred[2:] == ["fp32", "int8-gpu", "int8-cpu"], "the ranges were known, the levels were not"
    np.testing.assert_allclose(values(second), values(alone), rtol=1e-5)


def test_int8_is_searched_without_float16_which_moves_nothing(
    tmp_path: Path, photographs: tuple[Path, ...]
) -> None:
    bundle = write_block_bundle(tmp_path / "blocks.flowedge", random_layers(1, (64, 64)))
    ranges = ranges_of(bundle, photographs)
    converter = PrecisionConverter(bundle.graph_path("fp32"), bundle.manifest.graph("fp32"), ranges)
    blocks = list(converter.blocks("int8-gpu"))
    real, emulated = tmp_path / "real.onnx", tmp_path / "emulated.onnx"
    converter.write("int8-gpu", blocks, real)
    converter.write("int8-gpu", blocks, emulated, emulated=True)
    kinds = [
        {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer} for path in (real, emulated)
    ]
    assert [TensorProto.FLOAT16 in kind for kind in kinds] == [True, False]
    assert all(TensorProto.INT8 in kind for kind in kinds)
    image = Preprocessor(bundle.manifest.preprocessing)(read_image(photographs[0]))[None]
    whole, one, other = (
        ort.InferenceSession(str(path)).run(["anomaly_map"], {"image": image})[0]
        for path in (bundle.graph_path("fp32"), real, emulated)
    )
    assert np.abs(one - other).max() < 0.1 * np.abs(one - whole).max()


def test_a_second_precision_keeps_the_first_and_its_report(
    tmp_path: Path, photographs: tuple[Path, ...]
) -> None:
    bundle = write_block_bundle(tmp_path / "blocks.flowedge", random_layers(1, (64, 64)))
    first, reports = add_precisions(bundle, photographs[:2], request_of("bf16"), threads=1)
    assert reports[0].bytes_share < 0.9, "the size of the real graph, not of its emulation"
    assert first.manifest.graph("bf16").opset == 22
    real = first.read("model.bf16.onnx")
    types = {tensor.data_type for tensor in onnx.load_from_string(real).graph.initializer}
    assert TensorProto.BFLOAT16 in types
    second, _ = add_precisions(first, photographs[:2], request_of("fp16", "int8"), threads=1)
    assert [graph.precision for graph in second.manifest.graphs] == [
        *("fp32", "fp16", "int8-gpu", "int8-cpu", "bf16")
    ]
    assert second.read("model.bf16.onnx") == real
    record = read_record(open_bundle(second.path))
    assert record is not None
    assert {report.precision for report in record.lower_precisions} == {
        "bf16",
        "fp16",
        "int8-gpu",
        "int8-cpu",
    }
    assert {graph.precision for graph in record.graphs} == {g.precision for g in second.manifest.graphs}
    assert all(graph.thresholds.image is not None for graph in second.manifest.graphs)
    assert "gate.bf16.html" in {stored.path for stored in second.manifest.files}


def test_weights_beside_the_graph_are_read_and_written_beside_it(
    tmp_path: Path, photographs: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large graph has its weights in a file beside it. While it is converted, the file has several hard links."""
    bundle = write_block_bundle(tmp_path / "inside.flowedge", random_layers(1, (64, 64)))
    inside, _ = add_precisions(bundle, photographs[:2], request_of("fp16", "int8"), threads=1)
    monkeypatch.setattr(onnx_files, "EXTERNAL_ABOVE", 1000)
    model = onnx.load(str(bundle.graph_path("fp32")))
    onnx_files.save_graph(model, tmp_path / "model.onnx")
    files = {name: tmp_path / name for name in ("model.onnx", "model.onnx.data")}
    kept = {stored.path: bundle.path / stored.path for stored in bundle.manifest.files}
    large = write_bundle(tmp_path / "beside.flowedge", bundle.manifest, {**kept, **files})
    beside, _ = add_precisions(large, photographs[:2], request_of("fp16", "int8"), threads=1)
    frame = read_image(photographs[2])
    for precision in ("fp32", "fp16", "int8-gpu", "int8-cpu"):
        assert weights_beside(beside.graph_path(precision)).stat().st_size
        one, other = (
            flowedge.load(each.path, engine="onnxruntime-cpu", precision=precision, threads=1)(
                frame
            ).network_map
            for each in (inside, beside)
        )
        np.testing.assert_array_equal(one, other)


# Detectors that only one way of planning saves


def judged(
    bundle: Bundle, photographs: Sequence[Path], precision: str, ranges: Any, calibrator: Any
) -> GateReport:
    """Judge a graph in which no block was reverted."""
    fp32 = bundle.manifest.graph("fp32")
    converter = PrecisionConverter(bundle.graph_path("fp32"), fp32, ranges, calibrator)
    folder = bundle.path.parent / f"{precision}-{calibrator}-{ranges is None}"
    folder.mkdir()
    place = folder / f"model.{precision}.onnx"
    blocks = list(converter.blocks(precision))  # type: ignore[arg-type]
    written = converter.write(precision, blocks, place, emulated=True)  # type: ignore[arg-type]
    graph = msgspec.structs.replace(written.graph, file=f"model.{precision}.onnx")
    candidate = Bundle(folder, msgspec.structs.replace(bundle.manifest, graphs=(graph,)))
    # Eight soft clouds score much alike: two that change places are no sign of anything.
    limits = msgspec.structs.replace(DEFAULT_LIMITS[precision.partition("-")[0]], rank_agreement=0.9)
    with contextlib.closing(GateImages(bundle, photographs, 1, 1)) as images:
        return images.judge(candidate, precision, limits)


def ranges_of(bundle: Bundle, photographs: Sequence[Path]) -> Any:
    preprocess = Preprocessor(bundle.manifest.preprocessing)
    graph = bundle.graph_path("fp32")
    frames = (preprocess(read_image(path))[None] for path in photographs)
    return observe(graph, tensors_for_conversion(graph, tuple(FILES)).tensors, frames, threads=1)


def test_float16_overflows_without_ranges_and_passes_with_islands(
    tmp_path: Path, photographs: tuple[Path, ...]
) -> None:
    layers = random_layers(1)
    layers[1].weight[:] *= 2.0**15
    layers[1].bias[:] = 2.0**17
    layers[2].weight[:] *= 2.0**-15
    bundle = write_block_bundle(tmp_path / "large.flowedge", layers)
    blind = judged(bundle, photographs, "fp16", None, "percentile")
    assert not blind.passed
    assert blind.quantity("not_finite").value == 16, "eight images and a defect of each"
    done, (report,) = add_precisions(
        bundle, photographs, PrecisionRequest(wanted=("fp16",), defects_per_image=1), threads=1
    )
    assert report.gate.passed
    assert set(report.kept_in_fp32) == {"backbone/l1/Conv", "backbone/l1/Relu", "backbone/l2/Conv"}
    assert reverted((report,), "fp16") == set()
    with flowedge.load(done.path, engine="onnxruntime-cpu", precision="fp16") as detect:
        assert detect(read_image(photographs[0])).verdict != "not_inspected"


def test_an_outlier_ruins_min_max_and_percentile_passes(
    tmp_path: Path, photographs: tuple[Path, ...]
) -> None:
    """A channel that no layer reads is zero, except on a white spot where it is huge."""
    layers = random_layers(11)
    layers[0].weight[0] = 400.0
    layers[0].bias[0] = -400.0 * 12 * 2.0
    layers[1].weight[:, 0] = 0
    bundle = write_block_bundle(tmp_path / "outlier.flowedge", layers)
    frame = cv2.imread(str(photographs[0]))
    assert frame is not None
    frame[20:22, 30:32] = 255
    spotted = tmp_path / "spot.png"
    assert cv2.imwrite(str(spotted), frame)
    images = (spotted, *photographs[1:])
    ranges = ranges_of(bundle, images)
    relu = ranges["l0.relu"]
    assert relu.largest > 500
    shapes = tensor_shapes(onnx.shape_inference.infer_shapes(onnx.load(str(bundle.graph_path("fp32")))))
    assert relu.counts.sum() == len(images) * np.prod([side or 1 for side in shapes["l0.relu"]])
    for precision in ("int8-cpu", "int8-gpu"):
        assert not judged(bundle, images, precision, ranges, "min-max").passed
        assert judged(bundle, images, precision, ranges, "percentile").passed
