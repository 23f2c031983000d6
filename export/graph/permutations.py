"""Remove permutations and rotations of channels or make them cheap, in passes over the flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from flowedge.export.graph import ir
from flowedge.export.graph.rewriting import scattered

_ORTHOGONAL: Final = 1e-5  # largest entry of Q^T Q - I for a matrix that counts as orthogonal
# The number of couplings in a row whose halves are ordered together: one that gathers and two that read runs. The runs
# of a fourth coupling would be so many and so short that a gather costs no more.
_ORDERED: Final = 3


def index_hard_permutations(model: ir.FlowModel) -> ir.FlowModel:
    """A channel map whose matrix has a single 1 in each row becomes a gather of channels.

    The answers are equal for finite values. The matrix product turns an infinity into NaN, the gather does not.
    """

    def indexed(step: ir.Step) -> ir.Step:
        if not isinstance(step, ir.ChannelMap) or step.matrix is None or step.bias is not None:
            return step
        matrix = step.matrix
        hard = np.all((matrix == 0) | (matrix == 1)) and np.all(np.count_nonzero(matrix, axis=1) == 1)
        return ir.ChannelMap(stream=step.stream, index=matrix.argmax(1).astype(np.int64)) if hard else step

    return dataclasses.replace(model, steps=tuple(indexed(step) for step in model.steps))


def absorb_gathers(model: ir.FlowModel) -> ir.FlowModel:
    """A gather of channels is composed into the step that reads the stream next.

    A gather at the end of a stream is dropped, because the score only sums over the channels.
    """
    deferred: dict[int, ir.Index] = {}  # gathers that no step has absorbed yet, by stream
    steps: list[ir.Step] = []
    for step in model.steps:
        # Two gathers in a row are one gather.
        if isinstance(step, ir.ChannelMap) and step.index is not None:
            before = deferred.get(step.stream)
            deferred[step.stream] = step.index if before is None else before[step.index]
            continue
        gathers, absorbed = behind_gathers(step, deferred)
        steps += [*gathers, absorbed]
    return dataclasses.replace(model, steps=tuple(steps))


def order_halves(model: ir.FlowModel) -> ir.FlowModel:
    """The channels of both halves are ordered so that the next two couplings read them in a few runs of channels.

    A random permutation before each coupling makes it gather single channels. Engines slice and concatenate runs of
    channels faster than they gather. Of three couplings in a row on a stream, only the first gathers its halves. The
    weights of the subnets take the new order.
    """
    steps: list[ir.Step] = []
    moved: dict[int, ir.Index] = {}  # by stream, the index of each channel once the halves are ordered
    followers: dict[int, int] = {}  # by stream, the number of couplings to come that read runs
    for place, step in enumerate(model.steps):
        # A scale and a shift follow their channels, which stay moved.
        if isinstance(step, ir.ChannelAffine) and step.stream in moved:
            followers.pop(step.stream, None)
            at = moved[step.stream]
            scale = scattered(step.scale, at, len(at), 1.0)
            steps.append(
                dataclasses.replace(step, scale=scale, shift=scattered(step.shift, at, len(at), 0.0))
            )
            continue
        # The next reader of a stream looks for its channels where they are now, or a gather puts them back.
        gathers, current = behind_gathers(step, moved)
        steps += gathers
        if isinstance(step, ir.Coupling):
            assert isinstance(current, ir.Coupling)
            stream, width = step.stream, len(step.passive)
            # 1. The first of three couplings sorts its halves by the halves that the next couplings put them into.
            # 2. The others take the runs as they lie.
            if not followers.get(stream):
                ranks = _ranks(step, _couplings_after(model.steps, place))
                followers[stream] = _ORDERED - 1
                passive, active = (
                    np.argsort(ranks[:width], kind="stable"),
                    np.argsort(-ranks[width:], kind="stable"),
                )
            else:
                followers[stream] -= 1
                passive, active = _as_they_lie(current.passive), _as_they_lie(current.active)
            current = _with_halves(current, passive, active)
            moved[stream] = np.argsort(np.concatenate([passive, width + active]))
        else:
            for stream in ir.streams_of(step):
                followers.pop(stream, None)
        steps.append(current)
    levels = list(model.levels)
    for stream, channel_of in moved.items():
        scale = scattered(levels[stream].latent_scale, channel_of, len(channel_of), 0.0)
        levels[stream] = dataclasses.replace(levels[stream], latent_scale=scale)
    return dataclasses.replace(model, steps=tuple(steps), levels=tuple(levels))


def _couplings_after(steps: Sequence[ir.Step], place: int) -> list[ir.Coupling]:
    """Return the next couplings that read a coupling's runs, up to the first other step on the stream."""
    (stream,) = ir.streams_of(steps[place])
    found: list[ir.Coupling] = []
    for step in steps[place + 1 :]:
        if stream not in ir.streams_of(step):
            continue
        if not isinstance(step, ir.Coupling) or len(found) == _ORDERED - 1:
            break
        found.append(step)
    return found


def _ranks(step: ir.Coupling, later: Sequence[ir.Coupling]) -> ir.Index:
    """Rank each channel that a coupling writes by the halves of the later couplings, in the order of a Gray code.

    Channels of neighbouring ranks are in the same half of all later couplings but one.
    """
    width = len(step.passive) + len(step.active)
    ranks = np.zeros(width, np.int64)
    channels = np.arange(width)  # the channels of the stream, numbered as the coupling writes them
    for coupling in later:
        is_active = np.zeros(width, bool)
        is_active[channels[coupling.active]] = True
        ranks = 2 * ranks + (is_active ^ (ranks % 2 == 1))
        channels = channels[np.concatenate([coupling.passive, coupling.active])]
    return ranks


def _as_they_lie(half: ir.Index) -> ir.Index:
    """Order the channels of a half as they lie in the stream, beginning after the largest gap between two of them.

    So the run at the end of the stream comes before the run at its beginning.
    """
    order = np.argsort(half, kind="stable")
    gaps = np.diff(half[order])
    return np.roll(order, -1 - int(gaps.argmax())) if len(gaps) and gaps.max() > 1 else order


def _with_halves(step: ir.Coupling, passive: ir.Index, active: ir.Index) -> ir.Coupling:
    """Reorder the channels of a coupling's halves, and the weights that belong to them."""
    first, *others = step.subnet
    assert isinstance(first, (ir.Conv, ir.Linear))
    columns = np.arange(
        first.weight.shape[1]
    )  # Those of the condition keep their place after the passive half.
    columns[: len(passive)] = passive
    subnet: list[ir.SubnetLayer] = [
        dataclasses.replace(first, weight=np.ascontiguousarray(first.weight[:, columns])),
        *others,
    ]
    last = subnet[-1]
    assert isinstance(last, (ir.Conv, ir.Linear))
    rows = np.concatenate([active, len(active) + active])
    bias = None if last.bias is None else last.bias[rows]
    subnet[-1] = dataclasses.replace(last, weight=np.ascontiguousarray(last.weight[rows]), bias=bias)
    order = np.concatenate([passive, len(passive) + active])
    return dataclasses.replace(
        step,
        passive=step.passive[passive],
        active=step.active[active],
        subnet=tuple(subnet),
        scale=None if step.scale is None else step.scale[order],
        offset=None if step.offset is None else step.offset[order],
    )


def drop_last_rotation(model: ir.FlowModel) -> ir.FlowModel:
    """The last orthogonal matrix of a stream is dropped, because the sum of squares does not see it.

    A matrix counts as orthogonal when no entry of ``Q^T Q - I`` is larger than 1e-5.
    """
    steps = list(model.steps)
    for stream in range(len(model.levels)):
        last = max((n for n, step in enumerate(steps) if stream in ir.streams_of(step)), default=None)
        if last is not None and _is_rotation(steps[last]):
            del steps[last]
    return dataclasses.replace(model, steps=tuple(steps))


def behind_gathers(step: ir.Step, pending: dict[int, ir.Index]) -> tuple[list[ir.Step], ir.Step]:
    """Put a step behind the pending gathers of its streams, by composing them into the step where that is possible.

    Args:
        step: The step that reads the gathered streams.
        pending: By stream, the index of each gathered channel. The streams of the step are removed from it.

    Returns:
        The gathers that must stay before the step, and the step itself, rewritten where it takes the gathers in.
    """
    gathers = {stream: pending.pop(stream) for stream in ir.streams_of(step) if stream in pending}
    composed = reading_through(step, gathers) if gathers else step
    if composed is not None:
        return [], composed
    return [ir.ChannelMap(stream=stream, index=index) for stream, index in gathers.items()], step


def reading_through(step: ir.Step, gathers: Mapping[int, ir.Index]) -> ir.Step | None:
    """Compose gathers of channels into the step that follows them, so that the step reads ungathered streams.

    Args:
        step: The step that reads the gathered streams.
        gathers: By stream, the index of each gathered channel.

    Returns:
        The rewritten step, or None for a kind of step that has no index to compose the gathers into.
    """
    match step:
        case ir.Coupling(stream=stream):
            index = gathers[stream]
            return dataclasses.replace(step, passive=index[step.passive], active=index[step.active])
        case ir.Split(stream=stream):
            index = gathers[stream]
            return dataclasses.replace(step, send=index[step.send], keep=index[step.keep])
        case ir.ChannelMap(stream=stream, matrix=matrix) if matrix is not None:
            # Column i of the matrix moves to the channel that the gather would have put at i.
            index = gathers[stream]
            wide = np.zeros((len(matrix), int(index.max()) + 1), np.float32)
            wide[:, index] = matrix
            return dataclasses.replace(step, matrix=wide)
        case ir.TwoSidedCoupling():
            return dataclasses.replace(
                step,
                first=_halves_through(step.streams, step.first, gathers),
                second=_halves_through(step.streams, step.second, gathers),
            )
        case _:
            return None


def _halves_through(
    streams: tuple[int, ...], halves: tuple[ir.Index, ...], gathers: Mapping[int, ir.Index]
) -> tuple[ir.Index, ...]:
    return tuple(
        gathers[stream][half] if stream in gathers else half
        for stream, half in zip(streams, halves, strict=True)
    )


def _is_rotation(step: ir.Step) -> bool:
    """Return True when a step is a square orthogonal matrix without a bias."""
    if not isinstance(step, ir.ChannelMap) or step.matrix is None or step.bias is not None:
        return False
    matrix = step.matrix.astype(np.float64)
    if matrix.shape[0] != matrix.shape[1]:
        return False
    return bool(np.abs(matrix.T @ matrix - np.eye(len(matrix))).max() <= _ORTHOGONAL)
