"""A graph that is cropped to an area gives the answers of the whole graph there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import flowedge
from flowedge.bundle import Bundle
from flowedge.errors import BundleError, EngineWrongError, SettingsError
from flowedge.manifest import NfaThreshold, Thresholds
from flowedge.runtime.area.crop import Cropped, cropped
from flowedge.runtime.area.detector import AreaDetector
from flowedge.runtime.area.graph_facts import CropError
from flowedge.runtime.area.onnx_model import OnnxModel
from flowedge.runtime.area.settings import AreaSettings, TileSettings
from flowedge.runtime.area.windows import Span, Window
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.verify import replay_selftest
from support.family_graphs import FamilyBundle
from support.opened_engine import opened
from support.pretend_gpu import onnxruntime_on_pretended_cuda
from support.small_dataset import write_dataset
from support.tiny_bundle import tiny_manifest

SIZE = (40, 56)

# Windows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(150))
def test_a_window_needs_and_gives_what_a_count_of_all_positions_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mirrors = bool(seed % 3 == 0)
    size = 1 if mirrors else int(rng.integers(1, 6))
    window = Window(
        size=size,
        stride=1 if mirrors else int(rng.integers(1, 4)),
        before=int(rng.integers(0, 4 if mirrors else size)),
        after=int(rng.integers(0, 4 if mirrors else size)),
        mirrors=mirrors,
    )
    length = int(rng.integers(8, 24))
    # All inputs of each output of the whole picture; a position outside is a mirrored one or none.
    outside = np.arange(-window.before, length + window.after)
    if mirrors:
        outside = np.abs(outside)
        outside = np.where(outside >= length, 2 * (length - 1) - outside, outside)
    padded = np.where((outside >= 0) & (outside < length), outside, -1)
    inputs = [
        set(padded[start : start + window.size].tolist()) - {-1}
        for start in range(0, len(padded) - window.size + 1, window.stride)
    ]
    assert window.outputs(length) == len(inputs)
    first = int(rng.integers(0, len(inputs)))
    wanted = Span(first, int(rng.integers(first + 1, len(inputs) + 1)))
    needed = set().union(*inputs[wanted.start : wanted.end])
    found = window.needs(wanted, length)
    assert needed <= set(range(*found))
    if needed and not mirrors:
        assert found == Span(min(needed), max(needed) + 1)
    # Present are some more, from a multiple of the stride on, and right are the needed ones.
    start = max(found.start - int(rng.integers(0, 4)), 0) // window.stride * window.stride
    present = Span(start, min(found.end + int(rng.integers(0, 4)), length))
    if present.length + window.before + window.after < window.size or (
        mirrors and present.length <= max(window.before, window.after)
    ):
        return
    assert window.gives(present).holds(window.right(found, present, length))
    assert window.right(found, present, length).holds(wanted)
    for number in range(*window.right(found, present, length)):
        assert inputs[number] <= set(range(*found))


# Graphs -------------------------------------------------------------------------------------------------------------


class Network:
    """Builds a small graph with weights of its own, and counts its tensors."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes)
        )
        return name

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def conv(self, x: str, inputs: int, outputs: int, size: int = 3, *, stride: int = 1, **more: Any) -> str:
        shape = (outputs, inputs // more.get("group", 1), size, size)
        weight = self.constant(self.rng.normal(0, 0.4, shape).astype(np.float32))
        bias = self.constant(self.rng.normal(0, 1, outputs).astype(np.float32))
        pads = more.pop("pads", [size // 2] * 4)
        return self.node(
            "Conv", x, weight, bias, kernel_shape=[size, size], strides=[stride] * 2, pads=pads, **more
        )

    def model(self, outputs: Mapping[str, tuple[int, int, int]], *, with_shapes: bool) -> bytes:
        graph = helper.make_graph(
            [
                *self.nodes,
                *(helper.make_node("Identity", [name], [f"out_{n}"]) for n, name in enumerate(outputs)),
            ],
            "network",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, *SIZE])],
            [
                helper.make_tensor_value_info(f"out_{n}", TensorProto.FLOAT, ["N", *shape])
                for n, shape in enumerate(outputs.values())
            ],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        if with_shapes:
            model = onnx.shape_inference.infer_shapes(model)
        return bytes(model.SerializeToString())


def residual_network(seed: int, *, with_shapes: bool = True, mirrors: bool = False) -> bytes:
    """Build a network with every way in which a position can depend on others.

    A stem with a pooling, a residual block, a strided one with a depthwise convolution, a flow of 1x1 convolutions with
    a position code on two levels, and a map of both by constant matrices.
    """
    net = Network(seed)
    padding = net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))

    def conv(x: str, inputs: int, outputs: int, **more: Any) -> str:
        if not mirrors:
            return net.conv(x, inputs, outputs, **more)
        padded = net.node("Pad", x, padding, mode="reflect")
        return net.conv(padded, inputs, outputs, pads=[0] * 4, **more)

    stem = net.node("Relu", conv("image", 3, 6, stride=2))
    pooled = net.node("MaxPool", stem, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
    x = net.node("Relu", net.node("Add", conv(net.node("Relu", conv(pooled, 6, 6)), 6, 6), pooled))
    height, width = SIZE[0] // 2, SIZE[1] // 2
    levels: list[str] = []
    for channels in (6, 8):
        if levels:
            deeper = net.node("Relu", conv(x, 6, 8, stride=2))
            deeper = net.conv(deeper, 8, 8, 5, group=8)
            x = net.node("Add", deeper, net.conv(x, 6, 8, 1, stride=2))
            height, width = height // 2, width // 2
        batch = net.node("Shape", "image", start=0, end=1)
        two, one = (net.constant(np.array([size], np.int64)) for size in (2, 1))
        rows, columns = (net.constant(np.array([size], np.int64)) for size in (height, width))
        code = net.constant(net.rng.normal(size=(1, 2, 1, width)).astype(np.float32))
        along = net.node("Expand", code, net.node("Concat", batch, two, rows, columns, axis=0))
        code = net.constant(net.rng.normal(size=(1, 2, height, 1)).astype(np.float32))
        across = net.node("Expand", code, net.node("Concat", batch, two, rows, one, axis=0))
        order = net.constant(net.rng.permutation(channels + 2).astype(np.int64))
        joined = net.node("Gather", net.node("Concat", x, along, axis=1), order, axis=1)
        scale = net.node("Exp", net.node("Tanh", net.conv(joined, channels + 2, channels, 1)))
        latent = net.node("Add", net.node("Mul", x, scale), net.conv(across, 2, channels, 1))
        squares = net.node("Mul", latent, latent)
        levels.append(net.node("ReduceSum", squares, net.constant(np.array([1], np.int64)), keepdims=1))
    maps = []
    for number, level in enumerate(levels):
        inner = (SIZE[0] // 2 >> number, SIZE[1] // 2 >> number)
        vertical, horizontal = (
            np.stack(
                [
                    np.interp(np.linspace(0, inputs - 1, outputs), np.arange(inputs), one)
                    for one in np.eye(inputs)
                ]
            )
            for inputs, outputs in zip(inner, SIZE, strict=True)
        )
        tall = net.node("MatMul", net.constant(vertical.T.astype(np.float32)), level)
        maps.append(net.node("MatMul", tall, net.constant(horizontal.astype(np.float32))))
    largest = net.node("ReduceMax", maps[0], keepdims=1)
    chosen = net.node(
        "Where", net.constant(np.array(True)), net.constant(np.full((1, 1, 1, 1), 9, np.float32)), largest
    )
    anomaly_map = net.node("Sub", chosen, net.node("Add", *maps))
    shapes: dict[str, tuple[int, int, int]] = {anomaly_map: (1, *SIZE)}
    shapes |= {
        level: (1, SIZE[0] // 2 >> number, SIZE[1] // 2 >> number) for number, level in enumerate(levels)
    }
    return net.model(shapes, with_shapes=with_shapes)


def run(data: bytes, names: list[str], image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options)
    return [np.asarray(one) for one in session.run(names, {"image": image})]


def check_equal(data: bytes, wanted: dict[str, tuple[Span, Span]], image: NDArray[np.float32]) -> Cropped:
    """Compare a cropped graph with the whole one inside of the boxes."""
    part = cropped(data, wanted)
    onnx.checker.check_model(onnx.load_from_string(part.data), full_check=True)
    whole = run(data, list(wanted), image)
    found = run(part.data, [part.outputs[name].name for name in wanted], image)
    for (name, (rows, columns)), one, other in zip(wanted.items(), whole, found, strict=True):
        expected = one[:, :, rows.start : rows.end, columns.start : columns.end]
        assert part.outputs[name].box == (rows, columns)
        assert other.shape == expected.shape
        assert np.abs(other - expected).max() <= 2e-6 * np.abs(one).max(), name
    return part


def a_box(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Span, Span]:
    spans = []
    for length in size:
        start = int(rng.integers(0, length - 1))
        spans.append(Span(start, int(rng.integers(start + 1, length + 1))))
    return spans[0], spans[1]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mirrors", [False, True], ids=["zeros", "mirrored"])
def test_a_cropped_network_gives_the_answers_of_the_whole_one(seed: int, mirrors: bool) -> None:
    rng = np.random.default_rng(seed)
    data = residual_network(seed, with_shapes=bool(seed % 2), mirrors=mirrors)
    image = rng.normal(size=(2, 3, *SIZE)).astype(np.float32)
    for _ in range(3):
        wanted = {"out_0": a_box(rng, SIZE)}
        wanted |= {f"out_{n + 1}": a_box(rng, (SIZE[0] // 2 >> n, SIZE[1] // 2 >> n)) for n in range(2)}
        assert check_equal(data, wanted, image).share <= 1


def test_a_small_area_needs_a_small_part_of_the_network() -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, *SIZE)).astype(np.float32)
    for rows, columns in (
        (Span(0, 4), Span(0, 4)),
        (Span(18, 22), Span(26, 30)),
        (Span(36, 40), Span(52, 56)),
    ):
        assert check_equal(residual_network(0), {"out_0": (rows, columns)}, image).share < 0.7
    whole = {"out_0": (Span(0, SIZE[0]), Span(0, SIZE[1]))}
    assert check_equal(residual_network(0), whole, image).share == 1


def test_what_sees_the_whole_picture_is_computed_whole() -> None:
    net = Network(0)
    x = net.node("Relu", net.conv("image", 3, 4))
    gate = net.node("Sigmoid", net.conv(net.node("GlobalAveragePool", x), 4, 4, 1))
    y = net.conv(net.node("Mul", x, gate), 4, 1)
    data = net.model({y: (1, *SIZE)}, with_shapes=True)
    image = np.random.default_rng(0).normal(size=(1, 3, *SIZE)).astype(np.float32)
    part = check_equal(data, {"out_0": (Span(3, 9), Span(0, 8))}, image)
    assert 0.5 < part.share < 1


def test_infinite_values_beside_the_area_do_not_reach_it() -> None:
    net = Network(0)
    x = net.node("Exp", net.conv("image", 3, 1))
    matrix = net.constant(np.eye(SIZE[0], dtype=np.float32))
    data = net.model({net.node("MatMul", matrix, x): (1, *SIZE)}, with_shapes=True)
    image = np.zeros((1, 3, *SIZE), np.float32)
    image[:, :, 30:] = 1e4
    part = cropped(data, {"out_0": (Span(0, 20), Span(0, SIZE[1]))})
    (found,) = run(part.data, [part.outputs["out_0"].name], image)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("family", ["cflow", "csflow", "fastflow", "msflow", "uflow"])
@pytest.mark.parametrize("precision", ["fp32", "int8-cpu"])
def test_every_family_is_cropped_right(
    family_bundle: Callable[[str], FamilyBundle], family: str, precision: str
) -> None:
    made = family_bundle(family)
    manifest = made.bundle.manifest
    data = constants_fixed(made.bundle.graph_path(precision).read_bytes())
    height, width = manifest.image_size
    wanted = {"anomaly_map": (Span(height // 3, height // 2), Span(0, width // 3))}
    wanted |= {
        f"level_{number}": (Span(0, 1), Span(level.width // 2, level.width))
        for number, level in enumerate(manifest.levels)
    }
    part = check_equal(data, wanted, made.images)
    if family == "cflow" and precision == "fp32":
        assert part.share < 1


def constants_fixed(data: bytes) -> bytes:
    """Let a graph use the stored score maxima, as a calibration does."""
    model = onnx.load_from_string(data)
    for tensor in model.graph.initializer:
        if tensor.name == "reference.fixed":
            tensor.CopyFrom(numpy_helper.from_array(np.array(True), tensor.name))
        elif tensor.name.startswith("reference.") and "max" in tensor.name:
            tensor.CopyFrom(numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), tensor.name))
    return bytes(model.SerializeToString())


# The ONNX file ------------------------------------------------------------------------------------------------------


def test_a_model_is_read_as_the_onnx_package_reads_it() -> None:
    data = residual_network(0)
    ours, theirs = OnnxModel(data), onnx.load_from_string(data).graph
    assert [(node.op, node.name, node.inputs, node.outputs) for node in ours.nodes] == [
        (node.op_type, node.name, list(node.input), list(node.output)) for node in theirs.node
    ]
    for one, other in zip(ours.nodes, theirs.node, strict=True):
        for attribute in other.attribute:
            value = helper.get_attribute_value(attribute)
            expected = tuple(value) if isinstance(value, list) else value
            assert one.attributes[attribute.name] == (
                expected.decode() if isinstance(expected, bytes) else expected
            )
    for tensor in theirs.initializer:
        found = ours.constants[tensor.name].array()
        if found is not None:
            np.testing.assert_array_equal(found, numpy_helper.to_array(tensor))
    assert ours.inputs == ["image"]
    assert ours.shapes["image"] == (None, 3, *SIZE)


@pytest.mark.parametrize("length", [0, 1, 10, 200, 3000])
def test_a_cut_file_is_refused(length: int) -> None:
    with pytest.raises(BundleError, match="no ONNX model"):
        OnnxModel(residual_network(0)[:length])


def test_a_damaged_graph_is_cropped_or_refused() -> None:
    data = residual_network(0, with_shapes=False)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(0, 256)
        try:
            cropped(bytes(damaged), {"out_0": (Span(0, 9), Span(3, 9))})
        except BundleError:
            refused += 1
    assert refused > 10


def test_an_output_that_is_not_there_is_refused() -> None:
    with pytest.raises(CropError, match="no outputs named level_7"):
        cropped(residual_network(0), {"level_7": (Span(0, 1), Span(0, 1))})


# The detector -------------------------------------------------------------------------------------------------------

FRAME = (96, 128)
CORNER = ((64.0, 40.0), (128.0, 40.0), (110.0, 96.0), (64.0, 96.0))


@pytest.fixture(scope="module")
def calibrated(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrate a copy of the small CFLOW of 64x64 pixels on noise."""
    folder = tmp_path_factory.mktemp("inside")
    bundle = folder / "small.flowedge"
    shutil.copytree(small_bundle, bundle)
    write_dataset(folder / "data")
    flowedge.calibrate(bundle, folder / "data" / "train" / "good")
    return bundle


def test_the_area_alone_gives_the_answers_of_the_whole_frame(calibrated: Path) -> None:
    frame = np.random.default_rng(0).integers(60, 120, (*FRAME, 3), dtype=np.uint8)
    area = AreaSettings(frame_size=FRAME, inspect=(CORNER,))
    alone = AreaSettings(frame_size=FRAME, inspect=(CORNER,), only_inside=True)
    with (
        AreaDetector(flowedge.load(calibrated), area) as whole,
        AreaDetector(flowedge.load(calibrated), alone) as part,
    ):
        assert "It computes" in part.engine_reason
        expected, found = whole(frame), part(frame)
        assert all(check.passed for check in replay_selftest(part.bundle, part.engine))
        batch = part.detect_batch([frame, frame[::-1]])
    assert found.score == pytest.approx(expected.score, rel=1e-5)
    assert (found.verdict, found.problem) == (expected.verdict, expected.problem)
    np.testing.assert_array_equal(np.isnan(found.anomaly_map), np.isnan(expected.anomaly_map))
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, atol=1e-5)
    for level, other in zip(found.levels, expected.levels, strict=True):
        inside = np.isfinite(level)
        assert inside.any()
        assert not inside.all()
        np.testing.assert_allclose(level[inside], other[inside], atol=1e-4)
    assert batch[0].score == pytest.approx(found.score, rel=1e-5)
    assert np.isfinite(found.network_map).all()


def test_an_engine_that_takes_frames_computes_the_area_alone_too(calibrated: Path) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    from flowedge.runtime.engines import cuda, onnxrt

    frame = np.random.default_rng(0).integers(60, 120, (*FRAME, 3), dtype=np.uint8)
    area = AreaSettings(frame_size=FRAME, inspect=(CORNER,), only_inside=True)
    with AreaDetector(flowedge.load(calibrated, engine="onnxruntime-cpu"), area) as detector:
        expected = detector(frame)
    with onnxruntime_on_pretended_cuda(cuda, onnxrt):
        base = flowedge.load(calibrated, engine="onnxruntime-cuda", levels=False)
        assert base.prepare([frame])[1].dtype == np.uint8
        with AreaDetector(base, area) as detector:
            found = detector(frame)
    assert found.score == pytest.approx(expected.score, rel=1e-5)
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, atol=1e-5)


def test_an_area_can_be_drawn_again_on_the_engine_of_the_first_one(calibrated: Path) -> None:
    frame = np.random.default_rng(1).integers(60, 120, (*FRAME, 3), dtype=np.uint8)
    top = ((0.0, 0.0), (50.0, 0.0), (50.0, 30.0), (0.0, 30.0))
    with flowedge.load(calibrated) as base:
        for polygon in (CORNER, top):
            area = AreaSettings(frame_size=FRAME, inspect=(polygon,))
            alone = AreaSettings(frame_size=FRAME, inspect=(polygon,), only_inside=True)
            expected, found = AreaDetector(base, area)(frame), AreaDetector(base, alone)(frame)
            assert found.score == pytest.approx(expected.score, rel=1e-5)


def test_the_area_alone_on_the_real_checkpoint(calibrated_tile_bundle: Path, tiles: Path) -> None:
    frames = [read_image(path) for path in sorted((tiles / "test").rglob("*.png"))[:40:13]]
    for frame in frames:
        height, width = frame.shape[:2]
        polygon = ((width / 3, 0), (width, 0), (width, height / 2), (width / 3, height / 2))
        area = AreaSettings(frame_size=(height, width), inspect=(polygon,))
        alone = AreaSettings(frame_size=(height, width), inspect=(polygon,), only_inside=True)
        with (
            AreaDetector(flowedge.load(calibrated_tile_bundle), area) as whole,
            AreaDetector(flowedge.load(calibrated_tile_bundle), alone) as part,
        ):
            expected, found = whole(frame), part(frame)
        assert found.verdict == expected.verdict
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, atol=2e-6)


def test_an_area_that_saves_nothing_is_refused(calibrated: Path) -> None:
    nearly_all = ((0.0, 0.0), (127.0, 0.0), (127.0, 95.0), (0.0, 95.0))
    settings = AreaSettings(frame_size=FRAME, inspect=(nearly_all,), only_inside=True)
    with (
        flowedge.load(calibrated) as detector,
        pytest.raises(SettingsError, match=r"saves nothing .* needs 100% of the network's computation"),
    ):
        AreaDetector(detector, settings)


def test_an_area_alone_that_cannot_be_right_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    area = AreaSettings(frame_size=FRAME, inspect=(CORNER,), only_inside=True)
    with (
        flowedge.load(small_bundle) as detector,
        pytest.raises(SettingsError, match=r"normalised by the maximum of all of it. Run flowedge calibrate"),
    ):
        AreaDetector(detector, area)
    manifest = tiny_manifest(thresholds=Thresholds(nfa=NfaThreshold(form="tree")))
    by_nfa = Detector(Bundle(tmp_path, manifest), opened(NullEngine(manifest)))
    with pytest.raises(SettingsError, match="false alarms of a pixel depends on the whole image"):
        AreaDetector(by_nfa, area)
    manifest = tiny_manifest()
    whole = Detector(Bundle(tmp_path, manifest), opened(NullEngine(manifest)))
    for settings in (
        AreaSettings(only_inside=True),
        AreaSettings(frame_size=FRAME, only_inside=True, tiles=TileSettings(overlap=0)),
    ):
        with pytest.raises(SettingsError, match="only_inside needs inspect, ignore or a mask, and no tiles"):
            AreaDetector(whole, settings)


def test_an_engine_that_answers_otherwise_for_the_area_is_refused(
    calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowedge.runtime.area import inside

    infer = inside.InsideEngine.infer

    def wrong(self: inside.InsideEngine, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        outputs = infer(self, *inputs)
        outputs["anomaly_map"] = outputs["anomaly_map"] * np.float32(1.001)
        return outputs

    monkeypatch.setattr(inside.InsideEngine, "infer", wrong)
    with (
        flowedge.load(calibrated) as detector,
        pytest.raises(EngineWrongError, match=r"they differ by .* Leave only_inside out"),
    ):
        AreaDetector(detector, AreaSettings(frame_size=FRAME, inspect=(CORNER,), only_inside=True))
