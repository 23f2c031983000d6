"""Build the IR of FastFlow (Yu et al., 2021), an unconditional flow over the feature maps of each level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.checkpoint import Checkpoint, Tensors
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
    levels = count_levels(checkpoint.tensors)
    check_features(checkpoint.tensors, backbone, shapes)
    steps = [step for level in range(levels) for step in _steps(checkpoint, level, shapes[level])]
    return ir.FlowModel(
        family="fastflow",
        image_size=image_size,
        backbone=backbone,
        levels=tuple(ir.Level(channels=c, height=h, width=w, feature_channels=c) for c, h, w in shapes),
        steps=tuple(steps),
        scoring=Scoring(normalisation="none"),
    )


def layer_norm(tensors: Tensors, level: int, shape: tuple[int, int, int]) -> Iterator[ir.LayerNorm]:
    """Yield the layer norm of a level's features, where the checkpoint has one. Transformers have none.

    Raises:
        CheckpointError: The layer norm has another shape than the features.
    """
    if f"norms.{level}.weight" in tensors:
        if tensors[f"norms.{level}.weight"].shape != shape:
            raise CheckpointError(
                f"norms.{level}.weight has shape {tensors[f'norms.{level}.weight'].shape}, and the features of its "
                f"level have {shape}. Name the right network with --set backbone=NAME, or copy the file again."
            )
        yield ir.LayerNorm(
            stream=level,
            weight=np.asarray(tensors[f"norms.{level}.weight"], np.float32),
            bias=np.asarray(tensors[f"norms.{level}.bias"], np.float32),
            eps=1e-5,
        )


def _steps(checkpoint: Checkpoint, level: int, shape: tuple[int, int, int]) -> Iterator[ir.Step]:
    yield from layer_norm(checkpoint.tensors, level, shape)
    yield from steps_of_level(checkpoint, level, level)
