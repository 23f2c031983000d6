"""Rewrite all couplings, all subnets, one convolution or one channel vector: functions that several passes share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.export.graph import ir

CrossNet: TypeAlias = ir.CrossScaleNet | ir.FusionNet


def rewrite_couplings(model: ir.FlowModel, change: Callable[[ir.Coupling], ir.Coupling]) -> ir.FlowModel:
    """Apply a change to each coupling that works on one stream."""
    steps = tuple(change(step) if isinstance(step, ir.Coupling) else step for step in model.steps)
    return dataclasses.replace(model, steps=steps)


def rewrite_cross_nets(model: ir.FlowModel, change: Callable[[CrossNet], CrossNet]) -> ir.FlowModel:
    """Apply a change to both subnets of each coupling that works on all levels."""
    steps = tuple(
        dataclasses.replace(step, net1=change(step.net1), net2=change(step.net2))
        if isinstance(step, ir.TwoSidedCoupling)
        else step
        for step in model.steps
    )
    return dataclasses.replace(model, steps=steps)


def scale_rows(conv: ir.Conv, factor: NDArray[np.float64]) -> ir.Conv:
    """Multiply the outputs of a convolution by ``factor (out,)``."""
    bias = None if conv.bias is None else float32(conv.bias * factor)
    return ir.Conv(weight=float32(conv.weight * factor[:, None, None, None]), bias=bias)


def bias_of(conv: ir.Conv) -> NDArray[np.float64]:
    """Return the bias of a convolution ``(out,)`` in float64, zeros where it has none."""
    return np.zeros(len(conv.weight)) if conv.bias is None else conv.bias.astype(np.float64)


def float32(values: NDArray[np.float64]) -> ir.Array:
    """Round values to a contiguous float32 array."""
    return np.ascontiguousarray(values, dtype=np.float32)


def with_inserted(values: ir.Array | None, at: int, count: int, neutral: float) -> ir.Array | None:
    """Insert ``count`` neutral values at the index ``at`` of a channel vector, or return None for None."""
    if values is None:
        return None
    return np.insert(values, at, np.full(count, neutral, np.float32)).astype(np.float32)


def scattered(values: ir.Array | None, at: ir.Index, width: int, neutral: float) -> ir.Array | None:
    """Write ``values[i]`` to the index ``at[i]`` of a vector that is neutral elsewhere, or return None for None."""
    if values is None:
        return None
    wide = np.full(width, neutral, np.float32)
    wide[at] = values
    return wide


def channels_after_insertion(passive_width: int, width: int, added: int) -> ir.Index:
    """Return the new index of each of ``width`` channels after an insertion.

    ``added`` channels are inserted after the first ``passive_width`` channels.
    """
    return np.concatenate([np.arange(passive_width), np.arange(passive_width, width) + added])


def with_latents_at(level: ir.Level, channel_of: ir.Index) -> ir.Level:
    """Let the score read the latent's channel i at the index ``channel_of[i]`` of the stream.

    The last latent channel must be the stream's last channel. All other channels of the stream get the weight zero.
    """
    scale = np.ones(len(channel_of), np.float32) if level.latent_scale is None else level.latent_scale
    return dataclasses.replace(level, latent_scale=scattered(scale, channel_of, int(channel_of[-1]) + 1, 0.0))
