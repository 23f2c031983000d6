"""Declare a family's functions for the exporter: its IR and its reference network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from torch import nn

from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.graph import ir
from flowedge.export.reference.answers import ReferenceNetwork
from flowedge.manifest import Family


class BuildsFlowModel(Protocol):
    """A function that builds the IR of a checkpoint.

    ``shapes`` are the ``(channels, height, width)`` of the backbone's features at ``image_size`` (height, width),
    from fine to coarse. The function raises ``CheckpointError`` where the backbone does not fit the flow.
    """

    def __call__(
        self,
        checkpoint: Checkpoint,
        backbone: ir.Backbone,
        shapes: Sequence[tuple[int, int, int]],
        image_size: tuple[int, int],
    ) -> ir.FlowModel: ...


class BuildsReferenceNetwork(Protocol):
    """A function that builds the reference network of a checkpoint from real FrEIA modules, without any pass.

    The network maps ``image (N, 3, H, W)`` to one map per level. ``shapes`` are those of `BuildsFlowModel`.
    """

    def __call__(
        self, checkpoint: Checkpoint, backbone: nn.Module, shapes: Sequence[tuple[int, int, int]]
    ) -> ReferenceNetwork: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFamily:
    """A family of flows.

    Attributes:
        name: The family's name in manifests.
        flow_model: The function that builds the IR of a checkpoint.
        reference_network: The function that builds an independent network of a checkpoint, which exports are
            verified against.
    """

    name: Family
    flow_model: BuildsFlowModel
    reference_network: BuildsReferenceNetwork


# A note per training repository, which the manifest of a bundle repeats.
LICENCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gudovskiy/cflow-ad": "The training code is BSD-3-Clause.",
        "marco-rudolph/cs-flow": "The training code's repository states MIT terms; check them for your use.",
        "gathierry/FastFlow": "The training code is Apache-2.0.",
        "mtailanian/uflow": "The training code is AGPL-3.0: ask its authors what that means for trained weights.",
        "cool-xuan/msflow": "The training code is CC BY-NC-ND 4.0: commercial use of its weights is in doubt.",
        "anomalib": "The training code is Apache-2.0.",
        "Taitran2202/TVTVision": "The training code's licence was not examined.",
    }
)
