"""INT8 graphs are valid, compute in eight bits where planned, and answer as quantisation by hand does."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import timm
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from flowedge.calibration.precision.blocks import block_of, sites_of
from flowedge.calibration.precision.qdq import CPU, GPU, Layout, Scales, plan_of, quantise, tensors_to_observe
from flowedge.calibration.precision.ranges import TensorRange
from flowedge.export.graph.onnx_export import onnx_from_model
from flowedge.export.graph.passes import lower
from flowedge.manifest import GraphFile
from flowedge.runtime.device.machine import overflows_in_eight_bits
from support.block_graph import SIZE, Layer, block_model, random_layers
from support.family_graphs import FAMILIES, FamilyBundle, converted_graphs
from support.observed import observe
from support.random_flows import random_cflow, random_fastflow

BACKBONES = ("resnet18", "mobilenetv2_100")  # residual sums, and depthwise convolutions


@dataclass(frozen=True, slots=True)
class Graphs:
    """One detector: its fp32 graph and both INT8 layouts of it."""

    fp32: Path
    cpu: Path
    gpu: Path


class Wrapped(torch.nn.Module):
    """Runs the first stages of a timm network with random weights, as a backbone of one level."""

    def __init__(self, network: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = timm.create_model(
            network, pretrained=False, features_only=True, exportable=True, out_indices=(1,)
        )
        for module in self.network.modules():
            if isinstance(
                module, torch.nn.BatchNorm2d
            ):  # some begin at zero, and leave convolutions of zeros
                torch.nn.init.uniform_(module.weight, 0.5, 1.0)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        features: list[torch.Tensor] = self.network(image)
        return features


def write_detector(network: str, folder: Path) -> Graphs:
    """Write a flow of one block a level on a real backbone, for images of 64x64 pixels."""
    if network == "resnet18":
        model = random_fastflow(0, sizes=((64, 16, 16),), blocks=1)
    else:
        model = random_cflow(0, sizes=((24, 16, 16),), blocks=1)
    model = dataclasses.replace(model, image_size=(64, 64))
    graph = folder / f"{network}.onnx"
    onnx_from_model(lower(model), Wrapped(network).eval(), graph)
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    fp32 = GraphFile(precision="fp32", file="model.onnx", opset=18, scoring=model.scoring)
    converted_graphs(graph, fp32, images, folder)
    return Graphs(graph, folder / f"{network}.int8-cpu.onnx", folder / f"{network}.int8-gpu.onnx")


@pytest.fixture(scope="module")
def detector(
    tmp_path_factory: pytest.TempPathFactory, family_bundle: Callable[[str], FamilyBundle]
) -> Callable[[str], Graphs]:
    made: dict[str, Graphs] = {}

    def of(name: str) -> Graphs:
        if name in FAMILIES:
            bundle = family_bundle(name).bundle
            return Graphs(*(bundle.graph_path(precision) for precision in ("fp32", "int8-cpu", "int8-gpu")))
        if name not in made:
            made[name] = write_detector(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


@pytest.mark.parametrize("layout", ["cpu", "gpu"])
@pytest.mark.parametrize("name", [*FAMILIES, *BACKBONES])
def test_every_graph_is_valid_and_its_weights_lose_less_than_a_step_and_their_sums_half_a_step(
    detector: Callable[[str], Graphs], name: str, layout: str
) -> None:
    graphs = detector(name)
    model = onnx.load(str(graphs.cpu if layout == "cpu" else graphs.gpu))
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    source = onnx.shape_inference.infer_shapes(onnx.load(str(graphs.fp32)))
    before, after = constants_of(source), constants_of(model)
    nodes = {node.name: node for node in model.graph.node}
    writer = {node.output[0]: node for node in model.graph.node}
    sites = [site for site in sites_of(source) if (CPU if layout == "cpu" else GPU).has(site)]
    assert len(sites) >= 7
    zeros = {writer[nodes[site.node].input[1]].input[2] for site in sites}
    assert len(zeros) == len(sites), "ONNX Runtime cannot widen weights that share their zeros"
    for site in sites:
        stored = writer[nodes[site.node].input[1]]
        assert stored.op_type == "DequantizeLinear"
        whole, scale, zero = (after[name] for name in stored.input)
        assert whole.dtype == np.int8
        assert not zero.any()
        axis = 0 if nodes[site.node].op_type == "Conv" else 1
        if site.in_parts:  # the remainders have weights of their own after those of the values
            whole = whole[:, : before[site.weight].shape[1]]
        shape = [-1 if n == axis else 1 for n in range(whole.ndim)]
        error = whole - before[site.weight].astype(np.float64) / scale.astype(np.float64).reshape(shape)
        assert (np.abs(error) <= 1 + 1e-5).all(), site.node
        clipped = (np.abs(whole) == 127).sum(axis=tuple(n for n in range(whole.ndim) if n != axis)) > 1
        sums = error.sum(axis=tuple(n for n in range(whole.ndim) if n != axis))
        assert (np.abs(sums[~clipped]) <= 0.5 + 1e-3).all(), site.node
        largest = np.abs(before[site.weight]).max(axis=tuple(n for n in range(whole.ndim) if n != axis))
        used = largest > 0  # idle channels that fill a block have weights of zero
        assert (scale[used] * 127 <= np.maximum(largest[used] * 1.01, 1e-6)).mean() > 0.9, "no step is wasted"


def constants_of(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def optimised(graph: Path, folder: Path) -> onnx.GraphProto:
    """Return the graph that ONNX Runtime makes of a graph before it runs it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph


@pytest.mark.parametrize("name", [*FAMILIES, *BACKBONES])
def test_onnx_runtime_computes_every_site_of_the_cpu_layout_in_eight_bits(
    detector: Callable[[str], Graphs], name: str, tmp_path: Path
) -> None:
    graphs = detector(name)
    source = onnx.shape_inference.infer_shapes(onnx.load(str(graphs.fp32)))
    kinds = Counter(node.op_type for node in optimised(graphs.cpu, tmp_path).node)
    wanted = Counter(
        {node.name: node.op_type for node in source.graph.node}[site.node] for site in sites_of(source)
    )
    others = Counter(node.op_type for node in source.graph.node) - wanted
    assert kinds["QLinearConv"] == wanted["Conv"]
    assert kinds["QLinearMatMul"] == wanted["MatMul"]
    assert sum(kinds[kind] for kind in ("Conv", "FusedConv", "NhwcFusedConv")) == others["Conv"]


def test_depthwise_convolutions_and_residual_sums_are_among_them(
    detector: Callable[[str], Graphs], tmp_path: Path
) -> None:
    resnet = Counter(node.op_type for node in optimised(detector("resnet18").cpu, tmp_path).node)
    assert resnet["QLinearAdd"] == 2, "one in each block"
    assert "Relu" not in resnet
    graph = optimised(detector("mobilenetv2_100").cpu, tmp_path)
    groups = [
        attribute.i
        for node in graph.node
        if node.op_type == "QLinearConv"
        for attribute in node.attribute
        if attribute.name == "group" and attribute.i > 1
    ]
    assert len(groups) == 3
    assert Counter(node.op_type for node in graph.node)["QLinearAdd"] == 1


@pytest.mark.parametrize("name", [*FAMILIES, *BACKBONES])
def test_the_gpu_layout_is_symmetric_and_quantises_nothing_in_vain(
    detector: Callable[[str], Graphs], name: str
) -> None:
    graphs = detector(name)
    model = onnx.load(str(graphs.gpu))
    constants = constants_of(model)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    source = onnx.shape_inference.infer_shapes(onnx.load(str(graphs.fp32)))
    for block in (None, *{site.block for site in sites_of(source)}):
        chosen = {site.block for site in sites_of(source)} - {block}
        assert not quantised_in_vain(source, chosen)


def quantised_in_vain(source: onnx.ModelProto, blocks: Collection[str]) -> list[str]:
    plan = plan_of(source, blocks, GPU)
    readers = {name: {n.name for n in source.graph.node if name in n.input} for name in plan.tensors}
    return [name for name, nodes in readers.items() if not nodes & plan.nodes]


def test_a_residual_sum_of_the_gpu_layout_is_quantised_on_one_side(
    detector: Callable[[str], Graphs],
) -> None:
    model = onnx.load(str(detector("resnet18").gpu))
    dequantised = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    sums = [
        n for n in model.graph.node if n.op_type == "Add" and (block_of(n.name) or "").startswith("backbone")
    ]
    assert [len(dequantised.intersection(node.input)) for node in sums] == [1, 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_openvino_answers_the_cpu_layout_as_onnx_runtime_does(
    detector: Callable[[str], Graphs], family_bundle: Callable[[str], FamilyBundle], name: str
) -> None:
    """OpenVINO does not round a convolution that it fuses with a sum, which moves CS-Flow's levels by 0.009."""
    graph, images = detector(name).cpu, family_bundle(name).images
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    expected = dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {"image": images}), strict=True)
    )
    compiled = openvino.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(images)
    layers = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    kinds = Counter(
        str(info["runtimePrecision"].astype(str))
        for info in layers
        if info["layerType"].astype(str) == "Convolution"
    )
    sites = sites_of(onnx.shape_inference.infer_shapes(onnx.load(str(detector(name).fp32))))
    convolutions = [site for site in sites if site.node.endswith("Conv")]
    assert kinds["u8"] + kinds["i8"] >= 0.9 * len(convolutions), kinds
    if overflows_in_eight_bits():
        pytest.skip("eight bits overflow on this processor: the engine computes in float (test_engines)")
    for output in (name for name in expected if name.startswith("level")):
        answer = np.asarray(found[compiled.output(output)])
        scale = np.abs(expected[output]).max()
        assert np.sqrt(np.square(answer - expected[output]).mean()) <= 0.015 * scale, output


# By hand


def two_layers(seed: int) -> tuple[onnx.ModelProto, Layer]:
    """Make a convolution on the image, which stays in float, and a product over eight channels as the only block."""
    layers = random_layers(seed, (8, 8))
    return inferred(layers), layers[1]


def inferred(layers: list[Layer]) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(block_model(layers))


def int8_of(
    model: onnx.ModelProto, images: NDArray[np.float32], layout: Layout
) -> tuple[onnx.ModelProto, Scales]:
    ranges: dict[str, TensorRange] = {}
    for name, values in run(model, tensors_to_observe(model), images).items():
        ranges[name] = TensorRange()
        ranges[name].add(values)
    scales = Scales(ranges, "min-max", layout)
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    quantise(typed, {site.block for site in sites_of(model)}, scales)
    return typed, scales


def run(
    model: onnx.ModelProto, names: Collection[str], images: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """Return some tensors of a graph that runs on images."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    have = {output.name for output in seen.graph.output}
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the engine, see there
    session = onnxruntime.InferenceSession(
        seen.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(list(names), {"image": images}), strict=True))


def product(values: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
    answer: NDArray[Any] = np.einsum("ncij,oc->noij", values, weight[:, :, 0, 0])
    return answer


def stored_weight(typed: onnx.ModelProto, node: str) -> NDArray[np.int64]:
    return constants_of(typed)[f"int8/{node}/weight.q"].astype(np.int64)


IMAGES = np.random.default_rng(5).normal(size=(2, 3, *SIZE)).astype(np.float32)


def test_one_convolution_of_the_cpu_layout_is_integer_arithmetic() -> None:
    model, layer = two_layers(4)
    typed, scales = int8_of(model, IMAGES, CPU)
    (step_in, zero_in), (step_out, zero_out) = scales["l0.relu"], scales["l1.out"]
    assert int(zero_in) == 0
    assert int(zero_out) > 0, "there are negative values"
    values = run(model, ["l0.relu"], IMAGES)["l0.relu"]
    whole = np.clip(np.rint(values / step_in), 0, 255).astype(np.int64)
    step_weight = np.abs(layer.weight).max(axis=(1, 2, 3)) / 127
    weight = stored_weight(typed, "backbone/l1/Conv")
    bias = np.rint(layer.bias / (step_in.astype(np.float64) * step_weight)).astype(np.int64)
    total = (product(whole, weight) + bias[:, None, None]) * (step_in * step_weight)[:, None, None]
    expected = np.clip(np.rint(total / step_out) + int(zero_out), 0, 255) - int(zero_out)
    found = run(typed, ["l1.out.dq"], IMAGES)["l1.out.dq"] / step_out
    assert np.abs(found - expected).max() < 1.01, "at most the edge of a step"
    assert (np.abs(found - expected) < 0.01).mean() > 0.999


def test_one_convolution_of_the_gpu_layout_is_rounded_on_its_inputs_alone() -> None:
    model, layer = two_layers(4)
    typed, scales = int8_of(model, IMAGES, GPU)
    values = run(model, ["l0.relu"], IMAGES)["l0.relu"]
    step = values.max() / np.float32(127)
    assert float(scales["l0.relu"][0]) == pytest.approx(float(step), rel=1e-6)
    step_weight = (np.abs(layer.weight).max(axis=(1, 2, 3)) / 127)[:, None, None, None]
    expected = product(np.rint(values / step) * step, stored_weight(typed, "backbone/l1/Conv") * step_weight)
    error = np.abs(run(typed, ["l1.out"], IMAGES)["l1.out"] - expected - layer.bias[:, None, None])
    assert (error < 1e-4).mean() > 0.999, "a value on the edge of a step goes either way"
    assert error.max() < 2 * step


def weight_of_the_image(channels: int, *, alike: bool) -> NDArray[np.float32]:
    """Return random weights of a first convolution, whose channels are multiples of each other where ``alike``."""
    rng = np.random.default_rng(7)
    shape = (256, 1 if alike else channels, 2, 2)
    factors = np.array([0.9, -0.5, 1.2][:channels])[:, None, None] if alike else 1
    return np.asarray(rng.normal(size=shape) * factors, np.float32)


@pytest.mark.parametrize(
    ("channels", "alike", "share"),
    [
        (1, False, 0.25),
        (2, False, 0.25),
        (3, True, 0.25),
        (3, False, 0.95),  # Weights without a direction see only a third of what is kept of three remainders.
    ],
)
@pytest.mark.parametrize("darkest", [0.0, -1.0])
def test_a_photograph_of_little_contrast_loses_little_in_the_first_convolution(
    channels: int, alike: bool, share: float, darkest: float
) -> None:
    """The range is that of bright and dark images. Eight bits would give this photograph a dozen steps.

    Where no image is negative, the range leaves room for negative remainders.
    """
    rng = np.random.default_rng(7)
    weight = weight_of_the_image(channels, alike=alike)
    layer = Layer("l0", weight, np.zeros(256, np.float32), stride=2)
    model = inferred([layer, *random_layers(0, (256, 8))[1:]])
    (site,) = (site for site in sites_of(model) if site.in_parts)
    flat = (1.5 + 0.1 * rng.normal(size=(1, channels, *SIZE))).astype(np.float32)
    ends = np.stack([np.full(flat.shape[1:], end, np.float32) for end in (darkest, 12.0)])
    images = np.concatenate([flat, ends])
    typed, scales = int8_of(model, images, CPU)
    step = float(scales.of_parts("image")[0])
    assert step > 0.04
    exact = run(model, [site.output], flat)[site.output]
    found = run(float_convolution_of(typed, site.node), [site.output], flat)[site.output]
    eight_bits = run(model, [site.output], (np.rint(flat / step) * step).astype(np.float32))[site.output]
    lost, would_be_lost = (np.sqrt(np.square(given - exact).mean()) for given in (found, eight_bits))
    assert lost < share * would_be_lost
    assert not any(site.in_parts for site in plan_of(model, {site.block}, GPU).sites)


def float_convolution_of(typed: onnx.ModelProto, node: str) -> onnx.ModelProto:
    """Return a graph without the Q/DQ after a convolution, so that its answer is not rounded."""
    cut = onnx.ModelProto()
    cut.CopyFrom(typed)
    place = next(n for n, one in enumerate(cut.graph.node) if one.name == node)
    del cut.graph.node[place + 1 :], cut.graph.output[:]
    return cut


def test_a_bias_survives_a_channel_whose_weights_are_nothing() -> None:
    layers = random_layers(6, (8, 8))
    layers[1].weight[1] *= 1e-12
    layers[1].weight[2] = 0
    layers[1].bias[1:3] = (0.75, -0.5)
    model = inferred(layers)
    expected = run(model, ["l1.out"], IMAGES)["l1.out"]
    step = (expected.max() - expected.min()) / 255
    for layout, name in ((CPU, "l1.out.dq"), (GPU, "l1.out")):
        typed, _ = int8_of(model, IMAGES, layout)
        error = np.abs(run(typed, [name], IMAGES)[name] - expected)
        assert error[:, 1:3].max() <= step
        assert error.max() <= 10 * step


def residual_model(*, read_again: Collection[str] = ()) -> onnx.ModelProto:
    """Return a chain of convolutions where the last one reads the sum of two of them.

    The ReLU of ``l0`` writes ``l0.relu``, which ``l1`` and ``l2`` read. The sum of ``l1.out`` and ``l2.out`` is
    ``l2.relu``. The tensors in ``read_again`` get a second reader, which stays in float32.
    """
    model = block_model(random_layers(3, (8, 8, 8, 8)))
    graph = model.graph
    by_name = {node.name: node for node in graph.node}
    by_name["backbone/l2/Conv"].input[0] = "l0.relu"
    graph.node.remove(by_name["backbone/l1/Relu"])
    place = list(graph.node).index(by_name["backbone/l2/Relu"])
    graph.node.remove(by_name["backbone/l2/Relu"])
    graph.node.insert(
        place, onnx.helper.make_node("Add", ["l1.out", "l2.out"], ["l2.relu"], name="backbone/l2/Add")
    )
    for name in read_again:
        graph.node.append(onnx.helper.make_node("Abs", [name], [f"{name}.abs"], name=f"map/{name}/Abs"))
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize(
    ("read_again", "quantised"),
    [
        ((), {"l2.out"}),  # TensorRT fuses the sum with the first convolution, l1.
        (("l1.out",), {"l1.out"}),  # The sum fuses with l2, whose output nobody else reads.
        (("l1.out", "l2.out"), {"l1.out", "l2.out"}),  # The sum fuses with neither.
    ],
)
def test_a_sum_of_the_gpu_layout_keeps_float_the_one_side_that_it_is_fused_with(
    read_again: tuple[str, ...], quantised: set[str]
) -> None:
    model = residual_model(read_again=read_again)
    plan = plan_of(model, {"backbone/l1", "backbone/l2", "backbone/l3"}, GPU)
    assert "backbone/l2/Add" in plan.nodes
    assert plan.tensors.keys() & {"l1.out", "l2.out"} == quantised


def test_a_sum_of_the_cpu_layout_is_quantised_on_both_sides() -> None:
    plan = plan_of(residual_model(), {"backbone/l1", "backbone/l2", "backbone/l3"}, CPU)
    assert plan.tensors.keys() >= {"l1.out", "l2.out", "l2.relu"}


@pytest.mark.parametrize("layout", [CPU, GPU])
def test_the_written_tensors_of_a_plan_are_quantised_tensors(layout: Layout) -> None:
    """In the GPU layout the last convolution writes a tensor without Q/DQ."""
    plan = plan_of(residual_model(), {"backbone/l1", "backbone/l2"}, layout)
    assert plan.written <= plan.tensors.keys()
    assert "l2.out" in plan.written


def test_a_pooling_that_only_float_nodes_read_stays_float() -> None:
    model = block_model(random_layers(0))
    relu = next(node for node in model.graph.node if node.name == "backbone/l1/Relu")
    relu.output[0] = "unpooled"
    place = list(model.graph.node).index(relu) + 1
    pool = onnx.helper.make_node(
        "MaxPool", ["unpooled"], ["l1.relu"], name="backbone/pool/MaxPool", kernel_shape=[1, 1]
    )
    model.graph.node.insert(place, pool)
    model = onnx.shape_inference.infer_shapes(model)
    assert not quantised_in_vain(model, {"backbone/l1"})
    both = plan_of(model, {"backbone/l1", "backbone/l2"}, GPU)
    assert both.tensors["l1.relu"] == both.tensors["unpooled"] == "unpooled"


def test_blocks_that_are_given_back_keep_their_float_convolutions(
    detector: Callable[[str], Graphs], tmp_path: Path
) -> None:
    source = onnx.shape_inference.infer_shapes(onnx.load(str(detector("resnet18").fp32)))
    sites = sites_of(source)
    chosen = {site.block for site in sites if "layer1/0" not in site.block}
    images = np.random.default_rng(0).standard_normal((1, 1, 3, 64, 64)).astype(np.float32)
    ranges = observe(detector("resnet18").fp32, tensors_to_observe(source), images)
    quantise(source, chosen, Scales(ranges, "percentile", CPU))
    onnx.checker.check_model(source, full_check=True)
    path = tmp_path / "some.onnx"
    onnx.save(source, str(path))
    kinds = Counter(node.op_type for node in optimised(path, tmp_path).node)
    assert kinds["QLinearConv"] == sum(site.block in chosen for site in sites)


def test_a_swish_and_a_mean_over_all_pixels_run_in_eight_bits_on_cpus_alone() -> None:
    model = block_model(random_layers(0))
    relu = next(node for node in model.graph.node if node.name == "backbone/l1/Relu")
    place = list(model.graph.node).index(relu)
    model.graph.node.remove(relu)
    for op, inputs, output in (
        ("GlobalAveragePool", ["l1.relu"], "mean"),
        ("Mul", ["l1.out", "gate"], "l1.relu"),
        ("Sigmoid", ["l1.out"], "gate"),
    ):
        model.graph.node.insert(place, onnx.helper.make_node(op, inputs, [output], name=f"backbone/l1/{op}"))
    model = onnx.shape_inference.infer_shapes(model)
    nodes = {f"backbone/l1/{op}" for op in ("Sigmoid", "Mul", "GlobalAveragePool")}
    cpu, gpu = (plan_of(model, {"backbone/l1", "backbone/l2"}, layout) for layout in (CPU, GPU))
    assert nodes <= cpu.nodes
    assert {"l1.out", "gate", "l1.relu", "mean"} <= cpu.tensors.keys()
    assert not nodes & gpu.nodes
