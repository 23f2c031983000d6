"""Read U-Flow of mtailanian/uflow: a Lightning checkpoint without hyper-parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.checkpoints.contents import Contents
from flowedge.export.checkpoints.coupling_tensors import take_clamp_variant
from flowedge.export.checkpoints.family_tensors import take_network, uflow_tensors
from flowedge.export.checkpoints.official import official_checkpoint, official_pipeline
from flowedge.export.checkpoints.settings import CLAMP, Choices


def recognises(contents: Contents) -> bool:
    """Return True for a U-Flow graph with the official extractor's name and nothing of anomalib's trainer."""
    names = list(contents.state)
    is_uflow = any(re.fullmatch(r"flow\.module_list\.\d+\.downsample_kernel", name) for name in names)
    official = any(re.match(r"feature_extractor\.extractor[12]?\.", name) for name in names) or contents.has(
        "aupro"
    )
    of_anomalib = bool(contents.get("hyper_parameters")) or contents.has(
        "post_processor.", "image_threshold", "feature_extractor.feature_extractor."
    )
    return is_uflow and official and not of_anomalib


def read(contents: Contents, given: Mapping[str, str]) -> Checkpoint:
    """Read the checkpoint.

    Raises:
        CheckpointError: A tensor is missing or misshapen, the extractor unknown, or a setting wrong.
    """
    choices = Choices("uflow", given)
    model = uflow_tensors(contents.state)
    take_network(choices, model, {})
    choices.take(
        CLAMP, default=2.0, why="The default of the official implementation, which stores it nowhere."
    )
    take_clamp_variant(choices, model.tensors)
    return official_checkpoint(
        contents, choices, model, official_pipeline(choices, model), repository="mtailanian/uflow"
    )
