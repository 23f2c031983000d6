"""Make random flow models for the property tests, with every field away from its neutral value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from flowedge.export.graph import ir
from flowedge.manifest import Scoring

Permutation = Literal["hard", "soft"]


def random_orthogonal(rng: np.random.Generator, size: int) -> ir.Array:
    """Make a random rotation as a checkpoint stores it, in float32."""
    return np.linalg.qr(rng.standard_normal((size, size)))[0].astype(np.float32)


def random_hard(rng: np.random.Generator, size: int) -> ir.Array:
    """Make a random permutation matrix as a checkpoint stores it."""
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
    """Make a CFLOW as its checkpoint holds it. ``sizes`` are (channels, height, width) per level."""
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
    """Make features for each level, ``(batch, C, h, w)``, offset from zero as features after a ReLU are."""
    rng = np.random.default_rng(seed + 1)
    pooled = 2 if model.family == "msflow" else 1
    return [
        rng.standard_normal((batch, lv.feature_channels, pooled * lv.height, pooled * lv.width)) + 0.5
        for lv in model.levels
    ]


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> ir.Array:
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def random_fastflow(
    seed: int, *, sizes: tuple[tuple[int, int, int], ...] = ((8, 8, 6), (6, 4, 3)), blocks: int = 4
) -> ir.FlowModel:
    """Make a FastFlow on a convolutional backbone, with a layer norm per level and kernels of 3 and 1 in turn."""
    rng = np.random.default_rng(seed)
    steps: list[ir.Step] = []
    for stream, shape in enumerate(sizes):
        steps.append(
            ir.LayerNorm(
                stream=stream, weight=_normal(rng, shape, 1.0), bias=_normal(rng, shape, 1.0), eps=1e-5
            )
        )
        for block in range(blocks):
            steps += _convolutional_block(rng, stream, shape[0], 1 if block % 2 else 3)
    return ir.FlowModel(
        family="fastflow",
        image_size=(32, 24),
        backbone=ir.Backbone(network="none", taps=(), padding="zeros", weights={}),
        levels=tuple(ir.Level(channels=c, height=h, width=w, feature_channels=c) for c, h, w in sizes),
        steps=tuple(steps),
        scoring=Scoring(normalisation="none"),
    )


def random_uflow(seed: int, *, fine: int = 3, coarse: int = 11) -> ir.FlowModel:
    """Make a U-Flow of two stages, joined by split, matrix, pixel shuffle and concat, with layer norms before them."""
    rng = np.random.default_rng(seed)
    sizes, sent = ((fine, 6, 4), (coarse, 3, 2)), 4 * (coarse // 8)
    steps: list[ir.Step] = [
        ir.LayerNorm(stream=n, weight=_normal(rng, size, 1.0), bias=_normal(rng, size, 0.5), eps=1e-5)
        for n, size in enumerate(sizes)
    ]
    for kernel in (3, 1):
        steps += _convolutional_block(rng, 1, coarse, kernel)
    steps += [
        ir.Split(stream=1, into=3, send=np.arange(sent), keep=np.arange(sent, coarse)),
        ir.ChannelMap(stream=3, matrix=random_orthogonal(rng, sent)),
        ir.PixelShuffle(stream=3),
        ir.Concat(stream=0, other=3),
    ]
    for kernel in (3, 1, 3):
        steps += _convolutional_block(rng, 0, fine + sent // 4, kernel)
    return ir.FlowModel(
        family="uflow",
        image_size=(24, 16),
        backbone=_NO_BACKBONE,
        levels=(
            ir.Level(channels=fine + sent // 4, height=6, width=4, feature_channels=fine),
            ir.Level(channels=coarse - sent, height=3, width=2, feature_channels=coarse),
        ),
        steps=tuple(steps),
        scoring=Scoring(normalisation="none"),
    )


def filled_uflow(seed: int) -> ir.FlowModel:
    """Make a U-Flow with subnets of seven channels, which the passes fill to eight, also before a split."""
    return random_uflow(seed, fine=13, coarse=15)


def random_msflow(seed: int) -> ir.FlowModel:
    """Make an MSFlow: pooling, conditional blocks with padded convolutions and norms, and the fusion coupling."""
    rng = np.random.default_rng(seed)
    widths, sizes = (6, 5), ((8, 6), (4, 3))
    steps: list[ir.Step] = []
    for stream, width in enumerate(widths):
        steps.append(ir.Pool(stream=stream, kind="avg"))
        for _ in range(2):
            steps += _convolutional_block(rng, stream, width, 3, condition=4, norm=True)
        steps.append(ir.ChannelMap(stream=stream, index=rng.permutation(width)))

    def net(halves: list[int]) -> ir.FusionNet:
        inputs = [width - half for width, half in zip(widths, halves, strict=True)]
        total, middle = sum(inputs), 3
        return ir.FusionNet(
            conv1=_conv(rng, middle, total),
            norm=ir.ChannelNorm(
                weight=_normal(rng, (middle,), 1.0), bias=_normal(rng, (middle,), 1.0), eps=1e-5
            ),
            conv2=_conv(rng, total, middle),
            heads=tuple(
                (_conv(rng, half, given), _conv(rng, half, given))
                for half, given in zip(halves, inputs, strict=True)
            ),
        )

    first = [width // 2 for width in widths]
    second = [width - half for width, half in zip(widths, first, strict=True)]
    steps.append(_two_sided(widths, net(second), net(first), 1.9))
    return ir.FlowModel(
        family="msflow",
        image_size=(32, 24),
        backbone=_NO_BACKBONE,
        levels=tuple(
            ir.Level(channels=c, height=h, width=w, feature_channels=c)
            for c, (h, w) in zip(widths, sizes, strict=True)
        ),
        steps=tuple(steps),
        scoring=Scoring(normalisation="per_image", top_fraction=0.03),
    )


def random_csflow(seed: int, *, hidden: int = 5, kernels: Sequence[int] = (3, 1)) -> ir.FlowModel:
    """Make a CS-Flow of three scales, with permutations and a cross-scale coupling for each kernel."""
    rng = np.random.default_rng(seed)
    width, sizes = 7, ((8, 4), (4, 2), (2, 1))
    steps: list[ir.Step] = []
    for kernel in kernels:

        def net(inputs: int, outputs: int, kernel: int = kernel) -> ir.CrossScaleNet:
            def route(source: int, stride: int = 1) -> ir.Route:
                return ir.Route(sources=(source,), conv=_conv(rng, outputs, hidden, kernel), stride=stride)

            return ir.CrossScaleNet(
                inner=tuple(_conv(rng, hidden, inputs, kernel) for _ in range(3)),
                routes=((route(0), route(1)), (route(1), route(2), route(0, 2)), (route(2), route(1, 2))),
                gains=(0.7, -0.4, 1.3),
            )

        steps += [ir.ChannelMap(stream=n, index=rng.permutation(width)) for n in range(3)]
        first, second = width // 2, width - width // 2
        steps.append(_two_sided((width,) * 3, net(first, 2 * second), net(second, 2 * first), 3.0))
    return ir.FlowModel(
        family="csflow",
        image_size=(32, 16),
        backbone=_NO_BACKBONE,
        levels=tuple(ir.Level(channels=width, height=h, width=w, feature_channels=width) for h, w in sizes),
        steps=tuple(steps),
        scoring=Scoring(normalisation="none", csflow_map="product"),
    )


def settled(model: ir.FlowModel) -> ir.FlowModel:
    """Scale a random flow's subnets until its blocks amplify no more than those of a trained flow.

    Random subnets turn features of order 1 into latents of order 100, so that one rounding step of eight bits becomes
    the answer. Here each output channel's weights have a norm of 0.7, as after an initialisation that keeps the
    variance, and latents stay of order 1.
    """
    return cast(ir.FlowModel, _settled(model))


def _settled(part: object) -> object:
    if isinstance(part, ir.Conv | ir.Linear):
        flat = part.weight.reshape(len(part.weight), -1)
        norms = np.maximum(np.linalg.norm(flat, axis=1), 1e-6)
        weight = _TRAINED_NORM * part.weight / norms.reshape(-1, *[1] * (part.weight.ndim - 1))
        bias = None if part.bias is None else (0.1 * part.bias).astype(np.float32)
        return dataclasses.replace(part, weight=weight.astype(np.float32), bias=bias)
    if isinstance(part, ir.LayerNorm | ir.ChannelNorm):
        return dataclasses.replace(part, weight=1 + 0.2 * part.weight, bias=0.2 * part.bias)
    if isinstance(part, tuple):
        return tuple(_settled(item) for item in part)
    if dataclasses.is_dataclass(part) and not isinstance(part, type | ir.Backbone):
        changed = {field.name: _settled(getattr(part, field.name)) for field in dataclasses.fields(part)}
        return dataclasses.replace(part, **changed)
    return part


_TRAINED_NORM: Final = 0.7
_NO_BACKBONE = ir.Backbone(network="none", taps=(), padding="zeros", weights={})


def _two_sided(
    widths: tuple[int, ...],
    net1: ir.CrossScaleNet | ir.FusionNet,
    net2: ir.CrossScaleNet | ir.FusionNet,
    kappa: float,
) -> ir.TwoSidedCoupling:
    return ir.TwoSidedCoupling(
        streams=tuple(range(len(widths))),
        first=tuple(np.arange(width // 2) for width in widths),
        second=tuple(np.arange(width // 2, width) for width in widths),
        net1=net1,
        net2=net2,
        kappa=kappa,
        inner=1 / kappa,
        limit=1e6,
    )


def _convolutional_block(
    rng: np.random.Generator,
    stream: int,
    channels: int,
    kernel: int,
    *,
    condition: int = 0,
    norm: bool = False,
) -> list[ir.Step]:
    coupling, permutation = _block(rng, stream, channels, condition, "hard", 2.0, 1.0)
    assert isinstance(coupling, ir.Coupling)
    subnet: list[ir.SubnetLayer] = []
    for layer in coupling.subnet:
        if isinstance(layer, ir.Linear):
            weight = rng.standard_normal((*layer.weight.shape, kernel, kernel)) / kernel
            subnet.append(ir.Conv(weight=weight.astype(np.float32), bias=layer.bias))
        else:
            subnet.append(layer)
    if norm:
        hidden = len(subnet[0].weight) if isinstance(subnet[0], ir.Conv) else 0
        subnet.insert(
            1,
            ir.ChannelNorm(weight=_normal(rng, (hidden,), 1.0), bias=_normal(rng, (hidden,), 1.0), eps=1e-5),
        )
    return [dataclasses.replace(coupling, subnet=tuple(subnet), log_det=False), permutation]


def _conv(rng: np.random.Generator, outputs: int, inputs: int, kernel: int = 3) -> ir.Conv:
    weight = _normal(rng, (outputs, inputs, kernel, kernel), 0.5)
    return ir.Conv(weight=weight, bias=_normal(rng, (outputs,), 0.5))
