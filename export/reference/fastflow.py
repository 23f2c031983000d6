"""FastFlow in real FrEIA modules, level by level, as its paper writes it (Yu et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flowedge.export.checkpoints.checkpoint import Checkpoint, Tensors
from flowedge.export.reference.answers import ReferenceNetwork
from flowedge.export.reference.freia_sequence import freia_sequence


class FastflowReference(ReferenceNetwork):
    """``forward(image)``: per level ``(N, 1, h, w)``, the channel mean of z squared."""

    def __init__(
        self, checkpoint: Checkpoint, backbone: nn.Module, shapes: Sequence[tuple[int, int, int]]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.norms = layer_norms(checkpoint.tensors, shapes)
        self.flows = nn.ModuleList(
            freia_sequence(checkpoint, level, shape, 0, convolutional_subnet(checkpoint.tensors, level))
            for level, shape in enumerate(shapes)
        )

    def answer(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        latents = self._flowed(image)
        return [z.square().mean(1, keepdim=True) for z in latents], latents

    def _flowed(self, image: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [
                flow(norm(feature))[0]
                for feature, norm, flow in zip(self.backbone(image), self.norms, self.flows, strict=True)
            ]


def layer_norms(tensors: Tensors, shapes: Sequence[tuple[int, int, int]]) -> nn.ModuleList:
    """Per level the layer norm over ``(C, H, W)``, or the identity where the checkpoint has none (transformers)."""
    norms = nn.ModuleList()
    for level, shape in enumerate(shapes):
        if f"norms.{level}.weight" not in tensors:
            norms.append(nn.Identity())
            continue
        norm = nn.LayerNorm(shape)  # pyright: ignore[reportArgumentType]
        state = {
            name: torch.from_numpy(np.array(tensors[f"norms.{level}.{name}"])) for name in ("weight", "bias")
        }
        norm.load_state_dict(state)
        norms.append(norm)
    return norms.requires_grad_(False).eval()


def convolutional_subnet(tensors: Tensors, level: int) -> Callable[[int], Callable[[int, int], nn.Module]]:
    """From a block's number to the constructor of its subnet, conv ReLU conv, zero-padded to the same size."""

    def of_block(block: int) -> Callable[[int, int], nn.Module]:
        hidden, _, kernel, _ = tensors[f"flow.{level}.{block}.subnet.0.weight"].shape

        def construct(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, hidden, kernel, padding=kernel // 2),
                nn.ReLU(),
                nn.Conv2d(hidden, outputs, kernel, padding=kernel // 2),
            )

        return construct

    return of_block
