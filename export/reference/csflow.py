"""Build the reference network of CS-Flow (Rudolph et al., WACV 2022) scale by scale, with FrEIA's permutations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from FrEIA.modules import PermuteRandom
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu

from flowedge.export.checkpoints.checkpoint import Array, Checkpoint, Tensors
from flowedge.export.reference.answers import ReferenceNetwork

ScaleAndShift: TypeAlias = tuple[Tensor, Tensor]


class CsflowReference(ReferenceNetwork):
    """CS-Flow's reference network.

    ``forward(image)`` gives per level the channel mean of z squared, ``(N, 1, h, w)``.
    """

    def __init__(
        self, checkpoint: Checkpoint, backbone: nn.Module, shapes: Sequence[tuple[int, int, int]]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        clamp = checkpoint.hyperparameters["clamp"]
        use_gamma = bool(checkpoint.hyperparameters["use_gamma"])
        assert isinstance(clamp, (int, float))
        assert checkpoint.permutations is not None
        self.blocks = nn.ModuleList()
        for number, indices in enumerate(checkpoint.permutations):
            assert [len(index) for index in indices] == [channels for channels, _, _ in shapes]
            nets = [
                CrossScaleNet(checkpoint.tensors, f"flow.{number}.{net}.", use_gamma=use_gamma)
                for net in ("net1", "net2")
            ]
            self.blocks.append(PermutedCoupling(indices, TwoSidedCoupling(*nets, clamp=clamp)))

    def answer(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        latents = self._flowed(image)
        return [z.square().mean(1, keepdim=True) for z in latents], latents

    def _flowed(self, image: Tensor) -> list[Tensor]:
        with torch.no_grad():
            levels: list[Tensor] = self.backbone(image)
            for block in self.blocks:
                levels = block(levels)
            return levels


class PermutedCoupling(nn.Module):
    """Gather the channels of each level, ``y_i = x[index_i]``, then run a coupling. ``indices`` are int64 ``(C,)``."""

    def __init__(self, indices: Sequence[Array], coupling: nn.Module) -> None:
        super().__init__()
        self.permutations = nn.ModuleList(_permutation(index) for index in indices)
        self.coupling = coupling

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        permuted = [permute([x])[0][0] for permute, x in zip(self.permutations, levels, strict=True)]
        moved: list[Tensor] = self.coupling(permuted)
        return moved


class TwoSidedCoupling(nn.Module):
    """Transform the halves of every level in turn, each with a subnet that reads the other halves of all levels.

    With ``E(s) = exp(0.636 clamp atan(s / clamp))``: ``y1 = E(S2) x1 + T2`` where ``(S2, T2) = net2(x2)``, then
    ``y2 = E(S1) x2 + T1`` where ``(S1, T1) = net1(y1)``. The first half is the smaller one.
    """

    def __init__(self, net1: nn.Module, net2: nn.Module, *, clamp: float) -> None:
        super().__init__()
        self.net1 = net1
        self.net2 = net2
        self.clamp = clamp

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        first = [x[:, : x.shape[1] // 2] for x in levels]
        second = [x[:, x.shape[1] // 2 :] for x in levels]
        first = self._moved(first, self.net2(second))
        second = self._moved(second, self.net1(first))
        return [torch.cat(halves, 1).clamp(-1e6, 1e6) for halves in zip(first, second, strict=True)]

    def _moved(self, halves: Sequence[Tensor], moves: Sequence[ScaleAndShift]) -> list[Tensor]:
        return [
            x * torch.exp(self.clamp * 0.636 * torch.atan(scale / self.clamp)) + shift
            for x, (scale, shift) in zip(halves, moves, strict=True)
        ]


class CrossScaleNet(nn.Module):
    """CS-Flow's subnet over three scales, where each scale reads itself and its neighbours."""

    def __init__(self, tensors: Tensors, prefix: str, *, use_gamma: bool) -> None:
        super().__init__()
        for level in range(3):
            for layer in range(2):
                name = f"conv_scale{level}_{layer}"
                self.add_module(name, convolution(tensors, prefix + name))
        self.up_conv10 = convolution(tensors, f"{prefix}up_conv10")
        self.up_conv21 = convolution(tensors, f"{prefix}up_conv21")
        self.down_conv01 = convolution(tensors, f"{prefix}down_conv01", stride=2)
        self.down_conv12 = convolution(tensors, f"{prefix}down_conv12", stride=2)
        names = [f"{prefix}gamma{level}" for level in range(3)]
        used = use_gamma and names[0] in tensors
        self.gammas = [float(tensors[name].item()) if used else 1.0 for name in names]

    def forward(self, levels: Sequence[Tensor]) -> list[ScaleAndShift]:
        y0, y1, y2 = (
            leaky_relu(self.get_submodule(f"conv_scale{level}_0")(v), 0.1) for level, v in enumerate(levels)
        )
        own = [self.get_submodule(f"conv_scale{level}_1")(y) for level, y in enumerate((y0, y1, y2))]
        neighbours = [
            self.up_conv10(_twice_as_large(y1)),
            self.down_conv01(y0) + self.up_conv21(_twice_as_large(y2)),
            self.down_conv12(y1),
        ]
        outputs = [gamma * (o + n) for gamma, o, n in zip(self.gammas, own, neighbours, strict=True)]
        return [(scale, shift) for scale, shift in (output.chunk(2, 1) for output in outputs)]


def convolution(tensors: Tensors, name: str, *, stride: int = 1) -> nn.Conv2d:
    """Build a convolution, zero-padded by ``K // 2``, from ``NAME.weight (out, in, K, K)`` and ``NAME.bias``."""
    weight, bias = (torch.from_numpy(np.array(tensors[f"{name}.{part}"])) for part in ("weight", "bias"))
    outputs, inputs, kernel, _ = weight.shape
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv.requires_grad_(False)


def _permutation(index: Array) -> nn.Module:
    permute: nn.Module = PermuteRandom([(len(index),)])
    perm = torch.from_numpy(np.array(index))
    permute.load_state_dict({"perm": perm, "perm_inv": torch.argsort(perm)})
    return permute


def _twice_as_large(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
