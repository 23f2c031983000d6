"""Read CS-Flow of marco-rudolph/cs-flow: a pickled module, or its state dict alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.checkpoint import Checkpoint, Tensors
from flowedge.export.checkpoints.contents import Contents, arrays_of, named
from flowedge.export.checkpoints.coupling_tensors import is_permutation
from flowedge.export.checkpoints.family_tensors import csflow_tensors
from flowedge.export.checkpoints.permutations import csflow_permutations
from flowedge.export.checkpoints.preprocessing import fixed_pipeline
from flowedge.export.checkpoints.settings import (
    BACKBONE,
    CLAMP,
    EFFICIENTNET_PADDING,
    PERMUTATIONS,
    USE_GAMMA,
    Choices,
    stored_clamp,
)
from flowedge.export.checkpoints.stand_ins import StandIn

_UNSTORED: Final = "The default of the official implementation, which keeps it in config.py."
_STRIDE: Final = 32


def recognises(contents: Contents) -> bool:
    """Return True when the couplings have the nets ``s1`` and ``s2``, as a ``ReversibleGraphNet`` does."""
    return any(re.fullmatch(r"module_list\.\d+\.s1\.conv_scale0_0\.weight", name) for name in contents.state)


def read(contents: Contents, given: Mapping[str, str]) -> Checkpoint:
    """Read the checkpoint.

    Raises:
        CheckpointError: A tensor is missing or misshapen, or a setting wrong.
    """
    choices = Choices("csflow", given)
    model = csflow_tensors(contents.state)
    nodes = list(_nodes(contents))
    choices.take(BACKBONE, held="efficientnet_b5")
    choices.take(CLAMP, held=_clamp(nodes), default=3.0, why=_UNSTORED)
    choices.take(
        EFFICIENTNET_PADDING,
        default="static_0.7",
        why="efficientnet_pytorch's since 0.7; 0.6 pads stages 4 and 6 otherwise, and the file names no version.",
    )
    gammas = [array for name, array in model.tensors.items() if ".gamma" in name]
    choices.take(
        USE_GAMMA,
        default=any(gamma.any() for gamma in gammas),
        why="Read from config.py at run time; gammas that are all zero were not used.",
    )
    stored = _stored_permutations(nodes)
    scheme = choices.take(
        PERMUTATIONS,
        held="per_level" if stored else None,
        default="per_level",
        why="A state dict holds no permutations; they are drawn again as the official implementation draws them.",
    )
    permutations = stored if stored and scheme == "per_level" else csflow_permutations(scheme, model.tensors)
    _check_permutations(permutations, model.tensors)
    preprocessing = fixed_pipeline(
        choices,
        size=_input_size(contents.root),
        default_size=(768, 768),
        size_why=_UNSTORED,
        method="pil_bilinear",
        why="Fixed in the official implementation's data loader.",
    )
    return Checkpoint(
        repository="marco-rudolph/cs-flow",
        generation="official",
        family="csflow",
        tensors=model.tensors,
        backbone_naming=None,
        hyperparameters=choices.values,
        assumed=tuple(choices.assumed),
        preprocessing=preprocessing,
        permutations=permutations,
        file=contents.file,
        sha256=contents.sha256,
    )


def _nodes(contents: Contents) -> Iterator[StandIn]:
    """Yield the modules of the pickled flow graph in order, and none for a bare state dict."""
    if isinstance(contents.root, StandIn):
        modules = dict(named(contents.root.attributes.get("_modules"))).get("module_list")
        if isinstance(modules, StandIn):
            children = dict(named(modules.attributes.get("_modules")))
            yield from (node for node in children.values() if isinstance(node, StandIn))


def _clamp(nodes: list[StandIn]) -> float | None:
    clamps = {clamp for node in nodes if (clamp := stored_clamp(node.attributes.get("clamp"))) is not None}
    if len(clamps) > 1:
        raise CheckpointError(f"the couplings have different clamps: {sorted(clamps)}.")
    return clamps.pop() if clamps else None


def _stored_permutations(nodes: list[StandIn]) -> tuple[tuple[NDArray[np.int64], ...], ...]:
    stored: list[tuple[NDArray[np.int64], ...]] = []
    for node in nodes:
        permutation = node.attributes.get("perm")
        if isinstance(permutation, list):
            levels = (p for p in permutation if isinstance(p, torch.Tensor))
            names = {f"level {n} of permutation {len(stored)}": p for n, p in enumerate(levels)}
            stored.append(tuple(arrays_of(names).values()))
    return tuple(stored)


def _check_permutations(permutations: tuple[tuple[NDArray[np.int64], ...], ...], tensors: Tensors) -> None:
    """Check that each level of each block has one permutation of all channels."""
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("flow.")})
    if len(permutations) != blocks:
        raise CheckpointError(f"the checkpoint has {len(permutations)} permutations for {blocks} couplings.")
    for k, levels in enumerate(permutations):
        channels = sum(tensors[f"flow.{k}.{net}.conv_scale0_0.weight"].shape[1] for net in ("net1", "net2"))
        if len(levels) != 3 or not all(is_permutation(p, channels) for p in levels):
            shapes = [f"{p.dtype} {p.shape}" for p in levels]
            raise CheckpointError(
                f"permutation {k} is {', '.join(shapes)}, not three permutations of {channels} channels. "
                "Copy or train it again."
            )


def _input_size(root: object) -> tuple[int, int] | None:
    """Return the input size from the shape that the graph declares for its finest input, or None."""
    sizes: list[tuple[int, int]] = []
    nodes = root.attributes.get("node_list") if isinstance(root, StandIn) else None
    for node in nodes if isinstance(nodes, list) else ():
        data = node.attributes.get("data") if isinstance(node, StandIn) else None
        dims = data.attributes.get("dims") if isinstance(data, StandIn) else None
        match dims:
            case (int(), int(height), int(width)):
                sizes.append((_STRIDE * height, _STRIDE * width))
            case _:
                pass
    return max(sizes, default=None)
