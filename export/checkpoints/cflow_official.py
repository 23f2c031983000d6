"""Read CFLOW-AD of gudovskiy/cflow-ad: an encoder, one decoder per level, and settings in the file's name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.backbone import (
    backbone_tensors,
    recognise_backbone,
    resnet_channels,
)
from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.checkpoints.contents import Contents, arrays_of, state_in
from flowedge.export.checkpoints.coupling_tensors import level_widths, sequence_tensors, take_clamp_variant
from flowedge.export.checkpoints.network_names import take_backbone
from flowedge.export.checkpoints.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Triple, fixed_pipeline
from flowedge.export.checkpoints.settings import CLAMP, LAYERS, PADDING, TOP_PIXELS, Choices

# …DATASET_ENCODER_DECODER_plL_cbK_inpS_runN_CLASS….pt
_FILE_NAME: Final = re.compile(
    r"(?P<dataset>[^_]+)_(?P<encoder>\w+)_(?P<decoder>freia-c?flow)_pl(?P<levels>\d+)_cb(?P<blocks>\d+)_inp(?P<side>[1-9]\d{1,4})_run"
)
_RESNETS: Final = ("resnet18", "resnet34", "wide_resnet50_2")
# The numbers of the inverted residuals that are tapped at their projection, before its batch norm.
_MOBILENET_TAPS: Final[Mapping[str, tuple[int, int, int]]] = {
    "mobilenet_v3_large": (6, 12, 15),
    "mobilenet_v3_small": (3, 8, 11),
}
_EFFICIENTNET_STAGES: Final = (2, 4, 5)  # the last block's batch norm, before the residual is added
_VIT_LAYERS: Final = ("blocks.10", "blocks.2", "blocks.6")  # in this order
_PAPER: Final = "The default of the official implementation, which stores it nowhere."


def recognises(contents: Contents) -> bool:
    """Return True when the file is a dict with a list of decoders."""
    return isinstance(contents.get("decoder_state_dict"), list)


def read(contents: Contents, given: Mapping[str, str]) -> Checkpoint:
    """Read the checkpoint.

    Raises:
        CheckpointError: A tensor is missing or misshapen, the encoder unknown or one that cannot have been
            trained, or a setting wrong.
    """
    choices = Choices("cflow", given)
    in_name = _FILE_NAME.search(contents.file)
    encoder = state_in(contents.get("encoder_state_dict"))
    backbone = backbone_tensors(encoder)
    flow = sequence_tensors(_levels(contents.get("decoder_state_dict")), "cflow")
    recognised, naming = recognise_backbone(arrays_of(encoder))
    full_name = take_backbone(
        choices,
        stored=recognised or (in_name["encoder"] if in_name else None),
        why="Its encoder's tensors are of no known network.",
    )
    name = full_name.partition(".")[0]
    widths = level_widths(flow)
    choices.take(LAYERS, held=_layers(name, encoder, widths), why=f"Its levels have {widths} channels.")
    choices.take(PADDING, held="reflect" if "layer1.0.conv1.weight" in encoder else "zeros")
    choices.take(CLAMP, default=1.9, why=_PAPER)
    choices.take(TOP_PIXELS, held=1)
    take_clamp_variant(choices, flow)
    mean, std = _statistics(name, in_name["dataset"] if in_name else "mvtec")
    size = (int(in_name["side"]), int(in_name["side"])) if in_name else None
    of_timm = _size_of_timm(full_name)
    preprocessing = fixed_pipeline(
        choices,
        size=size if of_timm is None else None,
        default_size=of_timm or (256, 256),
        size_why="The file's name does not say it (…_inpSIZE_run…)."
        if of_timm is None
        else f"timm's for {name}, which the official implementation takes whatever the file's name says.",
        method="pil_lanczos",
        mean=mean,
        std=std,
        why="Fixed in the official implementation's data loader.",
    )
    return Checkpoint(
        repository="gudovskiy/cflow-ad",
        generation="official",
        family="cflow",
        tensors={**backbone, **flow},
        backbone_naming=naming,
        hyperparameters=choices.values,
        assumed=tuple(choices.assumed),
        preprocessing=preprocessing,
        file=contents.file,
        sha256=contents.sha256,
    )


def _levels(decoders: object) -> Iterator[dict[str, torch.Tensor]]:
    for decoder in decoders if isinstance(decoders, list) else ():
        yield state_in(decoder)


def _layers(
    name: str, encoder: Mapping[str, torch.Tensor], widths: tuple[int, ...]
) -> tuple[str, ...] | None:
    """Return the tapped layers, or None for an encoder that the official implementation does not have."""
    count = len(widths)
    if "layer1.0.conv1.weight" in encoder:
        if name not in _RESNETS or not 1 <= count <= 4 or resnet_channels(name)[4 - count :] != widths:
            raise CheckpointError(
                f"levels of {widths} channels on {name}: the official implementation gives the right channels "
                f"only for the last layers of {', '.join(_RESNETS)}. The file was changed, or is of a fork."
            )
        return tuple(f"layer{index}" for index in range(5 - count, 5))
    if name in _MOBILENET_TAPS:
        projections = (_last(encoder, rf"({tap}\.block\.(\d+))\.0\.weight") for tap in _MOBILENET_TAPS[name])
        return tuple(f"{projection}.0" for projection in projections)[-count:]
    if "conv_stem.weight" in encoder:
        blocks = (_last(encoder, rf"(blocks\.{stage}\.(\d+))\.bn3\.weight") for stage in _EFFICIENTNET_STAGES)
        return tuple(f"{block}.bn3" for block in blocks)[-count:]
    return _VIT_LAYERS if "pos_embed" in encoder and count == 3 else None


def _last(names: Mapping[str, object], pattern: str) -> str:
    """Return the name (first group) of the match with the largest number (second group)."""
    found = [match for name in names if (match := re.fullmatch(pattern, name))]
    if not found:
        raise CheckpointError(f"the encoder has no tensor {pattern!r}. Copy the checkpoint again.")
    return max(found, key=lambda match: int(match[2]))[1]


def _takes_timms_configuration(name: str) -> bool:
    return name.startswith("vit") or "efficientnet" in name


def _size_of_timm(name: str) -> tuple[int, int] | None:
    """Return the input size in timm's configuration of a network that takes it, or None."""
    if not _takes_timms_configuration(name):
        return None
    import timm  # takes seconds, which nothing else that is read needs

    found = timm.get_pretrained_cfg(name)
    return None if found is None else (found.input_size[1], found.input_size[2])


def _statistics(name: str, dataset: str) -> tuple[Triple, Triple]:
    """Return the mean and std of the official data loader, which has other values for some networks by mistake."""
    if _takes_timms_configuration(name):
        mean = (0.5, 0.5, 0.5) if name.startswith("vit") else IMAGENET_MEAN
        return mean, mean
    if dataset == "stc":
        return (0.5, 0.5, 0.5), (0.225, 0.225, 0.225)
    return IMAGENET_MEAN, IMAGENET_STD
