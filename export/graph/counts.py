"""Count the parameters and multiply-accumulates of a flow before and after each pass, from the IR alone.

The module `flowedge.lowering` defines what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from flowedge.export.graph import ir
from flowedge.export.graph.passes import Pass, lower
from flowedge.lowering import SCHEMA, Lowering, PassEffect, Totals

_Size: TypeAlias = tuple[int, int]
"""The height and width of a map in pixels."""


def lower_and_describe(model: ir.FlowModel, *, keep_latents: bool = False) -> tuple[ir.FlowModel, Lowering]:
    """Run every pass as `lower` does, and record the totals of the flow around each pass."""
    effects: list[PassEffect] = []
    before = totals(model)

    def note(step: Pass, after: ir.FlowModel) -> None:
        nonlocal before
        effects.append(
            PassEffect(
                name=step.name,
                exactness=step.exactness,
                summary=step.summary,
                before=before,
                after=totals(after),
            )
        )
        before = effects[-1].after

    lowered = lower(model, keep_latents=keep_latents, on_pass=note)
    return lowered, Lowering(schema=SCHEMA, passes=tuple(effects))


def totals(model: ir.FlowModel) -> Totals:
    """Count the steps, parameters and multiply-accumulates of a flow and of its levels' sums of squares."""
    sizes = {n: (level.height, level.width) for n, level in enumerate(model.levels)}
    parameters = macs = 0
    for step in model.steps:
        if isinstance(step, ir.Split):
            sizes[step.into] = sizes[step.stream]
        elif isinstance(step, ir.PixelShuffle):
            height, width = sizes[step.stream]
            sizes[step.stream] = (2 * height, 2 * width)
        cost = _cost(step, [sizes[stream] for stream in ir.streams_of(step)])
        parameters, macs = parameters + cost[0], macs + cost[1]
    for level in model.levels:
        weights = level.channels if level.latent_scale is None else level.latent_scale.size
        parameters += _size(level.latent_scale)
        macs += weights * level.height * level.width
    return Totals(steps=len(model.steps), parameters=parameters, macs=macs)


def _cost(step: ir.Step, sizes: Sequence[_Size]) -> tuple[int, int]:
    """Count the parameters and multiply-accumulates of a step, given the size of each stream that it reads."""
    pixels = math.prod(sizes[0])
    match step:
        case ir.Coupling():
            parameters = sum(_layer_parameters(layer) for layer in step.subnet)
            macs = sum(_layer_macs(layer) for layer in step.subnet)
            return parameters + _size(step.scale, step.offset), macs * pixels
        case ir.ChannelMap():
            return _size(step.matrix, step.bias), _size(step.matrix) * pixels
        case ir.ChannelAffine():
            return _size(step.scale, step.shift), 0
        case ir.LayerNorm():
            return _size(step.weight, step.bias), 0
        case ir.TwoSidedCoupling():
            costs = [
                _cross_scale_cost(net, sizes)
                if isinstance(net, ir.CrossScaleNet)
                else _fusion_cost(net, sizes)
                for net in (step.net1, step.net2)
            ]
            return sum(parameters for parameters, _ in costs), sum(macs for _, macs in costs)
        case _:
            return 0, 0


def _cross_scale_cost(net: ir.CrossScaleNet, sizes: Sequence[_Size]) -> tuple[int, int]:
    """Count the parameters and multiply-accumulates of CS-Flow's subnet."""
    parameters = macs = 0
    for level, (inner, routes) in enumerate(zip(net.inner, net.routes, strict=True)):
        pixels = math.prod(sizes[level])
        parameters += sum(_layer_parameters(conv) for conv in (inner, *(route.conv for route in routes)))
        macs += inner.weight.size * pixels
        for route in routes:
            outputs, inputs, *kernel = route.conv.weight.shape
            # 1. A route that mixes first: each tap's outputs at the coarse size, then the product with the matrix.
            if route.mixes_first:
                macs += outputs * math.prod(kernel) * math.prod(sizes[route.sources[0]]) * (inputs + pixels)
                continue
            # 2. Another route: the upsampling of coarser sources, then the convolution at the level's own size.
            macs += route.conv.weight.size * pixels
            for source in route.sources:
                if source > level:
                    macs += _upsampling(len(net.inner[source].weight), sizes[source], sizes[level])
    return parameters, macs


def _fusion_cost(net: ir.FusionNet, sizes: Sequence[_Size]) -> tuple[int, int]:
    """Count the parameters and multiply-accumulates of MSFlow's subnet, which mixes at the coarsest size."""
    coarsest = sizes[-1]
    mixing = (net.conv1, net.norm, net.conv2)
    parameters = sum(_layer_parameters(layer) for layer in mixing)
    macs = sum(_layer_macs(layer) for layer in mixing) * math.prod(coarsest)
    for heads, size in zip(net.heads, sizes, strict=True):
        parameters += sum(_layer_parameters(conv) for conv in heads)
        macs += sum(_layer_macs(conv) for conv in heads) * math.prod(size)
        if size != coarsest:
            macs += _upsampling(heads[0].weight.shape[1], coarsest, size)
    return parameters, macs


def _upsampling(channels: int, source: _Size, target: _Size) -> int:
    """Count the multiply-accumulates of a product with a matrix from the left and one from the right."""
    return channels * target[0] * source[1] * (source[0] + target[1])


def _layer_macs(layer: ir.SubnetLayer) -> int:
    """Count the multiply-accumulates of a layer for one pixel. The mean square of a centred norm is a convolution."""
    if isinstance(layer, ir.Relu) or (isinstance(layer, ir.ChannelNorm) and not layer.centred):
        return 0
    return layer.weight.size


def _layer_parameters(layer: ir.SubnetLayer) -> int:
    return 0 if isinstance(layer, ir.Relu) else _size(layer.weight, layer.bias)


def _size(*arrays: ir.Array | None) -> int:
    return sum(array.size for array in arrays if array is not None)
