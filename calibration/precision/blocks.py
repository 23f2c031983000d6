"""Find the blocks of a graph, whose precision is chosen together, and the nodes in them that can run in INT8.

A block is a residual block of the backbone, or the subnet of one coupling. The name of a block is the common beginning
of its nodes' names. The export takes these names from the modules of the network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx

from flowedge.calibration.precision.ranges import tensor_shapes

# Only these nodes may leave float32. The coupling's own arithmetic, the likelihoods and the aggregation never do.
CONVERTIBLE: Final = ("backbone/*", "flow/steps/*/subnet/*", "flow/steps/*/net[0-9]*/*", "flow/steps/*/net/*")
_BLOCK: Final = re.compile(
    r"(flow/steps/\d+/(?:subnet|net\d*)|backbone/(?:[^/\d][^/]*/)*?[^/\d][^/]*(?:/\d+)+|backbone/.*?(?=/[^/]*$))/"
)
# Upsampling and means have fixed weights and do little work, but a whole coarse level, or a whole pixel, passes through
# them.
_NEVER: Final = ("flow/*/up/*", "flow/*/norm/*")
# The smallest side of a map. A vector times a matrix is not faster in eight bits.
_SMALLEST_SIDE: Final = 2
# The fewest input channels of a convolution whose input has no remainders. Eight bits are few for an image's channels.
_FEWEST_INPUTS: Final = 4
# The fewest products of such a convolution with each value that it reads. Remainders cost more than they save below.
_FEWEST_PRODUCTS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Describe a convolution or a matrix product of a graph that can run in INT8.

    Attributes:
        node: The name of the node.
        block: The block that the node belongs to.
        source: The tensor that the node reads.
        weight: The initializer of the weights.
        channel_axis: The axis of the weight that holds the output channels. The output channels are on the first axis
            for a convolution and on the last axis for a product.
        bias: The initializer of the bias, or None for a node without one.
        output: The tensor that the node writes.
        macs: The multiply-accumulates for one image, or 0 where the shapes are not known.
        in_parts: True for a convolution of fewer than four channels, such as the image's. Its input is quantised
            together with the remainders of the values, or not at all.
    """

    node: str
    block: str
    source: str
    weight: str
    channel_axis: int
    bias: str | None
    output: str
    macs: int
    in_parts: bool = False

    @property
    def quantised(self) -> str:
        """The tensor that is quantised for the node: its source, or the values of the source and their remainders."""
        return f"{self.node}.parts" if self.in_parts else self.source


def block_of(name: str) -> str | None:
    """Return the block of a node, or None for a node that stays in float32 in every precision."""
    if not any(fnmatchcase(name, pattern) for pattern in CONVERTIBLE):
        return None
    match = _BLOCK.match(name)
    return match.group(1) if match else None


def stays_float(name: str) -> bool:
    """Tell whether a node has fixed weights and never runs in INT8."""
    return any(fnmatchcase(name, pattern) for pattern in _NEVER)


def sites_of(model: onnx.ModelProto) -> tuple[Site, ...]:
    """Return every node of a graph that can run in INT8, in the graph's order.

    Args:
        model: The graph with inferred shapes. The weights may be kept outside of the model.
    """
    shapes = tensor_shapes(model)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: list[Site] = []
    for node in model.graph.node:
        block = block_of(node.name)
        if block is None or node.op_type not in ("Conv", "MatMul") or node.input[1] not in weights:
            continue
        if stays_float(node.name):
            continue
        # Not worth eight bits: a product of two activations, a map of one pixel, and few products with few channels.
        kernel = weights[node.input[1]]
        out = shapes.get(node.output[0], ())
        if node.op_type == "MatMul" and (len(kernel) != 2 or node.input[0] in weights):
            continue
        if node.op_type == "Conv" and max((side or 1 for side in out[2:]), default=0) < _SMALLEST_SIDE:
            continue
        few = node.op_type == "Conv" and kernel[1] * _groups(node) < _FEWEST_INPUTS
        if few and (_groups(node) > 1 or kernel[0] * math.prod(kernel[2:]) < _FEWEST_PRODUCTS):
            continue
        positions = out[2:] if node.op_type == "Conv" else out[1:-1]
        found.append(
            Site(
                node=node.name,
                block=block,
                source=node.input[0],
                weight=node.input[1],
                channel_axis=0 if node.op_type == "Conv" else 1,
                bias=node.input[2] if len(node.input) > 2 else None,
                output=node.output[0],
                macs=int(np.prod(kernel)) * int(np.prod([side or 1 for side in positions])),
                in_parts=few,
            )
        )
    return tuple(found)


def _groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def blocks_of(sites: Iterable[Site]) -> Mapping[str, int]:
    """Return the multiply-accumulates of each block's convolutions and products, in the graph's order."""
    macs: dict[str, int] = {}
    for site in sites:
        macs[site.block] = macs.get(site.block, 0) + site.macs
    return MappingProxyType(macs)
