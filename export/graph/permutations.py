"""Remove permutations and rotations of channels, in passes over the flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import numpy as np

from flowedge.export.graph import ir

_ORTHOGONAL: Final = 1e-5  # largest entry of Q^T Q - I for a matrix that counts as orthogonal


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
        # A step that cannot absorb the gathers keeps them before it.
        gathers = {stream: deferred.pop(stream) for stream in ir.streams_of(step) if stream in deferred}
        absorbed = reading_through(step, gathers) if gathers else step
        if absorbed is None:
            steps += [ir.ChannelMap(stream=stream, index=index) for stream, index in gathers.items()]
        steps.append(step if absorbed is None else absorbed)
    return dataclasses.replace(model, steps=tuple(steps))


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
