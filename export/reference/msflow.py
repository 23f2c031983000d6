"""Build the reference network of MSFlow (Zhou et al., TNNLS 2024): FrEIA's parallel flows, then the fusion flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, relu

from flowedge.export.checkpoints.checkpoint import Checkpoint, Tensors
from flowedge.export.reference.answers import ReferenceNetwork
from flowedge.export.reference.cflow import sinusoids
from flowedge.export.reference.csflow import PermutedCoupling, ScaleAndShift, TwoSidedCoupling, convolution
from flowedge.export.reference.freia_sequence import freia_sequence


class MsflowReference(ReferenceNetwork):
    """MSFlow's reference network.

    ``forward(image)`` gives per level the log-likelihood per dimension without its constants, ``(N, 1, h, w)``.
    """

    def __init__(
        self, checkpoint: Checkpoint, backbone: nn.Module, shapes: Sequence[tuple[int, int, int]]
    ) -> None:
        super().__init__()
        tensors = checkpoint.tensors
        self.backbone = backbone
        self.pool = _pool(checkpoint.hyperparameters["pool_type"])
        self.flows = nn.ModuleList()
        self.conditions: list[Tensor | None] = []
        for level, (channels, *size) in enumerate(shapes):
            height, width = self.pool(torch.zeros(1, 1, *size)).shape[2:]
            inputs = int(tensors[f"flow.{level}.0.subnet.0.weight"].shape[1])
            length = inputs - (channels - channels // 2)
            subnet = _subnet(tensors, level)
            shape = (channels, height, width)
            self.flows.append(freia_sequence(checkpoint, level, shape, length, subnet))
            self.conditions.append(_position_code(length, height, width) if length else None)
        clamp = checkpoint.hyperparameters["clamp"]
        assert isinstance(clamp, (int, float))
        nets = [FusionNet(tensors, f"fusion.{net}.", len(shapes)) for net in ("net1", "net2")]
        indices = [tensors[f"fusion.perm.{level}"] for level in range(len(shapes))]
        self.fusion = PermutedCoupling(indices, TwoSidedCoupling(*nets, clamp=clamp))

    def answer(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        latents = self._flowed(image)
        return [-0.5 * z.square().mean(1, keepdim=True) for z in latents], latents

    def _flowed(self, image: Tensor) -> list[Tensor]:
        with torch.no_grad():
            latents = []
            for feature, flow, condition in zip(
                self.backbone(image), self.flows, self.conditions, strict=True
            ):
                conditions = () if condition is None else (condition.expand(len(image), -1, -1, -1),)
                z, _ = flow(self.pool(feature), conditions)
                latents.append(z)
            fused: list[Tensor] = self.fusion(latents)
            return fused


class FusionNet(nn.Module):
    """MSFlow's subnet: all levels are mixed at the coarsest size, and the mixture is added to each level."""

    def __init__(self, tensors: Tensors, prefix: str, levels: int) -> None:
        super().__init__()
        self.conv1 = convolution(tensors, f"{prefix}cross_convs.conv1")
        self.norm = ChannelLayerNorm(self.conv1.out_channels)
        state = {
            name: torch.from_numpy(np.array(tensors[f"{prefix}cross_convs.norm.{name}"]))
            for name in ("weight", "bias")
        }
        self.norm.load_state_dict(state)
        self.conv2 = convolution(tensors, f"{prefix}cross_convs.conv2")
        self.scales = nn.ModuleList(
            convolution(tensors, f"{prefix}conv_s.{level}") for level in range(levels)
        )
        self.shifts = nn.ModuleList(
            convolution(tensors, f"{prefix}conv_t.{level}") for level in range(levels)
        )

    def forward(self, levels: Sequence[Tensor]) -> list[ScaleAndShift]:
        _, _, height, width = levels[-1].shape
        meeting = torch.cat([adaptive_avg_pool2d(v, (height, width)) for v in levels], 1)
        meeting = relu(self.conv2(relu(self.norm(self.conv1(meeting)))))
        parts = torch.split(meeting, [v.shape[1] for v in levels], 1)
        corrected = [
            v + interpolate(part, v.shape[2:], mode="bilinear", align_corners=True)
            for v, part in zip(levels, parts, strict=True)
        ]
        return [
            (scale(r), shift(r)) for r, scale, shift in zip(corrected, self.scales, self.shifts, strict=True)
        ]


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of ``(N, C, H, W)``."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def _position_code(length: int, height: int, width: int) -> Tensor:
    return sinusoids(length, height, width).T.reshape(1, length, height, width)


def _subnet(tensors: Tensors, level: int) -> Callable[[int], Callable[[int, int], nn.Module]]:
    def of_block(block: int) -> Callable[[int, int], nn.Module]:
        hidden, _, kernel, _ = tensors[f"flow.{level}.{block}.subnet.0.weight"].shape

        def construct(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, hidden, kernel, padding=kernel // 2),
                ChannelLayerNorm(hidden),
                nn.ReLU(),
                nn.Conv2d(hidden, outputs, kernel, padding=kernel // 2),
            )

        return construct

    return of_block


def _pool(pool_type: object) -> nn.Module:
    """Build the pooling of 3x3 windows with stride 2.

    The average counts the zero padding, as in the official implementation.
    """
    if pool_type == "avg":
        return nn.AvgPool2d(3, 2, 1, count_include_pad=True)
    if pool_type == "max":
        return nn.MaxPool2d(3, 2, 1)
    assert pool_type == "none", pool_type
    return nn.Identity()
