"""A half-precision graph is valid, typed as planned and close to fp32, and keeps weights that do not fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from flowedge.calibration.precision.converted_graph import PrecisionConverter, tensors_for_conversion
from flowedge.calibration.precision.half import nodes_kept_in_fp32, store_in_half
from flowedge.errors import ExportError
from flowedge.export.graph.onnx_export import onnx_from_model
from flowedge.export.graph.passes import lower
from flowedge.graph_files import weights_beside
from flowedge.manifest import GraphFile, Scoring
from support.block_graph import SIZE, block_model, random_layers
from support.family_graphs import FamilyBundle
from support.half_graph import write_half
from support.observed import observe
from support.random_flows import random_cflow
from support.tiny_bundle import tiny_model


class TwoConvolutions(torch.nn.Module):
    """Give features of two levels for ``random_cflow``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 4, 4)
        self.second = torch.nn.Conv2d(8, 6, 2, 2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        fine = torch.relu(self.first(image))
        return [fine, torch.relu(self.second(fine))]


FP32 = GraphFile(precision="fp32", file="fp32.onnx", opset=18, scoring=Scoring(normalisation="none"))


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = lower(random_cflow(1, sizes=((8, 6, 5), (6, 3, 2)), condition=4))
    path = tmp_path_factory.mktemp("graphs") / "model.onnx"
    onnx_from_model(model, TwoConvolutions(), path)
    return path


def run(path: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[object]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"image": image}))


def weight_types(graph: onnx.GraphProto, op_type: str) -> set[int]:
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {types[node.input[1]] for node in graph.node if node.op_type == op_type and node.input[1] in types}


def test_convolutions_are_float16_and_the_contract_stays_float32(fp32: Path, tmp_path: Path) -> None:
    target = tmp_path / "half.onnx"
    assert write_half(fp32, target, "fp16") == {}
    graph = onnx.load(str(target)).graph
    energies = {node.name for node in graph.node if node.name.startswith("flow/energies")}
    convolutions = [n for n in graph.node if n.op_type == "Conv" and n.name not in energies]
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {types[node.input[1]] for node in convolutions} == {TensorProto.FLOAT16}
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    matrices = [types[n] for node in graph.node if node.op_type == "MatMul" for n in node.input if n in types]
    assert set(matrices) == {TensorProto.FLOAT}


def test_every_name_is_there_once_and_every_type_fits(fp32: Path, tmp_path: Path) -> None:
    target = tmp_path / "half.onnx"
    write_half(fp32, target, "fp16")
    model = onnx.load(str(target))
    produced = Counter(name for node in model.graph.node for name in node.output)
    assert max(produced.values()) == 1
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def test_the_answers_are_close_and_not_equal(fp32: Path, tmp_path: Path) -> None:
    target = tmp_path / "half.onnx"
    write_half(fp32, target, "fp16")
    image = np.random.default_rng(0).standard_normal((2, 3, 24, 20)).astype(np.float32)
    for one, other in zip(run(fp32, image), run(target, image), strict=True):
        expected = np.asarray(one)
        difference = np.abs(expected - np.asarray(other)).max() / np.abs(expected).max()
        assert 0 < difference < 2e-2


def test_a_weight_beyond_float16_keeps_its_node_in_float32(fp32: Path, tmp_path: Path) -> None:
    model = onnx.load(str(fp32))
    node = next(n for n in model.graph.node if n.op_type == "Conv" and n.name.startswith("backbone"))
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = 1e5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    source, target = tmp_path / "large.onnx", tmp_path / "half.onnx"
    onnx.save(model, str(source))
    assert list(write_half(source, target, "fp16")) == [node.name]
    assert TensorProto.FLOAT in weight_types(onnx.load(str(target)).graph, "Conv")


def test_whole_numbers_beyond_float16_keep_no_node_in_float32() -> None:
    """An index such as the end of a slice is never converted, so its size is no reason."""
    model = block_model(random_layers(0))
    relu = next(node for node in model.graph.node if node.name == "backbone/l0/Relu")
    relu.output[0] = "whole"
    for name, value in {"from": 0, "to": np.iinfo(np.int64).max, "axes": 2}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    cut = onnx.helper.make_node(
        "Slice", ["whole", "from", "to", "axes"], ["l0.relu"], name="backbone/l0/Slice"
    )
    model.graph.node.insert(list(model.graph.node).index(relu) + 1, cut)
    assert nodes_kept_in_fp32(model, "fp16") == {}


@pytest.mark.parametrize("file", [None, "other.data"])
def test_weights_in_a_file_of_another_name_are_refused(file: str | None, tmp_path: Path) -> None:
    path = tmp_path / "fp32.onnx"
    onnx.save(
        block_model(random_layers(0)),
        str(path),
        save_as_external_data=True,
        location="other.data",
        size_threshold=0,
    )
    if file:
        weights_beside(path).write_bytes((tmp_path / file).read_bytes())
    with pytest.raises(ExportError, match=re.escape(str(weights_beside(path)))):
        PrecisionConverter(path, FP32, {})


def test_a_graph_without_a_matching_node_is_refused(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.onnx"
    onnx.save(tiny_model(), str(tiny))
    with pytest.raises(ExportError, match="no node"):
        write_half(tiny, tmp_path / "half.onnx", "fp16")


# Islands from ranges


def converter_of(
    model: onnx.ModelProto, images: NDArray[np.float32], folder: Path
) -> tuple[PrecisionConverter, Path]:
    path = folder / "fp32.onnx"
    onnx.save(model, str(path))
    ranges = observe(path, tensors_for_conversion(path, ("fp16", "bf16")).tensors, images[:, None])
    return PrecisionConverter(path, FP32, ranges), path


IMAGES = np.random.default_rng(0).normal(size=(2, 3, *SIZE)).astype(np.float32)


@pytest.mark.parametrize(("factor", "why"), [(2.0**15, "reached"), (2.0**-19, "below|at most")])
def test_values_that_float16_cannot_hold_make_islands(factor: float, why: str, tmp_path: Path) -> None:
    layers = random_layers(0)
    before = onnx.load(str(converter_of(block_model(layers), IMAGES, tmp_path)[1]))
    layers[1].weight[:] *= factor
    layers[1].bias[:] *= factor
    layers[2].weight[:] /= factor
    converter, path = converter_of(block_model(layers), IMAGES, tmp_path)
    written = converter.write("fp16", list(converter.blocks("fp16")), tmp_path / "half.onnx")
    assert set(written.kept_in_fp32) == {"backbone/l1/Conv", "backbone/l1/Relu", "backbone/l2/Conv"}
    assert all(re.search(why, reason) for reason in written.kept_in_fp32.values()), written.kept_in_fp32
    assert written.graph.fp32_islands == tuple(sorted(written.kept_in_fp32))
    whole, half = (np.asarray(run(p, IMAGES)[2]) for p in (path, tmp_path / "half.onnx"))
    assert np.abs(whole - half).max() < 5e-3 * np.abs(whole).max()
    types = {
        tensor.name: tensor.data_type for tensor in onnx.load(str(tmp_path / "half.onnx")).graph.initializer
    }
    assert types["l0.weight.fp16"] == types["l3.weight.fp16"] == TensorProto.FLOAT16
    assert types["l1.weight"] == types["l2.weight"] == TensorProto.FLOAT
    assert len(before.graph.node) == len(onnx.load(str(path)).graph.node)


def test_only_the_graph_without_ranges_overflows(tmp_path: Path) -> None:
    layers = random_layers(0)
    layers[1].weight[:] *= 2.0**15
    layers[2].weight[:] *= 2.0**-15
    _, path = converter_of(block_model(layers), IMAGES, tmp_path)
    assert write_half(path, tmp_path / "blind.onnx", "fp16").keys() <= {"backbone/l2/Conv"}
    whole, blind = (np.asarray(run(p, IMAGES)[2]) for p in (path, tmp_path / "blind.onnx"))
    assert not np.abs(whole - blind).max() < 0.1 * np.abs(whole).max()


# bfloat16


def test_bfloat16_is_valid_in_an_opset_that_has_it_and_typed_as_planned(fp32: Path, tmp_path: Path) -> None:
    target = tmp_path / "bf16.onnx"
    assert write_half(fp32, target, "bf16") == {}
    model = onnx.load(str(target))
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert model.opset_import[0].version == 22
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    named = [n for n in model.graph.node if n.op_type == "Conv" and not n.name.startswith("flow/energies")]
    assert {types[node.input[1]] for node in named} == {TensorProto.BFLOAT16}
    assert TensorProto.FLOAT16 not in types.values()
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


def bf16(values: NDArray[np.floating]) -> NDArray[np.float32]:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_float16_is_emulated_with_every_value_rounded_and_overflows_where_a_gpu_would(tmp_path: Path) -> None:
    """ONNX Runtime's CPU widens float16 and rounds nothing but the weights, so it cannot judge a graph for GPUs."""
    converter, path = converter_of(block_model(random_layers(2)), IMAGES, tmp_path)
    blocks = list(converter.blocks("fp16"))
    converter.write("fp16", blocks, tmp_path / "real.onnx")
    converter.write("fp16", blocks, tmp_path / "emulated.onnx", emulated=True)
    whole, real, emulated = (
        np.asarray(run(p, IMAGES)[2]) for p in (path, tmp_path / "real.onnx", tmp_path / "emulated.onnx")
    )
    assert np.abs(real - whole).max() < np.abs(emulated - whole).max() < 1e-2 * whole.max()
    overflow = random_layers(2)
    overflow[1].weight[:] *= 2.0**15
    overflow[1].bias[:] = 60000
    overflow[2].weight[:] *= 2.0**-15
    _, path = converter_of(block_model(overflow), IMAGES, tmp_path)
    blind = PrecisionConverter(path, FP32, None)
    blind.write("fp16", blocks, tmp_path / "overflow.onnx", emulated=True)
    assert not np.isfinite(np.asarray(run(tmp_path / "overflow.onnx", IMAGES)[2])).all()


def test_the_emulation_rounds_every_value_as_numpy_does(tmp_path: Path) -> None:
    layers = random_layers(2)
    converter, _ = converter_of(block_model(layers), IMAGES, tmp_path)
    converter.write("bf16", list(converter.blocks("bf16")), tmp_path / "runnable.onnx", emulated=True)
    found = np.asarray(run(tmp_path / "runnable.onnx", IMAGES)[2])
    values = bf16(IMAGES).reshape(2, 3, SIZE[0] // 2, 2, SIZE[1] // 2, 2)
    for layer in layers:
        kernel = bf16(layer.weight).astype(np.float64)
        if layer.stride == 2:
            total = np.einsum("nciajb,ocab->noij", values, kernel)
        else:
            total = np.einsum("ncij,oc->noij", values, kernel[:, :, 0, 0])
        values = bf16(total + bf16(layer.bias)[:, None, None])
        if layer is not layers[-1]:
            values = np.maximum(values, 0)
    expected = np.square(values).mean(axis=1, keepdims=True)
    assert (np.abs(found - expected) <= 1e-6 * expected.max()).mean() > 0.98, (
        "float32 sums may tip a rounding"
    )
    assert np.abs(found - expected).max() <= 0.02 * expected.max()


def test_blocks_given_back_stay_float32_in_both_forms(tmp_path: Path) -> None:
    converter, path = converter_of(block_model(random_layers(2)), IMAGES, tmp_path)
    blocks = list(converter.blocks("bf16"))
    real = converter.write("bf16", blocks[:2], tmp_path / "real.onnx")
    assert real.graph.given_back == tuple(blocks[2:])
    assert real.graph.opset == 22
    types = {
        tensor.name: tensor.data_type for tensor in onnx.load(str(tmp_path / "real.onnx")).graph.initializer
    }
    assert types["l1.weight.bf16"] == TensorProto.BFLOAT16
    assert types["l2.weight"] == TensorProto.FLOAT
    converter.write("bf16", (), tmp_path / "none.onnx", emulated=True)
    np.testing.assert_array_equal(run(path, IMAGES)[2], run(tmp_path / "none.onnx", IMAGES)[2])


def test_the_scales_of_a_resize_are_never_rounded(tmp_path: Path) -> None:
    model = block_model(random_layers(0))
    scale = 1 + 1 / 24  # from 24x32 to 25x33, and not in bfloat16
    constant = numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "larger")
    model.graph.initializer.append(constant)
    relu = next(node for node in model.graph.node if node.name == "backbone/l0/Relu")
    relu.output[0] = "small"
    resize = onnx.helper.make_node(
        "Resize", ["small", "", "larger"], ["grown"], name="backbone/l0/Resize", mode="linear"
    )
    crop = onnx.helper.make_node(
        "Slice", ["grown", "from", "to", "axes"], ["l0.relu"], name="backbone/l0/Slice"
    )
    for name, value in {"from": [0, 0], "to": [24, 32], "axes": [2, 3]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    place = list(model.graph.node).index(relu) + 1
    model.graph.node.insert(place, resize)
    model.graph.node.insert(place + 1, crop)
    converter, path = converter_of(model, IMAGES, tmp_path)
    blocks = list(converter.blocks("bf16"))
    converter.write("bf16", blocks, tmp_path / "real.onnx")
    converter.write("bf16", blocks, tmp_path / "runnable.onnx", emulated=True)
    whole, rounded = (np.asarray(run(p, IMAGES)[2]) for p in (path, tmp_path / "runnable.onnx"))
    assert np.corrcoef(whole.ravel(), rounded.ravel())[0, 1] > 0.999
    for name in ("real", "runnable"):
        graph = onnx.load(str(tmp_path / f"{name}.onnx")).graph
        (node,) = (n for n in graph.node if n.name == "backbone/l0/Resize")
        assert node.input[2] == "larger"


@pytest.mark.parametrize("family", ["fastflow", "uflow"])
def test_a_layer_norm_computes_in_float32_from_weights_of_float16(
    family_bundle: Callable[[str], FamilyBundle], family: str, tmp_path: Path
) -> None:
    fp32 = family_bundle(family).bundle.graph_path("fp32")
    source = onnx.load(str(fp32))
    norms = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in source.graph.initializer
        if len(tensor.dims) >= 3 and min(tensor.dims[-3:]) > 1 and ".steps." in tensor.name
        for node in source.graph.node
        if tensor.name in node.input and node.op_type in ("Mul", "Add")
    }
    assert norms
    too_large = sorted(norms)[0]
    for tensor in source.graph.initializer:
        if tensor.name == too_large:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(norms[too_large], 7e4), too_large))
    onnx.save(source, str(tmp_path / "fp32.onnx"))
    PrecisionConverter(tmp_path / "fp32.onnx", FP32, None).write("int8-cpu", (), tmp_path / "int8-cpu.onnx")
    write_half(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx", "fp16")
    write_half(tmp_path / "fp32.onnx", tmp_path / "bf16.onnx", "bf16")
    for precision in ("fp16", "bf16", "int8-cpu"):
        graph = onnx.load(str(tmp_path / f"{precision}.onnx")).graph
        stored = {tensor.name: tensor for tensor in graph.initializer}
        for name, values in norms.items():
            if precision == "bf16" or name == too_large:
                assert stored[name].data_type == TensorProto.FLOAT
                continue
            assert name not in stored
            kept = stored[f"{name}.fp16"]
            np.testing.assert_array_equal(numpy_helper.to_array(kept), values.astype(np.float16))
            (cast,) = (node for node in graph.node if kept.name in node.input)
            assert (cast.op_type, cast.attribute[0].i) == ("Cast", TensorProto.FLOAT)


@pytest.mark.parametrize(("exact", "half"), [(True, TensorProto.FLOAT16), (False, TensorProto.FLOAT)])
def test_a_large_matrix_that_float16_holds_exactly_is_stored_so(exact: bool, half: int) -> None:
    matrix = np.random.default_rng(0).integers(-64, 64, (64, 64)).astype(np.float32) / 32
    if not exact:
        matrix[5, 7] = 0.1
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["image", "matrix"], ["map"], name="reference/MatMul")],
        "one product",
        [onnx.helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 64])],
        [onnx.helper.make_tensor_value_info("map", TensorProto.FLOAT, [2, 64])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    image = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(each).run(None, {"image": image})[0]
        for each in (model.SerializeToString(), stored_in_half(model))
    )
    np.testing.assert_array_equal(before, after)
    assert half in {tensor.data_type for tensor in model.graph.initializer}


def stored_in_half(model: onnx.ModelProto) -> bytes:
    store_in_half(model)
    content: bytes = model.SerializeToString()
    return content
