"""Build extractors that give a vision transformer's tokens behind chosen blocks as feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from flowedge.errors import CheckpointError
from flowedge.export.backbones.convolutional import unknown_taps
from flowedge.export.backbones.weights import unfilled
from flowedge.resampling import bicubic_matrix


class TokenFeatures(nn.Module):
    """Give the tokens of a ViT, DeiT or CaiT behind the tapped blocks, without the class and distillation tokens.

    Attributes:
        network: The network up to the last tapped block, without its head.
        unused: Names of tensors of the whole network that are not in ``network``.
        image_size: ``(height, width)`` in pixels of the only image size that the network takes.
    """

    def __init__(self, name: str, taps: Sequence[str], *, final_norm: bool) -> None:
        """Build the network without its weights.

        Raises:
            CheckpointError: timm does not know the network, or it has no such block.
        """
        super().__init__()
        network = _transformer(name)
        names = [f"blocks.{index}" for index in range(len(network.blocks))]
        missing = [tap for tap in taps if tap not in names]
        if missing:
            raise unknown_taps(name, missing, [names[0], "…", names[-1]])
        blocks = [names.index(tap) for tap in taps]
        whole = network.state_dict().keys()
        network.prune_intermediate_layers(blocks, prune_norm=not final_norm, prune_head=True)
        self.network = network
        self.unused = whole - network.state_dict().keys()
        self.image_size: tuple[int, int] = tuple(network.patch_embed.img_size)
        self._name = name
        self._blocks = sorted(blocks)
        self._order = [self._blocks.index(block) for block in blocks]
        self._final_norm = final_norm

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return maps ``(N, C, H / 16, W / 16)`` of images ``(N, 3, H, W)``, one for each tap in the order of the taps.

        Raises:
            CheckpointError: The image is not of the network's size.
        """
        height, width = self.image_size
        if tuple(image.shape[-2:]) != self.image_size:
            raise CheckpointError(
                f"{self._name} takes images of {height}x{width} pixels only, got "
                f"{image.shape[-2]}x{image.shape[-1]}. Give --image-size {height} {width}."
            )
        maps = self.network.forward_intermediates(
            image, indices=self._blocks, norm=self._final_norm, stop_early=True, intermediates_only=True
        )
        return [maps[index] for index in self._order]


class ResizedPair(nn.Module):
    """Run two transformers, the second on the bicubically shrunk image. The pair is U-Flow's ``mcait``.

    The image is shrunk by a product with a constant matrix from each side. The centres of the corner pixels stay in
    place.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, fine: TokenFeatures, coarse: TokenFeatures) -> None:
        super().__init__()
        self.fine, self.coarse = fine, coarse
        rows, columns = (
            torch.from_numpy(bicubic_matrix(outputs, inputs, align_corners=True))
            for outputs, inputs in zip(coarse.image_size, fine.image_size, strict=True)
        )
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns.T.contiguous())

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps of ``fine`` and then those of ``coarse``, for images of ``fine``'s size."""
        return [*self.fine(image), *self.coarse(self.rows @ image @ self.columns)]


def _transformer(name: str) -> Any:
    try:
        # The tracer cannot export fused attention, so plain products and a softmax take its place.
        return unfilled(lambda: timm.create_model(name, pretrained=False, exportable=True))
    except RuntimeError as error:
        raise CheckpointError(
            f"timm cannot build the backbone {name!r}: {error}. Name the network with --set backbone=NAME."
        ) from error
