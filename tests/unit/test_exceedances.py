"""Compare the graph's counts and energies with NumPy on the latents of the model before the passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from flowedge.errors import ExportError
from flowedge.export.graph import ir
from flowedge.export.graph.emit import Flow
from flowedge.export.graph.passes import lower
from flowedge.export.pipeline import nfa_outputs_of
from flowedge.manifest import Family, NfaOutputs
from support.direct_nfa import direct_counts
from support.random_flows import (
    filled_uflow,
    random_cflow,
    random_csflow,
    random_fastflow,
    random_features,
    random_msflow,
    random_uflow,
)

torch.set_num_threads(1)  # tiny tensors: a second thread only waits

BATCH = 3


def larger_csflow(seed: int) -> ir.FlowModel:
    """Make a CS-Flow twice as large as ``random_csflow``, whose coarsest level is too small for a window."""
    model = random_csflow(seed)
    levels = tuple(
        dataclasses.replace(one, height=2 * one.height, width=2 * one.width) for one in model.levels
    )
    return dataclasses.replace(model, levels=levels)


MODELS: dict[str, Callable[[int], ir.FlowModel]] = {
    "cflow, hard": lambda seed: random_cflow(seed, permutation="hard"),
    "cflow, soft": lambda seed: random_cflow(seed, permutation="soft"),
    "fastflow": random_fastflow,
    "uflow": random_uflow,
    "uflow, filled": filled_uflow,
    "msflow": random_msflow,
    "csflow": larger_csflow,
}


def features_of(model: ir.FlowModel) -> list[torch.Tensor]:
    return [torch.from_numpy(one) for one in random_features(0, model, batch=BATCH)]


def latents_of(model: ir.FlowModel) -> list[NDArray[np.float64]]:
    """Return the latent z ``(N, C, h, w)`` of each level, from the model before the passes."""
    assert all(level.latent_scale is None for level in model.levels)
    flow = Flow(model).double()
    seen: list[NDArray[np.float64]] = []
    for energy in flow.energies:
        energy.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].numpy()))
    with torch.no_grad():
        flow(features_of(model))
    return seen


def given_by(model: ir.FlowModel, nfa: NfaOutputs) -> list[NDArray[np.float64]]:
    with torch.no_grad():
        return [one.numpy() for one in Flow(model, nfa).double()(features_of(model))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("window", "probability"), [(5, 0.9), (7, 0.5)])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_energies_and_counts_of_the_lowered_model_are_those_of_the_latents(
    build: Callable[[int], ir.FlowModel], window: int, probability: float, seed: int
) -> None:
    model = build(seed)
    nfa = NfaOutputs(energies=True, window=window, probability=probability)
    given = given_by(lower(model, keep_latents=True), nfa)
    latents = latents_of(model)
    assert len(given) == 3 * len(latents)
    for level, z in enumerate(latents):
        energy, count = given[len(latents) + level], given[2 * len(latents) + level]
        np.testing.assert_allclose(energy[:, 0], np.square(z).sum(1), rtol=1e-4)
        side = 2 * max(window // 2**level // 2, 1) + 1
        wanted = [direct_counts(one, side, stats.chi2.ppf(probability, 1)) for one in z.astype(np.float32)]
        np.testing.assert_array_equal(count[:, 0], np.stack(wanted))


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_keeping_the_latents_leaves_the_levels_as_they_were(build: Callable[[int], ir.FlowModel]) -> None:
    model = build(5)
    nfa = NfaOutputs(energies=False, window=5, probability=0.9)
    given = given_by(lower(model, keep_latents=True), nfa)
    with torch.no_grad():
        plain = [one.numpy() for one in Flow(lower(model)).double()(features_of(model))]
    assert len(given) == 2 * len(plain)
    for one, other in zip(given, plain, strict=False):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_model_without_its_last_rotation_has_other_counts() -> None:
    model = random_cflow(1, permutation="soft")
    nfa = NfaOutputs(energies=True, window=5, probability=0.9)
    right, wrong = given_by(lower(model, keep_latents=True), nfa), given_by(lower(model), nfa)
    np.testing.assert_allclose(right[2], wrong[2], rtol=1e-4)
    assert not np.array_equal(right[4], wrong[4])


def test_a_level_too_small_for_its_window_is_refused_with_what_to_do() -> None:
    nfa = NfaOutputs(energies=False, window=5, probability=0.9)
    with pytest.raises(ExportError, match=r"level 2 is 2x1, too small for a window of 3x3.*--image-size"):
        Flow(random_csflow(0), nfa)


@pytest.mark.parametrize(
    ("repository", "family", "energies", "window", "probability"),
    [
        ("anomalib", "uflow", False, 7, 0.5),
        ("mtailanian/uflow", "uflow", False, 5, 0.9),
        ("anomalib", "fastflow", False, 5, 0.9),
        ("marco-rudolph/cs-flow", "csflow", False, 5, 0.9),
        ("anomalib", "cflow", True, 5, 0.9),
        ("cool-xuan/msflow", "msflow", True, 5, 0.9),
    ],
)
def test_an_export_counts_as_its_repository_does(
    repository: str, family: Family, energies: bool, window: int, probability: float
) -> None:
    assert nfa_outputs_of(repository, family) == NfaOutputs(
        energies=energies, window=window, probability=probability
    )
