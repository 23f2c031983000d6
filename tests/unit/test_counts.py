"""Compare counts of parameters with torch's and FrEIA's modules, and those of operations with traced ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from FrEIA.modules import AllInOneBlock
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flowedge.export.graph import ir
from flowedge.export.graph.counts import lower_and_describe, totals
from flowedge.export.graph.emit import Flow
from flowedge.export.graph.passes import PASSES, lower
from flowedge.runtime.bench.macs import multiply_accumulates
from support.random_flows import (
    random_cflow,
    random_csflow,
    random_fastflow,
    random_features,
    random_msflow,
    random_uflow,
)

FAMILIES: dict[str, Callable[[int], ir.FlowModel]] = {
    "cflow": random_cflow,
    "soft cflow": lambda seed: random_cflow(seed, permutation="soft"),
    "fastflow": random_fastflow,
    "uflow": random_uflow,
    "msflow": random_msflow,
    "csflow": random_csflow,
}


class _ChannelNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)


def block(channels: int, condition: int, subnet: Callable[[int, int], nn.Module]) -> nn.Module:
    """Make FrEIA's block without the inverse of its permutation, which no inference needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = AllInOneBlock(
            [(channels, 2, 2)],
            dims_c=[(condition, 2, 2)] if condition else [],
            subnet_constructor=subnet,
            global_affine_type="SOFTPLUS",
        )
    del made.w_perm_inv
    return made


def linear(inputs: int, outputs: int) -> nn.Module:
    hidden = 2 * inputs
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def convolutional(kernel: int, *, norm: bool = False) -> Callable[[int, int], nn.Module]:
    def subnet(inputs: int, outputs: int) -> nn.Module:
        hidden = 2 * inputs
        between = [_ChannelNorm(hidden)] if norm else []
        return nn.Sequential(
            nn.Conv2d(inputs, hidden, kernel), *between, nn.ReLU(), nn.Conv2d(hidden, outputs, kernel)
        )

    return subnet


def fusion_net(inputs: Sequence[int], outputs: Sequence[int]) -> list[nn.Module]:
    total = sum(inputs)
    heads = [nn.Conv2d(i, o, 3) for i, o in zip(inputs, outputs, strict=True) for _ in "st"]
    return [nn.Conv2d(total, 3, 3), nn.LayerNorm(3), nn.Conv2d(3, total, 3), *heads]


def cross_scale_net(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [
        *(nn.Conv2d(inputs, 5, kernel) for _ in range(3)),
        *(nn.Conv2d(5, 2 * outputs, kernel) for _ in range(7)),
    ]


MODULES: dict[str, Callable[[], list[nn.Module]]] = {
    "cflow": lambda: [block(c, 8, linear) for c in (12, 7) for _ in range(3)],
    "soft cflow": lambda: [block(c, 8, linear) for c in (12, 7) for _ in range(3)],
    "fastflow": lambda: [
        *(nn.LayerNorm(shape) for shape in ((8, 8, 6), (6, 4, 3))),
        *(block(c, 0, convolutional(k)) for c in (8, 6) for k in (3, 1, 3, 1)),
    ],
    "uflow": lambda: [
        *(nn.LayerNorm(shape) for shape in ((3, 6, 4), (11, 3, 2))),
        *(block(11, 0, convolutional(k)) for k in (3, 1)),
        nn.Linear(4, 4, bias=False),  # the kernel of the up-sampling, as a matrix
        *(block(4, 0, convolutional(k)) for k in (3, 1, 3)),
    ],
    "msflow": lambda: [
        *(block(c, 4, convolutional(3, norm=True)) for c in (6, 5) for _ in range(2)),
        *fusion_net([3, 2], [3, 3]),
        *fusion_net([3, 3], [3, 2]),
    ],
    "csflow": lambda: [
        module
        for kernel in (3, 1)
        for module in (*cross_scale_net(3, 4, kernel), *cross_scale_net(4, 3, kernel))
    ],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parameters_are_those_of_freias_modules(family: str) -> None:
    wanted = sum(p.numel() for module in MODULES[family]() for p in module.parameters())
    assert totals(FAMILIES[family](3)).parameters == wanted


@pytest.mark.parametrize("lowered", [False, True], ids=["as written", "lowered"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_multiply_accumulates_are_those_that_torch_counts(family: str, lowered: bool) -> None:
    model = FAMILIES[family](5)
    model = lower(model) if lowered else model
    features = [torch.from_numpy(f).float() for f in random_features(0, model, batch=1)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Flow(model)(features)
    assert 2 * totals(model).macs == counter.get_total_flops()


@pytest.mark.parametrize(
    "family",
    [
        "soft cflow",
        "csflow",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("fastflow", "uflow", "msflow")),
    ],
)
def test_the_multiply_accumulates_are_those_of_the_traced_graph(family: str, tmp_path: Path) -> None:
    model = lower(FAMILIES[family](5))
    features = [torch.from_numpy(f).float() for f in random_features(0, model, batch=1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Flow(model).eval(), (features,), dynamo=True, verbose=False, opset_version=18
        )
    assert program is not None
    program.save(str(tmp_path / "flow.onnx"))
    assert totals(model).macs == multiply_accumulates(tmp_path / "flow.onnx")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_description_says_what_each_pass_did_in_order(family: str) -> None:
    model = FAMILIES[family](1)
    lowered, lowering = lower_and_describe(model)
    assert [one.name for one in lowering.passes] == [step.name for step in PASSES]
    assert lowering.passes[0].before == totals(model)
    assert lowering.passes[-1].after == totals(lowered)
    for one, following in zip(lowering.passes, lowering.passes[1:], strict=False):
        assert one.after == following.before


def test_every_pass_says_in_one_sentence_what_it_does() -> None:
    _, lowering = lower_and_describe(random_cflow(0))
    for one in lowering.passes:
        assert len(one.summary) > 20, one.summary
        assert one.summary.endswith("."), one.summary
        assert one.exactness not in one.summary.lower()


def test_lowering_a_rotated_cflow_drops_the_last_matrix_of_each_level() -> None:
    _, lowering = lower_and_describe(random_cflow(2, permutation="soft"))
    effect = next(one for one in lowering.passes if one.name == "drop_last_rotation")
    assert effect.before.parameters - effect.after.parameters == 12**2 + 7**2
    assert effect.before.macs - effect.after.macs == 12**2 * 6 * 5 + 7**2 * 3 * 4
    assert effect.exactness == "orthogonality"
