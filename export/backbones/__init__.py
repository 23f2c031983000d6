"""Build feature extractors as torch modules and fill them with weights from files, never from the internet."""

from __future__ import annotations

from flowedge.export.backbones.build import feature_shapes, module_from_backbone
from flowedge.export.backbones.convolutional import pad_by_reflection
from flowedge.export.backbones.from_checkpoint import backbone_from_checkpoint
from flowedge.export.backbones.weights import fill

__all__ = ["backbone_from_checkpoint", "feature_shapes", "fill", "module_from_backbone", "pad_by_reflection"]
