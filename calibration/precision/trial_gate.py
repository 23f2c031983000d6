"""Judge a candidate of the search, and tell as early as possible that it cannot pass.

The fp32 answers to all frames are known before a candidate runs. So one frame can prove that the gate will fail, and
the correlation of all maps has an upper bound after each frame. These proofs hold for every answer to the frames that
have not run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from flowedge.calibration.agreement import PairMoments
from flowedge.calibration.compared_frames import ComparedFrame
from flowedge.calibration.gate_report import GateLimits
from flowedge.calibration.gates import ROUNDING, Gate
from flowedge.calibration.tally import Detection

# The bound of the correlation must not prove a failure that rounding made.
_SLACK: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp32Facts:
    """The facts about the fp32 answers to all frames of a gate.

    Attributes:
        images: The number of frames.
        good: The number of good frames.
        squares: The sum over all pixels of all maps of the squared deviation from their mean.
        spread: The standard deviation of all pixels of the good frames' maps.
    """

    images: int
    good: int
    squares: float
    spread: float


def fp32_facts(answers: Iterable[tuple[bool, Detection]]) -> Fp32Facts:
    """Return the facts about fp32 answers.

    Args:
        answers: For each frame, True if it is good, and the fp32 graph's answer.
    """
    everything, good_pixels = PairMoments(), PairMoments()
    images = good = 0
    for is_good, answer in answers:
        one = PairMoments()
        one.add(answer.network_map, answer.network_map)
        everything.merge(one)
        images += 1
        if is_good:
            good_pixels.merge(one)
            good += 1
    squares = everything.first_deviation() ** 2 * everything.count
    return Fp32Facts(images=images, good=good, squares=squares, spread=good_pixels.first_deviation())


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
        3. With the scores of all good frames the thresholds are known, and flips only grow in number.
        """
        limits, fp32 = self._limits, self._fp32
        if self._not_finite or self._largest_error > limits.map_error:
            return True
        unexplained = self._pixels.unexplained()
        if limits.map_correlation > 0 and unexplained > fp32.squares * (
            1 - limits.map_correlation**2 + _SLACK
        ):
            return True
        if self._counts["good"] < fp32.good:
            return False
        good = [one for one in self._scores if one.kind == "good"]
        return self._flipped(good) > math.ceil(limits.flips * fp32.images - ROUNDING)


def squared_error(fp32: Detection, converted: Detection) -> float:
    """Return the sum of the squared differences of two maps, which is infinite where one is not finite."""
    error = converted.network_map.astype(np.float64) - fp32.network_map
    value = float(np.square(error).sum())
    return value if math.isfinite(value) else math.inf
