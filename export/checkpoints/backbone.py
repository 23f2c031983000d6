"""Recognise a feature extractor by its tensors, and add its weights to a checkpoint that lacks them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.checkpoint import Array, BackboneNaming, Checkpoint, Tensors
from flowedge.export.checkpoints.contents import arrays_of, contents_of
from flowedge.export.checkpoints.coupling_tensors import level_widths
from flowedge.export.checkpoints.safe_load import load_untrusted, naming_file

# The beginnings of the names of vision transformers.
TRANSFORMERS: Final = ("vit_", "deit_", "cait_")
# First bottleneck's 3x3 convolution (out, in per group) -> the names by their numbers of blocks.
_BOTTLENECKS: Final[Mapping[tuple[int, ...], tuple[str, str, str]]] = {
    (64, 64): ("resnet50", "resnet101", "resnet152"),
    (128, 128): ("wide_resnet50_2", "wide_resnet101_2", ""),
    (128, 4): ("resnext50_32x4d", "", ""),
    (256, 8): ("", "resnext101_32x8d", ""),
}
_BOTTLENECK_BLOCKS: Final = ((3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3))
_BASIC_BLOCKS: Final[Mapping[tuple[int, ...], str]] = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
# (channels, tokens) of a vision transformer's position code -> name.
_CAIT: Final[Mapping[tuple[int, int], str]] = {(768, 784): "cait_m48_448", (384, 196): "cait_s24_224"}
_VIT: Final[Mapping[tuple[int, int], str]] = {
    (768, 578): "deit_base_distilled_patch16_384",
    (768, 577): "vit_base_patch16_384",
    (768, 197): "vit_base_patch16_224",
}


def recognise_backbone(tensors: Tensors) -> tuple[str | None, BackboneNaming]:
    """Return the network that a state dict belongs to and the library whose layer names it has.

    Args:
        tensors: The tensors by the network's own names, without a prefix. Trailing layers may be missing.

    Returns:
        The name in timm's words (torchvision's for MobileNetV3), or None if the tensors do not settle it.
    """
    shapes = {name: array.shape for name, array in tensors.items()}
    if "layer1.0.conv1.weight" in shapes:
        return _resnet(shapes), "timm"
    if shapes.get("_conv_stem.weight") == (48, 3, 3, 3) and "_blocks.35._project_conv.weight" in shapes:
        return "efficientnet_b5", "efficientnet_pytorch"
    if shapes.get("features.0.0.weight") == (48, 3, 3, 3) and "features.6.8.block.3.0.weight" in shapes:
        return "efficientnet_b5", "torchvision"
    if "0.0.weight" in shapes and "1.block.0.0.weight" in shapes:
        large = any(name.startswith("13.block.") for name in shapes)
        return ("mobilenet_v3_large" if large else "mobilenet_v3_small"), "torchvision"
    if "pos_embed" in shapes and len(shapes["pos_embed"]) == 3:
        _, tokens, channels = shapes["pos_embed"]
        names = _CAIT if "blocks.0.attn.proj_l.weight" in shapes else _VIT
        return names.get((channels, tokens)), "timm"
    return None, "timm"


def read_backbone_weights(path: Path) -> Tensors:
    """Read a file of ``--backbone-weights``: a state dict, ``.pth`` or ``.safetensors``.

    Returns:
        float32 and int64 arrays by the network's own names.

    Raises:
        CheckpointError: The file cannot be read, or holds no tensors.
    """
    root = load_untrusted(path)
    with naming_file(path):
        state = contents_of(root, file=path.name, sha256="").state
        if not state:
            raise CheckpointError(
                "it holds no state dict. Give the network's weights as its library saves them."
            )
        return arrays_of(state)


def with_backbone(checkpoint: Checkpoint, weights: Path | None) -> Checkpoint:
    """Return the checkpoint with its own feature extractor or the one of ``--backbone-weights``.

    Raises:
        CheckpointError: The checkpoint has no extractor and none was given, or the given one is of another network.
    """
    needed = str(checkpoint.hyperparameters["backbone"])
    if weights is None:
        if checkpoint.backbone_naming is None:
            raise CheckpointError(
                f"{checkpoint.file} of {checkpoint.repository} holds no feature extractor. "
                f"Give the {needed} weights that the model was trained on with --backbone-weights FILE."
            )
        return checkpoint
    if checkpoint.backbone_naming is not None:
        raise CheckpointError(
            f"{checkpoint.file} holds its own feature extractor. Leave --backbone-weights {weights} out."
        )
    tensors = read_backbone_weights(weights)
    name, naming = recognise_backbone(tensors)
    # A name that was assumed from the flow's widths stands for every network of these widths.
    assumed = any(a.name == "backbone" and not a.given for a in checkpoint.assumed)
    widths = level_widths(checkpoint.tensors)
    same_widths = assumed and name is not None and widths == resnet_channels(name)[:3]
    if name != needed and not same_widths:
        raise CheckpointError(
            f"{weights} holds {name or 'an unknown network'}, and {checkpoint.file} needs {needed}. "
            "Give that network's weights, or its name with --set backbone=NAME."
        )
    held = {
        f"backbone.{key}": array
        for key, array in tensors.items()
        if not re.match(r"(fc|classifier|_fc)\.", key)
    }
    return dataclasses.replace(
        checkpoint,
        tensors={**checkpoint.tensors, **held},
        backbone_naming=naming,
        hyperparameters={**checkpoint.hyperparameters, "backbone": name},
        assumed=tuple(a for a in checkpoint.assumed if a.name != "backbone" or a.given),
    )


def backbone_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Return the tensors of a file's feature extractor under ``backbone.``, after a check that they are finite."""
    return dict(arrays_of({f"backbone.{name}": tensor for name, tensor in state.items()}))


def without_prefix(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names start with a prefix, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def resnet_channels(name: str) -> tuple[int, int, int, int]:
    """Return the output channels of ``layer1`` to ``layer4`` of the ResNet of this name."""
    width = 64 if name in _BASIC_BLOCKS.values() else 256
    return width, 2 * width, 4 * width, 8 * width


def _resnet(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    blocks: list[int] = []
    for layer in range(1, 5):
        indices = {int(m[1]) for name in shapes if (m := re.match(rf"layer{layer}\.(\d+)\.", name))}
        if not indices:
            break
        blocks.append(len(indices))
    counts = tuple(blocks)
    if "layer1.0.conv3.weight" not in shapes:
        return next((name for full, name in _BASIC_BLOCKS.items() if full[: len(counts)] == counts), None)
    names = _BOTTLENECKS.get(shapes.get("layer1.0.conv2.weight", ())[:2], ("", "", ""))
    matches = zip(_BOTTLENECK_BLOCKS, names, strict=True)
    return next((name for full, name in matches if full[: len(counts)] == counts and name), None)
