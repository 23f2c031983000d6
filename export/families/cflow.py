"""Build the IR of CFLOW-AD (Gudovskiy, Ishizaka and Kozuka, WACV 2022), a conditional flow over feature vectors."""

from __future__ import annotations

from collections.abc import Sequence

from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.families.couplings import check_features, count_levels, steps_of_level
from flowedge.export.graph import ir
from flowedge.manifest import Scoring


def flow_model(
    checkpoint: Checkpoint,
    backbone: ir.Backbone,
    shapes: Sequence[tuple[int, int, int]],
    image_size: tuple[int, int],
) -> ir.FlowModel:
    """Build the IR of a checkpoint, as `flowedge.export.families.family.BuildsFlowModel` describes."""
    top_pixels = checkpoint.hyperparameters["top_pixels"]
    assert isinstance(top_pixels, int)
    levels = count_levels(checkpoint.tensors)
    check_features(checkpoint.tensors, backbone, shapes)
    return ir.FlowModel(
        family="cflow",
        image_size=image_size,
        backbone=backbone,
        levels=tuple(ir.Level(channels=c, height=h, width=w, feature_channels=c) for c, h, w in shapes),
        steps=tuple(step for level in range(levels) for step in steps_of_level(checkpoint, level, level)),
        scoring=Scoring(normalisation="per_image", top_pixels=top_pixels if top_pixels > 1 else None),
    )
