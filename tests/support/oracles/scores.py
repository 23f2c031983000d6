"""Compute map and score from levels with torch's own operators, image by image, as the families' papers write them.

Tests compare the graph's and the runtime's scoring with this module, which shares no code with either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from flowedge.families import TRAITS, ScoringRule
from flowedge.manifest import Family, Scoring


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleAnswer:
    """The scores ``(N,)`` and maps ``(N, 1, H, W)`` of N images, with MSFlow's multiplied map where there is one."""

    score: Tensor
    anomaly_map: Tensor
    anomaly_map_mul: Tensor | None = None


def answer_from_levels(
    levels: Sequence[Tensor], family: Family, scoring: Scoring, image_size: tuple[int, int]
) -> OracleAnswer:
    """Aggregate each image by itself, with ``per_image`` normalisation.

    Raises:
        ValueError: ``scoring`` lacks what the family needs: CS-Flow's ``csflow_map``, MSFlow's ``top_fraction``.
    """
    rule = _RULES[TRAITS[family].scoring_rule]
    answers = [
        rule([level[n : n + 1] for level in levels], scoring, image_size) for n in range(len(levels[0]))
    ]
    multiplied = [a.anomaly_map_mul for a in answers if a.anomaly_map_mul is not None]
    return OracleAnswer(
        score=torch.cat([a.score for a in answers]),
        anomaly_map=torch.cat([a.anomaly_map for a in answers]),
        anomaly_map_mul=torch.cat(multiplied) if multiplied else None,
    )


def _likelihood_deficit(levels: list[Tensor], scoring: Scoring, size: tuple[int, int]) -> OracleAnswer:
    anomaly_map = _additive(levels, size)
    top = anomaly_map.flatten().sort(descending=True).values[: scoring.top_pixels or 1]
    return OracleAnswer(score=top.mean()[None], anomaly_map=anomaly_map)


def _negated_likelihood(levels: list[Tensor], _scoring: Scoring, size: tuple[int, int]) -> OracleAnswer:
    return _with_largest_as_score(-_mean_likelihood(levels, size))


def _one_minus_likelihood(levels: list[Tensor], _scoring: Scoring, size: tuple[int, int]) -> OracleAnswer:
    return _with_largest_as_score(1 - _mean_likelihood(levels, size))


def _mean_square(levels: list[Tensor], scoring: Scoring, size: tuple[int, int]) -> OracleAnswer:
    maps = [_up(level, size) for level in levels]
    if scoring.csflow_map == "product":
        anomaly_map = torch.stack(maps).prod(0)
    elif scoring.csflow_map == "finest":
        anomaly_map = maps[0]
    else:
        raise ValueError(f"CS-Flow needs csflow_map to be product or finest, got {scoring.csflow_map}")
    # Every level has as many channels, so the mean over all elements of z is the mean over all pixels.
    score = torch.cat([level.flatten() for level in levels]).mean() / 2
    return OracleAnswer(score=score[None], anomaly_map=anomaly_map)


def _two_likelihoods(levels: list[Tensor], scoring: Scoring, size: tuple[int, int]) -> OracleAnswer:
    if scoring.top_fraction is None:
        raise ValueError("MSFlow needs top_fraction, got None")
    likelihood = sum_of([_aligned(level, size) for level in levels])
    multiplied = 1 - torch.exp(likelihood - likelihood.max())
    count = max(int(size[0] * size[1] * scoring.top_fraction), 1)
    top = torch.topk(multiplied.flatten(), count).values
    return OracleAnswer(
        score=top.mean()[None], anomaly_map=_additive(levels, size), anomaly_map_mul=multiplied
    )


_RULES: Final[Mapping[ScoringRule, Callable[[list[Tensor], Scoring, tuple[int, int]], OracleAnswer]]] = {
    "likelihood_deficit": _likelihood_deficit,
    "two_likelihoods": _two_likelihoods,
    "negated_likelihood": _negated_likelihood,
    "one_minus_likelihood": _one_minus_likelihood,
    "mean_square": _mean_square,
}


def _additive(levels: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Compute ``max S - S`` where S sums the levels' likelihoods, each divided by its own maximum."""
    total = sum_of([_aligned(torch.exp(level - level.max()), size) for level in levels])
    return total.max() - total


def _mean_likelihood(levels: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Compute the mean over the levels of ``exp(-m / 2)``, where m is the channel mean of z squared."""
    return sum_of([_up(torch.exp(-level / 2), size) for level in levels]) / len(levels)


def _with_largest_as_score(anomaly_map: Tensor) -> OracleAnswer:
    return OracleAnswer(score=anomaly_map.max()[None], anomaly_map=anomaly_map)


def sum_of(maps: list[Tensor]) -> Tensor:
    """Sum maps element by element."""
    return torch.stack(maps).sum(0)


def _aligned(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size, mode="bilinear", align_corners=True)


def _up(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size, mode="bilinear", align_corners=False)
