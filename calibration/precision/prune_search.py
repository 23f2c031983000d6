"""Search for the fewest hidden units with which the gate still passes.

The steps of a `Pruner` are in the order of their expected harm. So the search is for one number of steps, between those
that pass and those that fail, as the search for a precision is for one number of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flowedge.calibration.gate_report import GateLimits, GateReport
from flowedge.calibration.precision.gate_images import Candidate, GateImages
from flowedge.calibration.precision.pruner import Pruner, PruningStep, choices_of_layer
from flowedge.errors import PrecisionError
from flowedge.progress import Reports
from flowedge.runtime.engines.onnxrt import open_part

_PROBED_ERROR: Final = 1e-4  # A layer's sensitivity is measured where so much of its effect is lost, or more.
_FINENESS: Final = (
    64  # The search ends when the number of steps is known to within this fraction of all steps.
)


class PruningSearch:
    """Search for the number of units that each hidden layer keeps.

    Attributes:
        sensitivities: For each layer, the squared change of the map for an error of 1 of the layer, in squared standard
            deviations of the good images' fp32 maps. Empty before `measure`.
    """

    def __init__(self, pruner: Pruner, gate: GateImages, limits: GateLimits, reports: Reports) -> None:
        """Prepare the search.

        Args:
            pruner: The pruner of the fp32 graph, which has observed the units.
            gate: The images that candidates are compared on.
            limits: The limits that a candidate must keep.
            reports: Receives the progress of each step.
        """
        self._pruner, self._gate, self._limits, self._reports = pruner, gate, limits, reports
        self._steps: tuple[PruningStep, ...] = ()
        self.sensitivities: dict[str, float] = {}

    def measure(self) -> None:
        """Measure how much each layer alone changes the map when it is pruned, and order the steps by it."""
        layers = self._pruner.layers
        whole = {layer.name: layer.units for layer in layers}
        self._reports.step("measuring the sensitivity of each subnet", len(layers))
        for layer in layers:
            choices = choices_of_layer(layer.units)
            # Units that depend on each other cost nothing, and their loss would tell nothing about the layer.
            kept = next(
                (n for n in choices if self._pruner.error(layer.name, n) >= _PROBED_ERROR), choices[-1]
            )
            error = self._pruner.error(layer.name, kept)
            change = self._gate.effect(self._opened({**whole, layer.name: kept})).sensitivity
            self.sensitivities[layer.name] = change**2 / error if error > 0 else 0.0
            self._reports.advance()
        self._steps = self._pruner.steps(self.sensitivities)

    def counts(self, steps: int) -> dict[str, int]:
        """Return the number of units that each layer keeps after some steps."""
        counts = {layer.name: layer.units for layer in self._pruner.layers}
        return counts | {step.layer: step.kept for step in self._steps[:steps]}

    def largest_that_passes(self, below: int | None = None, failures: Sequence[str] = ()) -> int:
        """Return the largest number of steps with which the gate passes, to within a small fraction of all steps.

        The search begins where the sensitivities let it expect the number, and halves the gap between a number that
        passes and one that fails. It assumes that one more step never makes the gate pass.

        Args:
            below: A number of steps that is known to fail.
            failures: The reasons for its failure, where the gate of the search may not see them.

        Raises:
            PrecisionError: The gate passes with no step that was tried.
        """
        fails = len(self._steps) + 1 if below is None else below
        passes, failure = 0, None
        place = min(self._expected(), fails - 1)
        while fails - passes > max(1, len(self._steps) // _FINENESS):
            place = max(place, passes + 1)
            report = self._judge(place)
            if report is not None and report.passed:
                passes = place
            else:
                fails, failure = place, report or failure
            place = (passes + fails) // 2
        if passes == 0:
            failure = failure or self._judge(max(fails, 1), to_the_end=True)
            reasons = (() if failure is None else failure.failures) or failures
            why = f": {'; '.join(reasons)}" if reasons else ""
            raise PrecisionError(
                f"pruning cannot pass its gate, however few hidden units are left out{why}. Nothing was written. "
                "Leave --prune out, or loosen a limit with --gate."
            )
        return passes

    def _expected(self) -> int:
        """Return the number of steps with which the correlation of the maps is expected to be just enough."""
        limit = self._limits.map_correlation
        bearable = 1 / limit**2 - 1 if limit > 0 else float("inf")
        changes = {layer.name: 0.0 for layer in self._pruner.layers}
        for number, step in enumerate(self._steps):
            changes[step.layer] = self.sensitivities[step.layer] * self._pruner.error(step.layer, step.kept)
            if sum(changes.values()) > bearable:
                return number
        return len(self._steps)

    def _judge(self, steps: int, *, to_the_end: bool = False) -> GateReport | None:
        """Compare a candidate with fp32, or return None where it was given up before the last frame."""
        candidate = self._opened(self.counts(steps))
        return self._gate.trial(candidate, self._limits, self._reports, to_the_end=to_the_end)

    def _opened(self, counts: dict[str, int]) -> Candidate:
        run = open_part(self._pruner.model(counts).SerializeToString(), "a pruned graph")
        return lambda image: run({self._pruner.input: image})
