"""Judge a candidate of the search, and tell as early as possible that it cannot pass.

The fp32 answers to all frames are known before a candidate runs. So one frame can prove that the gate will fail, and
the correlations of maps and of ranks have upper bounds after each frame. These proofs hold for every answer to the
frames that have not run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.agreement import PairMoments
from flowedge.calibration.compared_frames import ComparedFrame
from flowedge.calibration.gate_report import GateLimits
from flowedge.calibration.gates import ROUNDING, Gate
from flowedge.calibration.tally import Detection

# The bound of the correlation must not prove a failure that rounding made.
_SLACK: Final = 1e-9
_FEWEST_RANKS: Final = 3  # Two pairs bound nothing worth the work.


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp32Facts:
    """The facts about the fp32 answers to all frames of a gate.

    Attributes:
        images: The number of frames.
        good: The number of good frames.
        squares: The sum over all pixels of all maps of the squared deviation from their mean.
        spread: The standard deviation of all pixels of the good frames' maps.
        scores: The scores of all frames, in ascending order.
    """

    images: int
    good: int
    squares: float
    spread: float
    scores: tuple[float, ...]


def fp32_facts(answers: Iterable[tuple[bool, Detection]]) -> Fp32Facts:
    """Return the facts about fp32 answers.

    Args:
        answers: For each frame, True if it is good, and the fp32 graph's answer.
    """
    everything, good_pixels = PairMoments(), PairMoments()
    good = 0
    scores: list[float] = []
    for is_good, answer in answers:
        one = PairMoments()
        one.add(answer.network_map, answer.network_map)
        everything.merge(one)
        scores.append(answer.score)
        if is_good:
            good_pixels.merge(one)
            good += 1
    squares = everything.first_deviation() ** 2 * everything.count
    return Fp32Facts(
        images=len(scores),
        good=good,
        squares=squares,
        spread=good_pixels.first_deviation(),
        scores=tuple(sorted(scores)),
    )


class TrialGate(Gate):
    """A gate that knows the facts about fp32, and measures only quantities that have a limit."""

    def __init__(self, limits: GateLimits, fp32: Fp32Facts) -> None:
        """Begin without a frame.

        Args:
            limits: The limits that the candidate must keep.
            fp32: The facts about the frames to come.
        """
        super().__init__(limits)
        self._fp32 = fp32
        self._largest_error = 0.0

    def add(self, frame: ComparedFrame, fp32: Detection, converted: Detection) -> None:
        """Compare the answers on a good frame or on a synthetic defect.

        Raises:
            CalibrationError: The fp32 graph's answer is not finite.
            ValueError: The maps differ in shape.
        """
        if self._compare("good" if frame.mask is None else "defect", fp32, converted):
            error, own = self._errors[-1]
            unit = max(self._fp32.spread, own)
            self._largest_error = max(self._largest_error, error / unit if unit else math.inf * bool(error))

    def cannot_pass(self) -> bool:
        """Tell whether the gate fails, whatever the answers to the other frames are.

        1. An answer that is not finite, or a map error beyond its limit, fails by itself.
        2. The squared correlation is 1 minus the part of the fp32 pixels' sum of squares that no line through the
           converted pixels explains. A line for all frames explains each of them no better than a line for some
           frames, so the part that is unexplained after some frames only grows.
        3. The order of some scores bounds the rank correlation of all, as `largest_rank_correlation` explains.
        4. With the scores of all good frames the thresholds are known, and flips only grow in number.
        """
        limits, fp32 = self._limits, self._fp32
        if self._not_finite or self._largest_error > limits.map_error:
            return True
        unexplained = self._pixels.unexplained()
        if limits.map_correlation > 0 and unexplained > fp32.squares * (
            1 - limits.map_correlation**2 + _SLACK
        ):
            return True
        scores = self._scores
        ranks = largest_rank_correlation(
            fp32.scores, [one.fp32 for one in scores], [one.converted for one in scores]
        )
        if ranks < limits.rank_agreement - _SLACK:
            return True
        if self._counts["good"] < fp32.good:
            return False
        good = [one for one in self._scores if one.kind == "good"]
        return self._flipped(good) > math.ceil(limits.flips * fp32.images - ROUNDING)


def largest_rank_correlation(
    everything: Sequence[float], first: Sequence[float], second: Sequence[float]
) -> float:
    """Return an upper bound of Spearman's correlation, of which only some pairs are known.

    The ranks r of the first numbers are known. The ranks s of the second numbers are not, but their order is, and
    neighbours in that order lie at least 1 apart. The smallest sum D of (s - r)^2 under these conditions is an isotonic
    regression. With the variances V of r and x^2 V of s, the correlation is (1 + x^2 - D / nV) / 2x. This is convex in
    x, so its largest value is at an end: at x = 1 without ties, or at the smallest x that the unknown numbers can make
    by ties. The bound is 1 where equal numbers are known.

    Args:
        everything: The first numbers of all pairs, ``(n,)``, in ascending order.
        first: The first numbers of the known pairs, ``(m,)``.
        second: The second numbers of the known pairs.
    """
    n, m = len(everything), len(first)
    if m < _FEWEST_RANKS or len(set(everything)) < n or len(set(second)) < m:
        return 1.0
    ranks = 1 + np.searchsorted(everything, first)
    # The places 0, 1, 2, ... are the distances that the order demands.
    places = np.arange(m)
    wanted = ranks[np.argsort(second)] - 1 - places
    fitted = np.clip(_isotonic(wanted.astype(np.float64)), 0, n - m)
    total = float(n**3 - n)  # 12 n times the variance of the ranks
    missing = 12 * float(np.square(fitted - wanted).sum()) / total
    tied = float((n - m + 1) ** 3 - (n - m + 1)) / total
    smallest = math.sqrt(max(1 - tied, 0.0)) if n > m else 1.0
    if smallest == 0.0:
        return 1.0
    return max((1 + x * x - missing) / (2 * x) for x in (smallest, 1.0))


def _isotonic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ascending numbers with the least squared distance from the values, by pooling neighbours."""
    means: list[float] = []
    counts: list[int] = []
    for value in values:
        mean, count = float(value), 1
        while means and means[-1] > mean:
            before, of_before = means.pop(), counts.pop()
            mean = (before * of_before + mean * count) / (of_before + count)
            count += of_before
        means.append(mean)
        counts.append(count)
    return np.repeat(means, counts)


def squared_error(fp32: Detection, converted: Detection) -> float:
    """Return the sum of the squared differences of two maps, which is infinite where one is not finite."""
    error = converted.network_map.astype(np.float64) - fp32.network_map
    value = float(np.square(error).sum())
    return value if math.isfinite(value) else math.inf
