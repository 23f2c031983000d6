"""Cut the graph of a bundle at the features: into a backbone that products may share, and the head of one product.

The cut needs the ``onnx`` package alone, so a finished bundle can be cut where there is no PyTorch. The names of the
nodes tell on which side of the cut they are: the export names them after the modules of the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flowedge.errors import BundleError
from flowedge.onnx_files import load_graph
from flowedge.pack import Feature

_BACKBONE: Final = ("preprocess/", "backbone/")
_HEAD: Final = "flow/"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Halves:
    """A graph that was cut in two.

    Attributes:
        backbone: Takes the graph's input, and gives ``feature_0``, ``feature_1`` and so on.
        head: Takes these features, and gives the graph's outputs.
        features: The type of each feature.
        digest: A hash of what the backbone computes, whatever its nodes and tensors are called.
        steps: The hash of each node of the backbone, in order, with the name of its weights or of itself.
    """

    backbone: onnx.ModelProto
    head: onnx.ModelProto
    features: tuple[Feature, ...]
    digest: str
    steps: tuple[tuple[str, str], ...]


def split_graph(file: Path, features: Sequence[Feature] | None = None) -> Halves:
    """Cut a graph of a bundle in two.

    Args:
        file: The file of the graph.
        features: The features of the bundle's fp32 graph, for a graph of lower precision, which holds no shapes.
            Without them, the shapes in the graph count.

    Raises:
        BundleError: The graph has no features at which it could be cut.
    """
    graph = _Graph(load_graph(file), file)
    on_the_backbone = graph.backbone_nodes()
    crossing = graph.crossing_tensors(on_the_backbone)
    features = tuple(graph.feature(name) for name in crossing) if features is None else tuple(features)
    if len(features) != len(crossing):
        raise graph.refused(f"it has {len(crossing)} features, and the fp32 graph has {len(features)}")
    names = {name: f"feature_{number}" for number, name in enumerate(crossing)}
    values = [graph.value(names[name], one) for name, one in zip(crossing, features, strict=True)]
    backbone = graph.part(
        [node for number, node in enumerate(graph.nodes) if number in on_the_backbone],
        graph.model.graph.input,
        values,
        names,
    )
    head = graph.part(
        graph.head_nodes(on_the_backbone, crossing),
        values,
        graph.model.graph.output,
        names,
    )
    for name in names.values():
        _move_bias(backbone, head, name)
    steps = _steps(backbone)
    return Halves(
        backbone=backbone, head=head, features=features, digest=_digest(backbone, steps), steps=steps
    )


def first_difference(one: Halves, other: Halves) -> str:
    """Name the first weights or the first node in which two backbones differ. The name is empty for equal backbones."""
    if one.digest == other.digest:
        return ""
    for ours, theirs in zip(one.steps, other.steps, strict=False):
        if ours != theirs:
            return ours[1]
    if len(one.steps) != len(other.steps):
        longer = max(one.steps, other.steps, key=len)
        return longer[min(len(one.steps), len(other.steps))][1]
    return "the features that it gives"


class _Graph:
    """A graph with the producers and the readers of its tensors."""

    def __init__(self, model: onnx.ModelProto, file: Path) -> None:
        self.model = model
        self.file = file
        self.nodes = list(model.graph.node)
        if len(model.graph.input) != 1 or any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
            for node in self.nodes
            for attribute in node.attribute
        ):
            raise self.refused("it has several inputs or graphs within graphs")
        self.input = model.graph.input[0].name
        self.producer = {name: number for number, node in enumerate(self.nodes) for name in node.output}
        self._depends = self._tensors_of_the_input()
        self._values = {value.name: value for value in model.graph.value_info}
        # Engines fuse more where they know shapes. So each half gets the shapes that the file holds, and no others.
        self._written_shapes = onnx.load(str(file), load_external_data=False).graph.value_info

    def backbone_nodes(self) -> set[int]:
        """Find the nodes up to the features: those that are named so, what they read, and casts of their results."""
        found: set[int] = set()
        for number, node in enumerate(self.nodes):
            if node.name.startswith(_BACKBONE):
                self._add_with_sources(number, found)
        if not found or not any(node.name.startswith(_HEAD) for node in self.nodes):
            raise self.refused(
                f"its nodes are not named {_BACKBONE[1]}… and {_HEAD}… as the exporter names them"
            )
        wrong = next((self.nodes[number].name for number in found if self._is_head(number)), None)
        if wrong is not None:
            raise self.refused(f"its backbone reads the node {wrong} of the flow")
        # A backbone in half precision ends with casts to float32. These belong to it, so that features are float32.
        for number, node in enumerate(self.nodes):
            if node.op_type == "Cast" and self.producer.get(node.input[0], -1) in found:
                to = next(one.i for one in node.attribute if one.name == "to")
                if to == TensorProto.FLOAT and not self._is_head(number):
                    found.add(number)
        return found

    def crossing_tensors(self, backbone: set[int]) -> list[str]:
        """Find the backbone's results that other nodes read, in the order in which they are computed."""
        # Constants are no features, also where a node computes them, as the dequantisation of weights does.
        read = {
            source
            for number, node in enumerate(self.nodes)
            if number not in backbone
            for source in node.input
            if self.producer.get(source, -1) in backbone and source in self._depends
        }
        # A dequantised feature is quantised anew in the head, so that the engine still computes with its integers.
        crossing = {self._before_quantisation(name) for name in read if not self._is_batch_size(name)}
        if not crossing:
            raise self.refused("its flow reads nothing of its backbone")
        return sorted(crossing, key=lambda name: self.producer[name])

    def head_nodes(self, backbone: set[int], crossing: Sequence[str]) -> list[onnx.NodeProto]:
        """Copy the nodes of the head, and those of the backbone's side that the head needs for itself."""
        wanted: set[int] = set()

        def add(number: int) -> None:
            if number in wanted:
                return
            wanted.add(number)
            for source in self.nodes[number].input:
                if source in crossing or source not in self.producer:
                    continue
                # 1. A node of the head. 2. Constants, such as dequantised weights. 3. The quantisation of a feature,
                # which both sides then compute alike. 4. The number of images.
                add(self.producer[source])

        for number in range(len(self.nodes)):
            if number not in backbone:
                add(number)
        copies: list[onnx.NodeProto] = []
        for number in sorted(wanted):
            copy = onnx.NodeProto()
            copy.CopyFrom(self.nodes[number])
            if self.input in copy.input:
                if not self._is_batch_size(copy.output[0]):
                    raise self.refused(f"the node {copy.name} of its flow reads the image")
                copy.input[0] = crossing[0]  # as many images as the input has
            copies.append(copy)
        return copies

    def feature(self, name: str) -> Feature:
        """Return the type of a feature.

        Raises:
            BundleError: The tensor is not ``(N, C, h, w)`` float32 of a fixed size.
        """
        value = self._values.get(name)
        tensor = None if value is None else value.type.tensor_type
        sizes = [] if tensor is None else [size.dim_value for size in tensor.shape.dim]
        if tensor is None or tensor.elem_type != TensorProto.FLOAT or len(sizes) != 4 or 0 in sizes[1:]:
            raise self.refused(f"the feature {name} is not (N, C, h, w) float32 of a fixed size")
        return Feature(channels=sizes[1], height=sizes[2], width=sizes[3])

    def value(self, name: str, feature: Feature) -> onnx.ValueInfoProto:
        """Declare a feature. Its batch has the name that the input's has, by which engines know equal shapes."""
        batch = self.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        shape = [batch, feature.channels, feature.height, feature.width]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def part(
        self,
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        names: Mapping[str, str],
    ) -> onnx.ModelProto:
        """Make a graph of some nodes and the weights that they read, with some tensors renamed."""
        copies: list[onnx.NodeProto] = []
        for node in nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [names.get(name, name) for name in node.input]
            copy.output[:] = [names.get(name, name) for name in node.output]
            copies.append(copy)
        read = {name for node in copies for name in node.input}
        weights = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        given = {name for node in copies for name in node.output}
        shapes = [value for value in self._written_shapes if value.name in given and value.name not in names]
        graph = helper.make_graph(copies, self.model.graph.name, inputs, outputs, weights, value_info=shapes)
        made: onnx.ModelProto = helper.make_model(
            graph,
            opset_imports=self.model.opset_import,
            ir_version=self.model.ir_version,
            producer_name=self.model.producer_name,
        )
        return made

    def _tensors_of_the_input(self) -> set[str]:
        """Find the tensors that depend on the input."""
        found = {self.input}
        for node in self.nodes:
            if any(source in found for source in node.input):
                found.update(node.output)
        return found

    def _add_with_sources(self, number: int, found: set[int]) -> None:
        stack = [number]
        while stack:
            one = stack.pop()
            if one not in found:
                found.add(one)
                stack += [self.producer[name] for name in self.nodes[one].input if name in self.producer]

    def _is_head(self, number: int) -> bool:
        return bool(self.nodes[number].name.startswith(_HEAD))

    def _is_batch_size(self, tensor: str) -> bool:
        """Tell whether a tensor is the number of images, which every feature has too."""
        node = self.nodes[self.producer[tensor]]
        ends = {one.name: one.i for one in node.attribute}
        reads_the_input = node.op_type == "Shape" and node.input[0] == self.input
        return bool(reads_the_input and ends == {"start": 0, "end": 1})

    def _before_quantisation(self, tensor: str) -> str:
        """Return the float tensor that a dequantised tensor was quantised from, and any other tensor as it is."""
        node = self.nodes[self.producer[tensor]]
        source = self.producer.get(node.input[0])
        if node.op_type != "DequantizeLinear" or source is None:
            return tensor
        quantised = self.nodes[source]
        return quantised.input[0] if quantised.op_type == "QuantizeLinear" else tensor

    def refused(self, reason: str) -> BundleError:
        """Make the error of a graph that cannot be cut."""
        return BundleError(f"{self.file} cannot be cut at the features: {reason}. Export the bundle again.")


def _move_bias(backbone: onnx.ModelProto, head: onnx.ModelProto, feature: str) -> None:
    """Let the head add the bias of a convolution that gives a feature.

    ONNX Runtime fuses a constant that the flow adds to such a feature into the bias of the whole graph. Then a pixel is
    ``sum + (bias + constant)``, and ``(sum + bias) + constant`` differs in the last bit.
    """
    conv = next(node for node in backbone.graph.node if feature in node.output)
    is_read = any(feature in node.input for node in backbone.graph.node)
    weights = {tensor.name: tensor for tensor in backbone.graph.initializer}
    if conv.op_type != "Conv" or len(conv.input) < 3 or is_read or conv.input[2] not in weights:
        return
    name = conv.input.pop()
    bias = numpy_helper.to_array(weights[name]).reshape(1, -1, 1, 1)
    if not any(name in node.input for node in backbone.graph.node):
        backbone.graph.initializer.remove(weights[name])
    # The head's own copy of the node that counts the images reads no values.
    readers = [node for node in head.graph.node if feature in node.input and node.op_type != "Shape"]
    constants = {tensor.name: tensor for tensor in head.graph.initializer}
    if len(readers) == 1 and readers[0].op_type == "Add":
        (other,) = [source for source in readers[0].input if source != feature] or [feature]
        value = numpy_helper.to_array(constants[other]) if other in constants else None
        if value is not None and value.size == bias.size and value.shape in (bias.shape, bias.shape[1:]):
            total = f"{feature}.offset"
            head.graph.initializer.append(numpy_helper.from_array(bias + value.reshape(bias.shape), total))
            readers[0].input[:] = [total if source == other else source for source in readers[0].input]
            if not any(other in node.input for node in head.graph.node):
                head.graph.initializer.remove(constants[other])
            return
    # The flow begins with something else, so the bias is added by itself.
    biased = f"{feature}.biased"
    for node in readers:
        node.input[:] = [biased if source == feature else source for source in node.input]
    head.graph.initializer.append(numpy_helper.from_array(bias, f"{feature}.bias"))
    added = helper.make_node("Add", [feature, f"{feature}.bias"], [biased], name=f"{_HEAD}{feature}/Add")
    head.graph.node.insert(0, added)


def _steps(model: onnx.ModelProto) -> tuple[tuple[str, str], ...]:
    """Hash each node with all that it computes from, and name its weights or itself."""
    weights = {tensor.name: _hash_of_weights(tensor) for tensor in model.graph.initializer}
    tensors = {"": "", **weights, model.graph.input[0].name: "input"}
    steps: list[tuple[str, str]] = []
    # A tensor is known by the hash of the node that computes it, so neither names nor the order of nodes count.
    for node in model.graph.node:
        attributes = sorted(one.SerializeToString(deterministic=True) for one in node.attribute)
        digest = _hashed(
            node.op_type.encode(),
            node.domain.encode(),
            *attributes,
            b"",
            *(tensors[source].encode() for source in node.input),
        )
        tensors.update({output: f"{digest} {place}" for place, output in enumerate(node.output)})
        named = next((source for source in node.input if source in weights), node.name)
        steps.append((digest, named))
    return tuple(steps)


def _digest(model: onnx.ModelProto, steps: Sequence[tuple[str, str]]) -> str:
    """Hash the backbone: its input, its features, and all that these are computed from."""
    given = {
        name: f"{digest} {place}"
        for node, (digest, _) in zip(model.graph.node, steps, strict=True)
        for place, name in enumerate(node.output)
    }
    # The same nodes may compute something else in another opset, or from an input of another type.
    opsets = sorted(f"{one.domain} {one.version}" for one in model.opset_import)
    taken = model.graph.input[0].type.tensor_type
    sizes = [size.dim_value for size in taken.shape.dim]
    return _hashed(
        *(one.encode() for one in opsets),
        f"{taken.elem_type} {sizes}".encode(),
        *(given[value.name].encode() for value in model.graph.output),
    )


def _hash_of_weights(tensor: onnx.TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    return _hashed(
        str(tensor.data_type).encode(), str(array.shape).encode(), np.ascontiguousarray(array).tobytes()
    )


def _hashed(*parts: bytes) -> str:
    """Hash several texts, each with its length, so that no two sequences of texts are hashed alike."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
