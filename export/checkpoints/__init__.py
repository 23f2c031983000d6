"""Read a checkpoint from an untrusted file into one plain `Checkpoint`."""

from flowedge.export.checkpoints.backbone import read_backbone_weights, with_backbone
from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.checkpoints.coupling_tensors import permutation_kind
from flowedge.export.checkpoints.reader import read_checkpoint

__all__ = ["Checkpoint", "permutation_kind", "read_backbone_weights", "read_checkpoint", "with_backbone"]
