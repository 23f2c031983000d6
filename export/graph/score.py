"""Compute the anomaly map and the image score from the levels, inside the graph.

The score maxima are buffers with fixed names, so that calibration can patch them in the ONNX file. The names are
``reference.level_max_0`` …, ``reference.map_max`` and, for MSFlow, ``reference.mul_max``. The boolean
``reference.fixed`` says which maxima the graph uses: the stored ones where it is true, each image's own ones where it
is false. Upsampling is two products with constant matrices, which every engine computes alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowedge.export.graph import ir
from flowedge.families import TRAITS, ScoringRule
from flowedge.resampling import bilinear_matrix

SCORE_SCOPE: Final = "reference"
"""Prefix of the names of the score module's constants and nodes in ONNX files."""

_PER_IMAGE: Final = (1, 2, 3)
_LARGEST_TOP_K: Final = 3840
_BISECTIONS: Final = 32
_PLACEHOLDER: Final = -12345.75


class ScoreModule(nn.Module):
    """The scoring rule of a family.

    ``forward(levels)`` gives ``score (N,)``, ``anomaly_map (N, 1, H, W)`` and, for MSFlow, ``anomaly_map_mul``.
    """

    def __init__(self, model: ir.FlowModel) -> None:
        super().__init__()
        traits = TRAITS[model.family]
        self._rule = _RULES[traits.scoring_rule]
        self.scoring = model.scoring
        self.positions = [level.height * level.width for level in model.levels]
        height, width = model.image_size
        self._upsampled = len(model.levels) if model.scoring.csflow_map != "finest" else 1
        for number, level in enumerate(model.levels[: self._upsampled]):
            rows = torch.from_numpy(bilinear_matrix(height, level.height, align_corners=traits.align_corners))
            columns = torch.from_numpy(
                bilinear_matrix(width, level.width, align_corners=traits.align_corners)
            )
            self.register_buffer(f"rows_{number}", rows)
            self.register_buffer(f"columns_{number}", columns.T.contiguous())
        if model.scoring.normalisation != "none":
            self.register_buffer("fixed", torch.tensor(False))
            for place, name in enumerate(_constant_names(model)):
                # The tracer merges equal constants into one, so each placeholder is a number of its own.
                self.register_buffer(name, torch.full((1, 1, 1, 1), _PLACEHOLDER - place))

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self._rule(self, levels)

    def up(self, number: int, x: Tensor) -> Tensor:
        """Upsample the map of level ``number`` to the size of the network's input."""
        # The small product comes first. OpenVINO has its fast kernel only for a constant on the left of the large one.
        return self.get_buffer(f"rows_{number}") @ (x @ self.get_buffer(f"columns_{number}"))

    def maximum(self, x: Tensor, name: str) -> Tensor:
        """Return the stored score maximum of this name or the image's own maximum, ``(N, 1, 1, 1)``."""
        return torch.where(self.get_buffer("fixed"), self.get_buffer(name), x.amax(_PER_IMAGE, keepdim=True))


def score_constants(model: ir.FlowModel) -> dict[str, NDArray[np.generic]]:
    """Return the initializers that hold the score maxima, by name. A family without score maxima has no such names."""
    scoring = model.scoring
    if scoring.normalisation == "none":
        return {}
    values = [0.0] * len(_constant_names(model))
    if (maxima := scoring.score_maxima) is not None:
        values = [*maxima.level_max, maxima.map_max]
        values += [] if maxima.mul_max is None else [maxima.mul_max]
    return {
        f"{SCORE_SCOPE}.fixed": np.array(scoring.normalisation == "fixed_reference"),
        **{
            f"{SCORE_SCOPE}.{name}": np.full((1, 1, 1, 1), value, np.float32)
            for name, value in zip(_constant_names(model), values, strict=True)
        },
    }


def _constant_names(model: ir.FlowModel) -> list[str]:
    multiplicative = ["mul_max"] if TRAITS[model.family].multiplicative_map else []
    return [*(f"level_max_{number}" for number in range(len(model.levels))), "map_max", *multiplicative]


def _likelihood_sum(score: ScoreModule, levels: Sequence[Tensor]) -> Tensor:
    """Compute ``max S - S`` with ``S = sum over levels of U(exp(l - max l))`` (CFLOW-AD, section 4)."""
    total = _sum(
        score.up(n, torch.exp(level - score.maximum(level, f"level_max_{n}")))
        for n, level in enumerate(levels)
    )
    return score.maximum(total, "map_max") - total


def _likelihood_deficit(score: ScoreModule, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    anomaly_map = _likelihood_sum(score, levels)
    count = score.scoring.top_pixels
    if count is None:
        return anomaly_map.amax(_PER_IMAGE), anomaly_map
    pixels = anomaly_map.flatten(1)
    return _mean_of_largest(pixels, min(count, pixels.shape[1])), anomaly_map


def _mean_likelihood(score: ScoreModule, levels: Sequence[Tensor]) -> Tensor:
    """Compute the mean over levels of ``U(exp(-m / 2))`` (FastFlow, and U-Flow eq. 6)."""
    return _sum(score.up(n, torch.exp(-0.5 * level)) for n, level in enumerate(levels)) / len(levels)


def _negated_likelihood(score: ScoreModule, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    anomaly_map = -_mean_likelihood(score, levels)
    return anomaly_map.amax(_PER_IMAGE), anomaly_map


def _one_minus_likelihood(score: ScoreModule, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    anomaly_map = 1.0 - _mean_likelihood(score, levels)
    return anomaly_map.amax(_PER_IMAGE), anomaly_map


def _mean_square(score: ScoreModule, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    # All levels have as many channels, so the mean over all elements of z is the mean over all positions.
    total = _sum(level.sum(_PER_IMAGE) for level in levels)
    image_score = total / (2 * sum(score.positions))
    if score.scoring.csflow_map == "finest":
        return image_score, score.up(0, levels[0])
    anomaly_map = score.up(0, levels[0])
    for number, level in enumerate(levels[1:], start=1):
        anomaly_map = anomaly_map * score.up(number, level)
    return image_score, anomaly_map


def _two_likelihoods(score: ScoreModule, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Compute MSFlow's two maps: likelihoods are added for localisation, and multiplied for the score."""
    total = _sum(score.up(n, level) for n, level in enumerate(levels))
    multiplied = 1.0 - torch.exp(total - score.maximum(total, "mul_max"))
    pixels = multiplied.flatten(1)
    fraction = score.scoring.top_fraction
    assert fraction is not None
    return (
        _mean_of_largest(pixels, max(int(pixels.shape[1] * fraction), 1)),
        _likelihood_sum(score, levels),
        multiplied,
    )


def _mean_of_largest(values: Tensor, count: int) -> Tensor:
    """Compute the mean ``(N,)`` of the ``count`` largest values of each row of ``values (N, n)``.

    TensorRT's TopK takes at most 3840 values. For more values a bisection finds the smallest of the ``count`` largest.
    The bisection ends on neighbouring float32 numbers, so values between its two ends count as equal.
    """
    if count <= _LARGEST_TOP_K:
        return torch.topk(values, count, dim=1).values.mean(1)
    # The limit stays between low and high. Once low has moved, at least ``count`` values exceed it. Fewer exceed high.
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        enough = (values > middle).to(values.dtype).sum(1, keepdim=True) >= count
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    # The values above the limit are added as they are. The limit itself fills up the count where values are equal.
    above = (values > high).to(values.dtype)
    return ((values * above).sum(1) + (count - above.sum(1)) * high[:, 0]) / count


_RULES: Final[Mapping[ScoringRule, Callable[[ScoreModule, Sequence[Tensor]], tuple[Tensor, ...]]]] = (
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


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)
