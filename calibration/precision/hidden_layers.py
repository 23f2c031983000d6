"""Find the hidden layers of the coupling subnets of a graph, whose units can be left out.

A hidden layer is a convolution, a ReLU or a leaky ReLU behind it, and the convolutions that read the result. CS-Flow
upsamples and concatenates hidden maps before they are read. Both mix no channels, so each unit is still one input
channel of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx

from flowedge.calibration.precision.blocks import block_of
from flowedge.calibration.precision.ranges import tensor_shapes

_ACTIVATIONS: Final = ("Relu", "LeakyRelu")
_SUBNETS: Final = "flow/steps/"


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenReader:
    """Describe a convolution that reads a hidden layer.

    Attributes:
        node: The name of the convolution's node.
        first: The place of the layer's first unit among the convolution's input channels.
        is_pointwise: True where the convolution has a 1x1 kernel without padding and reads the layer itself, not an
            upsampled copy.
    """

    node: str
    first: int
    is_pointwise: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenLayer:
    """Describe one hidden layer of a coupling subnet.

    Attributes:
        name: The name of the layer's convolution without its operator, such as ``flow/steps/2/subnet/trunk/0``.
        node: The name of the convolution's node.
        block: The block that the layer belongs to.
        tensor: The tensor behind the activation, ``(N, units, h, w)``.
        units: The number of units.
        readers: The convolutions that read the layer.
        macs: The multiply-accumulates for one image that the layer and its readers spend on all units.
    """

    name: str
    node: str
    block: str
    tensor: str
    units: int
    readers: tuple[HiddenReader, ...]
    macs: int

    @property
    def has_constant(self) -> bool:
        """True where a constant of a unit can go into the biases of the readers.

        At the border of a padded map a kernel reads zeros in place of units, so the constant would be wrong there.
        """
        return all(reader.is_pointwise for reader in self.readers)


def hidden_layers_of(model: onnx.ModelProto) -> tuple[HiddenLayer, ...]:
    """Return every hidden layer whose units can be left out, in the graph's order.

    A layer is left alone where anything but a convolution reads its units, such as MSFlow's norm over all units.

    Args:
        model: The graph with inferred shapes. The weights may be kept outside of the model.
    """
    return _Finder(model).layers()


def macs_of(model: onnx.ModelProto) -> int:
    """Return the multiply-accumulates of all convolutions and matrix products of a graph for one image.

    Args:
        model: The graph with inferred shapes.
    """
    shapes = tensor_shapes(model) | {t.name: tuple(t.dims) for t in model.graph.initializer}
    return sum(_macs(node, shapes) for node in model.graph.node)


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int | None]]) -> int:
    if node.op_type == "Conv":
        kernel, out = shapes.get(node.input[1], ()), shapes.get(node.output[0], ())
        return math.prod(side or 1 for side in (*kernel, *out[2:]))
    if node.op_type == "MatMul":
        read, out = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        return math.prod(side or 1 for side in (*out, *read[-1:]))
    return 0


class _Finder:
    """Finds the hidden layers of one graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = model.graph.node
        self._weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self._shapes = tensor_shapes(model)
        self._writers = {name: node for node in self._nodes for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {value.name for value in model.graph.output}

    def layers(self) -> tuple[HiddenLayer, ...]:
        """Return what `hidden_layers_of` returns."""
        found = (self._layer(node) for node in self._nodes if node.op_type in _ACTIVATIONS)
        return tuple(layer for layer in found if layer is not None)

    def _layer(self, activation: onnx.NodeProto) -> HiddenLayer | None:
        conv, tensor = self._writers.get(activation.input[0]), activation.output[0]
        block = block_of(activation.name)
        if conv is None or block is None or not block.startswith(_SUBNETS) or not self._is_plain(conv):
            return None
        # The values before the activation must have no other reader, such as the mean square of a norm.
        if len(self._readers[conv.output[0]]) > 1 or conv.output[0] in self._outputs:
            return None
        units = self._weights[conv.input[1]][0]
        found: list[HiddenReader] = []
        passed = self._follow(tensor, 0, True, found)
        if passed is None or not found:
            return None
        # The kernel of a reader has other input channels too where it reads several layers.
        counted = _macs(conv, {**self._shapes, **self._weights}) + passed
        for node, kernel, out in ((r, *self._sizes(r.node)) for r in found):
            assert node is not None
            counted += units * kernel[0] * math.prod(kernel[2:]) * math.prod(side or 1 for side in out[2:])
        return HiddenLayer(
            name=conv.name.rpartition("/")[0],
            node=conv.name,
            block=block,
            tensor=tensor,
            units=units,
            readers=tuple(found),
            macs=counted,
        )

    def _follow(self, tensor: str, first: int, direct: bool, found: list[HiddenReader]) -> int | None:
        """Collect the convolutions that read a tensor, through operators that mix no channels.

        Returns:
            The multiply-accumulates of these operators, or None where anything else reads the tensor.
        """
        if tensor in self._outputs:
            return None
        macs = 0
        for node in self._readers.get(tensor, ()):
            if node.op_type == "Conv":
                if not self._is_plain(node) or node.input[0] != tensor:
                    return None
                padded = any(any(one.ints) for one in node.attribute if one.name == "pads")
                is_point = direct and not padded and math.prod(self._weights[node.input[1]][2:]) == 1
                found.append(HiddenReader(node=node.name, first=first, is_pointwise=is_point))
                continue
            more: int | None = None
            if node.op_type == "MatMul" and self._is_resize(node, tensor):
                own = _macs(node, {**self._shapes, **self._weights})
                below = self._follow(node.output[0], first, False, found)
                more = None if below is None else own + below
            elif node.op_type == "Concat":
                place = self._place_in(node, tensor)
                more = None if place is None else self._follow(node.output[0], first + place, direct, found)
            if more is None:
                return None
            macs += more
        return macs

    def _sizes(self, name: str) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
        """Return the shape of a convolution's kernel, and that of its output."""
        node = next(node for node in self._nodes if node.name == name)
        return self._weights[node.input[1]], self._shapes[node.output[0]]

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node is a convolution of all its input channels with constant weights."""
        groups = next((int(one.i) for one in node.attribute if one.name == "group"), 1)
        constant = len(node.input) > 1 and all(name in self._weights for name in node.input[1:] if name)
        return node.op_type == "Conv" and groups == 1 and constant

    def _is_resize(self, node: onnx.NodeProto, tensor: str) -> bool:
        """Tell whether a product of a map with a constant matrix runs along its rows or columns."""
        other = next((name for name in node.input if name != tensor), "")
        return len(self._weights.get(other, ())) == 2 and len(self._shapes.get(tensor, ())) == 4

    def _place_in(self, node: onnx.NodeProto, tensor: str) -> int | None:
        """Return the place of a tensor's first channel in a concatenation of channels, or None for another one."""
        axis = next(int(one.i) for one in node.attribute if one.name == "axis")
        names = list(node.input)
        if axis != 1 or names.count(tensor) > 1:
            return None
        before = [self._shapes.get(name, ())[1:2] for name in names[: names.index(tensor)]]
        if any(not channels or channels[0] is None for channels in before):
            return None
        return sum(channels[0] or 0 for channels in before)
