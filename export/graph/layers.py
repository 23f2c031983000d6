"""The layers of subnets, and constants, as torch has them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowedge.export.graph import ir


class _ChannelNorm(nn.Module):
    """Layer normalisation over axis 1 of ``(N, C, H, W)``.

    Of a centred input the mean square is a convolution: engines' reductions over channels take longer than it does.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: ir.ChannelNorm) -> None:
        super().__init__()
        self._eps = layer.eps
        self.register_buffer("weight", per_channel(layer.weight))
        self.register_buffer("bias", per_channel(layer.bias))
        count = len(layer.weight)
        self.mean = parameter(np.full((1, count, 1, 1), 1 / count, np.float32)) if layer.centred else None

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is not None:
            variance = functional.conv2d(x * x, self.mean)
        else:
            x = x - x.mean(1, keepdim=True)
            variance = (x * x).mean(1, keepdim=True)
        return x * torch.rsqrt(variance + self._eps) * self.weight + self.bias


class _PerPosition(nn.Module):
    """``Linear`` as the papers write it: rows are positions."""

    def __init__(self, layer: ir.Linear) -> None:
        super().__init__()
        self.weight = parameter(layer.weight)
        self.bias = None if layer.bias is None else parameter(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class Convolution(nn.Module):
    """A convolution, zero-padded by ``k // 2``."""

    def __init__(self, weight: ir.Array, bias: ir.Array | None, stride: int = 1) -> None:
        super().__init__()
        self._stride = stride
        self.weight = parameter(weight)
        self.bias = None if bias is None else parameter(bias)
        self._padding = weight.shape[-1] // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias, stride=self._stride, padding=self._padding)


def module_of_layer(layer: ir.SubnetLayer) -> nn.Module:
    """One layer of a subnet."""
    match layer:
        case ir.Linear():
            return _PerPosition(layer)
        case ir.Conv():
            return Convolution(layer.weight, layer.bias)
        case ir.ChannelNorm():
            return _ChannelNorm(layer)
        case ir.Relu():
            return nn.ReLU()


def per_channel(values: ir.Array | None) -> Tensor | None:
    """``(C,)`` as ``(1, C, 1, 1)``."""
    return None if values is None else torch.from_numpy(values)[None, :, None, None]


def parameter(values: ir.Array) -> nn.Parameter:
    """A constant of the graph."""
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(values)), requires_grad=False)
