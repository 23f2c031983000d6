"""The lowering: functions ``FlowModel -> FlowModel``, listed in one tuple and run top to bottom.

Each docstring names the pass's exactness: *bitwise* (up to the sign of zero), *re-association* (exact in real
arithmetic; float32 sums come in another order), or *orthogonality* (relies on a stored matrix being orthogonal,
which is checked). All folding is done in float64 and rounded once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from flowedge.export.graph import ir
from flowedge.export.graph.affine import fold_affine


class Pass(Protocol):
    """One rewriting of the model; its name and its docstring are shown to the user."""

    __name__: str

    def __call__(self, model: ir.FlowModel, /) -> ir.FlowModel: ...


_ORTHOGONAL: Final = 1e-5
_NEGLIGIBLE: Final = 2.0**-25  # of the largest singular value: below what float32 codes can resolve
_CHANNEL_BLOCK: Final = 8  # engines compute channels in blocks of 8 or more


def drop_unused_log_det(model: ir.FlowModel) -> ir.FlowModel:
    """The log-determinant goes where the score does not use it: everywhere but in CFLOW. Bitwise."""
    if model.family == "cflow":
        return model
    return _map_couplings(model, lambda step: dataclasses.replace(step, log_det=False))


def index_hard_permutations(model: ir.FlowModel) -> ir.FlowModel:
    """A matrix with a single 1 in each row becomes a gather. Bitwise for finite values."""

    def lowered(step: ir.Step) -> ir.Step:
        if not isinstance(step, ir.ChannelMap) or step.matrix is None or step.bias is not None:
            return step
        matrix = step.matrix
        hard = np.all((matrix == 0) | (matrix == 1)) and np.all(np.count_nonzero(matrix, axis=1) == 1)
        return ir.ChannelMap(stream=step.stream, index=matrix.argmax(1).astype(np.int64)) if hard else step

    return dataclasses.replace(model, steps=tuple(lowered(step) for step in model.steps))


def absorb_gathers(model: ir.FlowModel) -> ir.FlowModel:
    """A gather is composed into what reads the stream next; at the end it only reorders a sum. Re-association."""
    pending: dict[int, ir.Index] = {}
    steps: list[ir.Step] = []
    for step in model.steps:
        if isinstance(step, ir.ChannelMap) and step.index is not None:
            before = pending.get(step.stream)
            pending[step.stream] = step.index if before is None else before[step.index]
            continue
        gathers = {stream: pending.pop(stream) for stream in ir.streams_of(step) if stream in pending}
        absorbed = _reading_through(step, gathers) if gathers else step
        if absorbed is None:
            steps += [ir.ChannelMap(stream=stream, index=index) for stream, index in gathers.items()]
        steps.append(step if absorbed is None else absorbed)
    return dataclasses.replace(model, steps=tuple(steps))


def _reading_through(step: ir.Step, gathers: Mapping[int, ir.Index]) -> ir.Step | None:
    """The step, reading its streams as they were before the gathers; None where it cannot."""
    match step:
        case ir.Coupling(stream=stream):
            index = gathers[stream]
            return dataclasses.replace(step, passive=index[step.passive], active=index[step.active])
        case ir.Split(stream=stream):
            index = gathers[stream]
            return dataclasses.replace(step, send=index[step.send], keep=index[step.keep])
        case ir.ChannelMap(stream=stream, matrix=matrix) if matrix is not None:
            index = gathers[stream]
            wide = np.zeros((len(matrix), int(index.max()) + 1), np.float32)
            wide[:, index] = matrix
            return dataclasses.replace(step, matrix=wide)
        case ir.TwoSidedCoupling():
            return dataclasses.replace(
                step,
                first=_through(step.streams, step.first, gathers),
                second=_through(step.streams, step.second, gathers),
            )
        case _:
            return None


def _through(
    streams: tuple[int, ...], halves: tuple[ir.Index, ...], gathers: Mapping[int, ir.Index]
) -> tuple[ir.Index, ...]:
    return tuple(
        gathers[stream][half] if stream in gathers else half
        for stream, half in zip(streams, halves, strict=True)
    )


def drop_last_rotation(model: ir.FlowModel) -> ir.FlowModel:
    """The sum of squares does not see the last orthogonal matrix of a stream. Orthogonality, checked to 1e-5."""
    steps = list(model.steps)
    for stream in range(len(model.levels)):
        last = max((n for n, step in enumerate(steps) if stream in ir.streams_of(step)), default=None)
        if last is None:
            continue
        step = steps[last]
        if isinstance(step, ir.ChannelMap) and step.matrix is not None and step.bias is None:
            matrix = step.matrix.astype(np.float64)
            if matrix.shape[0] == matrix.shape[1]:
                defect = np.abs(matrix.T @ matrix - np.eye(len(matrix))).max()
                if defect <= _ORTHOGONAL:
                    del steps[last]
    return dataclasses.replace(model, steps=tuple(steps))


def linear_layers_become_convolutions(model: ir.FlowModel) -> ir.FlowModel:
    """A linear layer at every position is a 1x1 convolution over the map. Re-association."""

    def lowered(step: ir.Coupling) -> ir.Coupling:
        subnet = tuple(
            ir.Conv(weight=layer.weight[:, :, None, None], bias=layer.bias)
            if isinstance(layer, ir.Linear)
            else layer
            for layer in step.subnet
        )
        return dataclasses.replace(step, subnet=subnet)

    return _map_couplings(model, lowered)


def fold_gain(model: ir.FlowModel) -> ir.FlowModel:
    """The factor 0.1 and the clamp's inner factor go into the subnet's last convolution. Re-association."""

    def lowered(step: ir.Coupling) -> ir.Coupling:
        *before, last = step.subnet
        if not isinstance(last, ir.Conv):
            return step
        factor = np.full(len(last.weight), step.gain)
        factor[: len(step.active)] *= step.inner
        return dataclasses.replace(step, subnet=(*before, scale_rows(last, factor)), gain=1.0, inner=1.0)

    return _map_couplings(model, lowered)


def reduce_position_code(model: ir.FlowModel) -> ir.FlowModel:
    """The sinusoids become as many orthonormal maps as float32 can tell apart. Re-association.

    On 32 columns the 64 sinusoids of CFLOW span 17 dimensions to the precision of float32: the slow ones are
    nearly straight lines. The weights' condition columns absorb the change of basis, and the bias takes the
    constant part. So the condition costs a few input channels instead of a map per hidden channel, and the graph
    stores ``r (H + W)`` numbers instead of ``hidden H W``.
    """

    def lowered(step: ir.Coupling) -> ir.Coupling:
        first = step.subnet[0]
        if not isinstance(step.condition, ir.PositionCode) or not isinstance(first, ir.Conv):
            return step
        level = model.levels[step.stream]
        half = step.condition.length // 2
        seen = len(step.passive)
        constant_in_bias = first.weight.shape[-1] == 1  # a zero-padded border does not see a constant
        columns, from_columns, constant_c = _basis(ir.position_code(2 * half, level.width), constant_in_bias)
        rows, from_rows, constant_r = _basis(ir.position_code(2 * half, level.height), constant_in_bias)
        columns, from_columns = _padded_rank(columns, from_columns, seen + len(columns) + len(rows))
        weight = first.weight.astype(np.float64)
        own, by_column, by_row = np.split(weight, [seen, seen + half], axis=1)
        condition = [
            np.einsum("opyx,pr->oryx", by_column, from_columns),
            np.einsum("opyx,pr->oryx", by_row, from_rows),
        ]
        bias = _bias(first)
        if constant_in_bias:
            bias = bias + by_column[:, :, 0, 0] @ constant_c + by_row[:, :, 0, 0] @ constant_r
        conv = ir.Conv(weight=_f32(np.concatenate([own, *condition], axis=1)), bias=_f32(bias))
        basis = ir.PositionBasis(columns=_f32(columns), rows=_f32(rows))
        return dataclasses.replace(step, condition=basis, subnet=(conv, *step.subnet[1:]))

    return _map_couplings(model, lowered)


def carry_position(model: ir.FlowModel) -> ir.FlowModel:
    """The position maps ride along in the stream, so that one gather fetches them with the passive half. Bitwise.

    Only where the stream has no dense channel map, which would have to carry them through.
    """
    steps = list(model.steps)
    levels = list(model.levels)
    for stream, level in enumerate(model.levels):
        own = [n for n, step in enumerate(steps) if stream in ir.streams_of(step)]
        couplings = [n for n in own if isinstance(steps[n], ir.Coupling)]
        if not couplings or any(isinstance(steps[n], (ir.ChannelMap, ir.Split, ir.Concat)) for n in own):
            continue
        first = steps[couplings[0]]
        assert isinstance(first, ir.Coupling)
        basis, width = first.condition, len(first.passive) + len(first.active)
        if not isinstance(basis, ir.PositionBasis):
            continue
        where = np.arange(width, width + basis.length)
        known = np.arange(width)  # where channel i of the bare stream is in the carrying one
        for number in own[own.index(couplings[0]) :]:
            step = steps[number]
            if isinstance(step, ir.Coupling):
                assert _same_basis(step.condition, basis)
                seen, behind = len(step.passive), basis.length
                steps[number] = dataclasses.replace(
                    step,
                    passive=np.concatenate([known[step.passive], where]),
                    active=known[step.active],
                    condition=None,
                    scale=_widened(step.scale, seen, behind, 1.0),
                    offset=_widened(step.offset, seen, behind, 0.0),
                )
                where = np.arange(seen, seen + behind)
                known = _moved(seen, width, behind)
            elif isinstance(step, ir.ChannelAffine):
                steps[number] = dataclasses.replace(
                    step,
                    scale=_spread(step.scale, known, width + basis.length, 1.0),
                    shift=_spread(step.shift, known, width + basis.length, 0.0),
                )
            else:
                through = _reading_through(step, {stream: known})
                assert through is not None
                steps[number] = through
                break
        else:
            levels[stream] = _with_latents_at(level, known)
        steps.insert(couplings[0], ir.PositionChannels(stream=stream, basis=basis))
    return dataclasses.replace(model, steps=tuple(steps), levels=tuple(levels))


def fill_channel_blocks(model: ir.FlowModel) -> ir.FlowModel:
    """Subnets get idle channels up to a multiple of eight, which engines compute faster than fewer. Re-association.

    Where that is a small step. The subnet's input repeats a channel of the passive half, and its hidden layers get
    channels of zeros; all their weights are zero. The repeated channel stays in the stream, and nothing reads it.
    """
    steps: list[ir.Step] = []
    moved: dict[int, ir.Index] = {}  # by stream, where its channels are once some are repeated
    for step in model.steps:
        moves = {stream: moved.pop(stream) for stream in ir.streams_of(step) if stream in moved}
        through = _reading_through(step, moves) if moves else step
        if through is None:
            steps += [ir.ChannelMap(stream=stream, index=index) for stream, index in moves.items()]
        current = step if through is None else through
        if isinstance(current, ir.Coupling):
            filled = _filled(current)
            seen, behind = len(current.passive), len(filled.passive) - len(current.passive)
            if behind:
                moved[current.stream] = _moved(seen, seen + len(current.active), behind)
            current = filled
        steps.append(current)
    levels = list(model.levels)
    for stream, known in moved.items():
        levels[stream] = _with_latents_at(levels[stream], known)
    return dataclasses.replace(model, steps=tuple(steps), levels=tuple(levels))


def centre_before_norm(model: ir.FlowModel) -> ir.FlowModel:
    """The mean that a norm over channels subtracts leaves the convolution before it, in its weights. Re-association."""

    def lowered(step: ir.Coupling) -> ir.Coupling:
        subnet = list(step.subnet)
        for place, (conv, norm) in enumerate(itertools.pairwise(step.subnet)):
            if isinstance(conv, ir.Conv) and isinstance(norm, ir.ChannelNorm):
                subnet[place : place + 2] = _centred(conv, norm)
        return dataclasses.replace(step, subnet=tuple(subnet))

    def mixed(net: ir.CrossScaleNet | ir.FusionNet) -> ir.CrossScaleNet | ir.FusionNet:
        if isinstance(net, ir.CrossScaleNet):
            return net
        conv1, norm = _centred(net.conv1, net.norm)
        return dataclasses.replace(net, conv1=conv1, norm=norm)

    return _map_nets(_map_couplings(model, lowered), mixed)


def merge_scale_and_shift_heads(model: ir.FlowModel) -> ir.FlowModel:
    """MSFlow's two convolutions of one input become one with their outputs concatenated. Re-association."""

    def merged(net: ir.CrossScaleNet | ir.FusionNet) -> ir.CrossScaleNet | ir.FusionNet:
        if isinstance(net, ir.CrossScaleNet):
            return net
        return dataclasses.replace(net, heads=tuple((_stacked(heads),) for heads in net.heads))

    return _map_nets(model, merged)


def mix_channels_before_upsampling(model: ir.FlowModel) -> ir.FlowModel:
    """A convolution behind an upsampling mixes channels before it, where there are four times fewer pixels.

    Done where it saves multiply-accumulates, with a matrix no larger than the weights: the one that upsamples, shifts
    and sums grows with the square of the level's size, and with few channels there is little to save. Re-association.
    """
    sizes = [level.height * level.width for level in model.levels]

    def cheaper(level: int, route: ir.Route) -> bool:
        if len(route.sources) != 1 or route.sources[0] <= level:
            return False
        coarse, fine = sizes[route.sources[0]], sizes[level]
        outputs, channels = route.conv.weight.shape[:2]
        return bool(coarse * (channels + fine) < fine * channels and coarse * fine <= outputs * channels)

    def lowered(net: ir.CrossScaleNet | ir.FusionNet) -> ir.CrossScaleNet | ir.FusionNet:
        if isinstance(net, ir.FusionNet):
            return net
        routes = tuple(
            _biases_to_the_first(
                [dataclasses.replace(route, mixes_first=cheaper(n, route)) for route in routes]
            )
            for n, routes in enumerate(net.routes)
        )
        return dataclasses.replace(net, routes=routes)

    return _map_nets(model, lowered)


def merge_cross_convolutions(model: ir.FlowModel) -> ir.FlowModel:
    """CS-Flow's gammas go into the weights, and convolutions of one stride into one over all their inputs.

    Those that mix channels before they upsample stay apart. Re-association.
    """

    def merged(net: ir.CrossScaleNet | ir.FusionNet) -> ir.CrossScaleNet | ir.FusionNet:
        if isinstance(net, ir.FusionNet):
            return net
        routes = tuple(
            tuple(_joined(alike, gain) for alike in _alike(routes))
            for routes, gain in zip(net.routes, net.gains, strict=True)
        )
        return dataclasses.replace(net, routes=routes, gains=(1.0,) * len(net.gains))

    return _map_nets(model, merged)


def fold_soft_clamp(model: ir.FlowModel) -> ir.FlowModel:
    """``1 / kappa`` in the arctangent goes into the rows that give S. Re-association."""

    def lowered(step: ir.Step) -> ir.Step:
        if not isinstance(step, ir.TwoSidedCoupling) or step.inner == 1.0:
            return step
        net1 = _with_scaled_outputs(step.net1, [len(half) for half in step.second], step.inner)
        net2 = _with_scaled_outputs(step.net2, [len(half) for half in step.first], step.inner)
        return dataclasses.replace(step, net1=net1, net2=net2, inner=1.0)

    return dataclasses.replace(model, steps=tuple(lowered(step) for step in model.steps))


PASSES: Final[tuple[Pass, ...]] = (
    drop_unused_log_det,
    linear_layers_become_convolutions,
    index_hard_permutations,
    absorb_gathers,
    drop_last_rotation,
    fold_gain,
    reduce_position_code,
    fold_affine,
    carry_position,
    fill_channel_blocks,
    centre_before_norm,
    merge_scale_and_shift_heads,
    mix_channels_before_upsampling,
    merge_cross_convolutions,
    fold_soft_clamp,
)


def lower(
    model: ir.FlowModel,
    *,
    keep_latents: bool = False,
    on_pass: Callable[[Pass, ir.FlowModel], None] = lambda _pass, _after: None,
) -> ir.FlowModel:
    """Run every pass.

    Args:
        model: As its checkpoint holds it.
        keep_latents: Leave out `drop_last_rotation`: each channel of the latent stays what it is, not only their
            sum of squares. The order of the channels is free all the same.
        on_pass: Told each pass that ran and what it gave.
    """
    for step in PASSES:
        if keep_latents and step is drop_last_rotation:
            continue
        model = step(model)
        on_pass(step, model)
    return model


def scale_rows(conv: ir.Conv, factor: NDArray[np.float64]) -> ir.Conv:
    """The convolution with its outputs multiplied by ``factor (out,)``."""
    bias = None if conv.bias is None else _f32(conv.bias * factor)
    return ir.Conv(weight=_f32(conv.weight * factor[:, None, None, None]), bias=bias)


def _map_couplings(model: ir.FlowModel, change: Callable[[ir.Coupling], ir.Coupling]) -> ir.FlowModel:
    steps = tuple(change(step) if isinstance(step, ir.Coupling) else step for step in model.steps)
    return dataclasses.replace(model, steps=steps)


def _basis(
    code: NDArray[np.float64], without_constant: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """``code (p, n) = coefficients (p, r) @ basis (r, n) + constant (p,)`` to float32's precision."""
    constant = code.mean(1) if without_constant else np.zeros(len(code))
    left, singular, right = np.linalg.svd(code - constant[:, None], full_matrices=False)
    rank = max(1, int(np.count_nonzero(singular > _NEGLIGIBLE * singular[0])))
    return right[:rank], left[:, :rank] * singular[:rank], constant


def _padded_rank(
    basis: NDArray[np.float64], coefficients: NDArray[np.float64], channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pad with zero maps to a whole block of channels, when that is a small step."""
    missing = -channels % _CHANNEL_BLOCK
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


def _map_nets(
    model: ir.FlowModel,
    change: Callable[[ir.CrossScaleNet | ir.FusionNet], ir.CrossScaleNet | ir.FusionNet],
) -> ir.FlowModel:
    steps = tuple(
        dataclasses.replace(step, net1=change(step.net1), net2=change(step.net2))
        if isinstance(step, ir.TwoSidedCoupling)
        else step
        for step in model.steps
    )
    return dataclasses.replace(model, steps=steps)


def _filled(step: ir.Coupling) -> ir.Coupling:
    """The coupling with idle channels in its subnet's convolutions, and repeated ones in its passive half."""
    first, *others = step.subnet
    if not isinstance(first, ir.Conv) or any(isinstance(layer, ir.ChannelNorm) for layer in others):
        return step
    seen, behind = len(step.passive), _idle(first.weight.shape[1])
    weight = np.insert(first.weight, [seen] * behind, 0.0, axis=1)
    subnet: list[ir.SubnetLayer] = [dataclasses.replace(first, weight=weight), *others]
    places = [place for place, layer in enumerate(subnet) if isinstance(layer, ir.Conv)]
    for place, following in itertools.pairwise(places):
        conv, reader = subnet[place], subnet[following]
        assert isinstance(conv, ir.Conv)
        assert isinstance(reader, ir.Conv)
        rows = [(0, _idle(len(conv.weight)))]
        whole = [(0, 0)]
        subnet[place] = ir.Conv(
            weight=np.pad(conv.weight, rows + 3 * whole),
            bias=None if conv.bias is None else np.pad(conv.bias, rows),
        )
        subnet[following] = dataclasses.replace(
            reader, weight=np.pad(reader.weight, whole + rows + 2 * whole)
        )
    return dataclasses.replace(
        step,
        passive=np.concatenate([step.passive, np.repeat(step.passive[:1], behind)]),
        subnet=tuple(subnet),
        scale=_widened(step.scale, seen, behind, 1.0),
        offset=_widened(step.offset, seen, behind, 0.0),
    )


def _idle(channels: int) -> int:
    """How many channels are missing to a whole block; none where that is more than a quarter."""
    missing = -channels % _CHANNEL_BLOCK
    return missing if 4 * missing <= channels else 0


def _centred(conv: ir.Conv, norm: ir.ChannelNorm) -> tuple[ir.Conv, ir.ChannelNorm]:
    """Both, with the mean over the outputs taken out of the convolution's weights and bias."""
    weight = conv.weight.astype(np.float64)
    weight -= weight.mean(0)
    bias = _bias(conv)
    conv = ir.Conv(weight=_f32(weight), bias=_f32(bias - bias.mean()))
    return conv, dataclasses.replace(norm, centred=True)


def _stacked(convs: tuple[ir.Conv, ...]) -> ir.Conv:
    """Convolutions of one input, as one that gives their outputs one behind the other."""
    if len(convs) == 1:
        return convs[0]
    return ir.Conv(
        weight=np.concatenate([conv.weight for conv in convs]),
        bias=_f32(np.concatenate([_bias(c) for c in convs])),
    )


def _biases_to_the_first(routes: Sequence[ir.Route]) -> tuple[ir.Route, ...]:
    """The same sum, with the biases of routes that can have none added to the first route's."""
    first, *others = routes
    bias = _bias(first.conv) + sum(_bias(route.conv) for route in others if route.mixes_first)
    return (
        dataclasses.replace(first, conv=dataclasses.replace(first.conv, bias=_f32(bias))),
        *(
            dataclasses.replace(route, conv=dataclasses.replace(route.conv, bias=None))
            if route.mixes_first
            else route
            for route in others
        ),
    )


def _alike(routes: tuple[ir.Route, ...]) -> list[list[ir.Route]]:
    """The routes in groups that one convolution can do."""
    groups: dict[tuple[int, bool], list[ir.Route]] = {}
    for route in routes:
        groups.setdefault((route.stride, route.mixes_first), []).append(route)
    return list(groups.values())


def _joined(routes: list[ir.Route], gain: float) -> ir.Route:
    """Routes that are alike as one route over all their sources, times ``gain``."""
    weight = np.concatenate([route.conv.weight for route in routes], axis=1)
    bias = None
    if not routes[0].mixes_first:
        bias = _f32(sum((_bias(route.conv) for route in routes), np.zeros(len(weight))))
    conv = scale_rows(ir.Conv(weight=weight, bias=bias), np.full(len(weight), gain))
    sources = tuple(source for route in routes for source in route.sources)
    return dataclasses.replace(routes[0], sources=sources, conv=conv)


def _with_scaled_outputs(
    net: ir.CrossScaleNet | ir.FusionNet, halves: list[int], factor: float
) -> ir.CrossScaleNet | ir.FusionNet:
    """The net with the first ``halves[l]`` outputs of level l multiplied."""

    def scaled(conv: ir.Conv, rows: int) -> ir.Conv:
        factors = np.ones(len(conv.weight))
        factors[:rows] = factor
        return scale_rows(conv, factors)

    if isinstance(net, ir.FusionNet):
        heads = tuple((scaled(one[0], rows), *one[1:]) for one, rows in zip(net.heads, halves, strict=True))
        return dataclasses.replace(net, heads=heads)
    routes = tuple(
        tuple(dataclasses.replace(route, conv=scaled(route.conv, rows)) for route in routes)
        for routes, rows in zip(net.routes, halves, strict=True)
    )
    return dataclasses.replace(net, routes=routes)


def _bias(conv: ir.Conv) -> NDArray[np.float64]:
    return np.zeros(len(conv.weight)) if conv.bias is None else conv.bias.astype(np.float64)


def _spread(values: ir.Array | None, at: ir.Index, width: int, neutral: float) -> ir.Array | None:
    """``values`` at the places ``at`` of a vector that is neutral elsewhere."""
    if values is None:
        return None
    wide = np.full(width, neutral, np.float32)
    wide[at] = values
    return wide


def _moved(seen: int, width: int, behind: int) -> ir.Index:
    """Where ``width`` channels are once ``behind`` others follow the first ``seen`` of them."""
    return np.concatenate([np.arange(seen), np.arange(seen, width) + behind])


def _with_latents_at(level: ir.Level, known: ir.Index) -> ir.Level:
    """The level of a stream that has its channel i at ``known[i]``, the last one last, and others between."""
    scale = np.ones(len(known), np.float32) if level.latent_scale is None else level.latent_scale
    return dataclasses.replace(level, latent_scale=_spread(scale, known, int(known[-1]) + 1, 0.0))


def _widened(values: ir.Array | None, at: int, count: int, neutral: float) -> ir.Array | None:
    if values is None:
        return None
    return np.insert(values, at, np.full(count, neutral, np.float32)).astype(np.float32)


def _f32(values: NDArray[np.float64]) -> ir.Array:
    return np.ascontiguousarray(values, dtype=np.float32)
