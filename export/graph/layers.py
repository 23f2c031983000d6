"""Build torch modules and parameters from the layers and arrays of the IR."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowedge.export.graph import ir


class _ChannelNorm(nn.Module):
    """Layer normalisation over axis 1 of ``(N, C, H, W)``.

    The mean square of a centred input is a 1x1 convolution, because engines take longer for a reduction over channels.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: ir.ChannelNorm) -> None:
        super().__init__()
        self._eps = layer.eps
        self.register_buffer("weight", per_channel(layer.weight))
        self.register_buffer("bias", per_channel(layer.bias))
        # Weights of 1 / C make a convolution compute the mean over the channels.
        count = len(layer.weight)
        self.mean = parameter(np.full((1, count, 1, 1), 1 / count, np.float32)) if layer.centred else None

    def forward(self, x: Tensor) -> Tensor:
        # 1. The mean of a centred input is zero, so its variance is the mean square. 2. Others subtract the mean first.
        if self.mean is not None:
            variance = functional.conv2d(x * x, self.mean)
        else:
            x = x - x.mean(1, keepdim=True)
            variance = (x * x).mean(1, keepdim=True)
        return x * torch.rsqrt(variance + self._eps) * self.weight + self.bias


class _PerPosition(nn.Module):
    """A linear layer that is run as the papers write it, with positions as rows."""

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
    """Build the module of one layer of a subnet."""
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
    """Reshape a constant ``(C,)`` to ``(1, C, 1, 1)``, or return None for None."""
    return None if values is None else torch.from_numpy(values)[None, :, None, None]


def parameter(values: ir.Array) -> nn.Parameter:
    """Make a constant of the graph that takes no gradient."""
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(values)), requires_grad=False)
