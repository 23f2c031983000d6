"""Read CFLOW and FastFlow of Taitran2202/TVTVision: a dict of step, model, optimizer and best score.

The tensors have anomalib's names without its trainer's prefix. So a state dict without that dict around it may also be
of anomalib's inner module, and the assumed values say so. FastFlow's modules of anomalib 2.7 and before 0.6 number
their subnets otherwise and are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.checkpoints.contents import Contents
from flowedge.export.checkpoints.coupling_tensors import take_clamp_variant
from flowedge.export.checkpoints.family_tensors import (
    cflow_tensors,
    fastflow_tensors,
    take_network,
)
from flowedge.export.checkpoints.official import official_checkpoint
from flowedge.export.checkpoints.preprocessing import fixed_pipeline
from flowedge.export.checkpoints.settings import CLAMP, TOP_PIXELS, Choices
from flowedge.export.checkpoints.stand_ins import StandIn

_UNSTORED: Final = "The default of the repository's configuration, which the checkpoint does not hold."


def recognises(contents: Contents) -> bool:
    """Return True when the tensors have anomalib's names without anything of its trainer."""
    names = ("decoders.0.module_list.", "fast_flow_blocks.0.module_list.")
    has_module = isinstance(contents.root, StandIn) or isinstance(contents.get("model"), StandIn)
    bare = not contents.is_wrapped and not has_module and contents.get("hyper_parameters") is None
    anomalibs = not _is_container(contents) and any(
        name.startswith("fast_flow_blocks.") and ".subnet.0." in name for name in contents.state
    )
    return bare and not anomalibs and any(name.startswith(names) for name in contents.state)


def _is_container(contents: Contents) -> bool:
    """Return True when the file is the repository's own dict and not a state dict alone."""
    return contents.get("best_score") is not None or contents.get("scheduler_state_dict") is not None


def read(contents: Contents, given: Mapping[str, str]) -> Checkpoint:
    """Read the checkpoint.

    Raises:
        CheckpointError: A tensor is missing or misshapen, the extractor unknown, or a setting wrong.
    """
    is_cflow = any(name.startswith("decoders.") for name in contents.state)
    is_container = _is_container(contents)
    choices = Choices("cflow" if is_cflow else "fastflow", given)
    model = (cflow_tensors if is_cflow else fastflow_tensors)(contents.state)
    take_network(choices, model, {})
    choices.take(CLAMP, default=1.9 if is_cflow else 2.0, why=_UNSTORED)
    take_clamp_variant(choices, model.tensors)
    preprocessing = fixed_pipeline(
        choices,
        size=model.input_size,
        default_size=(256, 256),
        size_why=_UNSTORED,
        method="cv2_bilinear",
        why="Fixed in the repository's code."
        if is_container
        else "Fixed in TVTVision's code. For the inner module of anomalib, whose state dict has the same names: "
        "float_bilinear since 1.0, cv2_bilinear before.",
    )
    if is_cflow:
        choices.take(
            TOP_PIXELS,
            default=100 if is_container else 1,
            why="TVTVision's score is the mean of the map's 100 largest values; anomalib's inner module, which "
            "has the same names, takes the largest.",
        )
    return official_checkpoint(contents, choices, model, preprocessing, repository="Taitran2202/TVTVision")
