"""Read FrEIA's all-in-one blocks as couplings of the IR, for CFLOW, FastFlow, U-Flow and MSFlow's parallel flows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.checkpoint import Array, Checkpoint, Tensors
from flowedge.export.graph import ir

GAIN = 0.1
"""Factor by which FrEIA multiplies the subnet's output."""


def steps_of_level(checkpoint: Checkpoint, level: int, stream: int) -> Iterator[ir.Step]:
    """Yield a ``Coupling`` and a ``ChannelMap`` for each coupling of one level, in order."""
    for coupling in range(count_couplings(checkpoint.tensors, level)):
        yield from _steps_of_coupling(checkpoint, f"flow.{level}.{coupling}.", stream)


def count_levels(tensors: Tensors) -> int:
    """Count the levels of the flow."""
    return 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("flow."))


def count_couplings(tensors: Tensors, level: int) -> int:
    """Count the couplings of a level."""
    prefix = f"flow.{level}."
    return 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith(prefix))


def coupling_channels(tensors: Tensors, level: int) -> int:
    """Return the number of channels of a level's first coupling."""
    return int(tensors[f"flow.{level}.0.global_scale"].size)


def check_features(tensors: Tensors, backbone: ir.Backbone, shapes: Sequence[tuple[int, int, int]]) -> None:
    """Compare the backbone's features with the first coupling of each level.

    Raises:
        CheckpointError: The numbers of levels or channels differ.
    """
    wanted = [coupling_channels(tensors, level) for level in range(count_levels(tensors))]
    given = [channels for channels, _, _ in shapes]
    if wanted != given:
        raise CheckpointError(
            f"the flow takes {wanted} channels, but the layers {', '.join(backbone.taps)} of {backbone.network} "
            f"give {given}. Name the right ones with --set layers=a,b,c or --set backbone=NAME."
        )


def softplus_scale(global_scale: Array) -> NDArray[np.float64]:
    """Compute ``0.1 softplus(global_scale, beta = 0.5)`` as FrEIA's SOFTPLUS affine type does."""
    halved = 0.5 * global_scale.astype(np.float64).ravel()
    return 0.2 * np.where(halved > 20, halved, np.log1p(np.exp(np.minimum(halved, 20))))


def channel_matrix(tensors: Tensors, prefix: str) -> ir.Array:
    """Read a coupling's permutation, which is stored as a matrix, an index or reflections, as a matrix ``(C, C)``."""
    # 1. Householder reflections v are multiplied to the stored start: W (I - 2 v v^T / v^T v).
    if f"{prefix}vk_householder" in tensors:
        matrix = tensors[f"{prefix}w_0"].astype(np.float64)
        for reflection in tensors[f"{prefix}vk_householder"].astype(np.float64):
            matrix = matrix - np.outer(matrix @ reflection, reflection) * (2 / (reflection @ reflection))
        return matrix.astype(np.float32)
    # 2. An index gives a permutation matrix. 3. A matrix is taken as it is.
    stored = tensors[f"{prefix}w_perm"]
    if stored.ndim == 1:
        return np.eye(len(stored), dtype=np.float32)[stored]
    return np.asarray(stored, dtype=np.float32)


def _steps_of_coupling(checkpoint: Checkpoint, prefix: str, stream: int) -> Iterator[ir.Step]:
    tensors = checkpoint.tensors
    channels = int(tensors[f"{prefix}global_scale"].size)
    active = channels // 2
    passive = channels - active
    subnet = tuple(_subnet(tensors, f"{prefix}subnet."))
    condition = _inputs(subnet[0]) - passive  # the inputs after the passive half are the position code's
    alpha = _number(checkpoint.hyperparameters["clamp"])
    variant = checkpoint.hyperparameters["clamp_variant"]
    yield ir.Coupling(
        stream=stream,
        passive=np.arange(passive),
        active=np.arange(passive, channels),
        condition=ir.PositionCode(length=condition) if condition else None,
        subnet=subnet,
        gain=GAIN,
        alpha=alpha,
        inner=1.0 / alpha if variant == "tanh_over_alpha" else 1.0,
        scale=softplus_scale(tensors[f"{prefix}global_scale"]).astype(np.float32),
        offset=tensors[f"{prefix}global_offset"].astype(np.float32).ravel(),
        log_det=True,
    )
    yield ir.ChannelMap(stream=stream, matrix=channel_matrix(tensors, prefix))


def _subnet(tensors: Tensors, prefix: str) -> Iterator[ir.SubnetLayer]:
    """Yield the layers of a subnet, with a ReLU before every matrix or convolution but the first."""
    number = 0
    while f"{prefix}{number}.weight" in tensors:
        weight = np.asarray(tensors[f"{prefix}{number}.weight"], dtype=np.float32)
        bias = np.asarray(tensors[f"{prefix}{number}.bias"], dtype=np.float32)
        following = tensors.get(f"{prefix}{number + 1}.weight")
        if weight.ndim == 1:
            yield ir.ChannelNorm(weight=weight, bias=bias, eps=1e-5)
        elif weight.ndim == 2:
            yield ir.Linear(weight=weight, bias=bias)
        else:
            yield ir.Conv(weight=weight, bias=bias)
        if following is not None and following.ndim > 1:
            yield ir.Relu()
        number += 1


def _inputs(layer: ir.SubnetLayer) -> int:
    assert isinstance(layer, (ir.Linear, ir.Conv))
    return int(layer.weight.shape[1])


def _number(value: object) -> float:
    assert isinstance(value, (int, float))
    return float(value)
