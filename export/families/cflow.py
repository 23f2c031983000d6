"""CFLOW-AD (Gudovskiy, Ishizaka and Kozuka, WACV 2022): a conditional flow over the feature vectors of each level."""

from __future__ import annotations

from collections.abc import Sequence

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.record import Checkpoint
from flowedge.export.families.blocks import block_channels, count_levels, steps_of_level
from flowedge.export.graph import ir
from flowedge.manifest import Scoring


def flow_model(
    checkpoint: Checkpoint,
    backbone: ir.Backbone,
    shapes: Sequence[tuple[int, int, int]],
    image_size: tuple[int, int],
) -> ir.FlowModel:
    """The checkpoint as data.

    Args:
        checkpoint: What the reader returned.
        backbone: The network and its taps.
        shapes: ``(channels, height, width)`` of the backbone's features at ``image_size``, fine to coarse.
        image_size: ``(height, width)`` of the network's input, pixels.

    Raises:
        CheckpointError: The backbone's features do not fit the flow.
    """
    levels = count_levels(checkpoint.tensors)
    wanted = [block_channels(checkpoint.tensors, level) for level in range(levels)]
    given = [channels for channels, _, _ in shapes]
    if wanted != given:
        raise CheckpointError(
            f"the flow takes {wanted} channels, the layers {', '.join(backbone.taps)} of {backbone.network} "
            f"give {given}. Name the right layers with --set layers=a,b,c."
        )
    return ir.FlowModel(
        family="cflow",
        image_size=image_size,
        backbone=backbone,
        levels=tuple(ir.Level(channels=c, height=h, width=w, feature_channels=c) for c, h, w in shapes),
        steps=tuple(step for level in range(levels) for step in steps_of_level(checkpoint, level, level)),
        scoring=Scoring(normalisation="per_image"),
    )
