"""Fold the global scale and offset of FrEIA's couplings into their subnets, in one pass over the flow.

After each coupling the paper multiplies every channel by a constant and adds another one. The folded graph stores
``u`` where the paper has ``x = S u + m``. The *deferred scale* S and the *shift* m are known constants of each
channel at each place of the program. Steps further on absorb them:

====================================  =========================================  =====================================
absorber                              deferred scale S                           shift m
====================================  =========================================  =====================================
subnet, 1x1 first convolution         columns of the first weights               bias of the first convolution
subnet, zero-padded convolution       columns of the first weights               none: the border does not see m
passive half of a coupling            stays deferred                             stays
active half of a coupling             stays deferred: ``u exp(g) + t / S``       none: ``m exp(g)`` is no constant
dense channel map                     columns of the matrix                      bias of the map
score at the end of the stream        weights of the sum of squares              none
====================================  =========================================  =====================================

Two sources can set a shift freely: the last bias of a subnet, for the channels that were active, and the bias of a
channel map. So a walk backwards first finds the *required shift* of each channel at each place. The walk forwards
then sets the shift at the last source before that place. A shift that no source can set is a *leftover*. A leftover
occurs for features that enter the flow and for a passive half between two padded convolutions, and becomes an explicit
addition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.export.graph import ir
from flowedge.export.graph.rewriting import bias_of, float32

_Vector: TypeAlias = NDArray[np.float64]

_LARGEST_SCALE: Final = 2.0**16
"""The largest scale that a weight may absorb. Beyond it, or below its inverse, float16 weights would lose precision."""
_ANY: Final = np.nan
"""The mark of a channel that may have any shift, in place of the shift that it must have."""


def fold_affine(model: ir.FlowModel) -> ir.FlowModel:
    """Global scales and offsets of the couplings go into the weights of subnets, channel matrices and the score.

    The pass folds a run as a whole, which is a sequence of couplings and channel maps on one stream. Where another
    kind of step follows a run, one multiplication applies the scale that no weight has absorbed. A run keeps its
    scales and offsets where an absorbed scale would be above 2**16 or below 2**-16.
    """
    placed: list[list[ir.Step]] = [[step] for step in model.steps]
    levels = list(model.levels)
    for run in _runs(model):
        folded = _fold_run([model.steps[n] for n in run])
        if folded is None:
            continue
        leftover, steps, scale = folded
        for n, step in zip(run, steps, strict=True):
            placed[n] = [step]
        (stream,) = ir.streams_of(model.steps[run[0]])
        if np.any(leftover):
            _subtract_before(model, placed, stream, run[0], leftover)
        if np.any(scale != 1):
            _apply_scale_after(model, placed, levels, stream, run[-1], scale)
    return dataclasses.replace(model, steps=tuple(s for group in placed for s in group), levels=tuple(levels))


def _runs(model: ir.FlowModel) -> Iterator[list[int]]:
    """Yield each longest run of couplings and channel maps on one stream, as the indices of its steps."""
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
    """Fold the global scales and offsets of a run of couplings and channel maps on one stream.

    Returns:
        The shift of each channel to subtract before the run, the folded steps, and the scale of each channel to
        apply after the run. The result is None where a scale is above 2**16 or below 2**-16.
    """
    required = _required_shifts(steps)
    leftover = np.nan_to_num(required[0])
    scale, shift = np.ones(len(leftover)), leftover
    folded: list[ir.Step] = []
    for step, required_after in zip(steps, required[1:], strict=True):
        lowered: ir.Step
        if isinstance(step, ir.Coupling):
            lowered, scale, shift = _fold_coupling(step, required_after, scale, shift)
        else:
            assert isinstance(step, ir.ChannelMap)
            lowered, scale, shift = _fold_map(step, required_after, scale, shift)
        folded.append(lowered)
        if scale.max() > _LARGEST_SCALE or scale.min() < 1 / _LARGEST_SCALE:
            return None
    return leftover, folded, scale


def _subtract_before(
    model: ir.FlowModel, placed: list[list[ir.Step]], stream: int, first: int, leftover: _Vector
) -> None:
    """Subtract a constant of each channel before a run of steps.

    The bias of a layer norm absorbs the constants where the layer norm is the step before the run. Otherwise they
    become a step of their own.
    """
    before = [n for n in range(first) if stream in ir.streams_of(model.steps[n])]
    step = placed[before[-1]][-1] if before else None
    if isinstance(step, ir.LayerNorm) and step.stream == stream:
        placed[before[-1]][-1] = dataclasses.replace(step, bias=float32(step.bias - leftover[:, None, None]))
    else:
        placed[first].insert(0, ir.ChannelAffine(stream=stream, scale=None, shift=float32(-leftover)))


def _apply_scale_after(
    model: ir.FlowModel,
    placed: list[list[ir.Step]],
    levels: list[ir.Level],
    stream: int,
    last: int,
    scale: _Vector,
) -> None:
    """Multiply each channel by its scale after the last step of a run, in the score's weights or by an added step."""
    later = [n for n in range(last + 1, len(model.steps)) if stream in ir.streams_of(model.steps[n])]
    split = model.steps[later[0]] if len(later) == 1 else None
    # 1. The stream ends: the score absorbs the scale.
    if not later:
        _scale_latent(levels, stream, scale)
    # 2. The stream ends with a split: the score absorbs the scale of the channels that stay, a step the others'.
    elif isinstance(split, ir.Split):
        _scale_latent(levels, stream, scale[split.keep])
        placed[later[0]].append(
            ir.ChannelAffine(stream=split.into, scale=float32(scale[split.send]), shift=None)
        )
    # 3. Another step reads the stream: an added step multiplies before it.
    else:
        placed[last].append(ir.ChannelAffine(stream=stream, scale=float32(scale), shift=None))


def _scale_latent(levels: list[ir.Level], stream: int, scale: _Vector) -> None:
    old = levels[stream].latent_scale
    levels[stream] = dataclasses.replace(
        levels[stream], latent_scale=float32(scale if old is None else scale * old)
    )


def _required_shifts(steps: list[ir.Step]) -> list[_Vector]:
    """Find the constant that must be subtracted from each channel before each step and after the last one.

    The constant is called the required shift, and is ``_ANY`` for channels that may have any shift.
    """
    required = np.zeros(_width_after(steps[-1]))  # the score absorbs no shift
    found = [required]
    for step in reversed(steps):
        if isinstance(step, ir.Coupling):
            # Active channels require zero. So do passive channels before a padded convolution. Other passive
            # channels require the shift that the coupling's own scale and offset turn into the one after it.
            scale, offset = _affine_of(step)
            passive_width = len(step.passive)
            before = np.zeros(len(required))
            if not _pads(step):
                own = (required[:passive_width] - offset[:passive_width]) / scale[:passive_width]
                before[step.passive] = own
        else:
            # The bias of a dense map absorbs any shift. A gather only reorders the shifts.
            assert isinstance(step, ir.ChannelMap)
            if step.index is not None:
                before = np.full(len(step.index), _ANY)
                before[step.index] = required
            else:
                assert step.matrix is not None
                before = np.full(step.matrix.shape[1], _ANY)
        required = before
        found.append(required)
    return found[::-1]


def _width_after(step: ir.Step) -> int:
    if isinstance(step, ir.Coupling):
        return len(step.passive) + len(step.active)
    assert isinstance(step, ir.ChannelMap)
    kept = step.matrix if step.matrix is not None else step.index
    assert kept is not None
    return len(kept)


def _fold_coupling(
    step: ir.Coupling, required: _Vector, scale: _Vector, shift: _Vector
) -> tuple[ir.Coupling, _Vector, _Vector]:
    """Fold the global scale and offset of one coupling into its subnet.

    A channel holds ``u`` where the paper has ``x = scale * u + shift``.

    Args:
        step: The coupling.
        required: The shift that each channel must have after the coupling, or ``_ANY``.
        scale: The scale of each channel before the coupling.
        shift: The shift of each channel before the coupling.

    Returns:
        The folded coupling, and the scale and the shift of each channel after the coupling.
    """
    assert step.gain == 1.0, "fold_gain runs first"
    passive_width = len(step.passive)
    own_scale, own_offset = _affine_of(step)
    scale_passive, scale_active = scale[step.passive], scale[step.active]

    # 1. The first convolution absorbs the passive half's scale in its columns and the shift in its bias.
    first = step.subnet[0]
    assert isinstance(first, ir.Conv)
    weight = first.weight.astype(np.float64)
    bias = bias_of(first)
    if not _pads(step):
        bias = bias + weight[:, :passive_width, 0, 0] @ shift[step.passive]
    weight[:, :passive_width] *= scale_passive[:, None, None]
    subnet = [ir.Conv(weight=float32(weight), bias=float32(bias)), *step.subnet[1:]]

    # 2. The last convolution gives t / S, and its bias sets the required shift of the channels that were active.
    active_shift = np.nan_to_num(required[passive_width:])
    last = subnet[-1]
    assert isinstance(last, ir.Conv)
    rows = np.ones(len(last.weight))
    rows[len(step.active) :] = 1 / scale_active
    added = np.zeros(len(rows))
    added[len(step.active) :] = (own_offset[passive_width:] - active_shift) / (
        own_scale[passive_width:] * scale_active
    )
    bias = added if last.bias is None else last.bias * rows + added
    subnet[-1] = ir.Conv(weight=float32(last.weight * rows[:, None, None, None]), bias=float32(bias))

    # 3. Where the passive half's shift is not the required one, the difference stays in the coupling's offset.
    passive_scale = own_scale[:passive_width] * scale_passive
    natural = own_scale[:passive_width] * shift[step.passive] + own_offset[:passive_width]
    wanted = np.where(np.isnan(required[:passive_width]), natural, required[:passive_width])
    leftover = (natural - wanted) / passive_scale
    leftover[np.abs(leftover) <= 1e-12 * (1 + np.abs(natural))] = 0.0  # float64 round-off of the two walks
    offset = np.concatenate([leftover, np.zeros(len(step.active))])
    lowered = dataclasses.replace(
        step, subnet=tuple(subnet), scale=None, offset=float32(offset) if np.any(leftover) else None
    )
    return (
        lowered,
        np.concatenate([passive_scale, own_scale[passive_width:] * scale_active]),
        np.concatenate([wanted, active_shift]),
    )


def _fold_map(
    step: ir.ChannelMap, required: _Vector, scale: _Vector, shift: _Vector
) -> tuple[ir.ChannelMap, _Vector, _Vector]:
    """Fold the scale and the shift of the channels before a channel map into the map.

    The arguments and results are those of `_fold_coupling`, with a channel map in place of the coupling.
    """
    if step.index is not None:
        return step, scale[step.index], shift[step.index]
    # The matrix absorbs the scale in its columns. The bias adds the mapped shift and subtracts the required one.
    assert step.matrix is not None
    matrix = step.matrix.astype(np.float64)
    shift_after = np.nan_to_num(required)
    bias = matrix @ shift - shift_after + (0.0 if step.bias is None else step.bias)
    lowered = dataclasses.replace(
        step, matrix=float32(matrix * scale), bias=float32(bias) if np.any(bias) else None
    )
    return lowered, np.ones(len(matrix)), shift_after


def _affine_of(step: ir.Coupling) -> tuple[_Vector, _Vector]:
    """Return the global scale and offset of a coupling in float64, 1 and 0 where it has none."""
    width = len(step.passive) + len(step.active)
    scale = np.ones(width) if step.scale is None else step.scale.astype(np.float64)
    offset = np.zeros(width) if step.offset is None else step.offset.astype(np.float64)
    return scale, offset


def _pads(step: ir.Coupling) -> bool:
    """Return True when the first convolution of a coupling's subnet is zero-padded."""
    first = step.subnet[0]
    return isinstance(first, ir.Conv) and first.weight.shape[-1] > 1
