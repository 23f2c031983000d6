"""State how the families differ: one `FamilyTraits` for each family, read by the exporter and the runtime.

Code outside a family's own modules asks for a trait and never for a family's name, so that a new family is a new row of
`TRAITS`. `docs/add-a-family.md` lists the other places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from flowedge.manifest import Family, Scoring

ScoringRule: TypeAlias = Literal[
    "likelihood_deficit", "two_likelihoods", "negated_likelihood", "one_minus_likelihood", "mean_square"
]
LevelStatistic: TypeAlias = Literal["log_likelihood", "negative_half_mean_square", "mean_square"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyTraits:
    """Describe one family to code that serves all families.

    Attributes:
        scoring_rule: The rule that makes the anomaly map and the score from the levels. See the rules below.
        level_statistic: The number that a level holds at each position for the latent z. ``log_likelihood`` includes
            the flow's log-determinant. The other two statistics are ``-mean(z²) / 2`` and ``mean(z²)`` over the
            channels.
        normalised: True when the rule subtracts maxima, which are the image's own or those of good images.
        multiplicative_map: True when the graph gives ``anomaly_map_mul`` and the score maxima hold ``mul_max``.
        align_corners: True when the resize of a level maps corner pixels to corner pixels.
        needed_scoring: Fields of `Scoring` that the rule cannot do without.
        position_code: True when the subnets also take sines and cosines of the position.
        normalises_features: True when a convolutional network's features pass a layer norm at each level, and a
            transformer's its own last norm.
        image_scales: The number of image sizes that the backbone sees, each half as large as the one before.
        only_backbone: The one network that the family is published with. The name is None where any network will do.
        fixed_taps: The layers that give the features. The tuple is empty where the checkpoint or the network decides.
        anomalib_block_test: Window (pixels) and probability of the block test in anomalib's implementation, where they
            differ from those of the official U-Flow.

    The rules, where l is a level, U its bilinear resize to the input's size, and M a maximum over the image or over
    good images:

    - ``likelihood_deficit``: the map is ``M - S`` with ``S = sum U(exp(l - M))``. The score is the mean of the map's
      ``top_pixels`` largest values.
    - ``two_likelihoods``: the map is that of ``likelihood_deficit``. The score is the mean of the largest
      ``top_fraction`` of a second map, ``1 - exp(Q - M)`` with ``Q = sum U(l)``.
    - ``negated_likelihood``: the map is ``-mean U(exp(-l / 2))``. The score is the map's largest value.
    - ``one_minus_likelihood``: the map is ``1 - mean U(exp(-l / 2))``. The score is the map's largest value.
    - ``mean_square``: the map is the product of ``U(l)`` or the finest of them. The score is half the mean of ``z²``
      over all elements of the latents.
    """

    scoring_rule: ScoringRule
    level_statistic: LevelStatistic = "mean_square"
    normalised: bool = False
    multiplicative_map: bool = False
    align_corners: bool = False
    needed_scoring: tuple[Literal["csflow_map", "top_fraction"], ...] = ()
    position_code: bool = False
    normalises_features: bool = False
    image_scales: int = 1
    only_backbone: str | None = None
    fixed_taps: tuple[str, ...] = ()
    anomalib_block_test: tuple[int, float] | None = None


TRAITS: Final[Mapping[Family, FamilyTraits]] = MappingProxyType(
    {
        "cflow": FamilyTraits(
            scoring_rule="likelihood_deficit",
            level_statistic="log_likelihood",
            normalised=True,
            align_corners=True,
            position_code=True,
        ),
        "csflow": FamilyTraits(
            scoring_rule="mean_square",
            needed_scoring=("csflow_map",),
            image_scales=3,
            only_backbone="efficientnet_b5",
            fixed_taps=("features.6.8",),  # the last block of stride 32 and 304 channels
        ),
        "fastflow": FamilyTraits(scoring_rule="negated_likelihood", normalises_features=True),
        "uflow": FamilyTraits(
            scoring_rule="one_minus_likelihood", normalises_features=True, anomalib_block_test=(7, 0.5)
        ),
        "msflow": FamilyTraits(
            scoring_rule="two_likelihoods",
            level_statistic="negative_half_mean_square",
            normalised=True,
            multiplicative_map=True,
            align_corners=True,
            needed_scoring=("top_fraction",),
            position_code=True,
        ),
    }
)


def scoring_problem(scoring: Scoring, family: Family, levels: int) -> str | None:
    """Return why a way of scoring does not suit a family with so many levels, or None where it does."""
    traits = TRAITS[family]
    maxima = scoring.score_maxima
    if traits.normalised == (scoring.normalisation == "none"):
        return f"normalisation {scoring.normalisation!r} does not suit {family}"
    if (maxima is None) == (scoring.normalisation == "fixed_reference"):
        return "scoring.reference must be there exactly where the normalisation is 'fixed_reference'"
    if maxima is not None and len(maxima.level_max) != levels:
        return f"scoring.reference has {len(maxima.level_max)} levels, got {levels}"
    for name in traits.needed_scoring:
        if getattr(scoring, name) is None:
            return f"{family} needs scoring.{name}"
    if traits.multiplicative_map and maxima is not None and maxima.mul_max is None:
        return f"{family} needs scoring.reference.mul_max"
    return None
