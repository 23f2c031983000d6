"""Leave hidden units out of a graph, and let the next layer's weights make up for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from flowedge.calibration.precision.hidden_layers import HiddenLayer, HiddenReader
from flowedge.calibration.precision.hidden_units import Interpolation


def leave_out_units(
    model: onnx.ModelProto, layers: Sequence[HiddenLayer], found: Mapping[str, Interpolation]
) -> None:
    """Remove hidden units from a graph in place, and fold them into the weights of their readers.

    With the weights ``W`` of a reader, ``W_left_out @ T.T`` is added to ``W_kept``, where ``T`` expresses the units
    that are left out by the kept ones. This holds for a kernel of any size, since each tap reads the same units. A
    constant goes into the reader's bias where every reader has a 1x1 kernel.

    Args:
        model: The graph with its weights. Its inferred shapes are removed, because they change.
        layers: All hidden layers of the graph.
        found: The units to keep by the name of a layer. Other layers stay as they are.
    """
    nodes = {node.name: node for node in model.graph.node}
    weights = _Weights(model)
    for layer in layers:
        if layer.name in found:
            kept = found[layer.name].kept
            conv = nodes[layer.node]
            for place in range(1, len(conv.input)):
                weights.put(conv, place, weights.of(conv, place)[kept])
    # A reader of several layers is changed from its last channels on, so that the places before them stay right.
    changes: dict[str, list[tuple[HiddenReader, HiddenLayer]]] = {}
    for layer in layers:
        for reader in layer.readers:
            if layer.name in found:
                changes.setdefault(reader.node, []).append((reader, layer))
    for name, several in changes.items():
        for reader, layer in sorted(several, key=lambda one: -one[0].first):
            _fold(nodes[name], reader, layer, found[layer.name], weights)
    del model.graph.value_info[:]


def weights_of_units(model: onnx.ModelProto, layer: HiddenLayer) -> NDArray[np.float64]:
    """Return the sum of the squared weights by which the readers of a layer multiply each unit, ``(units,)``."""
    nodes = {node.name: node for node in model.graph.node}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    sums = np.zeros(layer.units)
    for reader in layer.readers:
        kernel = numpy_helper.to_array(tensors[nodes[reader.node].input[1]]).astype(np.float64)
        own = kernel[:, reader.first : reader.first + layer.units]
        sums += np.square(own).sum(axis=(0, 2, 3))
    return sums


def _fold(
    node: onnx.NodeProto, reader: HiddenReader, layer: HiddenLayer, units: Interpolation, weights: _Weights
) -> None:
    """Fold the units that are left out into the weights and the bias of one reader."""
    kernel = weights.of(node, 1)
    end = reader.first + layer.units
    own = kernel[:, reader.first : end].astype(np.float64)
    left_out = own[:, units.left_out]
    folded = own[:, units.kept] + np.einsum("kd,odyx->okyx", units.weights, left_out)
    parts = [kernel[:, : reader.first], folded.astype(np.float32), kernel[:, end:]]
    weights.put(node, 1, np.concatenate(parts, axis=1))
    if not layer.has_constant:
        return
    constant = left_out.sum(axis=(2, 3)) @ units.constants
    if len(node.input) == 2:
        node.input.append("")
    before = weights.of(node, 2) if node.input[2] else np.zeros(len(kernel))
    weights.put(node, 2, before + constant)


class _Weights:
    """Reads and replaces the initializers that nodes of a graph read."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._uses: dict[str, int] = {}
        for node in model.graph.node:
            for name in node.input:
                self._uses[name] = self._uses.get(name, 0) + 1

    def of(self, node: onnx.NodeProto, place: int) -> NDArray[np.float32]:
        """Return the value of an initializer that a node reads."""
        return numpy_helper.to_array(self._tensors[node.input[place]])

    def put(self, node: onnx.NodeProto, place: int, value: NDArray[np.floating]) -> None:
        """Give a node a new value of an initializer. Other nodes that read the initializer keep the old value."""
        name = node.input[place]
        # Another node may read the initializer too, and a node without a bias has none.
        if not name or self._uses[name] > 1:
            self._uses[name] = self._uses.get(name, 0) - 1
            name = f"{node.name}.input{place}"
            node.input[place] = name
            self._uses[name] = 1
            self._tensors[name] = self._graph.initializer.add()
        made = numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)
        self._tensors[name].CopyFrom(made)
