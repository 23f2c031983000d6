"""Compare the graph's map and score with torch's own operators, for every family and both normalisations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from flowedge.export.graph import ir
from flowedge.export.graph.onnx_export import onnx_from_model
from flowedge.export.graph.passes import lower
from flowedge.export.graph.score import ScoreModule, score_constants
from flowedge.manifest import Family, ScoreMaxima, Scoring
from flowedge.runtime.aggregate import aggregate
from support.oracles.scores import answer_from_levels
from support.random_flows import random_cflow

SCORINGS: dict[Family, Scoring] = {
    "cflow": Scoring(normalisation="per_image"),
    "fastflow": Scoring(normalisation="none"),
    "uflow": Scoring(normalisation="none"),
    "csflow": Scoring(normalisation="none", csflow_map="product"),
    "msflow": Scoring(normalisation="per_image", top_fraction=0.03),
}
TOP_PIXELS = Scoring(normalisation="per_image", top_pixels=100)
SIZES = ((9, 8, 6), (9, 4, 3))


def model_of(family: Family, scoring: Scoring, image_size: tuple[int, int] = (32, 24)) -> ir.FlowModel:
    model = random_cflow(0, sizes=SIZES)
    return dataclasses.replace(model, family=family, scoring=scoring, image_size=image_size)


def levels_of(family: Family, seed: int = 0, batch: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(batch, 1, h, w, generator=generator) for _, h, w in SIZES]
    return levels if family in ("cflow", "msflow") else [level.abs() for level in levels]


@pytest.mark.parametrize("family", SCORINGS)
def test_the_graphs_map_and_score_are_the_papers(family: Family) -> None:
    model = model_of(family, SCORINGS[family])
    levels = levels_of(family)
    got = ScoreModule(model)(levels)
    want = answer_from_levels(levels, family, model.scoring, model.image_size)
    torch.testing.assert_close(got[0], want.score, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[1], want.anomaly_map, rtol=1e-5, atol=1e-6)
    if family == "msflow":
        assert want.anomaly_map_mul is not None
        torch.testing.assert_close(got[2], want.anomaly_map_mul, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 24), (8, 6)], ids=["768 pixels", "48 pixels"])
def test_tvtvisions_score_is_the_mean_of_the_hundred_largest_pixels(size: tuple[int, int]) -> None:
    levels = levels_of("cflow", seed=3)
    score, anomaly_map, *_ = ScoreModule(model_of("cflow", TOP_PIXELS, size))(levels)
    want = [np.sort(one.numpy(), axis=None)[-100:].mean() for one in anomaly_map]
    np.testing.assert_allclose(score.numpy(), want, rtol=1e-6)
    host = aggregate([level.numpy() for level in levels], TOP_PIXELS, "cflow", size)
    np.testing.assert_allclose(host.score, want, rtol=1e-5)
    reference = answer_from_levels(levels, "cflow", TOP_PIXELS, size)
    np.testing.assert_allclose(reference.score.numpy(), want, rtol=1e-5)


def test_a_share_of_less_than_a_pixel_is_the_largest_pixel() -> None:
    scoring = Scoring(normalisation="per_image", top_fraction=1e-6)
    levels = levels_of("msflow", seed=4)
    model = model_of("msflow", scoring)
    score, _, multiplied = ScoreModule(model)(levels)
    torch.testing.assert_close(score, multiplied.amax((1, 2, 3)), rtol=0, atol=0)
    reference = answer_from_levels(levels, "msflow", scoring, model.image_size)
    torch.testing.assert_close(reference.score, score, rtol=1e-5, atol=0)
    host = aggregate([level.numpy() for level in levels], scoring, "msflow", model.image_size)
    np.testing.assert_allclose(host.score, score.numpy(), rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.03, 0.06])
def test_beyond_tensorrts_limit_the_largest_pixels_are_found_without_topk(fraction: float) -> None:
    scoring = Scoring(normalisation="per_image", top_fraction=fraction)
    model = model_of("msflow", scoring, image_size=(512, 256))
    levels = levels_of("msflow", seed=1)
    score = ScoreModule(model)(levels)[0]
    want = answer_from_levels(levels, "msflow", scoring, model.image_size).score
    torch.testing.assert_close(score, want, rtol=2e-6, atol=0)


def test_equal_pixels_do_not_confuse_the_bisection() -> None:
    scoring = Scoring(normalisation="per_image", top_fraction=0.05)
    model = model_of("msflow", scoring, image_size=(512, 256))
    levels = [torch.zeros(2, 1, h, w) for _, h, w in SIZES]
    assert ScoreModule(model)(levels)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("family", ["cflow", "msflow"])
def test_a_fixed_reference_gives_the_hosts_answer_for_each_image_by_itself(family: Family) -> None:
    mul_max = 0.7 if family == "msflow" else None
    reference = ScoreMaxima(level_max=(0.9, 1.3), map_max=2.1, mul_max=mul_max)
    scoring = Scoring(
        normalisation="fixed_reference", score_maxima=reference, top_fraction=SCORINGS[family].top_fraction
    )
    model = model_of(family, scoring)
    module = ScoreModule(model)
    for name, value in score_constants(model).items():
        module.get_buffer(name.removeprefix("reference.")).copy_(torch.from_numpy(np.asarray(value)))
    levels = levels_of(family, seed=2)
    got = module(levels)
    want = aggregate([level.numpy() for level in levels], scoring, family, model.image_size)
    np.testing.assert_allclose(got[0].numpy(), want.score, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1].numpy(), want.anomaly_map, rtol=1e-5, atol=1e-6)
    alone = module([level[1:2] for level in levels])
    torch.testing.assert_close(alone[1], got[1][1:2], rtol=0, atol=1e-6)


def test_families_without_a_maximum_have_no_constants_to_patch() -> None:
    assert score_constants(model_of("fastflow", SCORINGS["fastflow"])) == {}


def test_the_reference_survives_a_level_of_one_position(tmp_path: Path) -> None:
    """The tracer merges equal constants, and the position code of a level of one position is 1, as a maximum may be."""

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine = nn.Conv2d(3, 8, 4, 4)
            self.coarse = nn.Conv2d(8, 6, 2, 2)

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            fine = self.fine(image)
            return [fine, self.coarse(fine)]

    model = random_cflow(1, sizes=((8, 2, 2), (6, 1, 1)), blocks=1, condition=4)
    path = tmp_path / "model.onnx"
    onnx_from_model(lower(dataclasses.replace(model, image_size=(8, 8))), Features(), path)
    held = {tensor.name for tensor in onnx.load(str(path)).graph.initializer}
    assert held >= {"reference.fixed", "reference.level_max_0", "reference.level_max_1", "reference.map_max"}
