"""An engine is compared with an INT8 graph's own answers, in units of what eight bits cost that graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from flowedge.bundle import Bundle, replace_in_bundle
from flowedge.calibration.precision.converted_graph import PrecisionConverter, tensors_for_conversion
from flowedge.calibration.precision.rounded import files_of_rounded_answers, rounded_answers
from flowedge.errors import BundleError
from flowedge.manifest import GraphFile, Scoring
from flowedge.runtime.device.npz import npz_from_arrays
from flowedge.runtime.opening.selftest import read_rounded_answers, rounded_answers_file
from flowedge.runtime.verify import ROUNDING_LIMIT, checks_of_rounding
from support.block_graph import SIZE, block_model, random_layers
from support.observed import observe
from support.tiny_bundle import tiny_manifest, write_tiny_bundle

Levels = dict[str, NDArray[np.float32]]


def levels(seed: int, error: float = 0.0) -> Levels:
    """Make two levels ``(3, 1, 6, 5)`` of order 1 and of order 100, each wrong by ``error`` of its size."""
    rng, noise = np.random.default_rng(0), np.random.default_rng(seed)
    made = {f"level_{n}": size * rng.uniform(0, 1, (3, 1, 6, 5)) for n, size in enumerate((1.0, 100.0))}
    return {
        name: (answer + error * answer.max() * noise.standard_normal(answer.shape)).astype(np.float32)
        for name, answer in made.items()
    }


def passed(got: Levels, rounded: Levels) -> list[bool]:
    checks = checks_of_rounding(tiny_manifest(), "int8-cpu", got, rounded, levels(0))
    return [check.passed for check in checks]


@pytest.mark.parametrize("cost", [0.003, 0.03])
def test_another_rounding_of_the_same_size_passes_and_four_times_that_does_not(cost: float) -> None:
    rounded = levels(1, cost)
    assert passed(rounded, rounded) == [True, True]
    assert passed(levels(2, cost), rounded) == [True, True]
    assert passed(levels(2, 0.0), rounded) == [True, True], "an engine may round less than the graph says"
    assert passed(levels(2, (ROUNDING_LIMIT + 1) * cost), rounded) == [False, False]


def test_one_level_that_is_wrong_fails_by_itself() -> None:
    rounded = levels(1, 0.01)
    assert passed({**rounded, "level_1": -rounded["level_1"]}, rounded) == [True, False]


def test_a_value_that_is_no_number_never_passes() -> None:
    rounded = levels(1, 0.01)
    broken = levels(1, 0.01)
    broken["level_0"][0, 0, 0, 0] = np.nan
    assert passed(broken, rounded)[0] is False
    assert passed(rounded, broken)[0] is False


def test_a_graph_that_loses_nothing_in_eight_bits_is_held_to_the_rounding_of_float16() -> None:
    assert passed(levels(3, 5e-4), levels(0)) == [True, True]
    assert passed(levels(3, 5e-3), levels(0)) == [False, False]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny.flowedge")


def test_a_bundle_without_recorded_answers_is_still_read(bundle: Bundle) -> None:
    assert read_rounded_answers(bundle, "int8-cpu") is None
    assert files_of_rounded_answers(bundle, {"fp32": bundle.graph_path("fp32")}, threads=1) == {}


@pytest.mark.parametrize(
    "answers",
    [
        {"level_0": np.ones((3, 1, 2, 2), np.float32)},
        {"level_0": np.ones((3, 1, 1, 1), np.float64)},
        {"other": np.ones((3, 1, 1, 1), np.float32)},
        {},
    ],
)
def test_recorded_answers_of_another_shape_are_refused(bundle: Bundle, answers: Levels) -> None:
    path = rounded_answers_file("int8-cpu")
    changed = replace_in_bundle(bundle, files={path: npz_from_arrays(answers)})
    with pytest.raises(BundleError, match=r"answers\.int8-cpu\.npz"):
        read_rounded_answers(changed, "int8-cpu")


@pytest.mark.parametrize("threads", [None, 1])
def test_the_rounded_answers_are_those_of_the_reference_evaluator_of_onnx(
    threads: int | None, tmp_path: Path
) -> None:
    images = np.random.default_rng(2).normal(size=(3, 3, *SIZE)).astype(np.float32)
    source, target = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    onnx.save(block_model(random_layers(7, (8, 8, 8))), str(source))
    fp32 = GraphFile(precision="fp32", file="fp32.onnx", opset=18, scoring=Scoring(normalisation="none"))
    ranges = observe(source, tensors_for_conversion(source, ["int8-cpu"]).tensors, images[:, None])
    converter = PrecisionConverter(source, fp32, ranges)
    converter.write("int8-cpu", list(converter.blocks("int8-cpu")), target)
    found = rounded_answers(target, images, ["level_0", "score"], threads=threads)
    model = onnx.load(str(target))
    model.opset_import[0].version = 19  # The evaluator implements DequantizeLinear from this opset on.
    expected = ReferenceEvaluator(model).run(["level_0", "score"], {"image": images})
    for answer, wanted in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(answer, wanted, rtol=1e-4, atol=1e-5)
