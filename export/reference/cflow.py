"""Build the reference network of CFLOW from FrEIA's modules, position by position, as its paper writes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.reference.answers import ReferenceNetwork
from flowedge.export.reference.freia_sequence import freia_sequence


class CflowReference(ReferenceNetwork):
    """CFLOW's reference network.

    ``forward(image)`` gives per level the log-likelihood per dimension without its constants, ``(N, 1, h, w)``.
    """

    def __init__(
        self, checkpoint: Checkpoint, backbone: nn.Module, shapes: Sequence[tuple[int, int, int]]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.flows = nn.ModuleList()
        self.conditions: list[Tensor | None] = []
        self._constants: list[float] = []
        for level, (channels, height, width) in enumerate(shapes):
            tensors = checkpoint.tensors
            length = int(tensors[f"flow.{level}.0.subnet.0.weight"].shape[1]) - (channels - channels // 2)
            hidden = int(tensors[f"flow.{level}.0.subnet.0.weight"].shape[0])
            flow = freia_sequence(checkpoint, level, (channels,), length, _subnet(hidden))
            self.flows.append(flow)
            code = sinusoids(length, height, width) if length else None
            self.conditions.append(code)
            # The graph leaves out the constants of the likelihood, which the global scales are a part of.
            blocks: Any = flow.module_list
            scales = [block.global_scale_activation(block.global_scale).double() for block in blocks]
            log_scales = sum(float(scale.log().sum()) for scale in scales)
            self._constants.append(log_scales / channels - 0.5 * math.log(2 * math.pi))

    def answer(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        levels, latents = [], []
        for (z, log_det), constant in zip(self._flowed(image), self._constants, strict=True):
            channels = z.shape[1]
            energy = (z**2).sum(1, keepdim=True)
            log_likelihood = -0.5 * channels * math.log(2 * math.pi) - 0.5 * energy + log_det
            levels.append(log_likelihood / channels - constant)
            latents.append(z)
        return levels, latents

    def _flowed(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Compute z ``(N, C, h, w)`` and the log-determinant ``(N, 1, h, w)`` of each level."""
        flowed = []
        with torch.no_grad():
            for feature, flow, condition in zip(
                self.backbone(image), self.flows, self.conditions, strict=True
            ):
                batch, channels, height, width = feature.shape
                rows = feature.permute(0, 2, 3, 1).reshape(-1, channels)
                conditions = () if condition is None else (condition.repeat(batch, 1),)
                z, log_det = flow(rows, conditions)
                flowed.append(
                    (
                        z.reshape(batch, height, width, channels).permute(0, 3, 1, 2),
                        log_det.reshape(batch, 1, height, width),
                    )
                )
        return flowed


def sinusoids(length: int, height: int, width: int) -> Tensor:
    """Compute the position code ``(height * width, length)``: the column's code, then the row's code."""
    half = length // 2
    frequency = torch.exp(torch.arange(0.0, half, 2) * -(math.log(10000.0) / half))
    code = torch.zeros(length, height, width)
    column = torch.arange(0.0, width)[None, :] * frequency[:, None]
    row = torch.arange(0.0, height)[None, :] * frequency[:, None]
    code[0:half:2] = torch.sin(column)[:, None, :]
    code[1:half:2] = torch.cos(column)[:, None, :]
    code[half::2] = torch.sin(row)[:, :, None]
    code[half + 1 :: 2] = torch.cos(row)[:, :, None]
    return code.permute(1, 2, 0).reshape(-1, length)


def _subnet(hidden: int) -> Callable[[int], Callable[[int, int], nn.Module]]:
    def construct(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    return lambda _block: construct
