"""The request for graphs of lower precision: precisions, limits of the gate, and what to measure with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from flowedge.calibration.dataset import Dataset
from flowedge.calibration.gate_report import DEFAULT_LIMITS, GateLimits
from flowedge.calibration.precision.calibrators import AUTO, CalibratorName
from flowedge.calibration.precision.converted_graph import ConvertedPrecision
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.frame_quantities import DEFAULT_FRAME_RATE

Prune: TypeAlias = float | Literal["auto"]
"""The share of hidden units that every subnet keeps, above 0 and below 1, or a search for the smallest shares."""

Wanted: TypeAlias = Literal["fp16", "bf16", "int8"]
"""A precision that a user can ask for. ``int8`` gives two graphs, one for each kind of device."""

_GRAPHS: Final[Mapping[Wanted, tuple[ConvertedPrecision, ...]]] = MappingProxyType(
    {"fp16": ("fp16",), "bf16": ("bf16",), "int8": ("int8-gpu", "int8-cpu")}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRequest:
    """Names the precisions to add and the limits that they must keep.

    Attributes:
        wanted: The precisions, each once. There may be none where ``prune`` is given.
        prune: The hidden units to leave out first. All precisions of ``wanted`` are then planned on the pruned graph,
            and compared with the fp32 graph. The value None leaves out no unit.
        calibrator: The method that chooses an activation's range for INT8. ``auto`` takes ``percentile`` where every
            block can then be in INT8, and else the method with which such a graph is nearest to fp32.
        limits: The limits of the gate for each name of ``wanted``, and for ``pruned`` where units are left out.
        defects_per_image: The number of synthetic defects made from each image of the gate.
        gate_images: The number of images that the gate compares. These images are spread over all good images. The
            ranges of activations are taken from all good images.
        labelled: Images with labels. The gate also compares the metrics on these images.
        thresholds: The thresholds that every precision gets in the end.
        frame_rate: The expected share of good frames outside of the ranges of plain statistics, as for
            `calibrate_bundle`.
    """

    wanted: tuple[Wanted, ...]
    prune: Prune | None = None
    calibrator: CalibratorName | Literal["auto"] = AUTO
    limits: Mapping[str, GateLimits] = field(default_factory=lambda: DEFAULT_LIMITS)
    defects_per_image: int = 2
    gate_images: int = 48
    labelled: Dataset | None = None
    thresholds: ThresholdRequest = field(default_factory=ThresholdRequest)
    frame_rate: float | None = DEFAULT_FRAME_RATE

    @property
    def precisions(self) -> tuple[ConvertedPrecision, ...]:
        """The precisions of the graphs to write, in the order of ``wanted``."""
        return tuple(name for wanted in self.wanted for name in _GRAPHS[wanted])

    @property
    def names(self) -> tuple[str, ...]:
        """The graphs to add by the names that their options have, for messages."""
        return (*(() if self.prune is None else ("prune",)), *self.wanted)

    def limits_of(self, precision: ConvertedPrecision | Literal["pruned"]) -> GateLimits:
        """Return the limits of one graph, which are the same for both graphs of INT8."""
        return self.limits[precision.partition("-")[0]]
