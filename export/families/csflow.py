"""Build the IR of CS-Flow (Rudolph et al., WACV 2022), one flow over three scales whose subnets read all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.checkpoint import Array, Checkpoint
from flowedge.export.graph import ir
from flowedge.manifest import Scoring

_LIMIT = 1e6


def flow_model(
    checkpoint: Checkpoint,
    backbone: ir.Backbone,
    shapes: Sequence[tuple[int, int, int]],
    image_size: tuple[int, int],
) -> ir.FlowModel:
    """Build the IR of a checkpoint, as `flowedge.export.families.family.BuildsFlowModel` describes.

    Raises:
        CheckpointError: The backbone's features do not fit the flow.
    """
    tensors = checkpoint.tensors
    wanted = sum(int(tensors[f"flow.0.{net}.conv_scale0_0.weight"].shape[1]) for net in ("net1", "net2"))
    if [channels for channels, _, _ in shapes] != [wanted] * 3:
        raise CheckpointError(
            f"the flow takes {wanted} channels at 3 scales, but {backbone.network} gives {[c for c, _, _ in shapes]}. "
            "The file was changed, or its flow was trained on another network. Copy it again, or train it on "
            f"{backbone.network}."
        )
    official = checkpoint.repository != "anomalib"
    return ir.FlowModel(
        family="csflow",
        image_size=image_size,
        backbone=backbone,
        levels=tuple(ir.Level(channels=c, height=h, width=w, feature_channels=c) for c, h, w in shapes),
        steps=tuple(_steps(checkpoint, wanted)),
        scoring=Scoring(normalisation="none", csflow_map="finest" if official else "product"),
    )


def _steps(checkpoint: Checkpoint, channels: int) -> Iterator[ir.Step]:
    kappa = checkpoint.hyperparameters["clamp"]
    use_gamma = checkpoint.hyperparameters["use_gamma"]
    assert isinstance(kappa, (int, float))
    assert isinstance(use_gamma, bool)
    assert checkpoint.permutations is not None
    first = channels // 2
    for block, permutations in enumerate(checkpoint.permutations):
        for stream, index in enumerate(permutations):
            yield ir.ChannelMap(stream=stream, index=np.asarray(index, np.int64))
        yield ir.TwoSidedCoupling(
            streams=(0, 1, 2),
            first=(np.arange(first),) * 3,
            second=(np.arange(first, channels),) * 3,
            net1=_net(checkpoint.tensors, f"flow.{block}.net1.", use_gamma),
            net2=_net(checkpoint.tensors, f"flow.{block}.net2.", use_gamma),
            kappa=float(kappa),
            inner=1.0 / float(kappa),
            limit=_LIMIT,
        )


def _net(tensors: Mapping[str, Array], prefix: str, use_gamma: bool) -> ir.CrossScaleNet:
    def conv(name: str) -> ir.Conv:
        return ir.Conv(
            weight=np.asarray(tensors[f"{prefix}{name}.weight"], np.float32),
            bias=np.asarray(tensors[f"{prefix}{name}.bias"], np.float32),
        )

    def route(name: str, source: int, stride: int = 1) -> ir.Route:
        return ir.Route(sources=(source,), conv=conv(name), stride=stride)

    def gain(level: int) -> float:
        name = f"{prefix}gamma{level}"
        return float(tensors[name].reshape(-1)[0]) if use_gamma and name in tensors else 1.0

    return ir.CrossScaleNet(
        inner=tuple(conv(f"conv_scale{level}_0") for level in range(3)),
        routes=(
            (route("conv_scale0_1", 0), route("up_conv10", 1)),
            (route("conv_scale1_1", 1), route("up_conv21", 2), route("down_conv01", 0, 2)),
            (route("conv_scale2_1", 2), route("down_conv12", 1, 2)),
        ),
        gains=tuple(gain(level) for level in range(3)),
    )
