"""Fast convolutions on OpenVINO replace 3x3 convolutions, and give the same answers to the rounding of float32."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13

from flowedge.runtime.engines import openvino as engine
from flowedge.runtime.engines import openvino_fast_convolutions
from flowedge.runtime.engines.openvino_fast_convolutions import use_fast_convolutions
from flowedge.runtime.opening.contract import GraphSource, TensorSpec
from flowedge.runtime.opening.engine import ENGINES
from flowedge.runtime.opening.engine_contract import Opening

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="OpenVINO has fast convolutions on other machines",
)

CHANNELS = 32
TOLERANCE = 1e-5  # of the largest value
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}

Layer = Callable[[ov.Node], ov.Node]


@pytest.fixture(autouse=True)
def _small_maps_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_fast_convolutions, "_FEWEST_MULTIPLICATIONS", 1)
    monkeypatch.setattr(openvino_fast_convolutions, "_FEWEST_ROWS", 2)


def convolution(
    outputs: int = CHANNELS,
    *,
    size: int = 3,
    stride: int = 1,
    pad: int = 1,
    dilation: int = 1,
    inputs: int = CHANNELS,
    seed: int = 0,
) -> Layer:
    weights = np.random.default_rng(seed).normal(0, 0.1, (outputs, inputs, size, size)).astype(np.float32)
    return lambda node: opset13.convolution(
        node, opset13.constant(weights), [stride] * 2, [pad] * 2, [pad] * 2, [dilation] * 2
    )


def constant(*shape: int, seed: int = 9) -> ov.Node:
    return opset13.constant(np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32))


def model_of(layer: Layer, shape: tuple[int, ...]) -> ov.Model:
    image = opset13.parameter(shape, np.float32)
    return ov.Model([layer(image)], [image])


def kinds(model: ov.Model) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


def check_the_answers(layer: Layer, shape: tuple[int, ...]) -> Counter[str]:
    """Compare the answers before and after, and return the kinds of the nodes afterwards."""
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    model = model_of(layer, shape)
    wanted = ov.Core().compile_model(model, "CPU", OPTIONS)(x)[0]
    use_fast_convolutions(model)
    answer = ov.Core().compile_model(model, "CPU", OPTIONS)(x)[0]
    assert answer.shape == wanted.shape
    np.testing.assert_allclose(answer, wanted, rtol=0, atol=TOLERANCE * abs(wanted).max())
    return kinds(model)


@pytest.mark.parametrize(
    ("images", "height", "width", "products"),
    [(1, 8, 5, 6), (3, 12, 7, 6), (2, 6, 6, 4), (1, 4, 9, 6), (2, 2, 3, 4), (1, 7, 8, 1)],
)
def test_a_convolution_is_computed_by_fewer_products_where_two_or_four_divide_the_height(
    images: int, height: int, width: int, products: int
) -> None:
    """The reference is NumPy's product of all patches in float64."""
    shape = (images, CHANNELS, height, width)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    model = model_of(convolution(48), shape)
    use_fast_convolutions(model)
    assert kinds(model)["Convolution"] == products
    weights = np.random.default_rng(0).normal(0, 0.1, (48, CHANNELS, 3, 3)).astype(np.float32)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    wanted = np.einsum("nchwyx,ocyx->nohw", patches, weights, optimize=True)
    answer = ov.Core().compile_model(model, "CPU", OPTIONS)(x)[0]
    np.testing.assert_allclose(answer, wanted, rtol=0, atol=TOLERANCE * abs(wanted).max())


def residual(node: ov.Node) -> ov.Node:
    """Compute two basic blocks of a ResNet, the second of which reads and adds the first."""
    for seed in (1, 2):
        hidden = opset13.relu(opset13.add(convolution(seed=seed)(node), constant(1, CHANNELS, 1, 1)))
        last = opset13.add(constant(1, CHANNELS, 1, 1), convolution(seed=seed + 5)(hidden))
        node = opset13.relu(opset13.add(last, node))
    return node


def test_a_chain_with_biases_and_residual_sums_is_joined_once() -> None:
    assert check_the_answers(residual, (2, CHANNELS, 8, 6))["Concat"] == 1


@pytest.mark.parametrize(
    "between",
    [
        lambda node: opset13.clamp(node, 0.0, 6.0),
        lambda node: opset13.prelu(node, opset13.constant(np.full(CHANNELS, 0.1, np.float32))),
        opset13.swish,
        lambda node: opset13.multiply(node, opset13.sigmoid(node)),
        lambda node: opset13.multiply(node, constant(1, CHANNELS, 1, 1)),
        lambda node: opset13.add(node, constant(1, CHANNELS, 8, 6)),
        lambda node: opset13.add(constant(8, 1), node),
        lambda node: opset13.subtract(opset13.constant(np.float32(1)), opset13.tanh(node)),
        lambda node: opset13.multiply(
            node, opset13.reduce_mean(node, opset13.constant([2, 3]), keep_dims=True)
        ),
    ],
    ids=["clamp", "prelu", "swish", "gate", "scale", "positions", "rows", "scalar", "mean"],
)
def test_an_elementwise_node_between_two_convolutions_is_computed_on_parts(between: Layer) -> None:
    found = check_the_answers(lambda x: convolution(seed=2)(between(convolution()(x))), (1, CHANNELS, 8, 6))
    joined = 2 if found["ReduceMean"] else 1  # the mean reads the whole map
    assert (found["Convolution"], found["Concat"]) == (12, joined)


def test_a_convolution_without_padding_reads_rows_of_the_whole_map() -> None:
    found = check_the_answers(lambda x: convolution(seed=2)(convolution(pad=0)(x)), (2, CHANNELS, 10, 6))
    assert (found["Convolution"], found["Concat"]) == (12, 1)


@pytest.mark.parametrize(
    "reader",
    [
        convolution(stride=2),
        convolution(size=1, pad=0),
        lambda node: opset13.max_pool(node, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0),
        lambda node: opset13.concat([node, convolution(seed=3)(node)], 1),
    ],
    ids=["stride", "1x1", "pool", "concat"],
)
def test_any_other_node_reads_the_whole_map(reader: Layer) -> None:
    check_the_answers(lambda x: reader(opset13.relu(convolution()(x))), (2, CHANNELS, 8, 6))


@pytest.mark.parametrize(
    "layer",
    [
        convolution(stride=2),
        convolution(pad=2),
        convolution(dilation=2),
        convolution(size=1, pad=0),
        convolution(16),
        lambda x: convolution()(
            opset13.fake_quantize(x, *(opset13.constant(np.float32(end)) for end in (-1, 1, -1, 1)), 256)
        ),
        lambda x: opset13.convolution(
            x, opset13.parameter([CHANNELS, CHANNELS, 3, 3], np.float32), [1, 1], [1, 1], [1, 1], [1, 1]
        ),
    ],
    ids=["stride", "pad", "dilation", "1x1", "channels", "quantised", "weights"],
)
def test_another_convolution_stays_as_it_is(layer: Layer) -> None:
    image = opset13.parameter([1, CHANNELS, 8, 8], np.float32)
    output = layer(image)
    weights = [node for node in [output.input_value(1).get_node()] if node.get_type_name() == "Parameter"]
    model = ov.Model([output], [image, *weights])
    use_fast_convolutions(model)
    assert kinds(model)["Convolution"] == 1


@pytest.mark.parametrize(
    ("channels", "height", "products"), [(64, 32, 6), (64, 16, 1), (512, 4, 1), (512, 6, 4)]
)
def test_only_large_convolutions_are_replaced(
    channels: int, height: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    model = model_of(convolution(channels, inputs=channels), (1, channels, height, height))
    use_fast_convolutions(model)
    assert kinds(model)["Convolution"] == products


def test_a_map_of_open_height_stays_as_it_is() -> None:
    model = model_of(convolution(), (1, CHANNELS, -1, 8))
    use_fast_convolutions(model)
    assert kinds(model)["Convolution"] == 1


def test_an_output_of_the_graph_keeps_its_name() -> None:
    image = opset13.parameter([1, CHANNELS, 8, 8], np.float32)
    first = convolution()(image)
    first.output(0).get_tensor().set_names({"first"})
    second = convolution(seed=1)(first)
    second.output(0).get_tensor().set_names({"second"})
    model = ov.Model([first, second], [image])
    use_fast_convolutions(model)
    assert kinds(model)["Convolution"] == 12
    compiled = ov.Core().compile_model(model, "CPU", OPTIONS)
    assert [output.get_any_name() for output in compiled.outputs] == ["first", "second"]


def test_the_engine_computes_a_convolution_of_an_onnx_file_by_six_products(tmp_path: Path) -> None:
    """A batch of one and a batch of two are compared with ONNX Runtime."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.1, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["image", "weights", "bias"], ["map"], pads=[1, 1, 1, 1])
    types = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", CHANNELS, 8, 8])
        for name in ("image", "map")
    ]
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(rng.normal(size=CHANNELS).astype(np.float32), "bias"),
    ]
    graph = helper.make_graph([node], "graph", types[:1], types[1:], constants)
    file = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    spec = TensorSpec("float32", (None, CHANNELS, 8, 8))
    source = GraphSource(
        file=file, sha256="0", owner=tmp_path, precision="fp32", inputs={"image": spec}, outputs={"map": spec}
    )
    loaded = engine.load(Opening(spec=ENGINES["openvino"], source=source, threads=1))
    assert isinstance(loaded, engine._OpenVino)
    nodes = loaded._sizes[1]._compiled.get_runtime_model().get_ordered_ops()
    assert sum(node.get_rt_info()["layerType"].astype(str) == "Convolution" for node in nodes) == 6
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for images in (1, 2):
        x = rng.normal(size=(images, CHANNELS, 8, 8)).astype(np.float32)
        wanted = np.asarray(session.run(None, {"image": x})[0])
        answer = loaded.infer(x)["map"]
        np.testing.assert_allclose(answer, wanted, rtol=0, atol=TOLERANCE * abs(wanted).max())
    loaded.close()
