"""Compute the anomaly map and the image score from the levels, on the host, in NumPy.

The exported graph computes the same map and score. This module shares no code with the graph, so that tests compare
the two. Calibration fits score maxima with this module. Images of a batch share nothing. A NaN in a level gives a NaN
in the score of its image, and never a zero.

Levels are fine to coarse, ``[N, 1, h, w]`` float32: for CFLOW and MSFlow the log-likelihood per dimension without
its constants, for the others the mean over the channels of the latent's square.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.families import TRAITS, ScoringRule, scoring_problem
from flowedge.framing import Size
from flowedge.manifest import Family, ScoreMaxima, Scoring
from flowedge.resampling import BandedMatrix, bilinear_matrix

Array: TypeAlias = NDArray[np.float32]
Upsampling: TypeAlias = Callable[[Array], Array]

_PER_IMAGE: Final = (1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aggregate:
    """The answers to a batch, equal to the graph's outputs of the same names.

    Attributes:
        anomaly_map: ``[N, 1, H, W]`` float32. Larger is more anomalous.
        score: ``[N]`` float32. Larger is more anomalous.
        anomaly_map_mul: MSFlow only: ``[N, 1, H, W]`` float32, the map that the score is taken from.
    """

    anomaly_map: Array
    score: Array
    anomaly_map_mul: Array | None = None


def aggregate(levels: Sequence[Array], scoring: Scoring, family: Family, image_size: Size) -> Aggregate:
    """Compute a family's anomaly map and image score.

    The bilinear upsampling of level l is U_l. The maxima M_l, S*, Q* are the image's own (``per_image``) or constants
    of the manifest (``fixed_reference``), for which A is not clipped.

    - CFLOW (Gudovskiy et al., WACV 2022, as anomalib computes it for one image): the map is A = S* - S with
      S = sum_l U_l(exp(level_l - M_l)). The score is the largest A, or the mean of the ``top_pixels`` largest.
    - MSFlow (Zhou et al., TNNLS 2024): the map is A too. The score is the mean of the largest ``top_fraction`` of
      A_mul = 1 - exp(Q - Q*) with Q = sum_l U_l(level_l).
    - FastFlow (Yu et al., 2021) and U-Flow (Tailanian et al., 2022): the map is the mean over the levels of
      U_l(exp(-level_l / 2)), negated or taken from 1. The score is the largest value.
    - CS-Flow (Rudolph et al., WACV 2022): the map is the product of U_l(level_l) or the finest of them. The score is
      the mean of z^2 / 2 over all elements of all levels, which have equally many channels.

    Args:
        levels: The levels, fine to coarse, ``[N, 1, h, w]`` float32.
        scoring: The rule and constants of the manifest.
        family: The family of the manifest.
        image_size: ``(H, W)`` of the maps to make.

    Raises:
        ValueError: ``scoring`` does not suit the family or the number of levels.
    """
    if (problem := scoring_problem(scoring, family, len(levels))) is not None:
        raise ValueError(problem)
    with np.errstate(invalid="ignore", over="ignore"):  # inf and NaN are passed on for the caller to judge
        return _RULES[TRAITS[family].scoring_rule](levels, scoring, _upsampling(family, image_size))


def largest_sums(
    levels: Sequence[Array], level_max: Sequence[float], family: Family, image_size: Size
) -> tuple[float, float | None]:
    """Compute the largest S and, for MSFlow, Q over a batch, from which ``map_max`` and ``mul_max`` are fitted.

    Args:
        levels: The levels of CFLOW or MSFlow, fine to coarse, ``[N, 1, h, w]`` float32.
        level_max: The ``level_max`` of the score maxima.
        family: ``cflow`` or ``msflow``.
        image_size: ``(H, W)`` of the bundle's maps.
    """
    up = _upsampling(family, image_size)
    likelihood = _sum_of_likelihoods(levels, [np.float32(value) for value in level_max], up)
    product = _upsampled_sum(levels, up) if TRAITS[family].multiplicative_map else None
    return float(likelihood.max()), None if product is None else float(product.max())


def _likelihood_deficit(levels: Sequence[Array], scoring: Scoring, up: Upsampling) -> Aggregate:
    anomaly_map = _additive_map(levels, scoring.score_maxima, up)
    return Aggregate(anomaly_map=anomaly_map, score=mean_of_largest(anomaly_map, scoring.top_pixels or 1))


def _two_likelihoods(levels: Sequence[Array], scoring: Scoring, up: Upsampling) -> Aggregate:
    assert scoring.top_fraction is not None
    product = _upsampled_sum(levels, up)
    maxima = scoring.score_maxima
    largest = (
        product.max(axis=_PER_IMAGE, keepdims=True)
        if maxima is None or maxima.mul_max is None
        else np.float32(maxima.mul_max)
    )
    anomaly_map_mul = 1 - np.exp(product - largest)
    count = max(int(product[0].size * scoring.top_fraction), 1)
    return Aggregate(
        anomaly_map=_additive_map(levels, maxima, up),
        score=mean_of_largest(anomaly_map_mul, count),
        anomaly_map_mul=anomaly_map_mul,
    )


def _negated_likelihood(levels: Sequence[Array], scoring: Scoring, up: Upsampling) -> Aggregate:
    anomaly_map = -_mean_likelihood(levels, up)
    return Aggregate(anomaly_map=anomaly_map, score=anomaly_map.max(axis=_PER_IMAGE))


def _one_minus_likelihood(levels: Sequence[Array], scoring: Scoring, up: Upsampling) -> Aggregate:
    anomaly_map = 1 - _mean_likelihood(levels, up)
    return Aggregate(anomaly_map=anomaly_map, score=anomaly_map.max(axis=_PER_IMAGE))


def _mean_square(levels: Sequence[Array], scoring: Scoring, up: Upsampling) -> Aggregate:
    anomaly_map = up(levels[0])
    if scoring.csflow_map == "product":
        for level in levels[1:]:
            anomaly_map = anomaly_map * up(level)
    squares = sum(level.sum(axis=_PER_IMAGE, dtype=np.float64) for level in levels)
    positions = sum(level.shape[2] * level.shape[3] for level in levels)
    return Aggregate(anomaly_map=anomaly_map, score=np.asarray(squares / (2 * positions), np.float32))


_RULES: Final[Mapping[ScoringRule, Callable[[Sequence[Array], Scoring, Upsampling], Aggregate]]] = (
    MappingProxyType(
        {
            "likelihood_deficit": _likelihood_deficit,
            "two_likelihoods": _two_likelihoods,
            "negated_likelihood": _negated_likelihood,
            "one_minus_likelihood": _one_minus_likelihood,
            "mean_square": _mean_square,
        }
    )
)


def mean_of_largest(maps: Array, count: int) -> Array:
    """Compute the mean of each map's ``count`` largest values, ``(N,)`` float32. NaN counts as largest.

    Args:
        maps: Maps of any shape, the first axis is the image.
        count: The number of values. A smaller map has all of its values taken.
    """
    pixels = maps.reshape(len(maps), -1)
    count = min(count, pixels.shape[1])
    top = np.partition(pixels, pixels.shape[1] - count, axis=1)[:, -count:]
    return np.asarray(top.mean(axis=1, dtype=np.float64), np.float32)


def _additive_map(levels: Sequence[Array], maxima: ScoreMaxima | None, up: Upsampling) -> Array:
    """Compute S* - S, the map of CFLOW and MSFlow."""
    if maxima is None:
        largest = [level.max(axis=_PER_IMAGE, keepdims=True) for level in levels]
        total = _sum_of_likelihoods(levels, largest, up)
        return np.asarray(total.max(axis=_PER_IMAGE, keepdims=True) - total, np.float32)
    total = _sum_of_likelihoods(levels, [np.float32(value) for value in maxima.level_max], up)
    return np.asarray(np.float32(maxima.map_max) - total, np.float32)


def _sum_of_likelihoods(
    levels: Sequence[Array], maxima: Sequence[Array | np.float32], up: Upsampling
) -> Array:
    relative = [np.exp(level - largest) for level, largest in zip(levels, maxima, strict=True)]
    return _upsampled_sum(relative, up)


def _mean_likelihood(levels: Sequence[Array], up: Upsampling) -> Array:
    likelihoods = [np.exp(level * np.float32(-0.5)) for level in levels]
    return _upsampled_sum(likelihoods, up) / np.float32(len(levels))


def _upsampled_sum(levels: Sequence[Array], up: Upsampling) -> Array:
    total = up(levels[0])
    for level in levels[1:]:
        total += up(level)
    return total


def _upsampling(family: Family, image_size: Size) -> Upsampling:
    """Return the family's resize of a level, ``(N, 1, h, w)``, to ``image_size``."""
    return partial(_upsampled, image_size=image_size, align_corners=TRAITS[family].align_corners)


def _upsampled(level: Array, *, image_size: Size, align_corners: bool) -> Array:
    rows, columns = _matrices(image_size, (level.shape[2], level.shape[3]), align_corners)
    return np.stack([(rows @ (columns @ image[0].T).T)[None] for image in level])


@lru_cache(maxsize=32)
def _matrices(image_size: Size, level_size: Size, align_corners: bool) -> tuple[BandedMatrix, BandedMatrix]:
    """Return the two matrices that resize a level to the size of the image.

    The products are banded, because after a dense product the threads of BLAS keep the cores from an engine for 30 ms.
    """
    rows, columns = (
        BandedMatrix(bilinear_matrix(outputs, inputs, align_corners=align_corners))
        for outputs, inputs in zip(image_size, level_size, strict=True)
    )
    return rows, columns
