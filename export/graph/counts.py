"""Count the parameters and multiply-accumulates of a flow, step by step, from the IR alone.

The module `flowedge.lowering` defines what is counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from flowedge.export.graph import ir
from flowedge.export.graph.passes import Pass, lower
from flowedge.lowering import SCHEMA, Lowering, PassEffect, StepCost, Totals

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def lower_and_describe(model: ir.FlowModel, *, keep_latents: bool = False) -> tuple[ir.FlowModel, Lowering]:
    """Run every pass as `lower` does, and record the costs around each pass and the program at the end."""
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
    return lowered, Lowering(schema=SCHEMA, passes=tuple(effects), program=step_costs(lowered))


def totals(model: ir.FlowModel) -> Totals:
    """Sum the costs of the whole flow."""
    costs = step_costs(model)
    return Totals(
        steps=len(model.steps),
        parameters=sum(cost.parameters for cost in costs),
        macs=sum(cost.macs for cost in costs),
    )


def step_costs(model: ir.FlowModel) -> tuple[StepCost, ...]:
    """List the program's costs level by level, from fine to coarse.

    The steps of a level are in order, and its sum of squares is the last entry. A step that crosses levels has an
    entry in each. The channels that leave a stream by a split are listed with the level that they came from.
    """
    return tuple(sorted(_costs(model), key=lambda cost: cost.level))


def _costs(model: ir.FlowModel) -> Iterator[StepCost]:
    """Yield the costs in the program's order, and the levels' sums of squares at the end."""
    levels = dict(enumerate(range(len(model.levels))))  # by stream
    shapes = {n: (lv.feature_channels, lv.height, lv.width) for n, lv in enumerate(model.levels)}
    for number, step in enumerate(model.steps):
        if isinstance(step, ir.Split):
            levels[step.into] = levels[step.stream]
            shapes[step.into] = (len(step.send), *shapes[step.stream][1:])
        streams = step.streams if isinstance(step, ir.TwoSidedCoupling) else (step.stream,)
        for place, stream in enumerate(streams):
            shapes[stream] = _shape_after(step, place, shapes)
            parameters, macs = _cost(step, place, [shapes[one] for one in streams])
            yield StepCost(
                level=levels[stream],
                step=number,
                kind=_kind(step),
                shape=shapes[stream],
                parameters=parameters,
                macs=macs,
            )
    for number, level in enumerate(model.levels):
        weights = level.channels if level.latent_scale is None else level.latent_scale.size
        yield StepCost(
            level=number,
            step=len(model.steps) + number,
            kind="sum of squares",
            shape=(1, level.height, level.width),
            parameters=_size(level.latent_scale),
            macs=weights * level.height * level.width,
        )


def _shape_after(step: ir.Step, place: int, shapes: dict[int, tuple[int, int, int]]) -> tuple[int, int, int]:
    """Return the shape that a step leaves in its stream, or in the stream at ``place`` of a step with several."""
    match step:
        case ir.TwoSidedCoupling():
            return (len(step.first[place]) + len(step.second[place]), *shapes[step.streams[place]][1:])
        case _:
            channels, height, width = shapes[step.stream]
    match step:
        case ir.Coupling():
            channels = len(step.passive) + len(step.active)
        case ir.ChannelMap():
            channels = len(cast("NDArray[np.generic]", step.index if step.matrix is None else step.matrix))
        case ir.PositionChannels():
            channels += step.basis.length
        case ir.Split():
            channels = len(step.keep)
        case ir.PixelShuffle():
            channels, height, width = channels // 4, 2 * height, 2 * width
        case ir.Concat():
            channels += shapes[step.other][0]
        case _:
            pass
    return channels, height, width


def _cost(step: ir.Step, place: int, shapes: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """Count parameters and multiply-accumulates of a step, given the shapes that it leaves in all its streams."""
    _, height, width = shapes[place]
    match step:
        case ir.Coupling():
            pixels = height * width
            parameters = sum(_layer_parameters(layer) for layer in step.subnet)
            macs = sum(_layer_macs(layer) for layer in step.subnet)
            return parameters + _size(step.scale, step.offset), macs * pixels
        case ir.ChannelMap():
            return _size(step.matrix, step.bias), _size(step.matrix) * height * width
        case ir.ChannelAffine():
            return _size(step.scale, step.shift), 0
        case ir.LayerNorm():
            return _size(step.weight, step.bias), 0
        case ir.TwoSidedCoupling():
            sizes = [shape[1:] for shape in shapes]
            shares = [_net_share(net, place, sizes) for net in (step.net1, step.net2)]
            return sum(parameters for parameters, _ in shares), sum(macs for _, macs in shares)
        case _:
            return 0, 0


def _net_share(
    net: ir.CrossScaleNet | ir.FusionNet, level: int, sizes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Count the parameters and multiply-accumulates of a subnet that give the output of one level.

    The mixing of a fusion net counts with the coarsest level, because it is done at that level's size.
    """
    pixels = math.prod(sizes[level])
    if isinstance(net, ir.CrossScaleNet):
        convs = [net.inner[level], *(route.conv for route in net.routes[level])]
        parameters = sum(_layer_parameters(conv) for conv in convs)
        macs = net.inner[level].weight.size * pixels
        for route in net.routes[level]:
            outputs, inputs, *kernel = route.conv.weight.shape
            # 1. A route that mixes first: each tap's outputs at the coarse size, then the product with the matrix.
            if route.mixes_first:
                mixed = outputs * math.prod(kernel) * math.prod(sizes[route.sources[0]])
                macs += mixed * (inputs + pixels)
                continue
            # 2. Another route: the upsampling of coarser sources, then the convolution at the level's own size.
            macs += route.conv.weight.size * pixels
            for source in route.sources:
                if source > level:
                    macs += _upsampling(len(net.inner[source].weight), sizes[source], sizes[level])
        return parameters, macs
    heads = list(net.heads[level])
    if level + 1 == len(sizes):
        heads += [net.conv1, net.conv2]
    parameters = sum(_layer_parameters(conv) for conv in heads)
    macs = sum(_layer_macs(conv) for conv in heads) * pixels
    if level + 1 == len(sizes):
        parameters += _layer_parameters(net.norm)
        macs += _layer_macs(net.norm) * pixels
    if sizes[level] != sizes[-1]:
        macs += _upsampling(net.heads[level][0].weight.shape[1], sizes[-1], sizes[level])
    return parameters, macs


def _upsampling(channels: int, source: tuple[int, int], target: tuple[int, int]) -> int:
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


def _kind(step: ir.Step) -> str:
    """Name the kind of a step in words. A channel map is a gather or a matrix."""
    if isinstance(step, ir.ChannelMap):
        return "channel gather" if step.matrix is None else "channel matrix"
    if isinstance(step, ir.Pool):
        return f"pool {step.kind}"
    return " ".join(re.findall("[A-Z][a-z]*", type(step).__name__)).lower()
