"""OpenVINO gives the answers of a quantised graph as ONNX defines it, also where a Concat joins quantised tensors."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from flowedge.runtime.engines.openvino import probe
from flowedge.runtime.opening.engine import ENGINES

CHANNELS, HEIGHT, WIDTH = 8, 4, 6
SHAPE = (1, CHANNELS, HEIGHT, WIDTH)
STEPS = (4.0, 0.5, 0.03)
# Where a graph quantises what a convolution reads: "x" is the image, and "read" is the convolution's input.
PLACES = {
    "alone": ("Quantise x read",),
    "behind a concat": ("Gather x a", "Gather x b", "Concat a,b c", "Quantise c read"),
    "in front of a concat": (
        "Gather x a",
        "Gather x b",
        "Quantise a qa",
        "Quantise b qb",
        "Concat qa,qb read",
    ),
    "behind a concat and a ReLU": (
        "Gather x a",
        "Gather x b",
        "Concat a,b c",
        "Relu c r",
        "Quantise r read",
    ),
    "for two readers": ("Gather x a", "Gather x b", "Concat a,b c", "Quantise c q", "Neg q n", "Neg n read"),
}
# A signed type without and with a zero, and an unsigned one, as the two layouts have and others may.
ZEROS: dict[str, np.integer] = {
    "signed": np.int8(0),
    "signed with a zero": np.int8(-9),
    "unsigned": np.uint8(101),
}


def quantised_graph(place: str, zero: np.integer, step: float) -> bytes:
    """Make a convolution of ``(1, 8, 4, 6)`` to the same shape with quantised inputs and int8 weights."""
    rng = np.random.default_rng(3)
    weights = np.rint(rng.normal(0, 90, (CHANNELS, CHANNELS, 1, 1))).clip(-127, 127).astype(np.int8)
    constants = {
        "step": np.float32(step),
        "zero": zero,
        "weights.q": weights,
        "weights.step": rng.uniform(0.001, 0.01, CHANNELS).astype(np.float32),
        "weights.zero": np.zeros(CHANNELS, np.int8),
        "bias": rng.normal(0, step, CHANNELS).astype(np.float32),
        "a.channels": np.array([6, 0, 3]),
        "b.channels": np.array([1, 7, 2, 4, 5]),
    }
    nodes: list[NodeProto] = []
    for line in PLACES[place]:
        kind, source, target = line.split()
        if kind == "Quantise":
            nodes.append(helper.make_node("QuantizeLinear", [source, "step", "zero"], [f"{target}.q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{target}.q", "step", "zero"], [target]))
        elif kind == "Gather":
            nodes.append(helper.make_node(kind, [source, f"{target}.channels"], [target], axis=1))
        elif kind == "Concat":
            nodes.append(helper.make_node(kind, source.split(","), [target], axis=1))
        else:
            nodes.append(helper.make_node(kind, [source], [target]))
    nodes.append(
        helper.make_node(
            "DequantizeLinear", ["weights.q", "weights.step", "weights.zero"], ["weights"], axis=0
        )
    )
    nodes.append(helper.make_node("Conv", ["read", "weights", "bias"], ["answer"]))
    return model_of(nodes, constants)


def model_of(nodes: Sequence[NodeProto], constants: Mapping[str, Any]) -> bytes:
    """Make a model from ``x`` to ``answer``, both of the shape ``SHAPE``."""
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, SHAPE)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return bytes(model.SerializeToString())


def image(step: float) -> NDArray[np.float32]:
    """Make values of -140 to 140 steps, some of them clipped, all far from the edge between two steps."""
    rng = np.random.default_rng(8)
    whole = rng.integers(-140, 141, (1, CHANNELS, HEIGHT, WIDTH))
    return ((whole + rng.uniform(-0.3, 0.3, whole.shape)) * step).astype(np.float32)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("place", PLACES)
def test_quantised_values_reach_a_convolution_unchanged(place: str, zero: str, step: float) -> None:
    graph, x = quantised_graph(place, ZEROS[zero], step), image(step)
    answers: Any = ReferenceEvaluator(graph).run(None, {"x": x})
    expected = answers[0]
    found = probe(ENGINES["openvino"], graph, x)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_swish_is_rounded_before_and_after_it_alone() -> None:
    """ONNX Runtime needs the rounded input and the rounded sigmoid. In OpenVINO they would cost a node each."""
    step, zero = np.float32(0.05), np.uint8(128)
    names = {"x": ["x.dq"], "s": ["s.dq"]}
    pairs = {
        name: [
            helper.make_node("QuantizeLinear", [name, f"{name}.step", f"{name}.zero"], [f"{name}.q"]),
            helper.make_node(
                "DequantizeLinear", [f"{name}.q", f"{name}.step", f"{name}.zero"], [f"{name}.dq"]
            ),
        ]
        for name in names
    }
    nodes = [
        *pairs["x"],
        helper.make_node("Sigmoid", ["x.dq"], ["s"]),
        *pairs["s"],
        helper.make_node("Mul", ["x.dq", "s.dq"], ["answer"]),
    ]
    constants = {"x.step": step, "x.zero": zero, "s.step": np.float32(1 / 255), "s.zero": np.uint8(0)}
    graph = model_of(nodes, constants)
    x = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    exact = x / (1 + np.exp(-x.astype(np.float64)))
    found = probe(ENGINES["openvino"], graph, x)
    assert np.abs(found - exact).max() < 1e-5


ELSEWHERE = """
import pathlib, sys
import numpy as np
from flowedge.runtime.opening.engine import ENGINES
from flowedge.runtime.engines.openvino import probe
folder = pathlib.Path(sys.argv[1])
x = np.load(folder / "x.npy")
for file in sorted(folder.glob("*.onnx")):
    np.save(file.with_suffix(".npy"), probe(ENGINES["openvino"], file.read_bytes(), x))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these instruction sets are x86's")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_they_do_with_the_instructions_of_other_processors(instructions: str, tmp_path: Path) -> None:
    """Without VNNI two products of eight bits overflow a sixteen-bit sum, so OpenVINO must compute in float."""
    x, step = image(0.5), 0.5
    expected: dict[str, Any] = {}
    for number, (place, zero) in enumerate(itertools.product(PLACES, ZEROS)):
        graph = quantised_graph(place, ZEROS[zero], step)
        (tmp_path / f"{number}.onnx").write_bytes(graph)
        answers: Any = ReferenceEvaluator(graph).run(None, {"x": x})
        expected[f"{number}.npy"] = answers[0]
    np.save(tmp_path / "x.npy", x)
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": instructions},
        check=True,
    )
    for file, answer in expected.items():
        assert np.abs(np.load(tmp_path / file) - answer).max() <= 1e-5 * np.abs(answer).max(), file
