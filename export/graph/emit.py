"""From a ``FlowModel`` to a torch module with forward code only, and from there to ONNX.

Every step of the IR has one small module here, and each handles the step as the paper writes it and as the passes
leave it. So one emitter serves the product (the lowered model), the property tests (before against after) and the
ablation in the benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowedge.export.graph import ir
from flowedge.export.graph.score import ScoreModule


class Flow(nn.Module):
    """The steps of a model. Features in, one latent statistic map per level out.

    ``forward`` takes one ``(N, C_l, h_l, w_l)`` tensor per level, fine to coarse, and returns one
    ``(N, 1, h_l, w_l)`` tensor per level: the log-likelihood per dimension without its constants where the score
    needs the log-determinant, else the channel mean of z squared.
    """

    def __init__(self, model: ir.FlowModel) -> None:
        super().__init__()
        self._levels = model.levels
        self._streams = [step.stream for step in model.steps]
        self._likelihood = model.scoring.normalisation != "none"
        self.steps = nn.ModuleList(_module_of(step, model) for step in model.steps)
        self.energies = nn.ModuleList(_Energy(level) for level in model.levels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        streams = list(features)
        exponents: list[list[Tensor]] = [[] for _ in streams]
        for stream, module in zip(self._streams, self.steps, strict=True):
            if isinstance(module, _Coupling):
                streams[stream], squashed = module(streams[stream])
                if squashed is not None:
                    exponents[stream].append(squashed)
            else:
                streams[stream] = module(streams[stream])
        return [
            self._statistic(energy(x), exponent, level)
            for x, energy, exponent, level in zip(
                streams, self.energies, exponents, self._levels, strict=True
            )
        ]

    def _statistic(self, energy: Tensor, exponents: list[Tensor], level: ir.Level) -> Tensor:
        if not self._likelihood:
            return energy / level.channels
        if not exponents:
            return energy * (-0.5 / level.channels)
        log_det = exponents[0]
        for exponent in exponents[1:]:
            log_det = log_det + exponent
        return (log_det.sum(1, keepdim=True) - 0.5 * energy) / level.channels


class Detector(nn.Module):
    """Backbone, flow and score: the graph's contract.

    ``image (N, 3, H, W)`` float32 in; ``score (N,)``, ``anomaly_map (N, 1, H, W)`` and the levels out.
    """

    def __init__(self, backbone: nn.Module, model: ir.FlowModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.flow = Flow(model)
        self.reference = ScoreModule(model)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        levels = self.flow(self.backbone(image))
        return (*self.reference(levels), *levels)


class _Coupling(nn.Module):
    passive: Tensor
    active: Tensor
    scale: Tensor | None
    offset: Tensor | None

    def __init__(self, step: ir.Coupling, size: tuple[int, int]) -> None:
        super().__init__()
        self._gain, self._alpha, self._inner = step.gain, step.alpha, step.inner
        self._log_det = step.log_det
        self._active = len(step.active)
        self.register_buffer("passive", torch.from_numpy(step.passive))
        self.register_buffer("active", torch.from_numpy(step.active))
        self.subnet = nn.Sequential(*(_layer(layer) for layer in step.subnet))
        self.condition = None if step.condition is None else _Position(step.condition, size)
        self.register_buffer("scale", _per_channel(step.scale))
        self.register_buffer("offset", _per_channel(step.offset))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        passive = torch.index_select(x, 1, self.passive)
        active = torch.index_select(x, 1, self.active)
        seen = passive if self.condition is None else torch.cat([passive, self.condition(x)], 1)
        raw = self.subnet(seen)
        if self._gain != 1.0:
            raw = raw * self._gain
        a, t = torch.split(raw, self._active, 1)
        exponent = self._alpha * torch.tanh(a if self._inner == 1.0 else a * self._inner)
        y = torch.cat([passive, active * torch.exp(exponent) + t], 1)
        if self.scale is not None:
            y = y * self.scale
        if self.offset is not None:
            y = y + self.offset
        return y, exponent if self._log_det else None


class _Position(nn.Module):
    """The constant maps of a condition, ``(1, P, H, W)``, widened to the batch."""

    columns: Tensor
    rows: Tensor

    def __init__(self, condition: ir.PositionCode | ir.PositionBasis, size: tuple[int, int]) -> None:
        super().__init__()
        height, width = size
        if isinstance(condition, ir.PositionCode):
            columns = ir.position_code(condition.length, width).astype(np.float32)
            rows = ir.position_code(condition.length, height).astype(np.float32)
        else:
            columns, rows = condition.columns, condition.rows
        self._size = size
        self.register_buffer("columns", torch.from_numpy(columns)[None, :, None, :])
        self.register_buffer("rows", torch.from_numpy(rows)[None, :, :, None])

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        return torch.cat(
            [
                self.columns.expand(batch, -1, self._size[0], -1),
                self.rows.expand(batch, -1, -1, self._size[1]),
            ],
            1,
        )


class _PositionChannels(nn.Module):
    def __init__(self, step: ir.PositionChannels, size: tuple[int, int]) -> None:
        super().__init__()
        self.position = _Position(step.basis, size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.position(x)], 1)


class _Gather(nn.Module):
    index: Tensor

    def __init__(self, index: ir.Index) -> None:
        super().__init__()
        self.register_buffer("index", torch.from_numpy(index))

    def forward(self, x: Tensor) -> Tensor:
        return torch.index_select(x, 1, self.index)


class _ChannelAffine(nn.Module):
    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, step: ir.ChannelAffine) -> None:
        super().__init__()
        self.register_buffer("scale", _per_channel(step.scale))
        self.register_buffer("shift", _per_channel(step.shift))

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is not None:
            x = x * self.scale
        return x if self.shift is None else x + self.shift


class _Energy(nn.Module):
    """``sum over channels of z squared``, ``(N, 1, h, w)``."""

    def __init__(self, level: ir.Level) -> None:
        super().__init__()
        scale = level.latent_scale
        squared = None if scale is None else (scale.astype(np.float64) ** 2).astype(np.float32)
        self.weight = (
            None if squared is None else nn.Parameter(torch.from_numpy(squared)[None, :, None, None])
        )

    def forward(self, x: Tensor) -> Tensor:
        square = x * x
        return square.sum(1, keepdim=True) if self.weight is None else functional.conv2d(square, self.weight)


class _ChannelNorm(nn.Module):
    """Layer normalisation over axis 1 of ``(N, C, H, W)``."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: ir.ChannelNorm) -> None:
        super().__init__()
        self._eps = layer.eps
        self.register_buffer("weight", _per_channel(layer.weight))
        self.register_buffer("bias", _per_channel(layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        return centred * torch.rsqrt(variance + self._eps) * self.weight + self.bias


class _PerPosition(nn.Module):
    """``Linear`` as the papers write it: rows are positions."""

    def __init__(self, layer: ir.Linear) -> None:
        super().__init__()
        self.weight = _parameter(layer.weight)
        self.bias = None if layer.bias is None else _parameter(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class _Conv(nn.Module):
    def __init__(self, weight: ir.Array, bias: ir.Array | None) -> None:
        super().__init__()
        self.weight = _parameter(weight)
        self.bias = None if bias is None else _parameter(bias)
        self._padding = weight.shape[-1] // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias, padding=self._padding)


def _layer(layer: ir.SubnetLayer) -> nn.Module:
    match layer:
        case ir.Linear():
            return _PerPosition(layer)
        case ir.Conv():
            return _Conv(layer.weight, layer.bias)
        case ir.ChannelNorm():
            return _ChannelNorm(layer)
        case ir.Relu():
            return nn.ReLU()


def _module_of(step: ir.Step, model: ir.FlowModel) -> nn.Module:
    level = model.levels[step.stream]
    size = (level.height, level.width)
    match step:
        case ir.Coupling():
            return _Coupling(step, size)
        case ir.ChannelMap(index=None, matrix=matrix, bias=bias) if matrix is not None:
            return _Conv(matrix[:, :, None, None], bias)
        case ir.ChannelMap(index=index) if index is not None:
            return _Gather(index)
        case ir.ChannelAffine():
            return _ChannelAffine(step)
        case ir.PositionChannels():
            return _PositionChannels(step, size)
        case _:
            raise AssertionError(f"no module for {step}")


def _per_channel(values: ir.Array | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values)[None, :, None, None]


def _parameter(values: ir.Array) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(values)), requires_grad=False)
