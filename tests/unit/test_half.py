"""The half-precision graph: valid, typed as planned, close to fp32, and whole where a weight does not fit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from flowedge.calibration.precision.half import write_half
from flowedge.errors import ExportError
from flowedge.export.graph.onnx_export import onnx_from_model
from flowedge.export.graph.passes import lower
from support.random_flows import random_cflow
from support.tiny_bundle import tiny_model


class TwoConvolutions(torch.nn.Module):
    """A backbone of two levels for ``random_cflow``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 4, 4)
        self.second = torch.nn.Conv2d(8, 6, 2, 2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        fine = torch.relu(self.first(image))
        return [fine, torch.relu(self.second(fine))]


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


def test_a_graph_without_a_matching_node_is_refused(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.onnx"
    onnx.save(tiny_model(), str(tiny))
    with pytest.raises(ExportError, match="no node"):
        write_half(tiny, tmp_path / "half.onnx", "fp16")
