"""Outcomes of a demo: steps, checks, metrics and inspected photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from flowedge.calibration.dataset import GOOD
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.export.demo.train import LevelTraining
from flowedge.manifest import ScoreNormalisation
from flowedge.runtime.record import Verdict
from flowedge.runtime.verify import Check


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step with its outcome and its wall-clock time.

    Attributes:
        name: The step's name.
        found: The outcome in words.
        seconds: Wall-clock time.
    """

    name: str
    found: str
    seconds: float


class GraphMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics of one graph on the test images, with one way to normalise its score."""

    precision: str
    normalisation: ScoreNormalisation
    evaluation: Evaluation


class GraphChecks(msgspec.Struct, frozen=True, kw_only=True):
    """Comparisons of one graph with the network that it was made from."""

    precision: str
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedPhoto:
    """Hold one test image after the calibration, with pictures that have the size of the anomaly map.

    Attributes:
        label: ``good`` or the kind of defect.
        name: The photograph's file name.
        score: The image score.
        verdict: The detector's verdict.
        pictures: The name and the ``data:`` address of each picture, for a page.
    """

    label: str
    name: str
    score: float
    verdict: Verdict
    pictures: Sequence[tuple[str, str]] = field(repr=False)

    @property
    def is_defective(self) -> bool:
        """True when the photograph has a painted defect."""
        return self.label != GOOD

    @property
    def is_wrong(self) -> bool:
        """True when the verdict contradicts the label."""
        return self.verdict != ("anomalous" if self.is_defective else "ok")


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """Files and measurements of a demo.

    Attributes:
        report: The HTML page, which links to the pages beside it.
        photos: The root of the dataset.
        checkpoint: The file that the training saved.
        bundle: The exported and calibrated bundle.
        steps: All steps in order, but for the writing of the report.
        training: One entry for each level, fine to coarse.
        verified: Comparisons for each precision.
        measured: Metrics for each precision, first before the calibration and then after it.
    """

    report: str
    photos: str
    checkpoint: str
    bundle: str
    steps: tuple[Step, ...]
    training: tuple[LevelTraining, ...]
    verified: tuple[GraphChecks, ...]
    measured: tuple[GraphMetrics, ...]
