"""Random flow models for the property tests: every field away from its neutral value."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flowedge.export.graph import ir
from flowedge.manifest import Scoring

Permutation = Literal["hard", "soft"]


def random_orthogonal(rng: np.random.Generator, size: int) -> ir.Array:
    """A rotation as a checkpoint stores it: float32."""
    return np.linalg.qr(rng.standard_normal((size, size)))[0].astype(np.float32)


def random_hard(rng: np.random.Generator, size: int) -> ir.Array:
    """A permutation matrix as a checkpoint stores it."""
    return np.eye(size, dtype=np.float32)[rng.permutation(size)]


def random_cflow(
    seed: int,
    *,
    sizes: tuple[tuple[int, int, int], ...] = ((12, 6, 5), (7, 3, 4)),
    blocks: int = 3,
    condition: int = 8,
    permutation: Permutation = "hard",
    alpha: float = 1.9,
    inner: float = 1.0,
) -> ir.FlowModel:
    """A CFLOW as its checkpoint holds it. ``sizes``: (channels, height, width) per level."""
    rng = np.random.default_rng(seed)
    steps: list[ir.Step] = []
    for stream, (channels, _, _) in enumerate(sizes):
        for _ in range(blocks):
            steps += _block(rng, stream, channels, condition, permutation, alpha, inner)
    backbone = ir.Backbone(network="none", taps=(), padding="zeros", weights={})
    levels = tuple(ir.Level(channels=c, height=h, width=w, feature_channels=c) for c, h, w in sizes)
    return ir.FlowModel(
        family="cflow",
        image_size=(24, 20),
        backbone=backbone,
        levels=levels,
        steps=tuple(steps),
        scoring=Scoring(normalisation="per_image"),
    )


def _block(
    rng: np.random.Generator,
    stream: int,
    channels: int,
    condition: int,
    permutation: Permutation,
    alpha: float,
    inner: float,
) -> list[ir.Step]:
    active = channels // 2
    passive = channels - active
    seen, hidden = passive + condition, 2 * (passive + condition)
    matrix = random_hard(rng, channels) if permutation == "hard" else random_orthogonal(rng, channels)
    subnet = (
        ir.Linear(weight=_normal(rng, (hidden, seen), 1.0), bias=_normal(rng, (hidden,), 0.5)),
        ir.Relu(),
        ir.Linear(weight=_normal(rng, (2 * active, hidden), 1.0), bias=_normal(rng, (2 * active,), 0.5)),
    )
    coupling = ir.Coupling(
        stream=stream,
        passive=np.arange(passive),
        active=np.arange(passive, channels),
        condition=ir.PositionCode(length=condition) if condition else None,
        subnet=subnet,
        gain=0.1,
        alpha=alpha,
        inner=inner,
        scale=np.exp(_normal(rng, (channels,), 0.3)),
        offset=_normal(rng, (channels,), 0.7),
        log_det=True,
    )
    return [coupling, ir.ChannelMap(stream=stream, matrix=matrix)]


def random_features(seed: int, model: ir.FlowModel, batch: int = 2) -> list[NDArray[np.float64]]:
    """Features for each level, ``(batch, C, h, w)``, offset from zero as features behind a ReLU are."""
    rng = np.random.default_rng(seed + 1)
    return [
        rng.standard_normal((batch, lv.feature_channels, lv.height, lv.width)) + 0.5 for lv in model.levels
    ]


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> ir.Array:
    return (scale * rng.standard_normal(shape)).astype(np.float32)
