"""Convert a graph to INT8 by pairs of QuantizeLinear and DequantizeLinear (Q/DQ) around the nodes to quantise.

Engines fuse different patterns of Q/DQ and nodes, so there are two layouts of the same quantised values:

- ``GPU``: Activations are signed with zero point 0, because TensorRT's parser refuses other zero points. No Q/DQ
  follows a node whose reader is not INT8. A residual sum has Q/DQ on one side only, so that it fuses with the
  convolution on the other side.
- ``CPU``: Activations are unsigned, so that all 255 steps express the positive values after a ReLU. Q/DQ follow every
  INT8 node, because ONNX Runtime runs a convolution in INT8 only if its output is quantised too.

Weights are symmetric int8 per output channel in both layouts. Biases are float32 in the GPU layout, as TensorRT needs
them. In the CPU layout they are int32 with the product of the two scales, because ONNX Runtime before 1.21 runs a
convolution with a float32 bias in float32. A channel with tiny weights and a large bias gets a scale with which the
bias fits into an int32.

Eight bits are few for an image of low contrast. So the CPU layout gives the image's convolution more channels: the
values, and what rounding takes from them, enlarged. Together they have about twelve bits. INT8 kernels read channels
in groups of four, so an image of three channels has room for one such remainder. It is the weighted sum of the three
remainders that the convolution's weights depend on most.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from flowedge.calibration.precision.blocks import Site, block_of, sites_of, stays_float
from flowedge.calibration.precision.calibrators import CalibratorName, magnitude_limit
from flowedge.calibration.precision.ranges import TensorRange


@dataclass(frozen=True, slots=True)
class Layout:
    """Describe where and how Q/DQ nodes are placed, so that an engine runs its INT8 kernels.

    Attributes:
        unsigned: True for uint8 activations with a zero point, False for int8 activations without one.
        outputs: True if the output of an INT8 node is quantised even where no INT8 node reads it.
        biases: True if the convolutions' biases are stored as int32.
        parts: True if convolutions of fewer than four channels are quantised, with remainders beside the values.
    """

    unsigned: bool
    outputs: bool
    biases: bool
    parts: bool

    def has(self, site: Site) -> bool:
        """Tell whether the layout can quantise a convolution or product."""
        return self.parts or not site.in_parts


CPU: Final = Layout(unsigned=True, outputs=True, biases=True, parts=True)
GPU: Final = Layout(unsigned=False, outputs=False, biases=False, parts=False)

_SAME_RANGE: Final = frozenset({"MaxPool"})  # These nodes write some of the values that they read.
_UNARY: Final = frozenset({"LeakyRelu"})
# ONNX Runtime computes these in eight bits, by a table for the sigmoid. In float32 they take longer than a convolution.
_UNARY_ON_CPUS: Final = _UNARY | {"GlobalAveragePool", "Sigmoid"}
_SMALLEST_STEP: Final = 1e-20
_LARGEST_BIAS: Final = 2.0**30  # In steps. The sum of products needs the rest of the int32.
# The factor of a remainder. A larger factor leaves the remainder's weights, which are divided by it, too few steps.
_ENLARGED: Final = 16.0
_MARGIN: Final = (
    0.1  # The share of an image's range that is added at each end, because parts have steps to spare.
)
_CHANNEL_GROUP: Final = 4  # INT8 kernels of CPUs take as long for three channels as for four.


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The nodes that run in INT8 and the tensors that are quantised for them.

    Attributes:
        sites: The convolutions and matrix products.
        nodes: The names of all INT8 nodes: convolutions, products, and the activations, pooling and sums after them.
        tensors: Each tensor to quantise, with the tensor whose observed range it takes.
        written: The tensors of ``tensors`` that an INT8 node writes. Every reader takes their rounded values.
    """

    sites: tuple[Site, ...]
    nodes: frozenset[str]
    tensors: Mapping[str, str]
    written: frozenset[str]


def plan_of(
    model: onnx.ModelProto, blocks: Collection[str], layout: Layout, float_only: Collection[str] = ()
) -> Plan:
    """Plan where QuantizeLinear and DequantizeLinear go when some blocks run in INT8.

    Args:
        model: An fp32 graph of a bundle with inferred shapes. The weights may be kept outside of the model.
        blocks: Names that `flowedge.calibration.precision.blocks` gives.
        layout: The layout of the engines that will run the graph.
        float_only: Tensors that no INT8 sum may read, besides those that the graph itself shows.
    """
    planner = _Planner(model, blocks, layout, float_only)
    for node in model.graph.node:
        planner.visit(node)
    return planner.plan()


class _Planner:
    """Visit the nodes of a graph in their order, and collect the nodes and tensors to quantise.

    The planner begins with the convolutions and matrix products of the chosen blocks. The planner then follows what
    these nodes write: activations, pooling and sums run in INT8 too where an engine fuses them.
    """

    def __init__(
        self, model: onnx.ModelProto, blocks: Collection[str], layout: Layout, float_only: Collection[str]
    ) -> None:
        self._blocks, self._layout = blocks, layout
        self._sites = tuple(site for site in sites_of(model) if site.block in blocks and layout.has(site))
        self._site_outputs = {site.output for site in self._sites}
        self._readers = _readers(model)
        self._results = {output.name for output in model.graph.output}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes = {site.node for site in self._sites}
        self._unary = _UNARY_ON_CPUS if layout.outputs else _UNARY
        self._binary = frozenset({"Add", "Mul"} if layout.outputs else {"Add"})
        # The tensors that INT8 nodes write, after the activation where one follows.
        self._written: set[str] = set()
        # The tensors that no INT8 sum may read. Rounding only the other side of such a sum is not worth it.
        self._float_only = {*self._constants, *float_only}
        self._quantised: dict[str, str] = {site.quantised: site.source for site in self._sites}

    def visit(self, node: onnx.NodeProto) -> None:
        """Take a node into the plan if an engine runs it in INT8 together with the nodes before it."""
        is_chosen = block_of(node.name) in self._blocks
        # Case 1: fixed weights, which stay in float32 together with what they write.
        if stays_float(node.name):
            self._float_only.update(node.output)
        # Case 2: a convolution or a matrix product of a chosen block.
        elif node.output[0] in self._site_outputs:
            self._write_after_activation(node.output[0])
        # Case 3: pooling, which only selects among the values that it reads. The output takes the input's range.
        elif self._selects_quantised_values(node):
            self._nodes.add(node.name)
            self._written.add(node.output[0])
            source = self._quantised.setdefault(node.input[0], node.input[0])
            self._quantised[node.output[0]] = source
        # Case 4: an activation that no convolution absorbs, or a mean over all pixels.
        elif is_chosen and node.op_type in self._unary and node.input[0] in self._written:
            self._nodes.add(node.name)
            self._written.add(node.output[0])
        # Case 5: a residual sum, or the product of an activation with its gate, such as x * sigmoid(x).
        elif is_chosen and node.op_type in self._binary and self._is_sum_in_int8(node):
            self._nodes.add(node.name)
            for name in node.input if self._layout.outputs else self._inputs_to_quantise(node):
                self._quantised.setdefault(name, name)
            self._write_after_activation(node.output[0])

    def plan(self) -> Plan:
        """Return the plan for all nodes that were visited."""
        if self._layout.outputs:
            for name in sorted(self._written):
                self._quantised.setdefault(name, name)
        return Plan(
            sites=self._sites,
            nodes=frozenset(self._nodes),
            tensors=self._quantised,
            written=frozenset(self._written & self._quantised.keys()),
        )

    def _write_after_activation(self, tensor: str) -> None:
        """Mark a tensor as written in INT8, or in its place the output of a ReLU that alone reads the tensor.

        Engines fuse a ReLU into the node before it, so that nothing is rounded between the two.
        """
        following = self._readers.get(tensor, ())
        if len(following) == 1 and tensor not in self._results and self._cuts_at_zero(following[0]):
            self._nodes.add(following[0].name)
            tensor = str(following[0].output[0])
        self._written.add(tensor)

    def _cuts_at_zero(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node is a ReLU, or a Clip from zero, so that an unsigned range can express its output."""
        if node.op_type != "Clip":
            return node.op_type == "Relu"
        low = self._constants.get(node.input[1]) if len(node.input) > 1 else None
        return low is not None and float(numpy_helper.to_array(low)) == 0.0

    def _selects_quantised_values(self, node: onnx.NodeProto) -> bool:
        """Tell whether a pooling reads an INT8 node's output and its own output is quantised."""
        return (
            node.op_type in _SAME_RANGE
            and node.input[0] in self._written
            and (self._layout.outputs or node.output[0] in self._quantised)
        )

    def _is_sum_in_int8(self, node: onnx.NodeProto) -> bool:
        """Tell whether a sum or a product has a side that an INT8 node wrote, and no side that stays float."""
        return any(name in self._written for name in node.input) and not any(
            name in self._float_only for name in node.input
        )

    def _inputs_to_quantise(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs of a sum that need Q/DQ: all but the output of one convolution that only the sum reads.

        TensorRT fuses the sum with that convolution if there is no quantisation between the two.
        """
        fresh = [name for name in node.input if name in self._written and len(self._readers[name]) == 1]
        return [name for name in node.input if not fresh or name != fresh[0]]


def tensors_to_observe(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return every tensor whose range a plan may need, in a stable order."""
    sites = sites_of(model)
    everything = {site.block for site in sites}
    names = {name for layout in (CPU, GPU) for name in plan_of(model, everything, layout).tensors.values()}
    # A reverted block turns the middle of a chain of nodes into its end, and the end needs the range of its own tensor.
    # A pooling after a reverted block takes no range from that block, so what a site reads needs a range too.
    return tuple(sorted(names | {site.source for site in sites}))


class Scales:
    """The quantisation step and the zero point of each tensor, computed at the first use."""

    def __init__(
        self,
        ranges: Mapping[str, TensorRange],
        calibrator: CalibratorName,
        layout: Layout,
        image_range: tuple[float, float] | None = None,
    ) -> None:
        """Keep the ranges that the scales are computed from.

        Args:
            ranges: The values that the tensors of `tensors_to_observe` took on images.
            calibrator: The method that chooses a range.
            layout: The layout of the engines that will run the graph.
            image_range: The smallest and the largest value that the preprocessing gives, or None where nothing is known
                beyond the images.
        """
        self.layout = layout
        self._image_range = image_range
        self._ranges: Mapping[str, TensorRange] = ranges
        self._calibrator: CalibratorName = calibrator
        self._known: dict[str, tuple[np.float32, NDArray[np.generic]]] = {}

    def has(self, tensor: str) -> bool:
        """Tell whether the values of a tensor were counted on images."""
        return tensor in self._ranges and bool(self._ranges[tensor].counts.any())

    def __getitem__(self, tensor: str) -> tuple[np.float32, NDArray[np.generic]]:
        """Return the quantisation step and the zero point of a tensor, as `scale_and_zero` computes them."""
        if tensor not in self._known:
            self._known[tensor] = scale_and_zero(self._ranges[tensor], self._calibrator, self.layout)
        return self._known[tensor]

    def of_parts(self, tensor: str) -> tuple[np.float32, NDArray[np.generic]]:
        """Return the step and the zero point for the values of an image and their enlarged remainders.

        No value that an image can have is clipped, because a defect may be darker or brighter than all good parts.
        No remainder is clipped either. A remainder has both signs, and is at most half a step for each channel.
        """
        low, high = min(self._ranges[tensor].smallest, 0.0), max(self._ranges[tensor].largest, 0.0)
        if self._image_range is None:
            margin = _MARGIN * (high - low)
            low, high = low - margin, high + margin
        else:
            low, high = min(low, self._image_range[0]), max(high, self._image_range[1])
        # The share of all steps that a remainder may need on either side of zero.
        share = _ENLARGED * np.sqrt(_CHANNEL_GROUP - 1) / 2 / 255
        if low > -share * (high - low):
            low = -share / (1 - share) * high
        if high < share * (high - low):
            high = -share / (1 - share) * low
        step = _step((high - low) / 255)
        return step, np.array(np.clip(np.rint(-low / step), 0, 255), np.uint8)


def quantise(model: onnx.ModelProto, blocks: Collection[str], chosen: Scales) -> Plan:
    """Put Q/DQ into a graph in place, and keep the types of the graph's inputs and outputs.

    Args:
        model: The fp32 graph with inferred shapes and its weights.
        blocks: The blocks to run in INT8.
        chosen: The scales of the layout.

    Returns:
        The plan that the Q/DQ follow.
    """
    graph = model.graph
    # A part of a graph may read what a node with fixed weights wrote. The values of such tensors were not counted.
    uncounted = [value.name for value in graph.input if not chosen.has(value.name)]
    plan = plan_of(model, blocks, chosen.layout, uncounted)
    parts = {site.quantised for site in plan.sites if site.in_parts}
    scales = {
        name: chosen.of_parts(source) if name in parts else chosen[source]
        for name, source in plan.tensors.items()
    }
    nodes: list[onnx.NodeProto] = []
    for value in graph.input:
        if value.name in scales:
            nodes += _pair(graph, value.name, *scales[value.name])
    weights = {tensor.name: tensor for tensor in graph.initializer}
    sites = {site.node: site for site in plan.sites}
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        # An INT8 node reads rounded values. So does every reader of what an INT8 node wrote, because the exact values
        # do not exist there.
        for place, name in enumerate(node.input):
            if name in scales and (node.name in plan.nodes or name in plan.written):
                copy.input[place] = f"{name}.dq"
        if node.name in sites:
            site = sites[node.name]
            if site.in_parts:
                weight = numpy_helper.to_array(weights[site.weight]).astype(np.float64)
                nodes += _in_parts(graph, site, _mixture(weight), *scales[site.quantised])
                copy.input[0] = f"{site.quantised}.dq"
            for place, stored in enumerate(_stored(graph, site, weights, scales, chosen.layout), 1):
                copy.input[place] = stored.output[0]
                nodes.append(stored)
        nodes.append(copy)
        for name in node.output:
            if name in scales:
                nodes += _pair(graph, name, *scales[name])
    del graph.node[:]
    graph.node.extend(nodes)
    # The float weights of INT8 nodes have no reader any more, and of equal zero points one is kept.
    used = {name for node in graph.node for name in node.input}
    kept = {tensor.name: tensor for tensor in graph.initializer if tensor.name in used}
    del graph.initializer[:]
    graph.initializer.extend(kept.values())
    graph.value_info.extend(
        helper.make_tensor_value_info(f"{name}.dq", onnx.TensorProto.FLOAT, None) for name in scales
    )
    return plan


def scale_and_zero(
    values: TensorRange, calibrator: CalibratorName, layout: Layout
) -> tuple[np.float32, NDArray[np.generic]]:
    """Return a tensor's quantisation step, in the tensor's units, and its zero point: the whole number for 0."""
    negative = values.smallest < 0
    if not layout.unsigned:
        limit = magnitude_limit(values, calibrator, steps=127)
        return _step(limit / 127), np.array(0, np.int8)
    low, high = min(values.smallest, 0.0), max(values.largest, 0.0)
    # With both signs, the calibrator counts only the steps on the side of the larger magnitude.
    levels = round(255 * max(-low, high) / (high - low)) if negative and high > low else 255
    limit = magnitude_limit(values, calibrator, steps=max(levels, 1))
    low, high = max(low, -limit), min(high, limit)
    step = _step((high - low) / 255)
    return step, np.array(np.clip(np.rint(-low / step), 0, 255), np.uint8)


def _step(step: float) -> np.float32:
    """Return a quantisation step that is neither zero nor denormal, because engines divide by steps."""
    return np.float32(step) if step > _SMALLEST_STEP else np.float32(1.0)


def _pair(
    graph: onnx.GraphProto, name: str, scale: np.float32, zero: NDArray[np.generic]
) -> list[onnx.NodeProto]:
    graph.initializer.append(numpy_helper.from_array(np.array(scale), f"{name}.scale"))
    graph.initializer.append(numpy_helper.from_array(zero, f"{name}.zero"))
    ends = [f"{name}.scale", f"{name}.zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *ends], [f"{name}.q"], name=f"{name}/QuantizeLinear"),
        helper.make_node(
            "DequantizeLinear", [f"{name}.q", *ends], [f"{name}.dq"], name=f"{name}/DequantizeLinear"
        ),
    ]


def _in_parts(
    graph: onnx.GraphProto,
    site: Site,
    mixture: NDArray[np.float64],
    scale: np.float32,
    zero: NDArray[np.generic],
) -> list[onnx.NodeProto]:
    """Append the enlarged remainders of the values to the channels that a convolution reads, and quantise all of them.

    Args:
        graph: The graph, which gets the constants of the new nodes.
        site: The convolution.
        mixture: The matrix ``(remainders, channels)`` of `_mixture`.
        scale: The step of all channels.
        zero: The zero point of all channels.
    """
    name = site.quantised
    whole = _constant(graph, f"{name}.step", np.array(scale, np.float32))
    enlarged = _ENLARGED * np.float32(scale)
    chain = [
        ("Div", [site.source, whole], "steps"),
        ("Round", [f"{name}.steps"], "whole"),
        ("Sub", [f"{name}.steps", f"{name}.whole"], "fraction"),
    ]
    if len(mixture) == mixture.shape[1]:
        factor = _constant(graph, f"{name}.enlarged", np.array(enlarged, np.float32))
        chain.append(("Mul", [f"{name}.fraction", factor], "remainder"))
    else:
        factors = (enlarged * mixture).astype(np.float32).reshape(1, -1, 1, 1)
        factor = _constant(graph, f"{name}.enlarged", factors)
        axes = _constant(graph, f"{name}.channels", np.array([1], np.int64))
        chain.append(("Mul", [f"{name}.fraction", factor], "weighted"))
        chain.append(("ReduceSum", [f"{name}.weighted", axes], "remainder"))
    return [
        *(helper.make_node(op, read, [f"{name}.{end}"], name=f"{name}/{op}") for op, read, end in chain),
        helper.make_node("Concat", [site.source, f"{name}.remainder"], [name], name=f"{name}/Concat", axis=1),
        *_pair(graph, name, scale, zero),
    ]


def _mixture(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix ``(remainders, channels)`` by which the remainders of an image's channels become channels.

    One or two channels keep all of their remainders. Three channels have room for one beside them. It is the direction
    of the largest singular value of the weights, so that the convolution sees as little as possible of what is lost.

    Args:
        weight: The weights ``(outputs, channels, height, width)`` of the convolution that reads the image.
    """
    channels = weight.shape[1]
    if 2 * channels <= _CHANNEL_GROUP:
        return np.eye(channels)
    taps = np.moveaxis(weight, 1, -1).reshape(-1, channels)
    direction = np.linalg.svd(taps, full_matrices=False)[2][: _CHANNEL_GROUP - channels]
    return np.asarray(direction * np.sign(direction.sum(1, keepdims=True) + 0.5 * _SMALLEST_STEP), np.float64)


def _constant(graph: onnx.GraphProto, name: str, value: NDArray[np.generic]) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _stored(
    graph: onnx.GraphProto,
    site: Site,
    constants: Mapping[str, onnx.TensorProto],
    scales: Mapping[str, tuple[np.float32, NDArray[np.generic]]],
    layout: Layout,
) -> list[onnx.NodeProto]:
    """Store the weight of a convolution or product as int8 and, in the CPU layout, its bias as int32.

    Returns:
        The nodes that dequantise weight and bias. The convolution or product reads the outputs of these nodes as its
        second and third input.
    """
    values = numpy_helper.to_array(constants[site.weight]).astype(np.float32)
    axis = site.channel_axis
    others = tuple(n for n in range(values.ndim) if n != axis)
    scale = np.abs(values).max(axis=others).astype(np.float64) / 127
    source = float(scales[site.quantised][0])
    bias = None if site.bias is None or not layout.biases else numpy_helper.to_array(constants[site.bias])
    # A larger scale makes the bias fewer steps, so that it fits into the int32 together with the sum of products.
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (source * _LARGEST_BIAS))
    steps = np.where(scale > _SMALLEST_STEP, scale, 1.0).astype(np.float32)
    shape = [-1 if n == axis else 1 for n in range(values.ndim)]
    exact = values / steps.reshape(shape)
    whole_steps = _rounded(exact, axis)
    if site.in_parts:
        of_remainders = np.einsum("rc,ocyx->oryx", _mixture(values.astype(np.float64)), exact)
        whole_steps = np.concatenate([whole_steps, np.rint(of_remainders / _ENLARGED)], 1)
    rounded = np.clip(whole_steps, -127, 127).astype(np.int8)
    nodes = [_dequantised(graph, f"int8/{site.node}/weight", rounded, steps, axis)]
    if bias is not None:
        product = np.float32(source) * steps
        limit = np.iinfo(np.int32).max
        whole = np.clip(np.rint(bias / product.astype(np.float64)), -limit, limit).astype(np.int32)
        nodes.append(_dequantised(graph, f"int8/{site.node}/bias", whole, product, 0))
    return nodes


def _rounded(values: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    """Round weights so that the sum over each kernel, and over all kernels of an output, changes by at most a half.

    The values around a pixel are much alike, and all values after a ReLU are positive. So what matters most of a
    kernel is its sum. Rounding to the nearest number adds up errors there.

    Args:
        values: The weights in steps: ``(outputs, inputs, ...)`` of a convolution, or ``(inputs, outputs)``.
        axis: The axis of the outputs.
    """
    kernels = np.moveaxis(values, axis, 0)
    flat = kernels.reshape(*kernels.shape[:2], -1).astype(np.float64)
    sums = _rounded_to_sum(flat.sum(-1), np.rint(flat.sum((1, 2))))
    rounded = _rounded_to_sum(flat, sums).reshape(kernels.shape)
    return np.moveaxis(rounded, 0, axis)


def _rounded_to_sum(values: NDArray[np.float64], sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round values ``(..., n)`` so that they add up to whole numbers ``sums (...)``.

    The values that are nearest to the next whole number on the side of the missing sum are rounded to it.
    """
    rounded = np.rint(values)
    missing = sums - rounded.sum(-1)
    rows = np.nonzero(missing)
    sign, left, changed = np.sign(missing[rows]), np.abs(missing[rows]), rounded[rows]
    distance = (changed - values[rows]) * sign[:, None]
    # Few values of a row change, so looking for the next one again takes a seventh of the time of sorting all of them.
    open_rows = np.arange(len(left))
    while open_rows.size:
        nearest = distance[open_rows].argmin(-1)
        changed[open_rows, nearest] += sign[open_rows]
        distance[open_rows, nearest] = np.inf
        left[open_rows] -= 1
        open_rows = open_rows[left[open_rows] > 0]
    rounded[rows] = changed
    return rounded


def _dequantised(
    graph: onnx.GraphProto,
    name: str,
    values: NDArray[np.signedinteger],
    scale: NDArray[np.float32],
    axis: int,
) -> onnx.NodeProto:
    graph.initializer.append(numpy_helper.from_array(values, f"{name}.q"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
    # ONNX Runtime needs zero points. Where it widens weights (`onnxrt._WIDER_PRODUCTS`) it makes a new zero point for
    # each and fails on a shared one, so each weight has its own. Biases of the same size share one.
    shared = f"int8/zeros.{values.dtype}.{scale.size}"
    zeros = f"{name}.zeros" if values.dtype == np.int8 else shared
    graph.initializer.append(numpy_helper.from_array(np.zeros(scale.size, values.dtype), zeros))
    return helper.make_node(
        "DequantizeLinear",
        [f"{name}.q", f"{name}.scale", zeros],
        [f"{name}.dq"],
        name=f"{name}/DequantizeLinear",
        axis=axis,
    )


def _readers(model: onnx.ModelProto) -> dict[str, Sequence[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return dict(readers)
