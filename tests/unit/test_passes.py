"""Each pass leaves the answers of a flow unchanged, on random weights in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowedge.export.graph import ir
from flowedge.export.graph.affine import fold_affine
from flowedge.export.graph.channels import fill_channel_groups
from flowedge.export.graph.counts import totals
from flowedge.export.graph.cross_scale import mix_channels_before_upsampling
from flowedge.export.graph.emit import Flow
from flowedge.export.graph.folding import fold_gain
from flowedge.export.graph.passes import PASSES, Pass, lower
from flowedge.export.graph.permutations import absorb_gathers, index_hard_permutations
from support.random_flows import (
    filled_uflow,
    random_cflow,
    random_csflow,
    random_fastflow,
    random_features,
    random_msflow,
    random_orthogonal,
    random_uflow,
)

torch.set_num_threads(1)  # tiny tensors: a second thread only waits

SHAPES = st.tuples(st.integers(2, 13), st.integers(1, 6), st.integers(1, 6))
MODELS = st.builds(
    random_cflow,
    st.integers(0, 2**32 - 1),
    sizes=st.tuples(SHAPES) | st.tuples(SHAPES, SHAPES),
    blocks=st.integers(1, 4),
    condition=st.sampled_from([0, 4, 8, 16]),
    permutation=st.sampled_from(["hard", "soft"]),
    inner=st.sampled_from([1.0, 1 / 1.9]),
)


def answers(model: ir.FlowModel, seed: int = 0) -> list[torch.Tensor]:
    features = [torch.from_numpy(f) for f in random_features(seed, model)]
    with torch.no_grad():
        levels: list[torch.Tensor] = Flow(model).double()(features)
    return levels


def worst_difference(one: ir.FlowModel, other: ir.FlowModel) -> float:
    pairs = zip(answers(one), answers(other), strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1.0)) for a, b in pairs)


@settings(max_examples=15)
@given(MODELS)
def test_every_pass_leaves_the_levels_as_they_were(model: ir.FlowModel) -> None:
    for step in PASSES:
        after = step(model)
        assert worst_difference(model, after) < 3e-5, step.name
        model = after


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "family", [random_fastflow, random_uflow, filled_uflow, random_msflow, random_csflow]
)
def test_every_pass_leaves_the_other_families_as_they_were(
    family: Callable[[int], ir.FlowModel], seed: int
) -> None:
    model = family(seed)
    for step in PASSES:
        after = step(model)
        assert worst_difference(model, after) < 3e-5, step.name
        model = after


@pytest.mark.parametrize(
    "family", [random_cflow, random_fastflow, random_uflow, random_msflow, random_csflow]
)
def test_a_pass_listed_as_bitwise_changes_no_bit_of_the_levels(family: Callable[[int], ir.FlowModel]) -> None:
    model = family(12)
    for step in PASSES:
        after = step(model)
        if step.exactness == "bitwise":
            for before, behind in zip(answers(model), answers(after), strict=True):
                assert torch.equal(before, behind), step.name
        model = after


def test_csflow_ends_with_one_convolution_per_stride_or_mixes_before_upsampling_and_has_no_gamma() -> None:
    for step in lower(random_csflow(0)).steps:
        assert isinstance(step, ir.TwoSidedCoupling)
        for net in (step.net1, step.net2):
            assert isinstance(net, ir.CrossScaleNet)
            assert [[route.sources for route in routes] for routes in net.routes] == [
                [(0, 1)],  # five hidden channels at 8x4: the matrix would cost more than it saves
                [(1,), (2,), (0,)],
                [(2,), (1,)],
            ]
            assert [route.mixes_first for route in net.routes[1]] == [False, True, False]
            assert net.gains == (1.0, 1.0, 1.0)
        assert step.inner == 1.0


@settings(max_examples=10)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 70),
    st.lists(st.sampled_from([1, 3, 5]), min_size=1, max_size=3),
)
def test_mixing_before_upsampling_leaves_the_levels_as_they_were_and_saves_work(
    seed: int, hidden: int, kernels: list[int]
) -> None:
    model = random_csflow(seed, hidden=hidden, kernels=kernels)
    after = mix_channels_before_upsampling(model)
    assert worst_difference(model, after) < 3e-5
    for step in after.steps:
        for net in (step.net1, step.net2) if isinstance(step, ir.TwoSidedCoupling) else ():
            assert isinstance(net, ir.CrossScaleNet)
            route = net.routes[0][1]
            outputs = len(route.conv.weight)
            # 32 pixels, 8 a level below: fewer multiply-accumulates, and a matrix no larger than the weights
            assert route.mixes_first == (hidden > 32 * 8 / (32 - 8) and outputs * hidden >= 8 * 32)
    assert totals(after).macs <= totals(model).macs


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(2, 60), min_size=1, max_size=2), st.integers(1, 3))
def test_filled_channel_blocks_leave_the_levels_as_they_were(
    seed: int, channels: list[int], blocks: int
) -> None:
    model = random_fastflow(seed, sizes=tuple((count, 3, 2) for count in channels), blocks=blocks)
    after = fill_channel_groups(model)
    assert worst_difference(model, after) < 1e-6
    subnets = [step.subnet for step in after.steps if isinstance(step, ir.Coupling)]
    for first, *others in subnets:
        assert isinstance(first, ir.Conv)
        inputs = first.weight.shape[1]
        missing = -inputs % 8
        assert missing == 0 or 4 * missing > inputs  # no more than a quarter is added
        for conv in others:
            assert not isinstance(conv, ir.Conv) or conv.weight.shape[1] == len(first.weight)


def test_a_subnet_of_42_channels_gets_48_and_nothing_reads_the_idle_ones() -> None:
    model = lower(random_fastflow(1, sizes=((84, 2, 2),), blocks=2))
    couplings = [step for step in model.steps if isinstance(step, ir.Coupling)]
    for coupling in couplings:
        widths = [layer.weight.shape[1] for layer in coupling.subnet if isinstance(layer, ir.Conv)]
        assert widths == [48, len(coupling.subnet[0].weight)]  # type: ignore[union-attr]
        assert widths[1] % 8 == 0
        assert len(set(coupling.passive.tolist())) == 42
    read = np.concatenate([couplings[1].passive, couplings[1].active])
    assert set(read.tolist()) == {*range(42), *range(48, 90)}
    assert model.levels[0].latent_scale is not None
    assert np.count_nonzero(model.levels[0].latent_scale) == 84


def test_a_filled_coupling_in_front_of_a_split_is_filled_and_the_split_still_keeps_the_same_channels() -> (
    None
):
    model = lower(filled_uflow(0))
    first = next(step for step in model.steps if isinstance(step, ir.Coupling))
    (split,) = (step for step in model.steps if isinstance(step, ir.Split))
    assert len(first.passive) == 8
    assert len({*split.send.tolist(), *split.keep.tolist()}) == 15


def test_msflow_ends_with_one_head_per_level_and_its_permutations_in_the_coupling() -> None:
    steps = lower(random_msflow(0)).steps
    assert not any(isinstance(step, ir.ChannelMap) for step in steps)
    (fusion,) = (step for step in steps if isinstance(step, ir.TwoSidedCoupling))
    assert isinstance(fusion.net1, ir.FusionNet)
    assert all(len(heads) == 1 for heads in fusion.net1.heads)


def test_uflow_pays_its_scale_once_behind_the_split() -> None:
    steps = lower(random_uflow(0)).steps
    assert sum(isinstance(step, ir.ChannelAffine) for step in steps) == 1
    assert sum(isinstance(step, ir.ChannelMap) for step in steps) == 1  # the stored up-sampling kernel


@pytest.mark.parametrize("permutation", ["hard", "soft"])
def test_the_lowered_model_holds_no_scale_no_gain_and_no_sinusoids(permutation: str) -> None:
    model = lower(random_cflow(3, permutation=permutation))  # type: ignore[arg-type]
    for step in model.steps:
        if isinstance(step, ir.Coupling):
            assert step.gain == 1.0
            assert step.inner == 1.0
            assert step.scale is None
            assert not isinstance(step.condition, ir.PositionCode)
            assert not any(isinstance(layer, ir.Linear) for layer in step.subnet)


def test_hard_permutations_leave_no_channel_map_and_no_offset() -> None:
    model = lower(random_cflow(4, permutation="hard"))
    assert not any(isinstance(step, ir.ChannelMap) for step in model.steps)
    assert all(step.offset is None for step in model.steps if isinstance(step, ir.Coupling))


def test_of_three_couplings_in_a_row_two_read_a_few_runs_of_channels() -> None:
    model = lower(random_cflow(6, sizes=((64, 3, 3),), blocks=7, condition=4))
    couplings = [step for step in model.steps if isinstance(step, ir.Coupling)]
    runs = [
        max(1 + int(np.count_nonzero(np.diff(half) != 1)) for half in (step.passive, step.active))
        for step in couplings
    ]
    assert len(runs) == 7
    assert all(count <= 4 for place, count in enumerate(runs) if place % 3)
    assert min(runs[3], runs[6]) > 12  # what the others would gather too


def test_soft_permutations_keep_one_matrix_between_two_blocks() -> None:
    model = lower(random_cflow(5, permutation="soft", blocks=4, sizes=((6, 3, 3),)))
    assert sum(isinstance(step, ir.ChannelMap) for step in model.steps) == 3


def test_a_last_matrix_that_is_not_orthogonal_stays() -> None:
    model = random_cflow(6, permutation="soft", blocks=1, sizes=((6, 3, 3),))
    rotation = model.steps[-1]
    assert isinstance(rotation, ir.ChannelMap)
    assert rotation.matrix is not None
    skewed = dataclasses.replace(rotation, matrix=rotation.matrix * np.float32(1.01))
    model = dataclasses.replace(model, steps=(*model.steps[:-1], skewed))
    lowered = lower(model)
    assert sum(isinstance(step, ir.ChannelMap) for step in lowered.steps) == 1
    assert worst_difference(model, lowered) < 3e-5


def test_extreme_scales_stay_where_they_are() -> None:
    model = random_cflow(7, blocks=4, sizes=((8, 3, 3),))
    steps = tuple(
        dataclasses.replace(step, scale=step.scale * np.float32(1e-3))
        if isinstance(step, ir.Coupling) and step.scale is not None
        else step
        for step in model.steps
    )
    model = dataclasses.replace(model, steps=steps)
    lowered = lower(model)
    assert any(isinstance(step, ir.Coupling) and step.scale is not None for step in lowered.steps)
    assert worst_difference(model, lowered) < 3e-5


@pytest.mark.parametrize("kernel", [1, 3])
def test_offsets_in_front_of_a_padded_convolution_are_exact_at_the_border(kernel: int) -> None:
    rng = np.random.default_rng(8)
    model = random_cflow(8, condition=0, sizes=((8, 4, 5),), blocks=4)

    def with_kernel(step: ir.Step) -> ir.Step:
        if not isinstance(step, ir.Coupling):
            return step
        subnet = tuple(
            ir.Conv(
                weight=(rng.standard_normal((*layer.weight.shape, kernel, kernel)) / kernel).astype(
                    np.float32
                ),
                bias=layer.bias,
            )
            if isinstance(layer, ir.Linear)
            else layer
            for layer in step.subnet
        )
        return dataclasses.replace(step, subnet=subnet)

    model = dataclasses.replace(model, steps=tuple(with_kernel(step) for step in model.steps))
    assert worst_difference(model, lower(model)) < 3e-5


def test_the_position_basis_is_far_smaller_than_the_code() -> None:
    model = random_cflow(9, condition=128, sizes=((64, 32, 32),), blocks=1)
    lowered = lower(model)
    basis = next(step.basis for step in lowered.steps if isinstance(step, ir.PositionChannels))
    assert basis.length <= 32
    assert worst_difference(model, lowered) < 3e-5


@pytest.mark.parametrize("family", [random_cflow, filled_uflow, random_msflow, random_csflow])
@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_a_pass_changes_nothing_the_second_time(step: Pass, family: Callable[[int], ir.FlowModel]) -> None:
    model = family(10)
    for earlier in PASSES[: PASSES.index(step)]:
        model = earlier(model)
    once = step(model)
    twice = step(once)
    assert len(twice.steps) == len(once.steps)
    assert worst_difference(once, twice) < 1e-6


def test_an_offset_that_nobody_can_pay_becomes_one_addition_in_front() -> None:
    model = random_cflow(11, sizes=((8, 3, 3),), blocks=2, permutation="hard")
    lowered = lower(model)
    assert sum(isinstance(step, ir.ChannelAffine) for step in lowered.steps) <= 1
    untouched = fold_affine(lowered)
    assert len(untouched.steps) == len(lowered.steps)


@pytest.mark.parametrize("order", ["norm, pool", "pool, norm"])
def test_a_shift_that_no_step_absorbs_is_subtracted_right_before_the_run_that_needs_it(order: str) -> None:
    """A layer norm takes the shift into its bias only where the run follows it at once."""
    norm, _, _, *run = random_fastflow(5, sizes=((8, 6, 4),)).steps  # The first subnet reads single pixels.
    assert isinstance(norm, ir.LayerNorm)
    pool = ir.Pool(stream=0, kind="avg")
    if order == "norm, pool":
        norm = dataclasses.replace(
            norm, weight=norm.weight.repeat(2, 1).repeat(2, 2), bias=norm.bias.repeat(2, 1).repeat(2, 2)
        )
    # The pooling halves the map, and random_features doubles the features of this family alone.
    model = dataclasses.replace(
        random_fastflow(5, sizes=((8, 6, 4),)),
        family="msflow",
        steps=(norm, pool, *run) if order == "norm, pool" else (pool, norm, *run),
    )
    before = model
    for step in PASSES[: [one.name for one in PASSES].index("fold_affine")]:
        before = step(before)
    after = fold_affine(before)
    assert worst_difference(model, after) < 3e-5
    shifts = [
        place
        for place, step in enumerate(after.steps)
        if isinstance(step, ir.ChannelAffine) and step.shift is not None
    ]
    assert shifts == ([2] if order == "norm, pool" else [])


def test_a_gather_behind_a_coupling_with_idle_channels_reads_the_channels_where_they_are_now() -> None:
    norm, *run = random_fastflow(6, sizes=((14, 6, 4),), blocks=1).steps
    model = dataclasses.replace(
        random_fastflow(6, sizes=((14, 3, 2),), blocks=1),
        steps=(norm, *run, ir.Pool(stream=0, kind="max")),
    )
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 14, 6, 4)))
    before = absorb_gathers(index_hard_permutations(model))
    assert [type(step) for step in before.steps[2:]] == [ir.ChannelMap, ir.Pool]
    after = fill_channel_groups(before)
    coupling = after.steps[1]
    assert isinstance(coupling, ir.Coupling)
    assert len(coupling.passive) == 8, "one idle channel"
    with torch.no_grad():
        (one,), (other,) = (Flow(each).double()([features]) for each in (before, after))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_the_gain_stays_in_a_coupling_whose_subnet_ends_with_no_convolution() -> None:
    model = random_cflow(9, sizes=((6, 3, 3),), blocks=1)
    coupling = fold_gain(model).steps[0]
    assert isinstance(coupling, ir.Coupling)
    assert coupling.gain == 0.1
    assert isinstance(coupling.subnet[-1], ir.Linear)


def test_the_last_rotation_stays_where_each_latent_is_needed() -> None:
    model = random_cflow(5, permutation="soft", sizes=((6, 3, 3),))
    dropped, kept = lower(model), lower(model, keep_latents=True)
    assert not isinstance(dropped.steps[-1], ir.ChannelMap)
    assert isinstance(kept.steps[-1], ir.ChannelMap)


def test_random_rotations_are_rotations() -> None:
    matrix = random_orthogonal(np.random.default_rng(0), 9).astype(np.float64)
    assert np.abs(matrix @ matrix.T - np.eye(9)).max() < 1e-6
