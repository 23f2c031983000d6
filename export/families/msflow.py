"""Build the IR of MSFlow (Zhou et al., TNNLS 2024), parallel flows on pooled levels and one coupling across them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flowedge.export.checkpoints.checkpoint import Array, Checkpoint
from flowedge.export.families.couplings import check_features, count_levels, steps_of_level
from flowedge.export.graph import ir
from flowedge.manifest import Scoring

_LIMIT = 1e6


def flow_model(
    checkpoint: Checkpoint,
    backbone: ir.Backbone,
    shapes: Sequence[tuple[int, int, int]],
    image_size: tuple[int, int],
) -> ir.FlowModel:
    """Build the IR of a checkpoint, as `flowedge.export.families.family.BuildsFlowModel` describes."""
    check_features(checkpoint.tensors, backbone, shapes)
    kind = checkpoint.hyperparameters["pool_type"]
    top_k = checkpoint.hyperparameters["top_k"]
    assert kind in ("avg", "max", "none")
    assert isinstance(top_k, (int, float))
    levels = [shape if kind == "none" else _pooled(shape) for shape in shapes]
    return ir.FlowModel(
        family="msflow",
        image_size=image_size,
        backbone=backbone,
        levels=tuple(ir.Level(channels=c, height=h, width=w, feature_channels=c) for c, h, w in levels),
        steps=tuple(_steps(checkpoint, str(kind), [channels for channels, _, _ in levels])),
        scoring=Scoring(normalisation="per_image", top_fraction=float(top_k)),
    )


def _pooled(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, (height + 1) // 2, (width + 1) // 2


def _steps(checkpoint: Checkpoint, kind: str, widths: Sequence[int]) -> Iterator[ir.Step]:
    tensors = checkpoint.tensors
    kappa = checkpoint.hyperparameters["clamp"]
    assert isinstance(kappa, (int, float))
    streams = range(count_levels(tensors))
    for stream in streams:
        if kind != "none":
            yield ir.Pool(stream=stream, kind="max" if kind == "max" else "avg")
        yield from steps_of_level(checkpoint, stream, stream)
        yield ir.ChannelMap(stream=stream, index=np.asarray(tensors[f"fusion.perm.{stream}"], np.int64))
    yield ir.TwoSidedCoupling(
        streams=tuple(streams),
        first=tuple(np.arange(width // 2) for width in widths),
        second=tuple(np.arange(width // 2, width) for width in widths),
        net1=_net(tensors, "fusion.net1.", len(widths)),
        net2=_net(tensors, "fusion.net2.", len(widths)),
        kappa=float(kappa),
        inner=1.0 / float(kappa),
        limit=_LIMIT,
    )


def _net(tensors: Mapping[str, Array], prefix: str, levels: int) -> ir.FusionNet:
    def values(name: str) -> ir.Array:
        return np.asarray(tensors[f"{prefix}{name}"], np.float32)

    def conv(name: str) -> ir.Conv:
        bias = values(f"{name}.bias") if f"{prefix}{name}.bias" in tensors else None
        return ir.Conv(weight=values(f"{name}.weight"), bias=bias)

    return ir.FusionNet(
        conv1=conv("cross_convs.conv1"),
        norm=ir.ChannelNorm(
            weight=values("cross_convs.norm.weight"), bias=values("cross_convs.norm.bias"), eps=1e-5
        ),
        conv2=conv("cross_convs.conv2"),
        heads=tuple((conv(f"conv_s.{level}"), conv(f"conv_t.{level}")) for level in range(levels)),
    )
