"""Compare the streamed score maxima with maxima taken over all images at once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from flowedge.calibration.score_maxima import LargestSum, Levels, StoredLevels, fit_score_maxima
from flowedge.errors import CalibrationError
from flowedge.manifest import ScoreMaxima


def images(count: int, *, size: int = 8, seed: int = 0) -> Iterator[Levels]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield tuple(
            rng.normal(-2, 0.5, (side, side)).astype(np.float32) for side in (size, size // 2, size // 4)
        )


def enlarged(level: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    return np.kron(level, np.ones((size // len(level),) * 2, np.float32))


def largest_sum(levels: Levels, level_max: tuple[float, ...]) -> float:
    terms = [np.exp(level - np.float32(m)) for level, m in zip(levels, level_max, strict=True)]
    return float(np.sum([enlarged(term, len(levels[0])) for term in terms], axis=0).max())


def largest_likelihood(levels: Levels, level_max: tuple[float, ...]) -> float:
    return float(np.sum([enlarged(level, len(levels[0])) for level in levels], axis=0).max())


def fitted(levels: Iterable[Levels], **sums: LargestSum) -> ScoreMaxima:
    with StoredLevels(levels) as stored:
        return fit_score_maxima(stored, **sums)


def test_the_maxima_are_those_of_all_images_together() -> None:
    stacks = [np.stack(levels) for levels in zip(*images(30), strict=True)]
    maxima = [stack.max() for stack in stacks]
    total = sum(
        np.exp(stack - m).repeat(8 // stack.shape[1], 1).repeat(8 // stack.shape[2], 2)
        for stack, m in zip(stacks, maxima, strict=True)
    )
    reference = fitted(images(30), map_sum=largest_sum)
    assert reference.level_max == tuple(float(m) for m in maxima)
    assert reference.map_max == pytest.approx(float(np.max(total)), rel=1e-6)
    assert reference.mul_max is None


def test_every_sum_is_asked_for_with_the_final_maxima_and_the_original_levels() -> None:
    seen: list[tuple[Levels, tuple[float, ...]]] = []

    def record(levels: Levels, level_max: tuple[float, ...]) -> float:
        seen.append((levels, level_max))
        return float(len(seen))

    reference = fitted(images(5), map_sum=record)
    assert reference.map_max == 5.0
    assert {level_max for _, level_max in seen} == {reference.level_max}
    for (levels, _), original in zip(seen, images(5), strict=True):
        for level, expected in zip(levels, original, strict=True):
            np.testing.assert_array_equal(level, expected)


def test_the_products_maximum_is_fitted_where_it_is_asked_for() -> None:
    expected = max(largest_likelihood(levels, ()) for levels in images(9))
    reference = fitted(images(9), map_sum=largest_sum, mul_sum=largest_likelihood)
    assert reference.mul_max == expected


def test_the_order_of_the_images_does_not_matter() -> None:
    shuffled = reversed(list(images(12)))
    assert fitted(shuffled, map_sum=largest_sum) == fitted(images(12), map_sum=largest_sum)


def test_levels_are_read_again_as_they_were() -> None:
    with StoredLevels(images(4)) as stored:
        for _ in range(2):
            for found, expected in zip(stored, images(4), strict=True):
                for level, original in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(level, original)
    with pytest.raises(ValueError, match="closed file"):
        next(iter(stored))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_likelihoods_that_are_not_finite_are_refused_by_the_images_name(value: float) -> None:
    levels = list(images(3))
    levels[1][2][0, 0] = value
    with pytest.raises(CalibrationError, match=r"the likelihoods of b\.png"):
        StoredLevels(levels, names=["a.png", "b.png", "c.png"])
    with pytest.raises(CalibrationError, match="the likelihoods of image 1"):
        StoredLevels(levels)


def test_no_image_is_refused() -> None:
    with pytest.raises(CalibrationError, match="at least one good image"):
        StoredLevels([])


def test_levels_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(16, 16\).*after levels.*\(8, 8\)"):
        StoredLevels([*images(1), *images(1, size=16)])


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            fitted(images(count, size=32), map_sum=lambda levels, level_max: 0.0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(1000) < 1_000_000  # the levels themselves are 5.4 MB
