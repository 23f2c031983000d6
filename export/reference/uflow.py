"""Build the reference network of U-Flow (Tailanian, Pardo and Musé, 2022) from FrEIA's modules."""

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
    """U-Flow's reference network.

    ``forward(image)`` gives per level the channel mean of z squared, ``(N, 1, h, w)``.

    A file stores the kernel of each up-sampling, and the official implementation loads it. So the network uses
    ``up.{l}.downsample_kernel``, float32 ``(4g, 1, 2, 2)``, where the checkpoint has it. The kernel turns 4g channels
    of level l into g channels of level l - 1. A checkpoint without a stored kernel has FrEIA's constant kernel, a pixel
    shuffle.
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
    """Send some channels of one level up to the next finer level.

    Some channels of the coarse level are its latent. The other channels are upsampled and join the finer features.
    """

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
        """Return the coarse level's latent and the input of the next level's flow."""
        (rising, latent), _ = self.split([coarse])
        (risen,), _ = self.up([rising])
        (joined,), _ = self.concat([fine, risen])
        return latent, joined
