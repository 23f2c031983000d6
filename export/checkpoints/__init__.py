"""Read a checkpoint that nobody vouches for into one plain record; see `record` for what it holds."""

from flowedge.export.checkpoints.backbone import read_backbone_weights, with_backbone
from flowedge.export.checkpoints.blocks import permutation_kind
from flowedge.export.checkpoints.reader import read_checkpoint
from flowedge.export.checkpoints.record import Checkpoint

__all__ = ["Checkpoint", "permutation_kind", "read_backbone_weights", "read_checkpoint", "with_backbone"]
