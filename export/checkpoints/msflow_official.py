"""Read MSFlow of cool-xuan/msflow: the parallel flows and the fusion flow, without the feature extractor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.backbone import resnet_channels
from flowedge.export.checkpoints.checkpoint import Array, Checkpoint
from flowedge.export.checkpoints.contents import Contents, arrays_of, state_in
from flowedge.export.checkpoints.coupling_tensors import (
    is_permutation,
    level_widths,
    sequence_tensors,
    take_clamp_variant,
)
from flowedge.export.checkpoints.network_names import current_name
from flowedge.export.checkpoints.preprocessing import fixed_pipeline
from flowedge.export.checkpoints.settings import BACKBONE, CLAMP, PADDING, POOL_TYPE, TOP_K, Choices

_UNSTORED: Final = "The default of the official implementation, which stores it nowhere."
_NETS: Final[Mapping[str, str]] = {"subnet_1": "net1", "subnet_2": "net2"}


def recognises(contents: Contents) -> bool:
    """Return True when the file is a dict with a list of parallel flows and a fusion flow."""
    return isinstance(contents.get("parallel_flows"), list) and isinstance(contents.get("fusion_flow"), dict)


def read(contents: Contents, given: Mapping[str, str]) -> Checkpoint:
    """Read the checkpoint.

    Raises:
        CheckpointError: A tensor is missing or misshapen, the levels are of no ResNet, or a setting is wrong.
    """
    choices = Choices("msflow", given)
    flows = contents.get("parallel_flows")
    flow = sequence_tensors([state_in(flow) for flow in flows] if isinstance(flows, list) else [], "msflow")
    widths = level_widths(flow)
    fusion = _fusion(contents, widths)
    name = choices.take(
        BACKBONE, default=_extractor(widths), why=f"The ResNet whose layers have {widths} channels."
    )
    choices.values[BACKBONE.name] = current_name(name).partition(".")[0]
    choices.take(PADDING, held="reflect")
    choices.take(CLAMP, default=1.9, why=_UNSTORED)
    # Only FrEIA before 2023-08-18 runs MSFlow at all: later ones refuse the shapes it declares.
    take_clamp_variant(choices, flow, known="tanh")
    choices.take(POOL_TYPE, default="avg", why=_UNSTORED)
    choices.take(TOP_K, default=0.03, why=_UNSTORED)
    preprocessing = fixed_pipeline(
        choices,
        default_size=(512, 512),
        size_why=_UNSTORED,
        method="pil_lanczos",
        why="Fixed in the official implementation's data loader.",
    )
    return Checkpoint(
        repository="cool-xuan/msflow",
        generation="official",
        family="msflow",
        tensors={**flow, **fusion},
        backbone_naming=None,
        hyperparameters=choices.values,
        assumed=tuple(choices.assumed),
        preprocessing=preprocessing,
        file=contents.file,
        sha256=contents.sha256,
    )


def _extractor(widths: tuple[int, ...]) -> str:
    """Return the name of the usual ResNet whose first layers have these channels."""
    for name in ("wide_resnet50_2", "resnet18"):
        if resnet_channels(name)[: len(widths)] == widths and len(widths) == 3:
            return name
    raise CheckpointError(f"MSFlow levels of {widths} channels are of no ResNet's layer1, layer2 and layer3.")


def _fusion(contents: Contents, widths: tuple[int, ...]) -> dict[str, Array]:
    """Rename the tensors of the fusion flow.

    FrEIA numbers its permutations at random, so each is assigned to the level of its length.
    """
    state = state_in(contents.get("fusion_flow"))
    tensors: dict[str, Array] = {}
    for name, array in arrays_of(state).items():
        permutation = re.fullmatch(r"module_list\.\d+\.perm", name)
        net = re.fullmatch(r"module_list\.\d+\.(subnet_[12])\.(.+)", name)
        if permutation:
            level = next((n for n, width in enumerate(widths) if is_permutation(array, width)), None)
            if level is None:
                raise CheckpointError(
                    f"fusion_flow {name}, {array.dtype} of shape {array.shape}, is no permutation of a level's "
                    f"channels, {widths}. Copy or train it again."
                )
            known = f"fusion.perm.{level}"
        elif net:
            known = f"fusion.{_NETS[net[1]]}.{net[2]}"
        else:
            continue
        if known in tensors:
            raise CheckpointError(f"fusion_flow {name} is there twice, as {known}. Copy or train it again.")
        tensors[known] = array
    missing = [name for name in _shapes(widths) if name not in tensors]
    if missing:
        raise CheckpointError(f"the checkpoint's fusion_flow lacks {missing[0]}. Copy or train it again.")
    for name, shape in _shapes(widths).items():
        if tensors[name].shape != shape:
            raise CheckpointError(f"{name} has shape {tensors[name].shape}, expected {shape}.")
    return tensors


def _shapes(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of the fusion flow for levels of these channels."""
    shapes: dict[str, tuple[int, ...]] = {
        f"fusion.perm.{level}": (width,) for level, width in enumerate(widths)
    }
    for net in _NETS.values():
        # The coupling's first half is the smaller one. net2 reads the second halves and changes the first.
        halves = [width // 2 if net == "net1" else width - width // 2 for width in widths]
        outputs = [width - width // 2 if net == "net1" else width // 2 for width in widths]
        total = sum(halves)
        hidden = total // 4
        start = f"fusion.{net}."
        shapes[f"{start}cross_convs.conv1.weight"] = (hidden, total, 3, 3)
        shapes[f"{start}cross_convs.conv2.weight"] = (total, hidden, 3, 3)
        for name in ("conv1.bias", "norm.weight", "norm.bias"):
            shapes[f"{start}cross_convs.{name}"] = (hidden,)
        shapes[f"{start}cross_convs.conv2.bias"] = (total,)
        for kind in ("s", "t"):
            for level, (half, output) in enumerate(zip(halves, outputs, strict=True)):
                shapes[f"{start}conv_{kind}.{level}.weight"] = (output, half, 3, 3)
                shapes[f"{start}conv_{kind}.{level}.bias"] = (output,)
    return shapes
