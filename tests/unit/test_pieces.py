"""A graph that runs piece by piece answers as the whole graph does, and computes nothing a second time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from flowedge.calibration.precision.converted_graph import (
    FILES,
    ConvertedPrecision,
    PrecisionConverter,
    tensors_for_conversion,
)
from flowedge.calibration.precision.pieces import PiecedGraph, pieces_of
from support.block_graph import SIZE, random_layers, write_block_bundle
from support.family_graphs import FAMILIES, FamilyBundle
from support.observed import observe

IMAGE = np.random.default_rng(3).standard_normal((1, 3, *SIZE)).astype(np.float32)


def converter_of(graph: Path, fp32: Any, image: NDArray[np.float32]) -> PrecisionConverter:
    tensors = tensors_for_conversion(graph, tuple(FILES)).tensors
    return PrecisionConverter(graph, fp32, observe(graph, tensors, [image], threads=1))


def answers(graph: Path, image: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    disabled = ["WeightBiasQuantization", "QDQPropagationTransformer"]
    session = ort.InferenceSession(str(graph), options, disabled_optimizers=disabled)
    names = ["score", "anomaly_map"]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_of_each_family_answer_as_the_whole_graph(
    family: str, family_bundle: Callable[[str], FamilyBundle], tmp_path: Path
) -> None:
    made = family_bundle(family)
    image = made.images[:1]
    source = made.bundle.graph_path("fp32")
    converter = converter_of(source, made.bundle.manifest.graph("fp32"), image)
    graph = PiecedGraph(converter, "int8-cpu")
    pieces = pieces_of(converter.model, converter.blocks("int8-cpu"))
    assert {piece.block for piece in pieces} == set(converter.blocks("int8-cpu")), "each has its own piece"
    fp32 = graph.values(image)
    whole = answers(source, image)
    spread = float(whole["anomaly_map"].std())
    for name, expected in whole.items():
        np.testing.assert_allclose(fp32[name], expected, atol=1e-5 * spread)
    cases: dict[ConvertedPrecision, int] = {"int8-cpu": 1, "int8-gpu": 2, "fp16": 2}
    for precision, every in cases.items():
        if precision == "fp16":
            graph = PiecedGraph(converter, precision)
        chosen = list(converter.blocks(precision))[::every]
        target = tmp_path / f"{precision}.onnx"
        converter.write(precision, chosen, target, emulated=True)
        expected = answers(target, image)["anomaly_map"]
        found = graph.candidate(image, precision, chosen)["anomaly_map"]
        # One value that falls on the other side of a rounding step moves later values by steps too.
        error = max(float(np.std(expected - whole["anomaly_map"])), 1e-5 * spread)
        assert np.std(found - expected) < 0.2 * error


def test_a_changed_block_runs_itself_and_what_reads_it_alone(tmp_path: Path) -> None:
    bundle = write_block_bundle(tmp_path / "blocks.flowedge", random_layers(2, (8,) * 7))
    converter = converter_of(bundle.graph_path("fp32"), bundle.manifest.graph("fp32"), IMAGE)
    graph = PiecedGraph(converter, "int8-cpu")
    values = graph.values(IMAGE)
    blocks = list(converter.blocks("int8-cpu"))
    assert (graph.opened, graph.runs) == (6, 6), "the image's own convolution belongs to the first piece"
    for place, block in enumerate(blocks, 1):
        before = graph.runs
        changed = graph.changed(values, "int8-cpu", block)
        assert graph.runs - before == 7 - place, "no piece before the block"
        alone = graph.candidate(IMAGE, "int8-cpu", [block])
        np.testing.assert_array_equal(changed["anomaly_map"], alone["anomaly_map"])
    assert graph.opened == 6 + len(blocks), "each piece is opened once in each precision"
    for reverted in range(len(blocks)):
        graph.candidate(IMAGE, "int8-cpu", blocks[reverted:])
    assert graph.opened == 6 + len(blocks), "a candidate opens nothing of its own"


def test_a_block_that_runs_twice_has_two_pieces() -> None:
    names = (
        "image",
        "backbone/a/0/x",
        "backbone/a/0/y",
        "between",
        "backbone/b/0/x",
        "backbone/a/0/z",
        "map/end",
    )
    nodes = [helper.make_node("Relu", [f"t{n}"], [f"t{n + 1}"], name=name) for n, name in enumerate(names)]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", "t7")]
    model = helper.make_model(helper.make_graph(nodes, "twice", value[:1], value[1:]))
    pieces = pieces_of(model, ["backbone/a/0", "backbone/b/0"], ["t7"])
    assert [piece.block for piece in pieces] == ["backbone/a/0", "backbone/b/0", "backbone/a/0"]
    assert [(*piece.inputs, *piece.outputs) for piece in pieces] == [("t0", "t4"), ("t4", "t5"), ("t5", "t7")]
    fewer = pieces_of(model, ["backbone/b/0"], ["t7"])
    assert [piece.block for piece in fewer] == ["backbone/b/0"], "what cannot be chosen is no block"
    unused = pieces_of(model, ["backbone/a/0"], ["t4"])
    assert [piece.outputs for piece in unused] == [("t4",)], "nothing that was not asked for"
