"""Rename the tensors of all-in-one coupling blocks to one naming, and check every shape.

The block is FrEIA's ``AllInOneBlock``, which CFLOW, FastFlow, U-Flow and MSFlow's parallel flows use. The shapes
of the block's tensors determine the whole flow but the clamp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias

import numpy as np
import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.budget import MAX_REFLECTIONS, above_budget, check_couplings
from flowedge.export.checkpoints.checkpoint import Array, Tensors
from flowedge.export.checkpoints.contents import State, arrays_of
from flowedge.export.checkpoints.settings import CLAMP_VARIANT, Choices
from flowedge.families import TRAITS
from flowedge.manifest import Family

PermutationKind: TypeAlias = Literal["index", "hard", "soft"]

_PER_CHANNEL: Final = ("global_scale", "global_offset")
_SUBNET: Final = re.compile(r"subnet\.(\w+)\.(weight|bias)")
_SUBNET_NAMES: Final[Mapping[str, int]] = {"conv1": 0, "ln": 1, "conv2": 2}
# The numbers of axes of the weights of each family's subnet. Two is a linear layer, four a convolution, one a norm.
_SUBNET_AXES: Final[Mapping[Family, tuple[int, ...]]] = {
    "cflow": (2, 2),
    "fastflow": (4, 4),
    "uflow": (4, 4),
    "msflow": (4, 1, 4),
}


def permutation_kind(w_perm: Array) -> PermutationKind:
    """Return the kind of a ``w_perm``: ``index`` if ``(C,)``, ``hard`` if a 0/1 matrix ``(C, C)``, else ``soft``."""
    if w_perm.ndim == 1:
        return "index"
    return "hard" if bool(((w_perm == 0) | (w_perm == 1)).all()) else "soft"


def is_permutation(array: Array, length: int) -> bool:
    """Return True when an array holds the numbers 0 to ``length - 1`` in some order as int64."""
    return array.ndim == 1 and array.dtype == np.int64 and np.array_equal(np.sort(array), np.arange(length))


def sequence_tensors(levels: Iterable[State], family: Family) -> dict[str, Array]:
    """Rename the tensors of the coupling blocks of each level, a FrEIA ``SequenceINN``, and check their shapes.

    Args:
        levels: Fine to coarse, names ``module_list.{k}.NAME``.
        family: The family, which determines the blocks' subnet and its condition.

    Returns:
        ``flow.{l}.{k}.NAME`` as `Checkpoint` lists them.

    Raises:
        CheckpointError: A block is missing or incomplete, a shape disagrees, a value is not finite.
    """
    tensors: dict[str, Array] = {}
    couplings = 0
    for level, state in enumerate(levels):
        blocks: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in state.items():
            match = re.fullmatch(r"module_list\.(\d+)\.(.+)", name)
            if match:
                blocks.setdefault(int(match[1]), {})[match[2]] = tensor
        couplings += max(1, len(blocks))
        check_couplings(couplings)
        if sorted(blocks) != list(range(len(blocks))) or not blocks:
            raise CheckpointError(
                f"level {level} of the flow has the blocks {sorted(blocks)}, not 0, 1, 2, …"
            )
        tensors |= level_tensors(level, [blocks[k] for k in range(len(blocks))], family)
    return tensors


def level_tensors(level: int, blocks: list[dict[str, torch.Tensor]], family: Family) -> dict[str, Array]:
    """Rename the tensors of one level's coupling blocks, in order of application, and check their shapes."""
    tensors: dict[str, Array] = {}
    shapes: set[tuple[int, int]] = set()
    for k, state in enumerate(blocks):
        prefix = f"flow.{level}.{k}."
        block = _block(prefix, state, family)
        shapes.add((len(block["global_scale"]), block["subnet.0.weight"].shape[1]))
        tensors |= {prefix + name: array for name, array in block.items()}
    if len(shapes) > 1:
        raise CheckpointError(
            f"the blocks of level {level} disagree on (channels, inputs of the subnet): {sorted(shapes)}."
        )
    ((channels, inputs),) = shapes
    _check_condition(f"the subnets of level {level} take {inputs} channels", channels, inputs, family)
    return tensors


def level_widths(tensors: Tensors) -> tuple[int, ...]:
    """Return the channels of the flow's levels, fine to coarse, from the tensors of `sequence_tensors`."""
    widths: list[int] = []
    while (name := f"flow.{len(widths)}.0.global_scale") in tensors:
        widths.append(tensors[name].size)
    return tuple(widths)


def take_clamp_variant(choices: Choices, tensors: Tensors, *, known: str | None = None) -> None:
    """Decide between the clamps of FrEIA 0.2 and of its main branch since August 2023.

    Args:
        choices: The account that keeps the decision.
        tensors: The tensors that `sequence_tensors` returns.
        known: The variant where the source determines it, else None.
    """
    kinds = {permutation_kind(a) for name, a in tensors.items() if name.endswith(".w_perm")}
    if known is not None or kinds == {"hard"}:
        choices.take(CLAMP_VARIANT, held=known or "tanh")
    elif "index" in kinds:
        choices.take(
            CLAMP_VARIANT,
            default="tanh_over_alpha",
            why="Permutations are stored as indices: FrEIA's main branch since June 2023; from 2023-06-20 to "
            "2023-08-16 it still had tanh.",
        )
    else:
        choices.take(
            CLAMP_VARIANT,
            default="tanh",
            why="FrEIA 0.2's; a file with soft permutations does not say which FrEIA trained it.",
        )


def _check_condition(what: str, channels: int, inputs: int, family: Family) -> None:
    """Check that a subnet takes the passive half and, in some families, a position code of both axes."""
    passive = channels - channels // 2
    condition = inputs - passive
    if condition and not TRAITS[family].position_code:
        raise CheckpointError(
            f"{what}, expected {passive} for {channels} channels: {family} has no condition. "
            "The file was changed, or is of a fork."
        )
    if condition % 4:
        raise CheckpointError(
            f"{what}, {condition} of them a position code, expected a multiple of 4. "
            "Train with a condition of such a length."
        )


def _block(prefix: str, state: Mapping[str, torch.Tensor], family: Family) -> dict[str, Array]:
    """Check the tensors of one coupling block, and return them by their normalised names."""
    arrays = arrays_of({prefix + name: tensor for name, tensor in state.items() if name != "w_perm_inv"})
    for name, array in arrays.items():
        if array.dtype != np.float32 and name != f"{prefix}w_perm":
            raise CheckpointError(
                f"{name} holds whole numbers, expected floating point. Copy or train it again."
            )
    arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    block: dict[str, Array] = {}
    for name in _PER_CHANNEL:
        array = _held(arrays, name, prefix)
        if array.ndim < 2 or array.shape[0] != 1 or array.size != array.shape[1] or array.size < 2:
            raise CheckpointError(
                f"{prefix}{name} has shape {array.shape}, expected (1, C) or (1, C, 1, 1) with C of 2 or more."
            )
        block[name] = array.reshape(-1)
    channels = block["global_scale"].size
    _expect(prefix + "global_offset", block["global_offset"], (channels,))
    block |= _permutation(arrays, channels, prefix)
    block |= _subnet(arrays, channels, prefix, _SUBNET_AXES[family])
    return block


def _permutation(arrays: Tensors, channels: int, prefix: str) -> dict[str, Array]:
    if "vk_householder" in arrays:
        vectors, start = arrays["vk_householder"], _held(arrays, "w_0", prefix)
        start = _matrix(start)
        _expect(prefix + "vk_householder", vectors, (*vectors.shape[:1], channels))
        _expect(prefix + "w_0", start, (channels, channels))
        if len(vectors) > MAX_REFLECTIONS:
            raise above_budget(f"vectors of {prefix}vk_householder", len(vectors), MAX_REFLECTIONS)
        if not len(vectors) or not vectors.any(axis=1).all():
            raise CheckpointError(
                f"{prefix}vk_householder has shape {vectors.shape}, expected one or more vectors that are not zero. "
                "Copy or train it again."
            )
        return {"vk_householder": vectors, "w_0": start}
    w_perm = _held(arrays, "w_perm", prefix)
    if w_perm.ndim == 1:
        if not is_permutation(w_perm, channels):
            raise CheckpointError(
                f"{prefix}w_perm, {w_perm.dtype} of shape {w_perm.shape}, is no permutation of {channels} channels. "
                "Copy or train it again."
            )
        return {"w_perm": w_perm}
    matrix = _matrix(w_perm)
    _expect(prefix + "w_perm", matrix, (channels, channels))
    if permutation_kind(matrix) == "hard" and not ((matrix.sum(0) == 1).all() and (matrix.sum(1) == 1).all()):
        raise CheckpointError(f"{prefix}w_perm has only zeros and ones but is no permutation matrix.")
    return {"w_perm": matrix}


def _matrix(array: Array) -> Array:
    """Return a permutation matrix without the two axes of length one that convolutional blocks store."""
    return array.reshape(array.shape[:2]) if array.shape[2:] in ((), (1, 1)) else array


def _subnet(arrays: Tensors, channels: int, prefix: str, axes: tuple[int, ...]) -> dict[str, Array]:
    layers: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        match = _SUBNET.fullmatch(name)
        if match:
            layers.setdefault(match[1], {})[match[2]] = array
    order = sorted(layers, key=_place)
    known = all(_place(layer) >= 0 and "weight" in layers[layer] for layer in order)
    if not known or tuple(layers[layer]["weight"].ndim for layer in order) != axes:
        shapes = {name: array.shape for name, array in arrays.items() if name.startswith("subnet.")}
        raise CheckpointError(
            f"{prefix}subnet has the tensors {shapes}, not those of a known subnet: its weights have {axes} axes. "
            "Copy or train it again."
        )
    kernel = layers[order[0]]["weight"].shape[2:]
    subnet: dict[str, Array] = {}
    width: int | None = None
    for i, layer in enumerate(order):
        weight = layers[layer]["weight"]
        inputs = weight.shape[0] if weight.ndim == 1 else weight.shape[1]
        square = weight.ndim < 4 or (
            weight.shape[2:] == kernel and kernel[0] == kernel[1] and kernel[0] % 2 == 1
        )
        if not square or not weight.size or width not in (None, inputs):
            raise CheckpointError(
                f"{prefix}subnet.{i}.weight has shape {weight.shape}; expected an odd square kernel, the same in all "
                f"layers, on {width or 'any'} channels."
            )
        width = weight.shape[0]
        bias = _held(layers[layer], "bias", f"{prefix}subnet.{layer}.")
        _expect(f"{prefix}subnet.{i}.bias", bias, (width,))  # pyright: ignore[reportArgumentType]
        subnet |= {f"subnet.{i}.weight": weight, f"subnet.{i}.bias": bias}
    passive, first = channels - channels // 2, subnet["subnet.0.weight"]
    if first.shape[1] < passive:
        raise CheckpointError(
            f"{prefix}subnet.0.weight has shape {first.shape}; it must take at least {passive} channels."
        )
    if width != 2 * (channels // 2):
        raise CheckpointError(
            f"{prefix}subnet gives {width} channels, expected {2 * (channels // 2)} for {channels} channels."
        )
    return subnet


def _place(layer: str) -> int:
    """Return the position of a subnet's layer in the order of application, or -1 for an unknown name."""
    return int(layer) if layer.isdecimal() else _SUBNET_NAMES.get(layer, -1)


def _held(arrays: Tensors, name: str, prefix: str) -> Array:
    if name not in arrays:
        raise CheckpointError(f"the checkpoint lacks {prefix}{name}. Copy or train it again.")
    return arrays[name]


def _expect(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise CheckpointError(f"{name} has shape {array.shape}, expected {shape}.")
