"""Map and score from levels with torch's own operators, one image at a time, as the families' papers write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from flowedge.manifest import Family, Scoring


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceAnswer:
    """``score (N,)``, ``anomaly_map (N, 1, H, W)`` and, for MSFlow, ``anomaly_map_mul``."""

    score: Tensor
    anomaly_map: Tensor
    anomaly_map_mul: Tensor | None = None


def answer_from_levels(
    levels: Sequence[Tensor], family: Family, scoring: Scoring, image_size: tuple[int, int]
) -> ReferenceAnswer:
    """Aggregate each image by itself (``per_image`` normalisation).

    Raises:
        ValueError: The family is not known here.
    """
    answers = [
        _of_one([level[n : n + 1] for level in levels], family, scoring, image_size)
        for n in range(len(levels[0]))
    ]
    multiplied = [a.anomaly_map_mul for a in answers if a.anomaly_map_mul is not None]
    return ReferenceAnswer(
        score=torch.cat([a.score for a in answers]),
        anomaly_map=torch.cat([a.anomaly_map for a in answers]),
        anomaly_map_mul=torch.cat(multiplied) if multiplied else None,
    )


def _of_one(levels: list[Tensor], family: Family, scoring: Scoring, size: tuple[int, int]) -> ReferenceAnswer:
    if family == "cflow":
        total = sum_of([_aligned(torch.exp(level - level.max()), size) for level in levels])
        anomaly_map = total.max() - total
        return ReferenceAnswer(score=anomaly_map.max()[None], anomaly_map=anomaly_map)
    raise ValueError(f"no reference score for {family}")


def sum_of(maps: list[Tensor]) -> Tensor:
    """The element-wise sum."""
    return torch.stack(maps).sum(0)


def _aligned(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size, mode="bilinear", align_corners=True)
