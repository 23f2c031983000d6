"""Build the torch module of the backbone that the intermediate representation describes."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from itertools import chain
from typing import Final

import torch
from torch import nn
from torch.func import functional_call

from flowedge.errors import CheckpointError
from flowedge.export.backbones.convolutional import (
    Pyramid,
    convolutional_features,
    pad_by_reflection,
    unknown_taps,
)
from flowedge.export.backbones.efficientnet import (
    STATIC_PADDING,
    fold_batch_norms,
    pad_statically,
    torchvision_names,
)
from flowedge.export.backbones.transformers import ResizedPair, TokenFeatures
from flowedge.export.backbones.weights import fill
from flowedge.export.checkpoints.backbone import TRANSFORMERS
from flowedge.export.graph import ir

_SIDES: Final = range(1, 1025)  # sides of the square images that are tried when one was too small


def module_from_backbone(backbone: ir.Backbone) -> nn.Module:
    """Build the backbone, filled with its weights, in evaluation mode.

    The backbone's ``forward(image)`` takes ``(N, 3, H, W)`` and returns one ``(N, C, h, w)`` per level. Layers behind
    the last tap are not built, and their weights are left out. The module shares the memory of the given weights.

    Raises:
        CheckpointError: The network or a tap is unknown, or a weight is missing, unknown or of the wrong shape.
    """
    if backbone.network == "mcait":
        return ResizedPair(*(_tokens(part) for part in _parts_of_mcait(backbone))).eval()
    if backbone.network.startswith(TRANSFORMERS):
        return _tokens(backbone)
    features = convolutional_features(backbone.network, backbone.naming, backbone.taps)
    renamed = backbone.naming == "efficientnet_pytorch"
    weights = torchvision_names(backbone.weights) if renamed else backbone.weights
    fill(features.network, weights, f"the backbone {backbone.network}", unused=features.unused)
    features.eval()
    if backbone.pyramid > 1:
        fold_batch_norms(features.network)
    if backbone.padding == "reflect":
        pad_by_reflection(features.network)
    elif backbone.padding in STATIC_PADDING:
        pad_statically(features.network, backbone.padding)
    return Pyramid(features, backbone.pyramid).eval() if backbone.pyramid > 1 else features


def feature_shapes(module: nn.Module, image_size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Return ``(channels, height, width)`` of each feature map for an input of ``image_size``. Nothing is computed.

    Raises:
        CheckpointError: The network does not take images of this size, or its finest map would be one position.
    """
    shapes = _shapes(module, image_size)
    if shapes is None:
        smallest = bisect_left(_SIDES, True, key=lambda side: _shapes(module, (side, side)) is not None)
        if smallest == len(_SIDES):
            raise CheckpointError(
                f"the backbone takes no image of {image_size[0]}x{image_size[1]}, nor a square one of up to "
                f"{_SIDES[-1]} pixels a side. Check --set layers and the backbone's weights."
            )
        side = _SIDES[smallest]
        raise CheckpointError(
            f"an input of {image_size[0]}x{image_size[1]} is too small for the backbone: the smallest square one is "
            f"{side}x{side}. Give --image-size {side} {side} or larger."
        )
    return shapes


def _shapes(module: nn.Module, image_size: tuple[int, int]) -> list[tuple[int, int, int]] | None:
    """Return the shapes of the feature maps, or None for an image that is too small for the network."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    shapes_only = {name: tensor.to("meta") for name, tensor in tensors}
    try:
        with torch.inference_mode():
            features = functional_call(module, shapes_only, torch.zeros(1, 3, *image_size, device="meta"))
    except RuntimeError:
        return None
    shapes = [(f.shape[1], f.shape[2], f.shape[3]) for f in features]
    return shapes if shapes[0][1] * shapes[0][2] > 1 else None


def _tokens(backbone: ir.Backbone) -> TokenFeatures:
    features = TokenFeatures(backbone.network, backbone.taps, final_norm=backbone.final_norm)
    fill(features.network, backbone.weights, f"the backbone {backbone.network}", unused=features.unused)
    return features.eval()


def _parts_of_mcait(backbone: ir.Backbone) -> tuple[ir.Backbone, ir.Backbone]:
    prefixes = ("extractor1.", "extractor2.")
    lost = [tap for tap in backbone.taps if not tap.startswith(prefixes)]
    if lost or not all(any(tap.startswith(prefix) for tap in backbone.taps) for prefix in prefixes):
        raise unknown_taps("mcait", lost, [f"{prefix}blocks.0 and so on" for prefix in prefixes])

    def part(network: str, prefix: str) -> ir.Backbone:
        return dataclasses.replace(
            backbone,
            network=network,
            taps=tuple(tap.removeprefix(prefix) for tap in backbone.taps if tap.startswith(prefix)),
            weights={
                name.removeprefix(prefix): array
                for name, array in backbone.weights.items()
                if name.startswith(prefix)
            },
        )

    return part("cait_m48_448", prefixes[0]), part("cait_s24_224", prefixes[1])
