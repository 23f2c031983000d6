"""Build a torch module from a ``FlowModel``, for the tracer that writes ONNX.

Every step of the IR has one small module here. Each module runs the step both as the paper writes it and after the
passes. So one emitter serves the exported graph, the tests that compare a flow before and after a pass, and the
ablation in the benchmark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowedge.export.graph import ir
from flowedge.export.graph.cross_scale_modules import TwoSided
from flowedge.export.graph.exceedances import counts_of
from flowedge.export.graph.layers import Convolution, module_of_layer, parameter, per_channel
from flowedge.export.graph.score import SCORE_SCOPE, ScoreModule
from flowedge.manifest import NfaOutputs


class Flow(nn.Module):
    """The flow of a model, from the features to one map per level.

    ``forward`` takes one ``(N, C_l, h_l, w_l)`` tensor per level, fine to coarse, and returns one
    ``(N, 1, h_l, w_l)`` tensor per level. The map holds the log-likelihood per dimension without its constants where
    the score needs the log-determinant. Elsewhere it holds the channel mean of z squared.

    With ``nfa``, the counts of all levels follow. Before them come the energies where ``nfa.energies`` is true.
    The model must then be lowered with its latents kept.
    """

    def __init__(self, model: ir.FlowModel, nfa: NfaOutputs | None = None) -> None:
        super().__init__()
        self._levels = model.levels
        self._program = model.steps
        self._likelihood = model.scoring.normalisation != "none"
        self.steps = nn.ModuleList(_module_of(step, model) for step in model.steps)
        self.energies = nn.ModuleList(_Energy(level) for level in model.levels)
        self._gives_energies = nfa is not None and nfa.energies
        self.counts = nn.ModuleList() if nfa is None else counts_of(model, nfa)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        # Most steps change one stream. The cases are the steps that change several or give something beside it.
        streams = dict(enumerate(features))
        exponents: dict[int, list[Tensor]] = {number: [] for number in streams}
        for step, module in zip(self._program, self.steps, strict=True):
            match step:
                case ir.Coupling():
                    streams[step.stream], exponent = module(streams[step.stream])
                    if exponent is not None:
                        exponents[step.stream].append(exponent)
                case ir.Split():
                    streams[step.into], streams[step.stream] = module(streams[step.stream])
                case ir.Concat():
                    streams[step.stream] = module(streams[step.stream], streams.pop(step.other))
                case ir.TwoSidedCoupling():
                    changed = module([streams[number] for number in step.streams])
                    streams.update(zip(step.streams, changed, strict=True))
                case _:
                    streams[step.stream] = module(streams[step.stream])
        # The streams are latents now. Each level's map needs their energy and the exponents of its couplings.
        energies = [energy(streams[number]) for number, energy in enumerate(self.energies)]
        levels = [
            self._statistic(number, energy, exponents[number]) for number, energy in enumerate(energies)
        ]
        counts = [count(streams[number]) for number, count in enumerate(self.counts)]
        return [*levels, *(energies if self._gives_energies else ()), *counts]

    def _statistic(self, number: int, energy: Tensor, exponents: list[Tensor]) -> Tensor:
        """Compute a level's map ``(N, 1, h, w)`` from its energy and the exponents of its couplings."""
        channels = self._levels[number].channels
        if not self._likelihood:
            return energy / channels
        if not exponents:
            return energy * (-0.5 / channels)
        # Adding the exponents first leaves one sum over channels.
        log_det = exponents[0]
        for exponent in exponents[1:]:
            log_det = log_det + exponent
        return (log_det.sum(1, keepdim=True) - 0.5 * energy) / channels


class DetectorModule(nn.Module):
    """The whole graph of a bundle: backbone, flow and score, and optionally the preprocessing.

    ``forward`` takes ``image (N, 3, H, W)`` float32, or with ``preprocess`` a ``frame (N, H_src, W_src, 3)`` uint8.
    ``forward`` returns ``score (N,)``, ``anomaly_map (N, 1, H, W)``, MSFlow's multiplied map, and the outputs of
    `Flow`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        model: ir.FlowModel,
        nfa: NfaOutputs | None = None,
        preprocess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._levels = len(model.levels)
        self.preprocess = preprocess
        self.backbone = backbone
        self.flow = Flow(model, nfa)
        # The tracer names the score's constants after this attribute, and calibration looks for them by that name.
        self.add_module(SCORE_SCOPE, ScoreModule(model))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.preprocess is not None:
            image = self.preprocess(image)
        given = self.flow(self.backbone(image))
        return (*self.score_module(given[: self._levels]), *given)

    @property
    def score_module(self) -> nn.Module:
        """The module that computes the anomaly map and the score from the levels."""
        return self.get_submodule(SCORE_SCOPE)


class _Coupling(nn.Module):
    """Run a coupling on one stream: ``forward(x)`` gives the stream after it, and the log-scale or None."""

    passive: Tensor
    active: Tensor

    def __init__(self, step: ir.Coupling, size: tuple[int, int]) -> None:
        super().__init__()
        self._gain, self._alpha, self._inner = step.gain, step.alpha, step.inner
        self._log_det = step.log_det
        self.register_buffer("passive", torch.from_numpy(step.passive))
        self.register_buffer("active", torch.from_numpy(step.active))
        self.subnet = _Subnet(step.subnet, len(step.active))
        self.condition = None if step.condition is None else _Position(step.condition, size)
        # The passes leave an offset on the passive half alone, and a sum over half of the channels is half as long.
        width = len(step.passive)
        self.after_passive = _ScaleAndOffset(step, slice(None, width))
        self.after_active = _ScaleAndOffset(step, slice(width, None))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        passive = torch.index_select(x, 1, self.passive)
        active = torch.index_select(x, 1, self.active)
        read = passive if self.condition is None else torch.cat([passive, *self.condition.maps(x)], 1)
        # a is the raw exponent of the active half, t its shift.
        a, t = self.subnet(read)
        # Neutral values are left out of the graph: an engine would multiply by one.
        if self._gain != 1.0:
            a, t = a * self._gain, t * self._gain
        exponent = self._alpha * torch.tanh(a if self._inner == 1.0 else a * self._inner)
        changed = active * torch.exp(exponent) + t
        y = torch.cat([self.after_passive(passive), self.after_active(changed)], 1)
        return y, exponent if self._log_det else None


class _ScaleAndOffset(nn.Module):
    """Multiply some channels that a coupling writes by its scale, and add its offset, where these are not neutral."""

    scale: Tensor | None
    offset: Tensor | None

    def __init__(self, step: ir.Coupling, channels: slice) -> None:
        super().__init__()
        scale = None if step.scale is None else step.scale[channels]
        offset = None if step.offset is None else step.offset[channels]
        self.register_buffer("scale", None if scale is None or np.all(scale == 1) else per_channel(scale))
        self.register_buffer("offset", None if offset is None or not np.any(offset) else per_channel(offset))

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is not None:
            x = x * self.scale
        return x if self.offset is None else x + self.offset


class _Subnet(nn.Module):
    """Run the layers of a subnet, with the last layer cut in two: one for the log-scale and one for the shift.

    A Split node after one wide layer would cost a copy of all channels on a CPU. In TensorRT it would cost ten
    layers of shape arithmetic, because the batch size is open.
    """

    def __init__(self, layers: tuple[ir.SubnetLayer, ...], active: int) -> None:
        super().__init__()
        # The calibration finds norms over channels by the name "norm" in the graph's node names.
        *trunk, last = layers
        assert isinstance(last, (ir.Conv, ir.Linear))
        self.trunk = nn.Sequential()
        for number, layer in enumerate(trunk):
            name = "norm" if isinstance(layer, ir.ChannelNorm) else str(number)
            self.trunk.add_module(name, module_of_layer(layer))
        self.scale = module_of_layer(_rows(last, slice(None, active)))
        self.shift = module_of_layer(_rows(last, slice(active, None)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.scale(x), self.shift(x)


def _rows(layer: ir.Conv | ir.Linear, rows: slice) -> ir.Conv | ir.Linear:
    """Return a layer with some of its output channels only."""
    bias = None if layer.bias is None else layer.bias[rows]
    return dataclasses.replace(layer, weight=layer.weight[rows], bias=bias)


class _Position(nn.Module):
    """Give the constant position maps ``(1, P, H, W)`` that a subnet reads, expanded to the batch."""

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
        # The maps are stored along one axis and expanded along the other, so the file stays small.
        self._size = size
        self.register_buffer("columns", torch.from_numpy(columns)[None, :, None, :])
        self.register_buffer("rows", torch.from_numpy(rows)[None, :, :, None])

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps that depend on the column and the maps that depend on the row."""
        batch = x.shape[0]
        return (
            self.columns.expand(batch, -1, self._size[0], -1),
            self.rows.expand(batch, -1, -1, self._size[1]),
        )


class _PositionChannels(nn.Module):
    """Append the constant maps of the position code to the channels of the stream."""

    def __init__(self, step: ir.PositionChannels, size: tuple[int, int]) -> None:
        super().__init__()
        self.position = _Position(step.basis, size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *self.position.maps(x)], 1)


class _Gather(nn.Module):
    """Gather channels, ``y_i = x[index_i]``."""

    index: Tensor

    def __init__(self, index: ir.Index) -> None:
        super().__init__()
        self.register_buffer("index", torch.from_numpy(index))

    def forward(self, x: Tensor) -> Tensor:
        return torch.index_select(x, 1, self.index)


class _ChannelAffine(nn.Module):
    """Multiply and add a constant per channel."""

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, step: ir.ChannelAffine) -> None:
        super().__init__()
        self.register_buffer("scale", per_channel(step.scale))
        self.register_buffer("shift", per_channel(step.shift))

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is not None:
            x = x * self.scale
        return x if self.shift is None else x + self.shift


class _LayerNorm(nn.Module):
    """Layer normalisation over ``(C, H, W)`` in two passes, with each mean taken over the columns first.

    Engines add float32 in one long chain. Over the 262,144 elements of FastFlow's finest level, ONNX Runtime's
    LayerNormalization and ReduceMean lose four digits. The lost digits moved the map of FastFlow by 1.5e-4.
    """

    def __init__(self, step: ir.LayerNorm) -> None:
        super().__init__()
        self._eps = step.eps
        self.weight = parameter(step.weight)
        self.bias = parameter(step.bias)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self._mean(x)
        variance = self._mean(centred * centred)
        return centred * torch.rsqrt(variance + self._eps) * self.weight + self.bias

    def _mean(self, x: Tensor) -> Tensor:
        # Three short sums instead of a long one keep the digits.
        return x.mean(3, keepdim=True).mean(2, keepdim=True).mean(1, keepdim=True)


class _Split(nn.Module):
    """Split a stream: ``forward(x)`` gives the channels that leave it and the channels that stay."""

    def __init__(self, step: ir.Split) -> None:
        super().__init__()
        self.send = _Gather(step.send)
        self.keep = _Gather(step.keep)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.send(x), self.keep(x)


class _Concat(nn.Module):
    """Concatenate the channels of two streams."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.cat([x, other], 1)


class _Energy(nn.Module):
    """The energy of a level, ``sum over channels of z squared``, ``(N, 1, h, w)``.

    The sum is a 1x1 convolution, which engines compute faster than a reduction. The convolution's weights
    hold the latent's scale.
    """

    def __init__(self, level: ir.Level) -> None:
        super().__init__()
        scale = np.ones(level.channels, np.float32) if level.latent_scale is None else level.latent_scale
        squared = (scale.astype(np.float64) ** 2).astype(np.float32)
        self.weight = parameter(squared[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x * x, self.weight)


def _module_of(step: ir.Step, model: ir.FlowModel) -> nn.Module:
    """Build the module that runs one step."""
    match step:
        case ir.Coupling():
            return _Coupling(step, _size_of(model, step.stream))
        case ir.ChannelMap(index=None, matrix=matrix, bias=bias) if matrix is not None:
            # A product with one matrix at every pixel is a 1x1 convolution.
            return Convolution(matrix[:, :, None, None], bias)
        case ir.ChannelMap(index=index) if index is not None:
            return _Gather(index)
        case ir.ChannelAffine():
            return _ChannelAffine(step)
        case ir.PositionChannels():
            return _PositionChannels(step, _size_of(model, step.stream))
        case ir.LayerNorm():
            return _LayerNorm(step)
        case ir.Pool(kind="avg"):
            return nn.AvgPool2d(3, 2, 1, count_include_pad=True)
        case ir.Pool():
            return nn.MaxPool2d(3, 2, 1)
        case ir.Split():
            return _Split(step)
        case ir.PixelShuffle():
            return nn.PixelShuffle(2)
        case ir.Concat():
            return _Concat()
        case ir.TwoSidedCoupling():
            return TwoSided(step, [_size_of(model, stream) for stream in step.streams])
        case _:
            raise AssertionError(f"no module for {step}")


def _size_of(model: ir.FlowModel, stream: int) -> tuple[int, int]:
    """Return ``(height, width)`` of a level's stream."""
    return model.levels[stream].height, model.levels[stream].width
