from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from flowedge.manifest import Family, ScoreMaxima, Scoring
from flowedge.runtime.aggregate import Aggregate, aggregate, largest_sums

SIZE = (48, 56)
LEVEL_SIZES = [(12, 14), (6, 7), (3, 4)]
PER_IMAGE = Scoring(normalisation="per_image", top_fraction=0.03)
PLAIN = Scoring(normalisation="none", csflow_map="product")
REFERENCE = ScoreMaxima(level_max=(-0.25, 0.125, -0.5), map_max=2.75, mul_max=-0.75)
FIXED = Scoring(normalisation="fixed_reference", score_maxima=REFERENCE, top_fraction=0.03)
FAMILIES: list[tuple[Family, Scoring]] = [
    ("cflow", PER_IMAGE),
    ("cflow", FIXED),
    ("msflow", PER_IMAGE),
    ("msflow", FIXED),
    ("fastflow", PLAIN),
    ("uflow", PLAIN),
    ("csflow", PLAIN),
    ("csflow", Scoring(normalisation="none", csflow_map="finest")),
]


def random_levels(family: Family, images: int = 3) -> list[NDArray[np.float32]]:
    """Make levels of log-likelihoods around -0.5 or mean squares around 1, with a few strong anomalies."""
    random = np.random.default_rng(7)
    squares = [random.gamma(20, 0.05, (images, 1, *size)).astype(np.float32) for size in LEVEL_SIZES]
    for level in squares:
        level[images // 2, 0, 1, 2] = 60
    return [level * np.float32(-0.5) for level in squares] if family in ("cflow", "msflow") else squares


def reference_answer(
    levels: Sequence[NDArray[np.float32]], scoring: Scoring, family: Family
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return map, score and second map by the families' formulas in torch, one image at a time."""
    maps, scores, second = [], [], []
    for image in range(len(levels[0])):
        one = [torch.from_numpy(level[image : image + 1]) for level in levels]
        align = family in ("cflow", "msflow")

        def up(x: Tensor, align: bool = align) -> Tensor:
            return F.interpolate(x, size=SIZE, mode="bilinear", align_corners=align)

        fixed = scoring.score_maxima
        if family in ("cflow", "msflow"):
            level_max = (
                [x.max() for x in one] if fixed is None else [torch.tensor(m) for m in fixed.level_max]
            )
            total = torch.stack([up((x - m).exp()) for x, m in zip(one, level_max, strict=True)]).sum(0)
            anomaly_map = (total.max() if fixed is None else fixed.map_max) - total
            score = anomaly_map.max()
            if family == "msflow":
                q = torch.stack([up(x) for x in one]).sum(0)
                largest = q.max() if fixed is None or fixed.mul_max is None else torch.tensor(fixed.mul_max)
                mul = 1 - (q - largest).exp()
                score = mul.flatten().topk(int(SIZE[0] * SIZE[1] * 0.03)).values.mean()
                second.append(mul)
        elif family == "csflow":
            anomaly_map = up(one[0])
            if scoring.csflow_map == "product":
                anomaly_map = anomaly_map * up(one[1]) * up(one[2])
            # Any z with these means of squares: every channel the root of its position's mean.
            z = [x.sqrt().expand(1, 5, *x.shape[2:]) for x in one]
            score = torch.cat([x.flatten() for x in z]).square().div(2).mean()
        else:
            mean = torch.stack([up((-x / 2).exp()) for x in one]).mean(0)
            anomaly_map = -mean if family == "fastflow" else 1 - mean
            score = anomaly_map.max()
        maps.append(anomaly_map)
        scores.append(score)
    return torch.cat(maps), torch.stack(scores), torch.cat(second) if second else None


def answers(result: Aggregate) -> list[NDArray[np.float32]]:
    return [x for x in (result.anomaly_map, result.score, result.anomaly_map_mul) if x is not None]


@pytest.mark.parametrize(("family", "scoring"), FAMILIES)
def test_the_map_and_the_score_are_the_familys(family: Family, scoring: Scoring) -> None:
    levels = random_levels(family)
    result = aggregate(levels, scoring, family, SIZE)
    expected_map, expected_score, expected_second = reference_answer(levels, scoring, family)
    assert result.anomaly_map.dtype == result.score.dtype == np.float32
    assert result.anomaly_map.shape == (3, 1, *SIZE)
    assert result.score.shape == (3,)
    np.testing.assert_allclose(result.anomaly_map, expected_map.numpy(), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(result.score, expected_score.numpy(), rtol=2e-6, atol=2e-6)
    assert (result.anomaly_map_mul is None) == (family != "msflow")
    if result.anomaly_map_mul is not None and expected_second is not None:
        np.testing.assert_allclose(result.anomaly_map_mul, expected_second.numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("family", "scoring"), FAMILIES)
def test_an_images_answer_does_not_depend_on_its_batch(family: Family, scoring: Scoring) -> None:
    levels = random_levels(family, images=5)
    together = answers(aggregate(levels, scoring, family, SIZE))
    for image in range(5):
        alone = answers(aggregate([level[image : image + 1] for level in levels], scoring, family, SIZE))
        for batched, single in zip(together, alone, strict=True):
            np.testing.assert_array_equal(batched[image : image + 1], single)


@pytest.mark.parametrize(("family", "scoring"), FAMILIES)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_nan_in_one_level_is_a_nan_in_that_images_score_only(
    family: Family, scoring: Scoring, level: int
) -> None:
    levels = random_levels(family)
    clean = aggregate(levels, scoring, family, SIZE)
    levels[level][1, 0, 2, 1] = np.nan
    result = aggregate(levels, scoring, family, SIZE)
    assert np.isnan(result.score).tolist() == [False, True, False]
    np.testing.assert_array_equal(result.score[[0, 2]], clean.score[[0, 2]])


@pytest.mark.parametrize(("family", "scoring"), FAMILIES)
def test_a_more_anomalous_position_raises_the_score_and_the_map_around_it(
    family: Family, scoring: Scoring
) -> None:
    levels = [
        np.full((1, 1, *size), -0.5 if family in ("cflow", "msflow") else 1, np.float32)
        for size in LEVEL_SIZES
    ]
    before = aggregate(levels, scoring, family, SIZE)
    levels[0][0, 0, 5, 9] *= 20
    after = aggregate(levels, scoring, family, SIZE)
    assert after.score[0] > before.score[0]
    y, x = np.unravel_index(after.anomaly_map[0, 0].argmax(), SIZE)
    assert abs(y / SIZE[0] - 5.5 / 12) < 0.06
    assert abs(x / SIZE[1] - 9.5 / 14) < 0.06


def test_a_reference_fitted_on_one_image_gives_that_image_its_own_score() -> None:
    families: tuple[Family, Family] = ("cflow", "msflow")
    for family in families:
        levels = random_levels(family, images=1)
        level_max = tuple(float(level.max()) for level in levels)
        map_max, mul_max = largest_sums(levels, level_max, family, SIZE)
        fitted = Scoring(
            normalisation="fixed_reference",
            score_maxima=ScoreMaxima(level_max=level_max, map_max=map_max, mul_max=mul_max),
            top_fraction=0.03,
        )
        for fixed, own in zip(
            answers(aggregate(levels, fitted, family, SIZE)),
            answers(aggregate(levels, PER_IMAGE, family, SIZE)),
            strict=True,
        ):
            np.testing.assert_array_equal(fixed, own)


def test_a_reference_fitted_on_several_images_bounds_all_their_maps_by_zero() -> None:
    levels = random_levels("cflow", images=4)
    level_max = tuple(float(level.max()) for level in levels)
    map_max, mul_max = largest_sums(levels, level_max, "cflow", SIZE)
    assert mul_max is None
    reference = ScoreMaxima(level_max=level_max, map_max=map_max)
    fitted = Scoring(normalisation="fixed_reference", score_maxima=reference)
    anomaly_map = aggregate(levels, fitted, "cflow", SIZE).anomaly_map
    assert anomaly_map.min() == 0
    brighter = aggregate([level + 1 for level in levels], fitted, "cflow", SIZE).anomaly_map
    assert brighter.min() < 0  # more likely than the reference: not clipped


@pytest.mark.parametrize(
    ("family", "scoring", "reason"),
    [
        ("cflow", PLAIN, "'none' does not suit cflow"),
        ("uflow", PER_IMAGE, "'per_image' does not suit uflow"),
        ("cflow", Scoring(normalisation="fixed_reference"), "scoring.reference must be there"),
        (
            "cflow",
            Scoring(normalisation="per_image", score_maxima=REFERENCE),
            "scoring.reference must be there",
        ),
        ("csflow", Scoring(normalisation="none"), "needs scoring.csflow_map"),
        ("msflow", Scoring(normalisation="per_image"), "needs scoring.top_fraction"),
        (
            "msflow",
            Scoring(
                normalisation="fixed_reference",
                score_maxima=ScoreMaxima(level_max=(0, 0, 0), map_max=1),
                top_fraction=0.03,
            ),
            "needs scoring.reference.mul_max",
        ),
        (
            "cflow",
            Scoring(normalisation="fixed_reference", score_maxima=ScoreMaxima(level_max=(0,), map_max=1)),
            "has 1 levels, got 3",
        ),
    ],
)
def test_a_scoring_that_does_not_suit_the_family_is_refused(
    family: Family, scoring: Scoring, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        aggregate(random_levels(family), scoring, family, SIZE)
