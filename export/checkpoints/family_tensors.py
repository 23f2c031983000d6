"""Rename the tensors of CFLOW, CS-Flow, FastFlow and U-Flow as in `Checkpoint`, and derive values from shapes.

anomalib, the official repositories and TVTVision differ in prefixes and in the subnets' layer numbers only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.backbone import (
    TRANSFORMERS,
    recognise_backbone,
    without_prefix,
)
from flowedge.export.checkpoints.budget import check_couplings
from flowedge.export.checkpoints.checkpoint import Array, BackboneNaming
from flowedge.export.checkpoints.contents import State, arrays_of
from flowedge.export.checkpoints.coupling_tensors import level_tensors, level_widths, sequence_tensors
from flowedge.export.checkpoints.layers import take_layers
from flowedge.export.checkpoints.network_names import take_backbone
from flowedge.export.checkpoints.settings import (
    LAYERS,
    PADDING,
    Choices,
)
from flowedge.families import TRAITS

_CSFLOW_NETS: Final[Mapping[str, str]] = {
    "s1": "net1",
    "s2": "net2",
    "cross_convolution1": "net1",
    "cross_convolution2": "net2",
}
_CSFLOW_CONVOLUTIONS: Final = (
    "conv_scale0_1",
    "conv_scale1_1",
    "conv_scale2_1",
    "up_conv10",
    "up_conv21",
    "down_conv01",
    "down_conv12",
)
_PATCH: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyTensors:
    """Hold a model's tensors and the values that their shapes determine.

    Attributes:
        tensors: The tensors by the names of `Checkpoint`, those of the extractor included.
        backbone: The extractor's name, or None if its tensors do not determine it.
        naming: The library whose names the extractor's tensors have, or None if there are no tensors.
        input_size: Height and width that the shapes imply, or None if they imply none.
    """

    tensors: dict[str, Array]
    backbone: str | None
    naming: BackboneNaming | None
    input_size: tuple[int, int] | None = None


def cflow_tensors(state: State) -> FamilyTensors:
    """Read CFLOW of anomalib and TVTVision under ``decoders.{l}.`` and ``encoder.feature_extractor.``."""
    flow = sequence_tensors(_by_number(state, r"decoders"), "cflow")
    return _with_extractor(flow, without_prefix(state, "encoder.feature_extractor."))


def fastflow_tensors(state: State) -> FamilyTensors:
    """Read FastFlow under ``nf_flows.{l}.`` or ``fast_flow_blocks.{l}.``, ``norms.{l}.`` and ``feature_extractor.``."""
    flow = sequence_tensors(_by_number(state, r"nf_flows|fast_flow_blocks"), "fastflow")
    norms = _norms(without_prefix(state, "norms."), level_widths(flow))
    extractor = without_prefix(state, "feature_extractor.")
    size = _norm_size(norms)
    if "pos_embed" in extractor:  # CaiT's position code has no entry for the class token
        is_cait = "blocks.0.attn.proj_l.weight" in extractor
        prefix_tokens = 0 if is_cait else 1 + ("dist_token" in extractor)
        size = _token_size(extractor["pos_embed"], prefix_tokens)
    return _with_extractor({**norms, **flow}, extractor, input_size=size)


def uflow_tensors(state: State) -> FamilyTensors:
    """Read U-Flow: one FrEIA graph ``flow.module_list.{n}.``, coarsest stage first, and its extractors."""
    blocks, kernels = _graph_nodes(without_prefix(state, "flow.module_list."))
    check_couplings(len(blocks) + len(kernels))
    steps, levels = kernels[0] - 1 if kernels else 0, len(kernels) + 1
    expected = [stage * (steps + 3) + step for stage in range(levels) for step in range(steps)]
    ascents = [stage * (steps + 3) + steps + 1 for stage in range(levels - 1)]
    if steps < 1 or sorted(blocks) != expected or kernels != ascents:
        raise CheckpointError(
            f"the U-Flow graph has blocks at {sorted(blocks)} and up-samplings at {kernels}, not the same number of "
            f"blocks, one or more, in each of {levels} stages. Copy or train it again."
        )
    flow: dict[str, Array] = {}
    for stage in range(levels):
        nodes = [blocks[n] for n in expected[stage * steps : (stage + 1) * steps]]
        flow |= level_tensors(levels - 1 - stage, nodes, "uflow")
    widths = level_widths(flow)
    for stage, number in enumerate(kernels):
        level = levels - 1 - stage
        name, rising = f"up.{level}.downsample_kernel", rising_channels(widths[level])
        flow |= arrays_of({name: state[f"flow.module_list.{number}.downsample_kernel"]})
        if not rising or flow[name].shape != (rising, 1, 2, 2):
            raise CheckpointError(
                f"{name} has shape {flow[name].shape}, expected (4 (C // 8), 1, 2, 2) for the C = {widths[level]} "
                f"channels of level {level}, 8 or more. Copy or train it again."
            )
    extractors = without_prefix(state, "feature_extractor.")
    if any(name.startswith("extractor1.") for name in extractors):
        held = {n: t for n, t in extractors.items() if n.startswith(("extractor1.", "extractor2."))}
        size = _token_size(held["extractor1.pos_embed"], 0) if "extractor1.pos_embed" in held else None
        tensors = {**flow, **arrays_of({f"backbone.{name}": tensor for name, tensor in held.items()})}
        return FamilyTensors(tensors=tensors, backbone="mcait", naming="timm", input_size=size)
    # The channels that rise join the features of the next finer level.
    risen = [rising_channels(width) // 4 for width in (*widths[1:], 0)]
    features = tuple(width - more for width, more in zip(widths, risen, strict=True))
    norms = _norms(without_prefix(extractors, "feature_normalizations."), features)
    extractor = without_prefix(extractors, "extractor.") or without_prefix(extractors, "feature_extractor.")
    return _with_extractor({**norms, **flow}, extractor, input_size=_norm_size(norms))


def csflow_tensors(state: State) -> FamilyTensors:
    """Read CS-Flow's couplings in the order of their numbers, and anomalib's extractor where there is one."""
    pattern = re.compile(r"(?:graph\.graph\.)?module_list\.(\d+)\.(s[12]|cross_convolution[12])\.(.+)")
    numbers: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        match = pattern.fullmatch(name)
        if match:
            numbers.setdefault(int(match[1]), {})[f"{_CSFLOW_NETS[match[2]]}.{match[3]}"] = tensor
    check_couplings(len(numbers))
    flow: dict[str, Array] = {}
    channels: set[int] = set()
    for k, number in enumerate(sorted(numbers)):
        block = arrays_of({f"flow.{k}.{name}": tensor for name, tensor in numbers[number].items()})
        channels.add(_check_coupling(f"flow.{k}.", block))
        flow |= block
    if len(channels) > 1:
        raise CheckpointError(
            f"the couplings have {sorted(channels)} channels, expected the same number in all. "
            "Copy or train it again."
        )
    extractor = without_prefix(state, "feature_extractor.feature_extractor.")
    pruned = without_prefix(extractor, "feature_extractor.") or extractor  # 2.x saves the network twice
    return _with_extractor(flow, {name: t for name, t in pruned.items() if name.startswith("features.")})


def take_network(choices: Choices, model: FamilyTensors, hyper: Mapping[str, object]) -> None:
    """Decide the extractor's name and, for CFLOW, its tapped layers and padding.

    ``hyper`` holds the stored ``backbone`` and ``layers``, where there are any.

    Raises:
        CheckpointError: A value is unknown, the layers are not as many as the flow's levels, or the features of
            FastFlow or U-Flow are not normalised as that extractor's are.
    """
    traits = TRAITS[choices.family]
    name = take_backbone(
        choices,
        stored=hyper.get("backbone"),
        default=model.backbone or traits.only_backbone,
        why="Its extractor's tensors are of no network that is known by its shapes.",
    ).partition(".")[0]
    if traits.normalises_features:
        _check_norms(model.tensors, name)
    if not choices.offers(LAYERS):
        return
    choices.take(PADDING, held="zeros")
    take_layers(choices, hyper.get("layers"), network=name, widths=level_widths(model.tensors))


def check_input_size(choices: Choices, from_shapes: tuple[int, int] | None) -> None:
    """Refuse an input size that differs from the size that the tensors imply (``from_shapes``, None for any).

    Raises:
        CheckpointError: The chosen size is another.
    """
    if from_shapes is not None and choices.values["input_size"] != from_shapes:
        raise CheckpointError(
            f"the input size is {choices.values['input_size']}, and the model's norms are for {from_shapes}: "
            f"it runs at that size only. Use --set input_size={from_shapes[0]}x{from_shapes[1]}."
        )


def _with_extractor(
    tensors: dict[str, Array], extractor: State, *, input_size: tuple[int, int] | None = None
) -> FamilyTensors:
    backbone = arrays_of({f"backbone.{name}": tensor for name, tensor in extractor.items()})
    name, naming = recognise_backbone({n.removeprefix("backbone."): array for n, array in backbone.items()})
    return FamilyTensors(
        tensors={**backbone, **tensors},
        backbone=name,
        naming=naming if backbone else None,
        input_size=input_size,
    )


def _by_number(state: State, prefixes: str) -> Iterable[State]:
    """Return the states under ``PREFIX.0.``, ``PREFIX.1.``, … without their prefixes."""
    levels: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        match = re.fullmatch(rf"(?:{prefixes})\.(\d+)\.(.+)", name)
        if match:
            levels.setdefault(int(match[1]), {})[match[2]] = tensor
    check_couplings(len(levels))
    if sorted(levels) != list(range(len(levels))):
        raise CheckpointError(f"the checkpoint has the levels {sorted(levels)}, not 0, 1, 2, …")
    return [levels[level] for level in range(len(levels))]


def _graph_nodes(state: State) -> tuple[dict[int, dict[str, torch.Tensor]], list[int]]:
    """Return the all-in-one blocks of a FrEIA graph and its up-samplings, by node number."""
    nodes: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        number, _, rest = name.partition(".")
        if number.isdecimal():
            nodes.setdefault(int(number), {})[rest] = tensor
    kernels = sorted(n for n, node in nodes.items() if "downsample_kernel" in node)
    return {n: node for n, node in nodes.items() if n not in kernels}, kernels


def rising_channels(channels: int) -> int:
    """Return the number of channels that a level of U-Flow sends to the next finer level, at four times the pixels."""
    return 4 * (channels // 8)


def _norms(state: State, widths: tuple[int, ...]) -> dict[str, Array]:
    """Return the layer norms of all levels' features, which have ``widths`` channels, or of no level's."""
    norms = dict(arrays_of({f"norms.{name}": tensor for name, tensor in state.items()}))
    expected = [f"norms.{level}.{part}" for level in range(len(widths)) for part in ("weight", "bias")]
    missing = [name for name in expected if name not in norms]
    unknown = sorted(norms.keys() - set(expected))
    if norms and (missing or unknown):
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}"
        raise CheckpointError(
            f"the checkpoint {what}; the features of each of its {len(widths)} levels have one layer norm. "
            "Copy or train it again."
        )
    for level, width in enumerate(widths if norms else ()):
        weight, bias = (norms[f"norms.{level}.{part}"] for part in ("weight", "bias"))
        if weight.ndim != 3 or weight.shape != bias.shape or weight.shape[0] != width:
            raise CheckpointError(
                f"norms.{level} has shapes {weight.shape} and {bias.shape}, expected (C, H, W) twice for the "
                f"C = {width} channels of the level's features. Copy or train it again."
            )
    return norms


def _check_norms(tensors: Mapping[str, Array], network: str) -> None:
    """Check that the checkpoint has layer norms exactly if its extractor is convolutional.

    Raises:
        CheckpointError: A convolutional extractor has no layer norms, or a transformer, which ends in a norm, has them.
    """
    is_transformer = network == "mcait" or network.startswith(TRANSFORMERS)
    has_norms = "norms.0.weight" in tensors
    if is_transformer == has_norms:
        what = "has norms.0.weight, and there are none" if has_norms else "lacks norms.0.weight, a layer norm"
        raise CheckpointError(
            f"the checkpoint {what} behind {network}. Copy or train it again, or name its network with "
            "--set backbone=NAME."
        )


def _norm_size(norms: Mapping[str, Array]) -> tuple[int, int] | None:
    """Return four times the finest level's size, because its stride is 4 in every network with such norms."""
    if "norms.0.weight" not in norms:
        return None
    _, height, width = norms["norms.0.weight"].shape
    return 4 * height, 4 * width


def _token_size(position_code: torch.Tensor, prefix_tokens: int) -> tuple[int, int]:
    tokens = position_code.shape[1] - prefix_tokens if position_code.ndim == 3 else 0
    side = math.isqrt(max(tokens, 0))
    if not side or side * side != tokens:
        raise CheckpointError(
            f"pos_embed has shape {tuple(position_code.shape)}, expected (1, N, C) with a square number of positions "
            f"behind the first {prefix_tokens}. Copy or train it again."
        )
    return _PATCH * side, _PATCH * side


def _check_coupling(prefix: str, block: Mapping[str, Array]) -> int:
    """Check the shapes of one cross-scale coupling and return its channels.

    net1 reads the first, smaller half of the channels and net2 the second.
    """
    widths: dict[str, int] = {}
    for net in ("net1", "net2"):
        start = f"{prefix}{net}."
        missing = [
            f"{start}{conv}.{part}"
            for conv in (*(f"conv_scale{level}_0" for level in range(3)), *_CSFLOW_CONVOLUTIONS)
            for part in ("weight", "bias")
            if f"{start}{conv}.{part}" not in block
        ]
        if missing:
            raise CheckpointError(f"the checkpoint lacks {missing[0]}. Copy or train it again.")
        _check_gammas(block, [f"{start}gamma{level}" for level in range(3)])
        hidden, width, kernel, _ = _kernel(block, f"{start}conv_scale0_0.weight")
        widths[net] = width
        for level in range(3):
            _expect(block, f"{start}conv_scale{level}_0.weight", (hidden, width, kernel, kernel))
        outputs, *_ = _kernel(block, f"{start}conv_scale0_1.weight")
        for conv in _CSFLOW_CONVOLUTIONS:
            _expect(block, f"{start}{conv}.weight", (outputs, hidden, kernel, kernel))
    channels = sum(widths.values())
    for net, other in (("net1", "net2"), ("net2", "net1")):
        name = f"{prefix}{net}.conv_scale0_1.weight"
        if block[name].shape[0] != 2 * widths[other] or widths["net1"] != channels // 2:
            raise CheckpointError(
                f"{name} has shape {block[name].shape}; expected {2 * widths[other]} outputs for halves of "
                f"{widths['net1']} and {widths['net2']} channels."
            )
    return channels


def _check_gammas(block: Mapping[str, Array], names: list[str]) -> None:
    """Check that each of CS-Flow's three scales has one factor gamma, or none has one."""
    held = [name for name in names if name in block]
    wrong = [name for name in names if name not in block or block[name].size != 1] if held else []
    if wrong:
        shape = f"has shape {block[wrong[0]].shape}" if wrong[0] in block else "is missing"
        raise CheckpointError(
            f"{wrong[0]} {shape}, expected (1,) as of the other scales. Copy or train it again."
        )


def _kernel(block: Mapping[str, Array], name: str) -> tuple[int, ...]:
    shape = block[name].shape
    if len(shape) != 4 or shape[2] % 2 == 0:
        raise CheckpointError(f"{name} has shape {shape}, expected (out, in, K, K) with odd K.")
    return shape


def _expect(block: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> None:
    if block[name].shape != shape:
        raise CheckpointError(f"{name} has shape {block[name].shape}, expected {shape}.")
    bias = name.removesuffix("weight") + "bias"
    if block[bias].shape != shape[:1]:
        raise CheckpointError(f"{bias} has shape {block[bias].shape}, expected {shape[:1]}.")
