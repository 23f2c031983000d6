"""Describe the feature extractor of a checkpoint: its network, its taps and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from flowedge.errors import CheckpointError
from flowedge.export.backbones.convolutional import stage_names
from flowedge.export.checkpoints.backbone import TRANSFORMERS
from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.graph import ir
from flowedge.families import TRAITS

# The last block that runs in FastFlow's transformers, which have 12 and 48 blocks, and in U-Flow's pair of them.
_BLOCKS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "deit_base_distilled_patch16_384": ("blocks.7",),
        "cait_m48_448": ("blocks.40",),
        "mcait": ("extractor1.blocks.40", "extractor2.blocks.20"),
    }
)
_PREFIX: Final = "backbone."


def backbone_from_checkpoint(checkpoint: Checkpoint) -> ir.Backbone:
    """Return the checkpoint's feature extractor with the taps of its family's official implementation.

    Raises:
        CheckpointError: The family has no taps for this network.
    """
    traits = TRAITS[checkpoint.family]
    network = str(checkpoint.hyperparameters["backbone"])
    padding: Any = checkpoint.hyperparameters.get("padding", "zeros")
    return ir.Backbone(
        network=network,
        taps=_taps(checkpoint, network),
        padding="zeros" if padding == "symmetric" else padding,
        weights={
            name.removeprefix(_PREFIX): array
            for name, array in checkpoint.tensors.items()
            if name.startswith(_PREFIX)
        },
        naming=checkpoint.backbone_naming or "timm",
        final_norm=traits.normalises_features,
        pyramid=traits.image_scales,
    )


def _taps(checkpoint: Checkpoint, network: str) -> tuple[str, ...]:
    layers: Any = checkpoint.hyperparameters.get("layers", TRAITS[checkpoint.family].fixed_taps)
    if layers:
        return tuple(layers)
    if network in _BLOCKS:
        return _BLOCKS[network]
    if network.startswith(TRANSFORMERS):
        raise CheckpointError(
            f"{checkpoint.file}: it is not known which block of {network} {checkpoint.family} takes; it is for "
            f"{', '.join(_BLOCKS)}. Name the network with --set backbone=NAME."
        )
    return tuple(stage_names(network)[1:4])
