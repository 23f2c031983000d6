"""Compare the modules of the couplings across levels with the formulas of the IR, in torch's own operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flowedge.export.graph import ir
from flowedge.export.graph.cross_scale import mix_channels_before_upsampling
from flowedge.export.graph.cross_scale_modules import TwoSided
from support.random_flows import random_csflow, random_msflow


def convolved(conv: ir.Conv, x: Tensor, stride: int = 1) -> Tensor:
    weight = torch.from_numpy(conv.weight).double()
    bias = None if conv.bias is None else torch.from_numpy(conv.bias).double()
    return functional.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)


def cross_scale(net: ir.CrossScaleNet, x: Sequence[Tensor]) -> list[Tensor]:
    hidden = [
        functional.leaky_relu(convolved(conv, value), 0.1) for conv, value in zip(net.inner, x, strict=True)
    ]
    outputs = []
    for level, (routes, gain) in enumerate(zip(net.routes, net.gains, strict=True)):
        size = x[level].shape[2:]
        parts = [
            convolved(
                route.conv,
                torch.cat(
                    [
                        functional.interpolate(hidden[source], size, mode="bilinear")
                        if source > level
                        else hidden[source]
                        for source in route.sources
                    ],
                    1,
                ),
                route.stride,
            )
            for route in routes
        ]
        outputs.append(gain * torch.stack(parts).sum(0))
    return outputs


def fusion(net: ir.FusionNet, x: Sequence[Tensor]) -> list[Tensor]:
    coarsest = (x[-1].shape[2], x[-1].shape[3])
    pooled = torch.cat([functional.adaptive_avg_pool2d(value, coarsest) for value in x], 1)
    mixed = convolved(net.conv1, pooled).movedim(1, -1)
    mixed = functional.layer_norm(
        mixed,
        mixed.shape[-1:],
        torch.from_numpy(net.norm.weight).double(),
        torch.from_numpy(net.norm.bias).double(),
        net.norm.eps,
    ).movedim(-1, 1)
    mixed = torch.relu(convolved(net.conv2, torch.relu(mixed)))
    outputs = []
    for value, share, heads in zip(
        x, torch.split(mixed, [len(value[0]) for value in x], 1), net.heads, strict=True
    ):
        up = functional.interpolate(share, value.shape[2:], mode="bilinear", align_corners=True)
        outputs.append(torch.cat([convolved(head, value + up) for head in heads], 1))
    return outputs


def subnet(net: ir.CrossScaleNet | ir.FusionNet, x: Sequence[Tensor]) -> list[Tensor]:
    return cross_scale(net, x) if isinstance(net, ir.CrossScaleNet) else fusion(net, x)


def coupled(step: ir.TwoSidedCoupling, x: Sequence[Tensor]) -> list[Tensor]:
    def transformed(halves: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
        pairs = [output.chunk(2, 1) for output in outputs]
        return [
            torch.exp(0.636 * step.kappa * torch.atan(step.inner * s)) * half + t
            for half, (s, t) in zip(halves, pairs, strict=True)
        ]

    first = [value[:, index] for value, index in zip(x, step.first, strict=True)]
    second = [value[:, index] for value, index in zip(x, step.second, strict=True)]
    first = transformed(first, subnet(step.net2, second))
    second = transformed(second, subnet(step.net1, first))
    return [torch.cat(halves, 1).clip(-step.limit, step.limit) for halves in zip(first, second, strict=True)]


@pytest.mark.parametrize("inner", [1.0, 0.4])
@pytest.mark.parametrize("limit", [2.0, 1e6])
@pytest.mark.parametrize("family", [random_csflow, random_msflow])
def test_a_coupling_across_levels_computes_what_its_paper_writes(
    family: Callable[[int], ir.FlowModel], limit: float, inner: float
) -> None:
    model = family(3)
    sizes = [(level.height, level.width) for level in model.levels]
    for step in model.steps:
        if not isinstance(step, ir.TwoSidedCoupling):
            continue
        changed = ir.TwoSidedCoupling(
            streams=step.streams,
            first=step.first,
            second=step.second,
            net1=step.net1,
            net2=step.net2,
            kappa=step.kappa,
            inner=inner,
            limit=limit,
        )
        torch.manual_seed(0)
        x = [
            torch.randn(2, level.channels, *size).double()
            for level, size in zip(model.levels, sizes, strict=True)
        ]
        with torch.no_grad():
            found = TwoSided(changed, sizes).double()(x)
        for one, other in zip(found, coupled(changed, x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_route_that_mixes_channels_first_computes_the_upsampled_convolution(kernel: int) -> None:
    model = mix_channels_before_upsampling(random_csflow(4, hidden=40, kernels=[kernel]))
    step = model.steps[-1]
    assert isinstance(step, ir.TwoSidedCoupling)
    assert isinstance(step.net1, ir.CrossScaleNet)
    assert any(route.mixes_first for routes in step.net1.routes for route in routes)
    sizes = [(level.height, level.width) for level in model.levels]
    torch.manual_seed(1)
    x = [torch.randn(2, 7, *size).double() for size in sizes]
    with torch.no_grad():
        found = TwoSided(step, sizes).double()(x)
    for one, other in zip(found, coupled(step, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
