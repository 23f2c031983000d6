"""What the demo records of its run."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.dataset import GOOD
from flowedge.calibration.evaluation import Evaluation
from flowedge.export.demo.train import LevelTraining
from flowedge.manifest import ScoreNormalisation
from flowedge.runtime.detector import Verdict
from flowedge.runtime.verify import Check


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the road: what it came to, and its wall-clock time."""

    name: str
    found: str
    seconds: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of one graph on the test images, with one way to normalise its score."""

    precision: str
    normalisation: ScoreNormalisation
    evaluation: Evaluation


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """The comparisons of one graph with the network it was made from."""

    precision: str
    checks: tuple[Check, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspected:
    """One test image after the calibration, and its pictures, all of the anomaly map's size.

    Attributes:
        label: ``good`` or the kind of defect.
        name: The photograph's file name.
        score: The image score.
        verdict: What the detector said.
        photo: ``(H, W, 3)`` uint8 RGB.
        truth: ``(H, W)`` uint8, 255 on the painted defect.
        overlay: ``(H, W, 3)`` uint8 RGB, the anomaly map over the photograph.
    """

    label: str
    name: str
    score: float
    verdict: Verdict
    photo: NDArray[np.uint8] = field(repr=False)
    truth: NDArray[np.uint8] = field(repr=False)
    overlay: NDArray[np.uint8] = field(repr=False)

    @property
    def is_defective(self) -> bool:
        """Whether a defect was painted in."""
        return self.label != GOOD

    @property
    def is_wrong(self) -> bool:
        """Whether the verdict is not the label's."""
        return self.verdict != ("anomalous" if self.is_defective else "ok")


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo made and measured.

    Attributes:
        report: The HTML page.
        photos: The dataset's root.
        checkpoint: What the training saved.
        bundle: What the export made, calibrated.
        steps: In order, the report's own excluded.
        training: Per level, fine to coarse.
        verified: By precision.
        measured: By precision, before the calibration and after it.
    """

    report: str
    photos: str
    checkpoint: str
    bundle: str
    steps: tuple[Step, ...]
    training: tuple[LevelTraining, ...]
    verified: tuple[Verified, ...]
    measured: tuple[Measured, ...]
