"""Complete checkpoints of official repositories, whose files hold the extractor but no input pipeline."""

from __future__ import annotations

from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.checkpoints.contents import Contents
from flowedge.export.checkpoints.family_tensors import FamilyTensors, check_input_size
from flowedge.export.checkpoints.preprocessing import fixed_pipeline
from flowedge.export.checkpoints.settings import Choices
from flowedge.manifest import Preprocessing


def official_pipeline(choices: Choices, model: FamilyTensors) -> Preprocessing:
    """Choose the input pipeline of the official FastFlow and U-Flow, whose data loaders are alike.

    Raises:
        CheckpointError: The input size is neither given nor implied by the shapes, or a setting is wrong.
    """
    return fixed_pipeline(
        choices,
        size=model.input_size,
        size_why="Its extractor has no layer norms that tell.",
        method="pil_bilinear",
        keep_aspect=True,
        why="Fixed in the official implementation's data loader.",
    )


def official_checkpoint(
    contents: Contents,
    choices: Choices,
    model: FamilyTensors,
    preprocessing: Preprocessing,
    *,
    repository: str,
) -> Checkpoint:
    """Return an official checkpoint as data once all its values are chosen.

    Raises:
        CheckpointError: The chosen input size is not the one that the shapes imply.
    """
    check_input_size(choices, model.input_size)
    return Checkpoint(
        repository=repository,
        generation="official",
        family=choices.family,
        tensors=model.tensors,
        backbone_naming=model.naming,
        hyperparameters=choices.values,
        assumed=tuple(choices.assumed),
        preprocessing=preprocessing,
        file=contents.file,
        sha256=contents.sha256,
    )
