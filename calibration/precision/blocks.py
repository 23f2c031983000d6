"""The parts of a graph whose precision is chosen: blocks of the backbone, and subnets of the flow.

A block is what stands or falls together when a precision costs too much: a residual block of the backbone, or the
subnet of one coupling. Its name is the common beginning of its nodes' names, which the emitter takes from the modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx

from flowedge.calibration.precision.ranges import tensor_shapes

# What may leave float32: never the coupling's own arithmetic, the likelihoods or the aggregation.
CONVERTIBLE: Final = ("backbone/*", "flow/steps/*/subnet/*", "flow/steps/*/net[0-9]*/*", "flow/steps/*/net/*")
_BLOCK: Final = re.compile(
    r"(flow/steps/\d+/(?:subnet|net\d*)|backbone/(?:[^/\d][^/]*/)*?[^/\d][^/]*(?:/\d+)+|backbone/.*?(?=/[^/]*$))/"
)
# Upsampling and means, fixed weights that do little work: all of a coarse level, or of a pixel, goes through them.
_NEVER: Final = ("flow/*/up/*", "flow/*/norm/*")
_SMALLEST_SIDE: Final = 2  # of a map: a vector times a matrix is not faster in eight bits
_FEWEST_INPUTS: Final = 4  # channels: the image's three cost most accuracy in eight bits, and gain least


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A convolution or a matrix product that can run in INT8.

    Attributes:
        node: Its name.
        block: The block that it belongs to.
        source: The tensor that it reads.
        weight: The initializer of its weights.
        channel_axis: Which of the weight's axes are the output channels: the first for a convolution, the last for a
            product.
        bias: The initializer of its bias, None without one.
        output: The tensor that it writes.
        macs: Multiply-accumulates for one image; 0 where the shapes are not known.
    """

    node: str
    block: str
    source: str
    weight: str
    channel_axis: int
    bias: str | None
    output: str
    macs: int


def block_of(name: str) -> str | None:
    """The block of a node, None for nodes that stay in float32 whatever the precision."""
    if not any(fnmatchcase(name, pattern) for pattern in CONVERTIBLE):
        return None
    match = _BLOCK.match(name)
    return match.group(1) if match else None


def stays_float(name: str) -> bool:
    """Whether a node computes with fixed weights, and never in INT8."""
    return any(fnmatchcase(name, pattern) for pattern in _NEVER)


def sites_of(model: onnx.ModelProto) -> tuple[Site, ...]:
    """Every node of a graph that can run in INT8, in the graph's order.

    Args:
        model: With shapes inferred; weights may be kept outside.
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
        kernel = weights[node.input[1]]
        out = shapes.get(node.output[0], ())
        if node.op_type == "MatMul" and (len(kernel) != 2 or node.input[0] in weights):
            continue
        if node.op_type == "Conv" and max((side or 1 for side in out[2:]), default=0) < _SMALLEST_SIDE:
            continue
        if node.op_type == "Conv" and _input_channels(kernel, out) < _FEWEST_INPUTS:
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
            )
        )
    return tuple(found)


def _input_channels(kernel: tuple[int, ...], out: tuple[int | None, ...]) -> int:
    """Of the whole convolution: a depthwise one has as many groups as channels."""
    is_depthwise = kernel[1] == 1 and len(out) > 1 and (out[1] or 0) > 1
    return kernel[0] if is_depthwise else kernel[1]


def blocks_of(sites: Iterable[Site]) -> Mapping[str, int]:
    """Multiply-accumulates of each block's sites, in the graph's order."""
    macs: dict[str, int] = {}
    for site in sites:
        macs[site.block] = macs.get(site.block, 0) + site.macs
    return MappingProxyType(macs)
