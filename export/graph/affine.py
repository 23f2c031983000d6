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
from collections.abc import Iterator
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.export.graph import ir

_Vector: TypeAlias = NDArray[np.float64]

_LARGEST_PENDING: Final = 2.0**16  # beyond it, or below its inverse, float32 (and FP16) weights would suffer
_FREE: Final = np.nan  # in a vector of needs: any shift will do


def fold_affine(model: ir.FlowModel) -> ir.FlowModel:
    """Global scale and offset go into the subnets, the dense channel maps and the score. Re-association.

    Runs of couplings and channel maps on one stream are folded as a whole. Where something else reads the stream
    behind a run, what is left of the scale is paid there by one multiplication. A run whose accumulated scale
    leaves ``2**±16`` keeps its scales and offsets where they are.
    """
    placed: list[list[ir.Step]] = [[step] for step in model.steps]
    levels = list(model.levels)
    for run in _runs(model):
        folded = _fold_run([model.steps[n] for n in run])
        if folded is None:
            continue
        entry, steps, scale = folded
        for n, step in zip(run, steps, strict=True):
            placed[n] = [step]
        (stream,) = ir.streams_of(model.steps[run[0]])
        if np.any(entry):
            _pay_entry(model, placed, stream, run[0], entry)
        if np.any(scale != 1):
            _pay_scale(model, placed, levels, stream, run[-1], scale)
    return dataclasses.replace(model, steps=tuple(s for group in placed for s in group), levels=tuple(levels))


def _runs(model: ir.FlowModel) -> Iterator[list[int]]:
    """Per stream the maximal runs of steps that can be folded, as places in the program."""
    open_runs: dict[int, list[int]] = {}
    for place, step in enumerate(model.steps):
        if isinstance(step, (ir.Coupling, ir.ChannelMap)):
            open_runs.setdefault(step.stream, []).append(place)
            continue
        for stream in ir.streams_of(step):
            if stream in open_runs:
                yield open_runs.pop(stream)
    yield from open_runs.values()


def _fold_run(steps: list[ir.Step]) -> tuple[_Vector, list[ir.Step], _Vector] | None:
    """Shift that must be subtracted in front, the folded steps, scale that is left; None if too extreme."""
    needs = _needs(steps)
    entry = np.nan_to_num(needs[0])
    scale, shift = np.ones(len(entry)), entry
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
    return entry, folded, scale


def _pay_entry(
    model: ir.FlowModel, placed: list[list[ir.Step]], stream: int, first: int, entry: _Vector
) -> None:
    """Subtract ``entry`` from what enters the run: in the bias of a layer norm in front of it, or as a step."""
    before = [n for n in range(first) if stream in ir.streams_of(model.steps[n])]
    step = placed[before[-1]][-1] if before else None
    if isinstance(step, ir.LayerNorm) and step.stream == stream:
        placed[before[-1]][-1] = dataclasses.replace(step, bias=_f32(step.bias - entry[:, None, None]))
    else:
        placed[first].insert(0, ir.ChannelAffine(stream=stream, scale=None, shift=_f32(-entry)))


def _pay_scale(
    model: ir.FlowModel,
    placed: list[list[ir.Step]],
    levels: list[ir.Level],
    stream: int,
    last: int,
    scale: _Vector,
) -> None:
    """The scale that a run leaves: the score takes it at the end of a stream, else a step multiplies."""
    behind = [n for n in range(last + 1, len(model.steps)) if stream in ir.streams_of(model.steps[n])]
    split = model.steps[behind[0]] if len(behind) == 1 else None
    if not behind:
        _scale_latent(levels, stream, scale)
    elif isinstance(split, ir.Split):
        _scale_latent(levels, stream, scale[split.keep])
        placed[behind[0]].append(
            ir.ChannelAffine(stream=split.into, scale=_f32(scale[split.send]), shift=None)
        )
    else:
        placed[last].append(ir.ChannelAffine(stream=stream, scale=_f32(scale), shift=None))


def _scale_latent(levels: list[ir.Level], stream: int, scale: _Vector) -> None:
    old = levels[stream].latent_scale
    levels[stream] = dataclasses.replace(
        levels[stream], latent_scale=_f32(scale if old is None else scale * old)
    )


def _needs(steps: list[ir.Step]) -> list[_Vector]:
    """Per boundary between steps, the shift each channel must carry there (``_FREE`` where it does not matter)."""
    need = np.zeros(_width_behind(steps[-1]))
    needs = [need]
    for step in reversed(steps):
        if isinstance(step, ir.Coupling):
            scale, offset = _affine_of(step)
            seen = len(step.passive)
            before = np.zeros(len(need))
            if not _pads(step):
                before[step.passive] = (need[:seen] - offset[:seen]) / scale[:seen]
        else:
            assert isinstance(step, ir.ChannelMap)
            if step.index is not None:
                before = np.full(len(step.index), _FREE)
                before[step.index] = need
            else:
                assert step.matrix is not None
                before = np.full(step.matrix.shape[1], _FREE)
        need = before
        needs.append(need)
    return needs[::-1]


def _width_behind(step: ir.Step) -> int:
    if isinstance(step, ir.Coupling):
        return len(step.passive) + len(step.active)
    assert isinstance(step, ir.ChannelMap)
    kept = step.matrix if step.matrix is not None else step.index
    assert kept is not None
    return len(kept)


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
