"""Build the IR of U-Flow (Tailanian, Pardo and Musé, 2022), flow stages from the coarsest to the finest level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.checkpoint import Checkpoint, Tensors
from flowedge.export.checkpoints.family_tensors import rising_channels
from flowedge.export.families.couplings import count_levels, coupling_channels, steps_of_level
from flowedge.export.families.fastflow import layer_norm
from flowedge.export.graph import ir
from flowedge.manifest import Scoring


def flow_model(
    checkpoint: Checkpoint,
    backbone: ir.Backbone,
    shapes: Sequence[tuple[int, int, int]],
    image_size: tuple[int, int],
) -> ir.FlowModel:
    """Build the IR of a checkpoint, as `flowedge.export.families.family.BuildsFlowModel` describes.

    Raises:
        CheckpointError: The backbone's features do not fit the flow.
    """
    count = count_levels(checkpoint.tensors)
    if len(shapes) != count:
        raise CheckpointError(
            f"the flow has {count} levels, but {backbone.network} gives {len(shapes)}. "
            "Name the right network with --set backbone=NAME."
        )
    latents = [0] * count
    program: list[ir.Step] = [
        norm for level in range(count) for norm in layer_norm(checkpoint.tensors, level, shapes[level])
    ]
    # From the coarsest level on, each stage takes its level's features and the channels that came up.
    width = 0
    for level in reversed(range(count)):
        width += shapes[level][0]
        stage = coupling_channels(checkpoint.tensors, level)
        if width != stage:
            raise CheckpointError(
                f"the flow's stage {level} takes {stage} channels, but {backbone.network} gives it {width}. "
                "Name the right network with --set backbone=NAME."
            )
        program += steps_of_level(checkpoint, level, level)
        latents[level] = width
        if level:
            sent = rising_channels(width)
            latents[level] = width - sent
            program += _lift(checkpoint.tensors, level, count + level, width)
            width = sent // 4
    return ir.FlowModel(
        family="uflow",
        image_size=image_size,
        backbone=backbone,
        levels=tuple(
            ir.Level(channels=latent, height=height, width=columns, feature_channels=channels)
            for latent, (channels, height, columns) in zip(latents, shapes, strict=True)
        ),
        steps=tuple(program),
        scoring=Scoring(normalisation="none"),
    )


def _lift(tensors: Tensors, level: int, scratch: int, width: int) -> Iterator[ir.Step]:
    """Yield the steps that send half of the channels up, at twice the size, after the next finer level's features."""
    sent = rising_channels(width)
    yield ir.Split(stream=level, into=scratch, send=np.arange(sent), keep=np.arange(sent, width))
    mixing = _mixing(np.asarray(tensors[f"up.{level}.downsample_kernel"], np.float32))
    if not np.array_equal(mixing, np.eye(sent)):
        yield ir.ChannelMap(stream=scratch, matrix=mixing)
    yield ir.PixelShuffle(stream=scratch)
    yield ir.Concat(stream=level - 1, other=scratch)


def _mixing(kernel: ir.Array) -> ir.Array:
    """Turn the up-sampling's kernel ``(4g, 1, 2, 2)`` into a matrix ``(4g, 4g)`` before a pixel shuffle.

    Output pixel (a, b) of channel g is the sum over j of ``kernel[4g + j, 0, a, b] x[4g + j]``. FrEIA's own kernel
    gives the identity.
    """
    size = len(kernel)
    matrix = np.zeros((size, size), np.float32)
    for first in range(0, size, 4):
        matrix[first : first + 4, first : first + 4] = kernel[first : first + 4].reshape(4, 4).T
    return matrix
