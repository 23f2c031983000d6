"""U-Flow in real FrEIA modules, wired as the U of its paper (Tailanian, Pardo and Musé, 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from FrEIA.modules import Concat, IRevNetUpsampling, Split
from torch import Tensor, nn

from flowedge.export.checkpoints.checkpoint import Array, Checkpoint
from flowedge.export.reference.answers import ReferenceNetwork
from flowedge.export.reference.fastflow import convolutional_subnet, layer_norms
from flowedge.export.reference.freia_sequence import freia_sequence

Shape: TypeAlias = tuple[int, int, int]


class UflowReference(ReferenceNetwork):
    """``forward(image)``: per level ``(N, 1, h, w)``, the channel mean of z squared.

    A file stores the kernel of each up-sampling and the official implementation loads it, so it is used where the
    record has it: ``up.{l}.downsample_kernel``, float32 ``(4g, 1, 2, 2)``, where 4g channels of level l become g of
    level l - 1. A record without it has FrEIA's constant, a pixel shuffle.
    """

    def __init__(self, checkpoint: Checkpoint, backbone: nn.Module, shapes: Sequence[Shape]) -> None:
        super().__init__()
        self.backbone = backbone
        self.norms = layer_norms(checkpoint.tensors, shapes)
        self.flows = nn.ModuleList()
        self.ascents = nn.ModuleList()
        shape = shapes[-1]
        for level in reversed(range(len(shapes))):
            subnet = convolutional_subnet(checkpoint.tensors, level)
            self.flows.append(freia_sequence(checkpoint, level, shape, 0, subnet))
            if level:
                kernel = checkpoint.tensors.get(f"up.{level}.downsample_kernel")
                ascent = _Ascent(shape, shapes[level - 1], kernel)
                self.ascents.append(ascent)
                shape = ascent.shape

    def answer(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        latents = self._flowed(image)
        return [z.square().mean(1, keepdim=True) for z in latents], latents

    def _flowed(self, image: Tensor) -> list[Tensor]:
        with torch.no_grad():
            features = [norm(raw) for norm, raw in zip(self.norms, self.backbone(image), strict=True)]
            latents = []
            stream = features.pop()
            for flow, ascent in zip(self.flows, self.ascents, strict=False):  # the finest has no ascent
                done, _ = flow(stream)
                z, stream = ascent(done, features.pop())
                latents.append(z)
            latents.append(self.flows[-1](stream)[0])
            return latents[::-1]


class _Ascent(nn.Module):
    """From one level to the next finer: a part of the channels is done, the rest joins the finer features."""

    def __init__(self, coarse: Shape, fine: Shape, kernel: Array | None) -> None:
        super().__init__()
        channels, height, width = coarse
        rising = 4 * (channels // 8)
        self.split = Split([coarse], section_sizes=[rising, channels - rising])
        self.up = IRevNetUpsampling([(rising, height, width)])
        if kernel is not None:
            self.up.load_state_dict({"downsample_kernel": torch.from_numpy(np.array(kernel))})
        joined = [fine, *self.up.output_dims([(rising, height, width)])]
        self.concat = Concat(joined)
        self.shape: Shape = self.concat.output_dims(joined)[0]  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]

    def forward(self, coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """The coarse level's latent, and what the next level's flow takes."""
        (rising, latent), _ = self.split([coarse])
        (risen,), _ = self.up([rising])
        (joined,), _ = self.concat([fine, risen])
        return latent, joined
