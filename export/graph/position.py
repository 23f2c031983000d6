"""Make the position code of a conditional flow small and cheap to read, in passes over the flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.export.graph import ir
from flowedge.export.graph.channels import CHANNEL_GROUP
from flowedge.export.graph.permutations import reading_through
from flowedge.export.graph.rewriting import (
    bias_of,
    channels_after_insertion,
    float32,
    rewrite_couplings,
    scattered,
    with_inserted,
    with_latents_at,
)

_NEGLIGIBLE: Final = 2.0**-25
"""A singular value below this share of the largest one is lost in the rounding of a float32 position code."""


def reduce_position_code(model: ir.FlowModel) -> ir.FlowModel:
    """The sinusoids of the position code become as many orthonormal maps as float32 can tell apart.

    The 64 sinusoids of CFLOW on 32 columns span 17 dimensions to the precision of float32, because the slow ones
    are nearly straight lines. The subnet's first weights absorb the change of basis, and its bias absorbs the
    constant part. So the condition costs a few input channels instead of a map per hidden channel. The graph stores
    ``r (H + W)`` numbers instead of ``hidden H W``.
    """

    def reduced(step: ir.Coupling) -> ir.Coupling:
        first = step.subnet[0]
        if not isinstance(step.condition, ir.PositionCode) or not isinstance(first, ir.Conv):
            return step
        level = model.levels[step.stream]
        half = step.condition.length // 2
        passive_width = len(step.passive)
        # Only a 1x1 convolution can move a constant into its bias: a zero-padded border does not see the constant.
        constant_in_bias = first.weight.shape[-1] == 1
        columns, from_columns, constant_c = _basis(ir.position_code(2 * half, level.width), constant_in_bias)
        rows, from_rows, constant_r = _basis(ir.position_code(2 * half, level.height), constant_in_bias)
        columns, from_columns = _padded_to_group(
            columns, from_columns, passive_width + len(columns) + len(rows)
        )
        # The first weights read the passive half, then the column's code, then the row's code.
        weight = first.weight.astype(np.float64)
        of_passive, by_column, by_row = np.split(weight, [passive_width, passive_width + half], axis=1)
        condition = [
            np.einsum("opyx,pr->oryx", by_column, from_columns),
            np.einsum("opyx,pr->oryx", by_row, from_rows),
        ]
        bias = bias_of(first)
        if constant_in_bias:
            bias = bias + by_column[:, :, 0, 0] @ constant_c + by_row[:, :, 0, 0] @ constant_r
        conv = ir.Conv(weight=float32(np.concatenate([of_passive, *condition], axis=1)), bias=float32(bias))
        basis = ir.PositionBasis(columns=float32(columns), rows=float32(rows))
        return dataclasses.replace(step, condition=basis, subnet=(conv, *step.subnet[1:]))

    return rewrite_couplings(model, reduced)


def carry_position(model: ir.FlowModel) -> ir.FlowModel:
    """The maps of the position code become channels of the stream, and one gather reads them with the passive half.

    A stream stays as it is where a dense matrix, a split or a concatenation would have to carry the maps through.
    """
    steps, levels = list(model.steps), list(model.levels)
    for stream, level in enumerate(model.levels):
        places = [n for n, step in enumerate(steps) if stream in ir.streams_of(step)]
        basis = _basis_to_carry([steps[n] for n in places])
        if basis is None:
            continue
        places = places[next(i for i, n in enumerate(places) if isinstance(steps[n], ir.Coupling)) :]
        carrying, channel_of = _with_carried_maps([steps[n] for n in places], basis)
        for n, step in zip(places, carrying, strict=False):  # steps after a coupling across levels stay
            steps[n] = step
        if channel_of is not None:
            levels[stream] = with_latents_at(level, channel_of)
        steps.insert(places[0], ir.PositionChannels(stream=stream, basis=basis))
    return dataclasses.replace(model, steps=tuple(steps), levels=tuple(levels))


def _basis_to_carry(steps: Sequence[ir.Step]) -> ir.PositionBasis | None:
    """Return the position maps that all couplings of a stream read, or None where they cannot be channels of it."""
    conditions = [step.condition for step in steps if isinstance(step, ir.Coupling)]
    if not conditions or any(isinstance(step, (ir.ChannelMap, ir.Split, ir.Concat)) for step in steps):
        return None
    basis = conditions[0]
    if not isinstance(basis, ir.PositionBasis):
        return None
    assert all(_same_basis(condition, basis) for condition in conditions)
    return basis


def _with_carried_maps(
    steps: Sequence[ir.Step], basis: ir.PositionBasis
) -> tuple[list[ir.Step], ir.Index | None]:
    """Rewrite the steps of a stream, from its first coupling on, to read the position maps as channels of the stream.

    Returns:
        The rewritten steps, up to a coupling across levels, and the index of each bare channel at the end of the
        stream. The index is None where a coupling across levels drops the maps.
    """
    first = steps[0]
    assert isinstance(first, ir.Coupling)
    width = len(first.passive) + len(first.active)
    channel_of = np.arange(width)  # index of each bare channel in the carrying stream
    maps = np.arange(width, width + basis.length)  # indices of the maps in the carrying stream
    carrying: list[ir.Step] = []
    for step in steps:
        # 1. A coupling reads the maps after its passive half, and leaves them there.
        if isinstance(step, ir.Coupling):
            carrying.append(_coupling_with_maps(step, channel_of, maps))
            passive_width = len(step.passive)
            maps = np.arange(passive_width, passive_width + basis.length)
            channel_of = channels_after_insertion(passive_width, width, basis.length)
        # 2. A scale and shift per channel leaves the maps unchanged.
        elif isinstance(step, ir.ChannelAffine):
            carrying.append(
                dataclasses.replace(
                    step,
                    scale=scattered(step.scale, channel_of, width + basis.length, 1.0),
                    shift=scattered(step.shift, channel_of, width + basis.length, 0.0),
                )
            )
        # 3. A coupling across levels reads the bare channels, and its output has no maps.
        else:
            through = reading_through(step, {first.stream: channel_of})
            assert through is not None
            return [*carrying, through], None
    return carrying, channel_of


def _coupling_with_maps(step: ir.Coupling, channel_of: ir.Index, maps: ir.Index) -> ir.Coupling:
    """Rewrite a coupling to read the position maps as channels after its passive half, not as a condition."""
    return dataclasses.replace(
        step,
        passive=np.concatenate([channel_of[step.passive], maps]),
        active=channel_of[step.active],
        condition=None,
        scale=with_inserted(step.scale, len(step.passive), len(maps), 1.0),
        offset=with_inserted(step.offset, len(step.passive), len(maps), 0.0),
    )


def _basis(
    code: NDArray[np.float64], without_constant: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Factor ``code (p, n)`` as ``coefficients (p, r) @ basis (r, n) + constant (p,)`` to float32's precision.

    Returns:
        ``(basis, coefficients, constant)``. The constant is zero unless ``without_constant``.
    """
    constant = code.mean(1) if without_constant else np.zeros(len(code))
    left, singular, right = np.linalg.svd(code - constant[:, None], full_matrices=False)
    rank = max(1, int(np.count_nonzero(singular > _NEGLIGIBLE * singular[0])))
    return right[:rank], left[:, :rank] * singular[:rank], constant


def _padded_to_group(
    basis: NDArray[np.float64], coefficients: NDArray[np.float64], channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add maps of zeros to a position basis until the subnet's ``channels`` inputs are a multiple of 8."""
    missing = -channels % CHANNEL_GROUP
    return (
        np.concatenate([basis, np.zeros((missing, basis.shape[1]))]),
        np.concatenate([coefficients, np.zeros((len(coefficients), missing))], axis=1),
    )


def _same_basis(one: object, other: ir.PositionBasis) -> bool:
    return (
        isinstance(one, ir.PositionBasis)
        and np.array_equal(one.columns, other.columns)
        and np.array_equal(one.rows, other.rows)
    )
