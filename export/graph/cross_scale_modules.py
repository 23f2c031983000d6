"""Build torch modules for the couplings that work on all levels at once: CS-Flow's and MSFlow's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flowedge.export.graph import ir
from flowedge.export.graph.layers import Convolution, module_of_layer
from flowedge.resampling import bilinear_matrix

_SOFT_CLAMP: Final = 0.636
_SLOPE: Final = 0.1


class TwoSided(nn.Module):
    """Run a coupling that works on all levels: ``forward(streams)`` gives the streams after the coupling."""

    def __init__(self, step: ir.TwoSidedCoupling, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self._step = step
        self.net1 = _net(step.net1, sizes)
        self.net2 = _net(step.net2, sizes)
        for place, (first, second) in enumerate(zip(step.first, step.second, strict=True)):
            self.register_buffer(f"first_{place}", torch.from_numpy(first))
            self.register_buffer(f"second_{place}", torch.from_numpy(second))

    def forward(self, streams: Sequence[Tensor]) -> list[Tensor]:
        first = [torch.index_select(x, 1, self.get_buffer(f"first_{n}")) for n, x in enumerate(streams)]
        second = [torch.index_select(x, 1, self.get_buffer(f"second_{n}")) for n, x in enumerate(streams)]
        first = self._transformed(first, self.net2(second))
        second = self._transformed(second, self.net1(first))
        limit = self._step.limit
        return [
            torch.clamp(torch.cat(halves, 1), -limit, limit) for halves in zip(first, second, strict=True)
        ]

    def _transformed(self, halves: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
        return [self._affine(x, output) for x, output in zip(halves, outputs, strict=True)]

    def _affine(self, x: Tensor, output: Tensor) -> Tensor:
        s, t = torch.split(output, x.shape[1], 1)
        if self._step.inner != 1.0:
            s = s * self._step.inner
        return x * torch.exp(_SOFT_CLAMP * self._step.kappa * torch.atan(s)) + t


class _CrossScale(nn.Module):
    """Run CS-Flow's subnet: ``forward`` takes and gives one map per level."""

    def __init__(self, net: ir.CrossScaleNet, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self._net = net
        self.inner = nn.ModuleList(Convolution(conv.weight, conv.bias) for conv in net.inner)
        self.routes = nn.ModuleList(
            nn.ModuleList(_module_of_route(route, level, sizes) for route in routes)
            for level, routes in enumerate(net.routes)
        )
        self.up = nn.ModuleList(
            _Upsample(sizes[coarse], sizes[coarse - 1], align_corners=False)
            for coarse in range(1, len(sizes))
        )

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        hidden = [
            functional.leaky_relu(conv(value), _SLOPE) for conv, value in zip(self.inner, x, strict=True)
        ]
        outputs = []
        for level, (routes, convs, gain) in enumerate(
            zip(self._net.routes, self.routes, self._net.gains, strict=True)
        ):
            # A coarser level is upsampled before its convolution, unless the route mixes channels first.
            parts = []
            for route, conv in zip(routes, cast(nn.ModuleList, convs), strict=True):
                read = [
                    self.up[source - 1](hidden[source])
                    if source > level and not route.mixes_first
                    else hidden[source]
                    for source in route.sources
                ]
                parts.append(conv(read[0] if len(read) == 1 else torch.cat(read, 1)))
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            outputs.append(total if gain == 1.0 else total * gain)
        return outputs


def _module_of_route(route: ir.Route, level: int, sizes: Sequence[tuple[int, int]]) -> nn.Module:
    if route.mixes_first:
        (source,) = route.sources
        assert route.conv.bias is None
        return _MixingFirst(route.conv.weight, sizes[source], sizes[level])
    return Convolution(route.conv.weight, route.conv.bias, route.stride)


class _MixingFirst(nn.Module):
    """Compute ``conv(upsample(x))`` with the channels mixed before the upsampling, at the coarse size.

    Mixing the channels is a 1x1 convolution for each tap of the kernel. The convolution has no bias.
    """

    def __init__(self, weight: ir.Array, source: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        outputs, inputs, *kernel = weight.shape
        self.taps = Convolution(weight.transpose(0, 2, 3, 1).reshape(-1, inputs, 1, 1), None)
        self.up = _UpsampleTaps(outputs, source, target, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.up(self.taps(x)))


class _UpsampleTaps(nn.Module):
    """Upsample the outputs of a kernel's taps, shift each by its tap, and sum them, by one product with a matrix."""

    matrix: Tensor

    def __init__(
        self, outputs: int, source: tuple[int, int], target: tuple[int, int], kernel: Sequence[int]
    ) -> None:
        super().__init__()
        self._outputs, self._target = outputs, target
        rows, columns = (_shifted(*lengths) for lengths in zip(target, source, kernel, strict=True))
        matrix = np.einsum("aoi,bpj->abijop", rows, columns, dtype=np.float32)
        self.register_buffer("matrix", torch.from_numpy(matrix.reshape(-1, math.prod(target))))

    def forward(self, x: Tensor) -> Tensor:
        product = torch.reshape(x, (-1, self._outputs, len(self.matrix))) @ self.matrix
        return torch.reshape(product, (-1, self._outputs, *self._target))


def _shifted(target: int, source: int, kernel: int) -> NDArray[np.float32]:
    """Return ``[kernel, target, source]``: for each tap, a matrix that upsamples along one axis and shifts by the tap.

    Positions that the zero-padded kernel reads outside of the map are rows of zeros.
    """
    up = bilinear_matrix(target, source, align_corners=False)
    padded = np.pad(up, ((kernel // 2, kernel // 2), (0, 0)))
    return np.stack([padded[tap : tap + target] for tap in range(kernel)])


class _Fusion(nn.Module):
    """Run MSFlow's subnet: ``forward`` takes and gives one map per level."""

    def __init__(self, net: ir.FusionNet, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        coarsest = sizes[-1]
        self._coarsest = coarsest
        self.mix = nn.Sequential()
        for name, module in (
            ("first", Convolution(net.conv1.weight, net.conv1.bias)),
            ("norm", module_of_layer(net.norm)),
            ("first_act", nn.ReLU()),
            ("second", Convolution(net.conv2.weight, net.conv2.bias)),
            ("second_act", nn.ReLU()),
        ):
            self.mix.add_module(name, module)
        self.up = nn.ModuleList(
            nn.Identity() if size == coarsest else _Upsample(coarsest, size, align_corners=True)
            for size in sizes
        )
        self.heads = nn.ModuleList(
            nn.ModuleList(Convolution(conv.weight, conv.bias) for conv in heads) for heads in net.heads
        )

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        # A level of the coarsest size needs no pooling, and an engine would copy it.
        pooled = [
            value
            if value.shape[2:] == self._coarsest
            else functional.adaptive_avg_pool2d(value, self._coarsest)
            for value in x
        ]
        mixed = torch.split(self.mix(torch.cat(pooled, 1)), [value.shape[1] for value in x], 1)
        outputs = []
        for value, share, up, heads in zip(x, mixed, self.up, self.heads, strict=True):
            corrected = value + up(share)
            parts = [head(corrected) for head in cast(nn.ModuleList, heads)]
            outputs.append(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
        return outputs


class _Upsample(nn.Module):
    """Resize a map bilinearly by two products with constant matrices, one for rows and one for columns."""

    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], target: tuple[int, int], *, align_corners: bool) -> None:
        super().__init__()
        rows = bilinear_matrix(target[0], source[0], align_corners=align_corners)
        columns = bilinear_matrix(target[1], source[1], align_corners=align_corners)
        self.register_buffer("rows", torch.from_numpy(rows))
        self.register_buffer("columns", torch.from_numpy(columns).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns


def _net(net: ir.CrossScaleNet | ir.FusionNet, sizes: Sequence[tuple[int, int]]) -> nn.Module:
    return _CrossScale(net, sizes) if isinstance(net, ir.CrossScaleNet) else _Fusion(net, sizes)
