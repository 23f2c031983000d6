"""Merge and reorder convolutions of CS-Flow's and MSFlow's couplings across levels, in passes over the flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flowedge.export.graph import ir
from flowedge.export.graph.rewriting import CrossNet, bias_of, float32, rewrite_cross_nets, scale_rows


def merge_scale_and_shift_heads(model: ir.FlowModel) -> ir.FlowModel:
    """MSFlow's convolutions for scale and shift, which read one input, become one convolution with both outputs."""

    def merged(net: CrossNet) -> CrossNet:
        if isinstance(net, ir.CrossScaleNet):
            return net
        return dataclasses.replace(net, heads=tuple((_stacked(heads),) for heads in net.heads))

    return rewrite_cross_nets(model, merged)


def mix_channels_before_upsampling(model: ir.FlowModel) -> ir.FlowModel:
    """CS-Flow's convolutions of an upsampled map mix its channels before the upsampling, on four times fewer pixels.

    A product with one constant matrix then upsamples the mixed channels, shifts them and sums them. The matrix grows
    with the square of the number of pixels. So the pass changes a convolution only where that saves
    multiply-accumulates and the matrix is no larger than the weights. A convolution of few channels saves little.
    """
    sizes = [level.height * level.width for level in model.levels]

    def cheaper(level: int, route: ir.Route) -> bool:
        if len(route.sources) != 1 or route.sources[0] <= level:
            return False
        # Per output channel and tap: mixing at the coarse level and the product with the matrix, against mixing at
        # the fine level.
        coarse, fine = sizes[route.sources[0]], sizes[level]
        outputs, channels = route.conv.weight.shape[:2]
        return bool(coarse * (channels + fine) < fine * channels and coarse * fine <= outputs * channels)

    def mixing_first(net: CrossNet) -> CrossNet:
        if isinstance(net, ir.FusionNet):
            return net
        routes = tuple(
            _biases_in_first(
                [dataclasses.replace(route, mixes_first=cheaper(level, route)) for route in routes]
            )
            for level, routes in enumerate(net.routes)
        )
        return dataclasses.replace(net, routes=routes)

    return rewrite_cross_nets(model, mixing_first)


def merge_cross_convolutions(model: ir.FlowModel) -> ir.FlowModel:
    """CS-Flow's factors gamma go into the weights, and convolutions of one stride become one over all their inputs.

    A convolution that mixes channels before their upsampling is not merged with others.
    """

    def merged(net: CrossNet) -> CrossNet:
        if isinstance(net, ir.FusionNet):
            return net
        routes = tuple(
            tuple(_joined(alike, gain) for alike in _groups(routes))
            for routes, gain in zip(net.routes, net.gains, strict=True)
        )
        return dataclasses.replace(net, routes=routes, gains=(1.0,) * len(net.gains))

    return rewrite_cross_nets(model, merged)


def fold_soft_clamp(model: ir.FlowModel) -> ir.FlowModel:
    """The factor ``1 / kappa`` in the soft clamp of a scale goes into the weights that compute the scale."""

    def folded(step: ir.Step) -> ir.Step:
        if not isinstance(step, ir.TwoSidedCoupling) or step.inner == 1.0:
            return step
        # net1 transforms the second halves and net2 the first ones.
        net1 = _with_scaled_outputs(step.net1, [len(half) for half in step.second], step.inner)
        net2 = _with_scaled_outputs(step.net2, [len(half) for half in step.first], step.inner)
        return dataclasses.replace(step, net1=net1, net2=net2, inner=1.0)

    return dataclasses.replace(model, steps=tuple(folded(step) for step in model.steps))


def _stacked(convs: tuple[ir.Conv, ...]) -> ir.Conv:
    """Join convolutions of one input to one that gives their outputs one after the other."""
    if len(convs) == 1:
        return convs[0]
    return ir.Conv(
        weight=np.concatenate([conv.weight for conv in convs]),
        bias=float32(np.concatenate([bias_of(conv) for conv in convs])),
    )


def _biases_in_first(routes: Sequence[ir.Route]) -> tuple[ir.Route, ...]:
    """Add the biases of routes that mix channels before the upsampling to the bias of the first route of the sum."""
    first, *others = routes
    bias = bias_of(first.conv) + sum(bias_of(route.conv) for route in others if route.mixes_first)
    return (
        dataclasses.replace(first, conv=dataclasses.replace(first.conv, bias=float32(bias))),
        *(
            dataclasses.replace(route, conv=dataclasses.replace(route.conv, bias=None))
            if route.mixes_first
            else route
            for route in others
        ),
    )


def _groups(routes: tuple[ir.Route, ...]) -> list[list[ir.Route]]:
    """Group the routes of one level so that one convolution can compute each group."""
    # One convolution has one stride. Routes that mix first are convolutions at another level's size.
    groups: dict[tuple[int, bool], list[ir.Route]] = {}
    for route in routes:
        groups.setdefault((route.stride, route.mixes_first), []).append(route)
    return list(groups.values())


def _joined(routes: list[ir.Route], gain: float) -> ir.Route:
    """Join routes of one stride to one convolution of all their inputs, with its weights multiplied by ``gain``."""
    # The sources are concatenated, so the weights are joined along the inputs and the biases are summed.
    weight = np.concatenate([route.conv.weight for route in routes], axis=1)
    bias = None
    if not routes[0].mixes_first:
        bias = float32(sum((bias_of(route.conv) for route in routes), np.zeros(len(weight))))
    conv = scale_rows(ir.Conv(weight=weight, bias=bias), np.full(len(weight), gain))
    sources = tuple(source for route in routes for source in route.sources)
    return dataclasses.replace(routes[0], sources=sources, conv=conv)


def _with_scaled_outputs(net: CrossNet, rows: list[int], factor: float) -> CrossNet:
    """Multiply the first ``rows[l]`` output channels of a subnet on each level l by a factor."""

    def scaled(conv: ir.Conv, count: int) -> ir.Conv:
        factors = np.ones(len(conv.weight))
        factors[:count] = factor
        return scale_rows(conv, factors)

    # The first convolution of MSFlow's heads gives S, and so do the first rows once the heads are merged.
    if isinstance(net, ir.FusionNet):
        heads = tuple((scaled(one[0], count), *one[1:]) for one, count in zip(net.heads, rows, strict=True))
        return dataclasses.replace(net, heads=heads)
    routes = tuple(
        tuple(dataclasses.replace(route, conv=scaled(route.conv, count)) for route in routes)
        for routes, count in zip(net.routes, rows, strict=True)
    )
    return dataclasses.replace(net, routes=routes)
