"""FastFlow as gathierry/FastFlow saves it: one dict of epoch, model and optimizer."""

from __future__ import annotations

from collections.abc import Mapping

from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.checkpoints.contents import Contents
from flowedge.export.checkpoints.coupling_tensors import take_clamp_variant
from flowedge.export.checkpoints.family_tensors import check_input_size, fastflow_tensors, take_network
from flowedge.export.checkpoints.preprocessing import fixed_pipeline
from flowedge.export.checkpoints.settings import CLAMP, Choices


def recognises(contents: Contents) -> bool:
    """The flows are called ``nf_flows``."""
    return any(name.startswith("nf_flows.") for name in contents.state)


def read(contents: Contents, given: Mapping[str, str]) -> Checkpoint:
    """Read it.

    Raises:
        CheckpointError: A tensor is missing or misshapen, the extractor unknown, or a setting wrong.
    """
    choices = Choices("fastflow", given)
    model = fastflow_tensors(contents.state)
    take_network(choices, model, {})
    choices.take(CLAMP, default=2.0, why="Fixed in the official implementation.")
    take_clamp_variant(choices, model.tensors)
    preprocessing = fixed_pipeline(
        choices,
        size=model.input_size,
        size_why="Its extractor has no layer norms that tell.",
        method="pil_bilinear",
        keep_aspect=True,
        why="Fixed in the official implementation's data loader.",
    )
    check_input_size(choices, model.input_size)
    return Checkpoint(
        repository="gathierry/FastFlow",
        generation="official",
        family="fastflow",
        tensors=model.tensors,
        backbone_naming=model.naming,
        hyperparameters=choices.values,
        assumed=tuple(choices.assumed),
        preprocessing=preprocessing,
        file=contents.file,
        sha256=contents.sha256,
    )
