"""A function of eight-bit values becomes a polynomial on OpenVINO, whose error is small beside that of eight bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13

from flowedge.runtime.engines.openvino_activations import replace_functions_of_eight_bits

COSTLY = {"Tanh", "Exp", "Atan"}
Chain = Callable[[ov.Output], ov.Output]


def number(value: float | NDArray[np.float32]) -> ov.Output:
    return opset13.constant(np.asarray(value, np.float32)).output(0)


def soft_clamp(x: ov.Output) -> ov.Output:
    """The log-scale of a FastFlow or CFLOW: ``1.9 tanh(x)``, with the constant on the left."""
    return opset13.multiply(number(1.9), opset13.tanh(x)).output(0)


def scale(x: ov.Output) -> ov.Output:
    return opset13.exp(soft_clamp(x)).output(0)


def scale_by_arctangent(x: ov.Output) -> ov.Output:
    """The scale of a GLOW coupling of FrEIA."""
    return opset13.exp(opset13.multiply(opset13.atan(opset13.divide(x, number(2.0))), number(1.272))).output(
        0
    )


def graph_of(chain: Chain, limit: float | NDArray[np.float32]) -> ov.Model:
    """Return a graph that quantises its first input to eight bits, and multiplies the second by a function of it."""
    x, y = (opset13.parameter([1, 8, 16, 16], ov.Type.f32) for _ in range(2))
    ends = number(-1 * limit), number(limit)
    rounded = opset13.fake_quantize(x, *ends, *ends, 256)
    return ov.Model([opset13.multiply(y, chain(rounded.output(0)))], [x, y])


def answer_of(model: ov.Model, *inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return np.asarray(ov.Core().compile_model(model, "CPU", options)(inputs)[0])


def kinds_of(model: ov.Model) -> set[str]:
    return {node.get_type_name() for node in model.get_ordered_ops()}


@pytest.mark.parametrize("limit", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("chain", [scale, soft_clamp, scale_by_arctangent])
def test_the_polynomial_differs_by_a_sixteenth_of_what_half_a_step_changes(
    chain: Chain, limit: float
) -> None:
    model = graph_of(chain, limit)
    x = np.random.default_rng(0).uniform(-2 * limit, 2 * limit, (1, 8, 16, 16)).astype(np.float32)
    ones = np.ones_like(x)
    before = answer_of(model, x, ones)
    replace_functions_of_eight_bits(model)
    assert not kinds_of(model) & COSTLY
    after = answer_of(model, x, ones)
    grid = np.linspace(-limit, limit, 256, dtype=np.float32)
    values = answer_of(graph_of(chain, limit), np.resize(grid, x.shape), ones).ravel()[:256]
    is_factor = chain is not soft_clamp
    error = np.abs(after - before) / (np.abs(before) if is_factor else 1)
    half_a_step = (np.abs(np.diff(values)) / (values[1:] if is_factor else 1)).max() / 2
    assert 0 < error.max() <= half_a_step / 16 + 2e-7
    assert half_a_step / 16 < 0.01


def test_a_log_scale_that_is_also_added_up_gets_a_polynomial_of_its_own() -> None:
    """CFLOW's likelihood reads the log-scale, and the coupling reads its exponential."""
    model = graph_of(lambda x: opset13.add(scale(x), soft_clamp(x)).output(0), 0.4)
    replace_functions_of_eight_bits(model)
    assert not kinds_of(model) & COSTLY


def test_a_half_of_a_quantised_tensor_gets_a_polynomial() -> None:
    """MSFlow and CS-Flow cut the log-scale from the shift after their last convolution."""

    def of_first_half(x: ov.Output) -> ov.Output:
        first, second = opset13.split(x, opset13.constant(np.int64(1)), 2).outputs()
        return opset13.concat([scale_by_arctangent(first), second], 1).output(0)

    x = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 8, 16, 16)).astype(np.float32)
    model = graph_of(of_first_half, 0.4)
    before = answer_of(model, x, np.ones_like(x))
    replace_functions_of_eight_bits(model)
    assert not kinds_of(model) & COSTLY
    after = answer_of(model, x, np.ones_like(x))
    np.testing.assert_array_equal(after[:, 4:], before[:, 4:])
    np.testing.assert_allclose(after[:, :4], before[:, :4], rtol=1e-3)
    assert (after[:, :4] != before[:, :4]).any()


def test_a_function_that_is_rounded_to_whole_numbers_or_is_an_output_stays() -> None:
    def rounded(x: ov.Output) -> ov.Output:
        return opset13.convert(opset13.convert(scale(x), "i32"), "f32").output(0)

    model = graph_of(rounded, 0.4)
    replace_functions_of_eight_bits(model)
    assert "Convert" in kinds_of(model)
    x = opset13.parameter([1, 8, 16, 16], ov.Type.f32)
    ends = number(-0.4), number(0.4)
    output = scale(opset13.fake_quantize(x, *ends, *ends, 256).output(0))
    output.get_tensor().set_names({"level_0"})
    model = ov.Model([output], [x])
    replace_functions_of_eight_bits(model)
    assert model.output(0).get_any_name() == "level_0"


@pytest.mark.parametrize(
    "limit",
    [
        60.0,  # No polynomial of a low degree follows a tanh that is flat at both ends.
        np.linspace(0.1, 0.8, 8, dtype=np.float32).reshape(1, 8, 1, 1),
    ],
)
def test_a_function_without_a_polynomial_stays(limit: float | NDArray[np.float32]) -> None:
    model = graph_of(scale, limit)
    replace_functions_of_eight_bits(model)
    assert kinds_of(model) & COSTLY == {"Tanh", "Exp"}


@pytest.mark.parametrize("limit", [20.0, 60.0, 800.0, 1e30])
def test_an_exponential_of_a_wide_range_stays_without_a_warning(limit: float) -> None:
    """A warning of NumPy is an error in these tests."""
    model = graph_of(lambda x: opset13.exp(x).output(0), limit)
    replace_functions_of_eight_bits(model)
    assert kinds_of(model) & COSTLY == {"Exp"}


def test_a_function_of_float_values_stays() -> None:
    x = opset13.parameter([1, 8, 16, 16], ov.Type.f32)
    model = ov.Model([scale(x.output(0))], [x])
    replace_functions_of_eight_bits(model)
    assert kinds_of(model) & COSTLY == {"Tanh", "Exp"}


def test_a_swish_stays_since_it_is_no_chain() -> None:
    """OpenVINO fuses ``x sigmoid(x)`` with the convolution before it."""
    model = graph_of(lambda x: opset13.multiply(x, opset13.sigmoid(x)).output(0), 3.0)
    replace_functions_of_eight_bits(model)
    assert "Sigmoid" in kinds_of(model)
