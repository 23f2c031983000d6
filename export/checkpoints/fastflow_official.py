"""Read FastFlow of gathierry/FastFlow: one dict of epoch, model and optimizer."""

from __future__ import annotations

from collections.abc import Mapping

from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.checkpoints.contents import Contents
from flowedge.export.checkpoints.coupling_tensors import take_clamp_variant
from flowedge.export.checkpoints.family_tensors import fastflow_tensors, take_network
from flowedge.export.checkpoints.official import official_checkpoint, official_pipeline
from flowedge.export.checkpoints.settings import CLAMP, Choices


def recognises(contents: Contents) -> bool:
    """Return True when the flows are called ``nf_flows``."""
    return any(name.startswith("nf_flows.") for name in contents.state)


def read(contents: Contents, given: Mapping[str, str]) -> Checkpoint:
    """Read the checkpoint.

    Raises:
        CheckpointError: A tensor is missing or misshapen, the extractor unknown, or a setting wrong.
    """
    choices = Choices("fastflow", given)
    model = fastflow_tensors(contents.state)
    take_network(choices, model, {})
    choices.take(CLAMP, default=2.0, why="Fixed in the official implementation.")
    take_clamp_variant(choices, model.tensors)
    return official_checkpoint(
        contents, choices, model, official_pipeline(choices, model), repository="gathierry/FastFlow"
    )
