"""Compute 3x3 convolutions as Winograd's fast convolutions along the rows, with half or two thirds of the products.

On x86-64, OpenVINO computes every product of a convolution in float32. Here a convolution becomes several convolutions
with kernels of one row, which read sums of rows: F(4, 3) gives 4 rows by 6 products instead of 12, and F(2, 3) gives
2 rows by 4 instead of 6. Sources: S. Winograd, Arithmetic Complexity of Computations, 1980, and A. Lavin and S. Gray,
Fast Algorithms for Convolutional Neural Networks, 2016 (arXiv:1509.09308), section 4.

A map is held in n parts for F(n, 3), and part i has the rows i, i + n, i + 2n and so on. Elementwise nodes that follow
are computed on the parts. Every other node reads the whole map, which is joined from the parts.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import openvino as ov
from openvino import opset13
from openvino.passes import ConstantFolding, Manager
from openvino.utils.node_factory import NodeFactory

# Limits measured on one thread of an AMD EPYC with AVX-512. Two convolutions in a row between 1x1 convolutions are 1.22
# times as fast with 32 channels, and 1.3 to 1.6 times with 64 to 1024. With 16 channels the sums take as long as the
# products that are left out. With a sixth of these multiplications, which take 0.1 ms, the further nodes do, and
# compiling takes 40 ms longer for each convolution. A map of 4 rows is up to 1.3 times slower.
_FEWEST_CHANNELS: Final = 32
_FEWEST_MULTIPLICATIONS: Final = 16 << 20
_FEWEST_ROWS: Final = 6

_ELEMENTWISE: Final = (
    *("Add", "Clamp", "Divide", "Elu", "Exp", "HSwish", "Maximum", "Minimum", "Multiply", "PRelu", "Relu"),
    *("Sigmoid", "SquaredDifference", "Subtract", "Swish", "Tanh"),
)

_RANK: Final = 4  # of a map
_ROWS_OF_KERNEL: Final = 3
_END: Final = np.iinfo(np.int32).max

Parts = Sequence[ov.Node | ov.Output]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Winograd:
    """The matrices of F(n, 3), named as in section 4.1 of Lavin and Gray, on n + 2 rows of a map.

    Attributes:
        inputs: Row i gives the factors of the rows of the map for the input of product i. It is the transpose of B.
        kernels: Row i gives the factors of the rows of the 3x3 kernel for the kernel of product i. It is G.
        outputs: Row i gives the factors of the products for row i of the result. It is the transpose of A.
    """

    inputs: tuple[tuple[float, ...], ...]
    kernels: tuple[tuple[float, float, float], ...]
    outputs: tuple[tuple[float, ...], ...]


# With the points 0, 1 and -1, and with 2 and -2 in addition.
_FAST: Final[Mapping[int, _Winograd]] = MappingProxyType(
    {
        2: _Winograd(
            inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
            kernels=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
            outputs=((1, 1, 1, 0), (0, 1, -1, 1)),
        ),
        4: _Winograd(
            inputs=(
                (4, 0, -5, 0, 1, 0),
                (0, -4, -4, 1, 1, 0),
                (0, 4, -4, -1, 1, 0),
                (0, -2, -1, 2, 1, 0),
                (0, 2, -1, -2, 1, 0),
                (0, 4, 0, -5, 0, 1),
            ),
            kernels=(
                (1 / 4, 0, 0),
                (-1 / 6, -1 / 6, -1 / 6),
                (-1 / 6, 1 / 6, -1 / 6),
                (1 / 24, 1 / 12, 1 / 6),
                (1 / 24, -1 / 12, 1 / 6),
                (0, 0, 1),
            ),
            outputs=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
        ),
    }
)


def use_fast_convolutions(model: ov.Model) -> None:
    """Replace 3x3 convolutions in float32 by fast convolutions, on x86-64 and where the shapes are static.

    On ARM, OpenVINO has fast convolutions of its own. A graph with quantised values stays as it is, because OpenVINO
    moves quantisations through elementwise nodes.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or not _has_convolutions(model):
        return
    # The ONNX front end computes the shape of a bias from the map. After folding, the bias is a constant.
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    _Rewriting().run(model)


def _has_convolutions(model: ov.Model) -> bool:
    nodes = model.get_ordered_ops()
    quantised = any(node.get_type_name() == "FakeQuantize" for node in nodes)
    return not quantised and any(map(_parts_of, nodes))


class _Rewriting:
    """The nodes of a graph that are computed on parts."""

    def __init__(self) -> None:
        self._computed: dict[str, tuple[ov.Node, Parts]] = {}  # by the name of the node
        self._cuts: dict[tuple[str, int], Parts] = {}  # by the name of the node and the number of its output
        self._factory = NodeFactory("opset13")

    def run(self, model: ov.Model) -> None:
        """Compute nodes on parts, in the order of the graph, and join the parts for all other readers."""
        for node in model.get_ordered_ops():
            if _parts_of(node):
                self._convolve(node)
            elif node.get_type_name() in _ELEMENTWISE and node.get_name() not in self._computed:
                self._compute(node)
        for node, parts in self._computed.values():
            whole = node.output(0)
            others = [
                one for one in whole.get_target_inputs() if one.get_node().get_name() not in self._computed
            ]
            if others:
                joined = _joined(parts, list(whole.get_shape())).output(0)
                joined.get_tensor().set_names(whole.get_names())  # an output of the graph keeps its name
                for reader in others:
                    reader.replace_source_output(joined)

    def _convolve(self, node: ov.Node) -> None:
        """Compute a convolution, and the addition of its bias, as a fast convolution."""
        number, biased = _parts_of(node), _biased(node)
        bias = None if biased is None else _other_input(biased, node)
        parts = _convolved(self._rows(node, number), node, bias, _FAST[number])
        for one in (node, biased):
            if one is not None:
                self._computed[one.get_name()] = one, parts

    def _rows(self, convolution: ov.Node, number: int) -> Parts:
        """Return the rows of the input that each run of rows of the output reads: all the first ones, and so on."""
        source = convolution.input_value(0)
        if convolution.get_attributes()["pads_begin"][0]:
            parts = self._cut(source, number)
            return [_moved(parts[-1], 1), *parts, _moved(parts[0], -1)]
        last = convolution.get_output_shape(0)[2] - number + 1
        return [
            opset13.slice(source, *map(opset13.constant, ([start], [start + last], [number], [2])))
            for start in range(number + 2)
        ]

    def _compute(self, node: ov.Node) -> None:
        """Compute an elementwise node on parts where one of its inputs is computed on parts."""
        inputs = [node.input_value(place) for place in range(node.get_input_size())]
        numbers = {len(self._computed[name][1]) for name in map(_name, inputs) if name in self._computed}
        static = all(one.get_partial_shape().is_static for one in inputs)
        if not numbers or not static or len(node.get_output_shape(0)) != _RANK:
            return
        (number,) = numbers  # it follows from the height of the map
        cut = [self._cut(one, number) for one in inputs]
        parts = [
            self._factory.create(node.get_type_name(), list(some), node.get_attributes())
            for some in zip(*cut, strict=True)
        ]
        self._computed[node.get_name()] = node, parts

    def _cut(self, output: ov.Output, number: int) -> Parts:
        """Return the parts of an output. An output without rows of its own takes the place of each of its parts."""
        name, shape = _name(output), output.get_shape()
        if name in self._computed:
            return self._computed[name][1]
        rows = len(shape) - 2  # the axis
        if rows < 0 or shape[rows] == 1:
            return [output] * number
        key = name, output.get_index()
        if key not in self._cuts:
            ends = [[_END], [number], [rows]]
            self._cuts[key] = [
                opset13.slice(output, *map(opset13.constant, ([start], *ends))) for start in range(number)
            ]
        return self._cuts[key]


def _parts_of(node: ov.Node) -> int:
    """Return the number of parts in which a node is computed as a fast convolution, or 0 for any other node."""
    if node.get_type_name() != "Convolution" or node.get_element_type() != ov.Type.f32:
        return 0
    shape, kernel, attributes = node.get_output_partial_shape(0), node.input_value(1), node.get_attributes()
    if not shape.is_static or len(shape) != _RANK or kernel.get_node().get_type_name() != "Constant":
        return 0
    outputs, inputs, rows, columns = kernel.get_shape()
    if rows != _ROWS_OF_KERNEL or attributes["auto_pad"] != "explicit":
        return 0
    pads = attributes["pads_begin"][0], attributes["pads_end"][0]
    if attributes["strides"][0] != 1 or attributes["dilations"][0] != 1 or pads not in ((0, 0), (1, 1)):
        return 0
    _, _, height, width = node.get_output_shape(0)
    multiplications = outputs * inputs * rows * columns * height * width
    if (
        min(outputs, inputs) < _FEWEST_CHANNELS
        or height < _FEWEST_ROWS
        or multiplications < _FEWEST_MULTIPLICATIONS
    ):
        return 0
    return next((number for number in (4, 2) if height % number == 0), 0)


def _biased(convolution: ov.Node) -> ov.Node | None:
    """Return the node that adds the bias of a convolution, where no other node reads the convolution."""
    readers = list(convolution.output(0).get_target_inputs())
    node = readers[0].get_node()
    if len(readers) != 1 or node.get_type_name() != "Add":
        return None
    bias = _other_input(node, convolution)
    _, channels, _, _ = convolution.get_output_shape(0)
    constant = bias.get_node().get_type_name() == "Constant"
    return node if constant and list(bias.get_shape()) == [1, channels, 1, 1] else None


def _convolved(rows: Parts, node: ov.Node, bias: ov.Output | None, fast: _Winograd) -> Parts:
    """Return the parts of a convolution's output, with the bias added where there is one."""
    weights = node.input_value(1).get_node().data.astype(np.float64)
    attributes = node.get_attributes()
    along = [attributes[name][1] for name in ("strides", "pads_begin", "pads_end", "dilations")]
    products = [
        opset13.convolution(
            _sum(inputs, rows),
            opset13.constant(np.einsum("r,ocrw->ocw", kernel, weights).astype(np.float32)[:, :, None]),
            *([one, value] for one, value in zip((1, 0, 0, 1), along, strict=True)),
        )
        for inputs, kernel in zip(fast.inputs, fast.kernels, strict=True)
    ]
    if bias is not None:
        # Each row of the output has the second product as a term, with the factor one.
        products[1] = opset13.add(products[1], bias)
    first, *shared, last = products
    sums = [_sum(factors[1:-1], shared) for factors in fast.outputs]
    # OpenVINO adds a sum within the convolution that is the other term.
    return [opset13.add(first, sums[0]), *sums[1:-1], opset13.add(last, sums[-1])]


def _moved(part: ov.Node | ov.Output, rows: int) -> ov.Node:
    """Move the rows of a part down, or up where the number is negative, and fill with zeros."""
    begin, end = (opset13.constant([0, 0, number, 0]) for number in (rows, -rows))
    return opset13.pad(part, begin, end, "constant", opset13.constant(np.float32(0)))


def _sum(factors: Sequence[float], nodes: Parts) -> ov.Node | ov.Output:
    """Return the sum of the nodes, each multiplied by its factor. One factor at least is positive."""
    added = [_times(factor, node) for factor, node in zip(factors, nodes, strict=True) if factor > 0]
    taken = [_times(-factor, node) for factor, node in zip(factors, nodes, strict=True) if factor < 0]
    return functools.reduce(opset13.subtract, taken, functools.reduce(opset13.add, added))


def _times(factor: float, node: ov.Node | ov.Output) -> ov.Node | ov.Output:
    return node if factor == 1 else opset13.multiply(node, opset13.constant(np.float32(factor)))


def _joined(parts: Parts, shape: list[int]) -> ov.Node:
    """Return the whole map of a shape, whose rows the parts have in turns.

    Beside convolutions OpenVINO keeps the channels last. In this layout the parts side by side hold the rows in their
    order, and the changes of axes cost nothing.
    """
    images, channels, height, width = shape
    beside = opset13.transpose(opset13.concat(parts, 3), opset13.constant([0, 2, 3, 1]))
    rows = opset13.reshape(beside, opset13.constant([images, height, width, channels]), special_zero=False)
    return opset13.transpose(rows, opset13.constant([0, 3, 1, 2]))


def _other_input(node: ov.Node, known: ov.Node) -> ov.Output:
    first, second = node.input_value(0), node.input_value(1)
    return second if first.get_node().get_name() == known.get_name() else first


def _name(output: ov.Output) -> str:
    return str(output.get_node().get_name())
