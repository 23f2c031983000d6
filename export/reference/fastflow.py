"""Build the reference network of FastFlow (Yu et al., 2021) from FrEIA's modules, level by level."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flowedge.export.checkpoints.checkpoint import Checkpoint, Tensors
from flowedge.export.reference.answers import ReferenceNetwork
from flowedge.export.reference.freia_sequence import freia_sequence


class FastflowReference(ReferenceNetwork):
    """FastFlow's reference network.

    ``forward(image)`` gives per level the channel mean of z squared, ``(N, 1, h, w)``.
    """

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
    """Build the layer norm over ``(C, H, W)`` of each level, or the identity where the checkpoint has no norm."""
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
    """Return a function from a coupling's number to the constructor of its subnet.

    The subnet is a convolution, a ReLU and a convolution, zero-padded to keep the size.
    """

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
