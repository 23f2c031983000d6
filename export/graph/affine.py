"""The pass that makes the blocks' global scale and offset vanish into the subnets.

Behind block k a channel's logical value is ``x = S u + m``: u is what the graph stores, S and m are constants. The
scale S never has to be paid: a subnet absorbs it in the columns of its first convolution, a coupling is linear in
its active half, so ``u exp(g) + t / S`` keeps S pending, and the score absorbs what is left in its sum of squares.

The shift m is free in a 1x1 convolution's bias, but must be zero where the channel is active (``m exp(g)`` is no
constant), in front of a zero-padded convolution (whose border does not see it) and at the end. A channel that was
active has a bias of its own that can take any constant, so we look ahead: walking backwards gives the m that each
channel *needs* behind each step, and the last step that can pay for it does. What nobody can pay (the features
that enter the flow, or a passive half between two padded convolutions) becomes one explicit addition.
"""

from __future__ import annotations

import dataclasses
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.export.graph import ir

_Vector: TypeAlias = NDArray[np.float64]

_LARGEST_PENDING: Final = 2.0**16  # beyond it, or below its inverse, float32 (and FP16) weights would suffer
_FREE: Final = np.nan  # in a vector of needs: any shift will do


def fold_affine(model: ir.FlowModel) -> ir.FlowModel:
    """Global scale and offset go into the subnets, the dense channel maps and the score. Re-association.

    A stream whose accumulated scale leaves ``2**±16`` keeps its scales and offsets where they are.
    """
    steps: list[tuple[ir.Step, ...]] = [(step,) for step in model.steps]
    levels = list(model.levels)
    for stream, level in enumerate(model.levels):
        where = [n for n, step in enumerate(model.steps) if step.stream == stream]
        own = [model.steps[n] for n in where]
        if not all(isinstance(step, (ir.Coupling, ir.ChannelMap)) for step in own):
            continue
        folded = _fold_stream(own, level)
        if folded is None:
            continue
        first, replaced, levels[stream] = folded
        for n, step in zip(where, replaced, strict=True):
            steps[n] = (step,)
        if first is not None:
            steps[where[0]] = (first, *steps[where[0]])
    return dataclasses.replace(
        model, steps=tuple(step for group in steps for step in group), levels=tuple(levels)
    )


def _fold_stream(
    steps: list[ir.Step], level: ir.Level
) -> tuple[ir.ChannelAffine | None, list[ir.Step], ir.Level] | None:
    """The steps of one stream without their affine parts; None where the scales are too extreme to fold."""
    needs = _needs(steps, level)
    entry = np.nan_to_num(needs[0])
    scale, shift = np.ones(level.channels), entry
    folded: list[ir.Step] = []
    for step, need in zip(steps, needs[1:], strict=True):
        lowered: ir.Step
        if isinstance(step, ir.Coupling):
            lowered, scale, shift = _fold_coupling(step, need, scale, shift)
        else:
            assert isinstance(step, ir.ChannelMap)
            lowered, scale, shift = _fold_map(step, need, scale, shift)
        folded.append(lowered)
        if scale.max() > _LARGEST_PENDING or scale.min() < 1 / _LARGEST_PENDING:
            return None
    first = None
    if np.any(entry):
        first = ir.ChannelAffine(stream=steps[0].stream, scale=None, shift=_f32(-entry))
    if np.any(scale != 1):
        old = np.ones(len(scale)) if level.latent_scale is None else level.latent_scale
        level = dataclasses.replace(level, latent_scale=_f32(scale * old))
    return first, folded, level


def _needs(steps: list[ir.Step], level: ir.Level) -> list[_Vector]:
    """Per step boundary, the shift that each channel must carry there (``_FREE`` where it does not matter)."""
    widths = [level.channels]
    for step in steps:
        if isinstance(step, ir.Coupling):
            widths.append(len(step.passive) + len(step.active))
        else:
            assert isinstance(step, ir.ChannelMap)
            widths.append(len(step.matrix) if step.matrix is not None else len(step.index))  # type: ignore[arg-type]
    need = np.zeros(widths[-1])
    needs = [need]
    for step, width in zip(reversed(steps), reversed(widths[:-1]), strict=True):
        before = np.full(width, _FREE)
        if isinstance(step, ir.Coupling):
            scale, offset = _affine_of(step)
            seen = len(step.passive)
            if _pads(step):
                before[step.passive] = 0.0
            else:
                before[step.passive] = (need[:seen] - offset[:seen]) / scale[:seen]
            before[step.active] = 0.0
        elif isinstance(step, ir.ChannelMap) and step.index is not None:
            before[step.index] = need
        need = before
        needs.append(need)
    return needs[::-1]


def _fold_coupling(
    step: ir.Coupling, need: _Vector, scale: _Vector, shift: _Vector
) -> tuple[ir.Coupling, _Vector, _Vector]:
    assert step.gain == 1.0, "fold_gain runs first"
    seen = len(step.passive)
    own_scale, own_offset = _affine_of(step)
    kept, moved = scale[step.passive], scale[step.active]

    first = step.subnet[0]
    assert isinstance(first, ir.Conv)
    weight = first.weight.astype(np.float64)
    bias = np.zeros(len(weight)) if first.bias is None else first.bias.astype(np.float64)
    if not _pads(step):
        bias = bias + weight[:, :seen, 0, 0] @ shift[step.passive]
    weight[:, :seen] *= kept[:, None, None]
    subnet = [ir.Conv(weight=_f32(weight), bias=_f32(bias)), *step.subnet[1:]]

    behind = np.nan_to_num(need[seen:])  # a channel that was active can start with any shift
    last = subnet[-1]
    assert isinstance(last, ir.Conv)
    rows = np.ones(len(last.weight))
    rows[len(step.active) :] = 1 / moved
    added = np.zeros(len(rows))
    added[len(step.active) :] = (own_offset[seen:] - behind) / (own_scale[seen:] * moved)
    bias = added if last.bias is None else last.bias * rows + added
    subnet[-1] = ir.Conv(weight=_f32(last.weight * rows[:, None, None, None]), bias=_f32(bias))

    passive_scale = own_scale[:seen] * kept
    natural = own_scale[:seen] * shift[step.passive] + own_offset[:seen]
    wanted = np.where(np.isnan(need[:seen]), natural, need[:seen])
    unpaid = (natural - wanted) / passive_scale
    unpaid[np.abs(unpaid) <= 1e-12 * (1 + np.abs(natural))] = 0.0  # float64 round-off of the two walks
    offset = np.concatenate([unpaid, np.zeros(len(step.active))])
    lowered = dataclasses.replace(
        step, subnet=tuple(subnet), scale=None, offset=_f32(offset) if np.any(unpaid) else None
    )
    return (
        lowered,
        np.concatenate([passive_scale, own_scale[seen:] * moved]),
        np.concatenate([wanted, behind]),
    )


def _fold_map(
    step: ir.ChannelMap, need: _Vector, scale: _Vector, shift: _Vector
) -> tuple[ir.ChannelMap, _Vector, _Vector]:
    if step.index is not None:
        return step, scale[step.index], shift[step.index]
    assert step.matrix is not None
    matrix = step.matrix.astype(np.float64)
    behind = np.nan_to_num(need)
    bias = matrix @ shift - behind + (0.0 if step.bias is None else step.bias)
    lowered = dataclasses.replace(
        step, matrix=_f32(matrix * scale), bias=_f32(bias) if np.any(bias) else None
    )
    return lowered, np.ones(len(matrix)), behind


def _affine_of(step: ir.Coupling) -> tuple[_Vector, _Vector]:
    width = len(step.passive) + len(step.active)
    scale = np.ones(width) if step.scale is None else step.scale.astype(np.float64)
    offset = np.zeros(width) if step.offset is None else step.offset.astype(np.float64)
    return scale, offset


def _pads(step: ir.Coupling) -> bool:
    first = step.subnet[0]
    return isinstance(first, ir.Conv) and first.weight.shape[-1] > 1


def _f32(values: NDArray[np.float64]) -> ir.Array:
    return np.ascontiguousarray(values, dtype=np.float32)
