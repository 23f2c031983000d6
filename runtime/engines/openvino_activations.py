"""Replace functions of eight-bit values by polynomials, which OpenVINO computes faster than ``tanh`` and ``exp``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
import openvino as ov
from numpy.polynomial import Chebyshev, Polynomial
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray
from openvino import opset13

from flowedge.runtime.engines.openvino_forms import scalar_of

_Numbers: TypeAlias = NDArray[np.floating]

_LEVELS: Final = 256
# A polynomial of this degree still takes less time than tanh and exp one after the other.
_HIGHEST_DEGREE: Final = 15
# The largest error of a polynomial, as a share of what the rounding to eight bits may change.
_SHARE_OF_ROUNDING: Final = 1 / 16

# A sigmoid is left out, because OpenVINO fuses it as a part of a swish.
_COSTLY: Final[Mapping[str, Callable[[_Numbers], _Numbers]]] = MappingProxyType(
    {"Tanh": np.tanh, "Exp": np.exp, "Atan": np.arctan}
)
_CHEAP: Final[Mapping[str, Callable[[_Numbers, float], _Numbers]]] = MappingProxyType(
    {"Add": np.add, "Subtract": np.subtract, "Multiply": np.multiply, "Divide": np.divide}
)
_COMMUTATIVE: Final = frozenset({"Add", "Multiply"})
_SPLITS: Final = frozenset({"Split", "VariadicSplit"})


@dataclass(frozen=True, slots=True, eq=False)
class _Function:
    """The values that an output has for each of the 256 values of a quantised tensor.

    Attributes:
        values: The values of the output, ``(256,)`` float64.
        variable: The last output before the first costly node, on which the output depends alone.
        of_variable: The values of ``variable``, ``(256,)`` float64.
        costly: The type of the last costly node, or None where there is none yet.
    """

    values: _Numbers
    variable: ov.Output
    of_variable: _Numbers
    costly: str | None = None


def replace_functions_of_eight_bits(model: ov.Model) -> None:
    """Replace each chain of ``tanh``, ``exp`` and ``atan`` of an eight-bit tensor by a polynomial.

    Such a chain has 256 values. The polynomial of the lowest degree is taken whose error at all of these values is at
    most a sixteenth of what half a step of the quantisation changes. Where no degree up to 15 suffices, or where a
    channel has a quantisation of its own, the chain stays.
    """
    known: dict[ov.Node, list[_Function]] = {}
    for node in model.get_ordered_ops():
        functions = _functions_of(node, known)
        if functions:
            known[node] = functions
    for node, functions in known.items():
        for output, function in zip(node.outputs(), functions, strict=True):
            # An output of the graph keeps its name, and so its node.
            outside = [
                reader
                for reader in output.get_target_inputs()
                if reader.get_node() not in known and reader.get_node().get_type_name() != "Result"
            ]
            polynomial = _polynomial(function) if function.costly is not None and outside else None
            if polynomial is not None:
                computed = _by_horner(function.variable, polynomial)
                for reader in outside:
                    reader.replace_source_output(computed)


def _functions_of(node: ov.Node, known: Mapping[ov.Node, Sequence[_Function]]) -> list[_Function]:
    """Return the values of each output of a node that depends on one quantised tensor alone, or nothing."""
    kind = node.get_type_name()
    if kind == "FakeQuantize":
        low, high = (scalar_of(node.input_value(place)) for place in (3, 4))
        if node.get_attributes()["levels"] != _LEVELS or low is None or high is None:
            return []
        values = np.linspace(low, high, _LEVELS)
        return [_Function(values, node.output(0), values)]
    inputs = [node.input_value(place) for place in range(node.get_input_size())]
    if kind in _COMMUTATIVE and scalar_of(inputs[0]) is not None:
        inputs.reverse()
    if not inputs or inputs[0].get_node() not in known:
        return []
    before = known[inputs[0].get_node()][inputs[0].get_index()]
    if kind in _COSTLY:
        with np.errstate(over="ignore"):
            given = _COSTLY[kind](before.values)
        return [_Function(given, before.variable, before.of_variable, kind)]
    if kind in _SPLITS and before.costly is None:
        return [_Function(before.values, output, before.values) for output in node.outputs()]
    computed = _computed(node, before.values, inputs)
    if computed is None:
        return []
    if before.costly is None:
        return [_Function(computed, node.output(0), computed)]
    # A sum after exp is no factor any more, so its error counts as it is.
    costly = "Add" if before.costly == "Exp" and kind in ("Add", "Subtract") else before.costly
    return [_Function(computed, before.variable, before.of_variable, costly)]


def _computed(node: ov.Node, values: _Numbers, inputs: Sequence[ov.Output]) -> _Numbers | None:
    """Return what a cheap node makes of some values, or None for any other node."""
    kind = node.get_type_name()
    if kind == "Convert":
        # Whole numbers stay what they are. A conversion of others to an integer would round.
        is_float = node.get_element_type().is_real()
        return values if is_float or np.array_equal(values, np.rint(values)) else None
    number = scalar_of(inputs[1]) if kind in _CHEAP else None
    return None if number is None else _CHEAP[kind](values, number)


def _polynomial(function: _Function) -> NDArray[np.float32] | None:
    """Return the coefficients of the polynomial, from the constant on, or None where no degree suffices."""
    with np.errstate(all="ignore"):  # A value that is not finite has no polynomial.
        return _fitted(function)


def _fitted(function: _Function) -> NDArray[np.float32] | None:
    """Return what `_polynomial` returns."""
    values, variable = function.values, function.of_variable
    # The result of exp is a factor, whose relative error matters.
    weight = 1 / np.abs(values) if function.costly == "Exp" else np.ones(_LEVELS)
    half_a_step = np.abs(np.diff(values) * weight[1:]).max() / 2
    if not (np.isfinite(weight * values).all() and np.isfinite(half_a_step) and np.ptp(variable) > 0):
        return None
    ends = [float(variable.min()), float(variable.max())]
    centred = (2 * variable - sum(ends)) / (ends[1] - ends[0])
    for degree in range(1, _HIGHEST_DEGREE + 1):
        terms = chebvander(centred, degree) * weight[:, None]
        fitted = Chebyshev(np.linalg.lstsq(terms, values * weight, rcond=None)[0], ends)
        coefficients = fitted.convert(kind=Polynomial).coef.astype(np.float32)
        if len(coefficients) < 2:
            return None
        # The engine computes in float32, so the error is that of float32.
        x = variable.astype(np.float32)
        found = np.full(_LEVELS, coefficients[-1], np.float32)
        for coefficient in coefficients[-2::-1]:
            found = found * x + coefficient
        if (np.abs(found - values) * weight).max() <= _SHARE_OF_ROUNDING * half_a_step:
            return coefficients
    return None


def _by_horner(x: ov.Output, coefficients: NDArray[np.float32]) -> ov.Output:
    """Compute a polynomial from its highest coefficient on, as products and sums that OpenVINO fuses."""
    highest, *others = (opset13.constant(coefficient) for coefficient in coefficients[::-1])
    result = highest.output(0)
    for coefficient in others:
        result = opset13.add(opset13.multiply(result, x), coefficient).output(0)
    return result
