"""Test value by value for a change, with a proven bound on the number of false alarms.

The test is the Shiryaev-Roberts procedure on conformal p-values (V. Vovk, "Testing Randomness Online", Statistical
Science 36, 2021. V. Vovk et al., "Retrain or not retrain: conformal test martingales for change-point detection", PMLR
152, 2021), which is an e-detector (J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a nonparametric framework for
sequential change detection", New England Journal of Statistics in Data Science 2, 2024).

1. A reference of ``m`` values leaves ``m + 1`` gaps. While the values are exchangeable and never equal, the next value
   falls into each gap with the same probability, whatever the order of the earlier values was (A. Rényi, 1962), and
   splits it into two. Several gaps may be counted as one bin: the counts then follow Pólya's urn. The value's place,
   drawn evenly within its bin, is therefore an independent uniform number ``p``. Equal values are ordered at random,
   which makes them a special case of this. Counts of bins need a fixed memory, however many values come.
2. A bet ``b(p)`` is a positive function with the integral 1. Here it is an exponential tilt towards large, small or
   extreme ``p``, in several strengths.
3. ``R = (R + 1) * b(p)`` is computed for each bet, and the evidence is the mean over the bets. ``R`` minus the number
   of values is a martingale. An alarm is raised where the evidence reaches a limit ``A``, and the evidence then starts
   at 0. So ``R + A * alarms - values`` is a supermartingale, and the mean number of alarms among the first ``n`` values
   is at most ``n / A``, for every ``n``. Further conditions on an alarm only make alarms rarer.

The bound needs exchangeable values. Values that depend on their neighbours break it: see
`flowedge.runtime.station.watch.spacing`.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

import msgspec

DIRECTIONS: Final = ("higher", "lower", "more scattered")
"""The changes that the bets are placed on."""

_TILTS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
_SCALES: Final = tuple(tilt / math.expm1(tilt) for tilt in _TILTS)
_BET_COUNT: Final = len(DIRECTIONS) * len(_TILTS)
_MOST_EDGES: Final = 255
_MOST_EVIDENCE: Final = 1e250  # a smaller number than the true one only makes alarms rarer


class TestState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole state of the test of one quantity, which outlives a restart.

    Attributes:
        edges: The values between the bins, ascending.
        ties: A random number in 0..1 for each edge, ascending among equal edges, which orders equal values.
        gaps: The number of gaps in each bin, one bin more than edges.
        evidence: ``R`` of each bet.
        growth: The product of each bet since it began to grow.
        since: The number of the value at which each product began to grow, 1 for the first value of the test.
        labels: The label of that value, such as the time of its frame.
        values: The number of values that the test has seen.
    """

    __test__ = False  # pytest would take a class of this name for one of its own

    edges: list[float]
    ties: list[float]
    gaps: list[int]
    evidence: list[float]
    growth: list[float]
    since: list[int]
    labels: list[str]
    values: int = 0

    def __post_init__(self) -> None:
        """Check that the numbers fit each other.

        Raises:
            ValueError: The numbers do not fit each other.
        """
        edges = list(zip(self.edges, self.ties, strict=False))
        bets = (self.evidence, self.growth, self.since)
        if (
            not len(self.edges) == len(self.ties) == len(self.gaps) - 1
            or min(self.gaps) < 1
            or edges != sorted(edges)
            or any(len(one) != _BET_COUNT or min(one) < 0 for one in bets)
            or len(self.labels) != _BET_COUNT
        ):
            raise ValueError("the numbers of a test do not fit each other")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The change that the strongest bet was placed on.

    Attributes:
        direction: The direction of the change, one of ``DIRECTIONS``.
        values: The number of values since the change, as the bet estimates it.
        label: The label of the first value after the change.
    """

    direction: str
    values: int
    label: str


class SequentialTest:
    """Compares the values of one quantity with a reference, one after the other.

    Attributes:
        state: The whole state, which the test changes with each value.
    """

    def __init__(self, state: TestState, rng: random.Random) -> None:
        """Go on from a state. The random numbers order equal values, and place values within a bin."""
        self.state = state
        self._rng = rng

    @classmethod
    def against(cls, reference: Iterable[float], rng: random.Random) -> SequentialTest:
        """Return a test that has seen no value yet.

        Args:
            reference: Two finite values or more, in any order.
            rng: The random numbers for equal values and for places within a bin.
        """
        ordered = sorted((float(value), rng.random()) for value in reference)
        # Each bin ends at one of the values. Of few values, each one ends a bin.
        count = len(ordered)
        ranks = sorted({1 + round(n * (count - 1) / (_MOST_EDGES - 1)) for n in range(_MOST_EDGES)})
        state = TestState(
            edges=[ordered[rank - 1][0] for rank in ranks],
            ties=[ordered[rank - 1][1] for rank in ranks],
            gaps=[after - before for before, after in zip([0, *ranks], [*ranks, count + 1], strict=True)],
            evidence=[0.0] * _BET_COUNT,
            growth=[0.0] * _BET_COUNT,
            since=[1] * _BET_COUNT,
            labels=[""] * _BET_COUNT,
        )
        return cls(state, rng)

    def add(self, value: float, label: str = "") -> float:
        """Take the next value, and return its p-value. The value then belongs to the reference of the later ones."""
        state = self.state
        gaps = state.gaps
        place = bisect_left(state.edges, value)
        end = bisect_right(state.edges, value)
        if end > place:
            place = bisect_left(state.ties, self._rng.random(), place, end)
        below = sum(gaps[:place])
        p = (below + self._rng.random() * gaps[place]) / (below + sum(gaps[place:]))
        gaps[place] += 1
        state.values += 1
        evidence, growth = state.evidence, state.growth
        bet = 0
        for position in (p, 1 - p, abs(2 * p - 1)):
            power = math.exp(position)
            for scale in _SCALES:
                factor = scale * power
                power *= power  # each tilt is twice the one before
                changed = (evidence[bet] + 1) * factor
                evidence[bet] = changed if changed < _MOST_EVIDENCE else _MOST_EVIDENCE
                if growth[bet] <= 1:
                    growth[bet], state.since[bet], state.labels[bet] = 1.0, state.values, label
                changed = growth[bet] * factor
                growth[bet] = changed if changed < _MOST_EVIDENCE else _MOST_EVIDENCE
                bet += 1
        return p

    @property
    def evidence(self) -> float:
        """The evidence up to the newest value, which is compared with the limit."""
        return sum(self.state.evidence) / _BET_COUNT

    def found(self) -> Found:
        """Return the change that the strongest bet was placed on."""
        state = self.state
        strongest = max(range(_BET_COUNT), key=state.evidence.__getitem__)
        return Found(
            direction=DIRECTIONS[strongest // len(_TILTS)],
            values=state.values - state.since[strongest] + 1,
            label=state.labels[strongest],
        )

    def forget(self) -> None:
        """Start with the evidence at 0. The ranking of the values stays."""
        self.state.evidence = [0.0] * _BET_COUNT
        self.state.growth = [0.0] * _BET_COUNT
