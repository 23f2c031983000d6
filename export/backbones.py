"""Backbones as torch modules: built without weights, filled from the checkpoint, never from a network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowedge.errors import CheckpointError
from flowedge.export.graph import ir


class TimmFeatures(nn.Module):
    """A timm network that returns the feature maps of its taps, fine to coarse."""

    def __init__(self, network: str, taps: Sequence[str]) -> None:
        super().__init__()
        indices = _tap_indices(network, taps)
        self.network = timm.create_model(
            network, pretrained=False, features_only=True, exportable=True, out_indices=indices
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(N, 3, H, W)`` in, one ``(N, C, h, w)`` per tap out."""
        return list(self.network(image))


def module_from_backbone(backbone: ir.Backbone) -> nn.Module:
    """The backbone, filled with its weights, in evaluation mode.

    Raises:
        CheckpointError: The network or a tap is unknown, or a weight is missing, left over or of the wrong shape.
    """
    module = TimmFeatures(backbone.network, backbone.taps)
    if backbone.padding == "reflect":
        pad_by_reflection(module)
    fill(module.network, backbone.weights, f"the backbone {backbone.network}")
    return module.eval()


def pad_by_reflection(module: nn.Module) -> None:
    """Make every convolution that pads do so by reflection, as the official CFLOW's and MSFlow's ResNets do."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and any(conv.padding):
            conv.padding_mode = "reflect"


def fill(module: nn.Module, tensors: Mapping[str, NDArray[np.generic]], what: str) -> None:
    """Load a state dict and accept no difference but BatchNorm's unused counters.

    Raises:
        CheckpointError: A tensor is missing, left over or of the wrong shape; the message names it.
    """
    wanted = {
        key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    given = {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    for problem, keys in (
        ("lacks", wanted.keys() - given.keys()),
        ("has unknown", given.keys() - wanted.keys()),
    ):
        if keys:
            shown = ", ".join(sorted(keys)[:3]) + (" …" if len(keys) > 3 else "")
            raise CheckpointError(
                f"{what} {problem} {len(keys)} of its tensors: {shown}. "
                "Check that the network's name is right (--set backbone=NAME)."
            )
    state = {}
    for key, value in given.items():
        if tuple(value.shape) != tuple(wanted[key].shape):
            raise CheckpointError(
                f"{what}: tensor {key} has shape {tuple(value.shape)}, expected {tuple(wanted[key].shape)}."
            )
        state[key] = torch.from_numpy(np.ascontiguousarray(value))
    module.load_state_dict(state, strict=False)


def feature_shapes(module: nn.Module, image_size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """``(channels, height, width)`` of each feature map for an input of ``image_size``."""
    with torch.inference_mode():
        features = module(torch.zeros(1, 3, *image_size))
    return [(f.shape[1], f.shape[2], f.shape[3]) for f in features]


def _tap_indices(network: str, taps: Sequence[str]) -> list[int]:
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            probe: Any = timm.create_model(network, pretrained=False, features_only=True, exportable=True)
    except (RuntimeError, AttributeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"timm cannot build the backbone {network!r} as a feature extractor: {error}. "
            "Name the network with --set backbone=NAME."
        ) from error
    names = list(probe.feature_info.module_name())
    try:
        return [names.index(tap) for tap in taps]
    except ValueError:
        missing = [tap for tap in taps if tap not in names]
        raise CheckpointError(
            f"the backbone {network} has no layer {', '.join(missing)}; it has {', '.join(names)}. "
            "Name the layers with --set layers=a,b,c."
        ) from None
