"""What the exporter needs to know about a family."""

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
    """Checkpoint, backbone and feature shapes to the IR.

    ``shapes`` are the ``(channels, height, width)`` of the backbone's features at ``image_size`` (height, width),
    fine to coarse. A backbone that does not fit the flow is a ``CheckpointError``.
    """

    def __call__(
        self,
        checkpoint: Checkpoint,
        backbone: ir.Backbone,
        shapes: Sequence[tuple[int, int, int]],
        image_size: tuple[int, int],
    ) -> ir.FlowModel: ...


class BuildsReferenceNetwork(Protocol):
    """The same checkpoint in real FrEIA modules, unlowered: ``image (N, 3, H, W)`` to one level map per scale."""

    def __call__(
        self, checkpoint: Checkpoint, backbone: nn.Module, shapes: Sequence[tuple[int, int, int]]
    ) -> ReferenceNetwork: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFamily:
    """One family: its name, how its checkpoint becomes the IR, and its independent reference."""

    name: Family
    flow_model: BuildsFlowModel
    reference_network: BuildsReferenceNetwork


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
