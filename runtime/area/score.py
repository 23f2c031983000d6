"""Compute the image score of the cells inside an area, by the family's own rule.

`flowedge.families.FamilyTraits` lists the rules. The rules of a largest value or of the mean of the largest values take
them from the cells of the map that belong to the area. A share of the pixels is the share of these cells. The rule of
the mean square takes the mean over the positions of the levels that belong to the area. So the score has the unit and
the scale of the threshold, and of an area without limits it is the graph's own score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.families import TRAITS, ScoringRule
from flowedge.manifest import Family, Scoring
from flowedge.runtime.aggregate import mean_of_largest

Outputs: TypeAlias = Mapping[str, NDArray[np.float32]]
Cells: TypeAlias = NDArray[np.bool_]


def score_inside(
    outputs: Outputs, scoring: Scoring, family: Family, cells: Cells, level_cells: Sequence[Cells]
) -> NDArray[np.float32]:
    """Compute the image scores of a batch from the outputs of the graph.

    Args:
        outputs: The outputs of the graph by name.
        scoring: The scoring of the graph.
        family: The family of the bundle.
        cells: ``(H, W)``, True for the cells of the anomaly map that belong to the area. At least one is.
        level_cells: For each level ``(h, w)``, True for the cells that belong to the area.

    Returns:
        ``(N,)`` float32. A value that is not finite inside of the area gives a score that is not finite.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # the caller refuses what is not finite
        return _RULES[TRAITS[family].scoring_rule](outputs, scoring, cells, level_cells)


def is_largest_value(scoring: Scoring, family: Family) -> bool:
    """Return True where the image score is the largest value of the anomaly map."""
    rule = TRAITS[family].scoring_rule
    return _RULES[rule] is _largest or (_RULES[rule] is _largest_deficits and (scoring.top_pixels or 1) == 1)


def _largest(
    outputs: Outputs, scoring: Scoring, cells: Cells, levels: Sequence[Cells]
) -> NDArray[np.float32]:
    return np.asarray(outputs["anomaly_map"][:, 0, cells].max(axis=1))


def _largest_deficits(
    outputs: Outputs, scoring: Scoring, cells: Cells, levels: Sequence[Cells]
) -> NDArray[np.float32]:
    return mean_of_largest(outputs["anomaly_map"][:, 0, cells], scoring.top_pixels or 1)


def _largest_share(
    outputs: Outputs, scoring: Scoring, cells: Cells, levels: Sequence[Cells]
) -> NDArray[np.float32]:
    assert scoring.top_fraction is not None, "the manifest was checked"
    values = outputs["anomaly_map_mul"][:, 0, cells]
    return mean_of_largest(values, max(int(values.shape[1] * scoring.top_fraction), 1))


def _mean_square(
    outputs: Outputs, scoring: Scoring, cells: Cells, levels: Sequence[Cells]
) -> NDArray[np.float32]:
    squares = sum(
        outputs[f"level_{number}"][:, 0, inside].sum(axis=1, dtype=np.float64)
        for number, inside in enumerate(levels)
    )
    positions = sum(int(inside.sum()) for inside in levels)
    return np.asarray(squares / (2 * positions), np.float32)


_RULES: Final[
    Mapping[ScoringRule, Callable[[Outputs, Scoring, Cells, Sequence[Cells]], NDArray[np.float32]]]
] = MappingProxyType(
    {
        "likelihood_deficit": _largest_deficits,
        "two_likelihoods": _largest_share,
        "negated_likelihood": _largest,
        "one_minus_likelihood": _largest,
        "mean_square": _mean_square,
    }
)
