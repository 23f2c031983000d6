"""Search for the blocks of a graph that can have a lower precision while the gate still passes.

The search begins with all blocks. If the gate fails, it reverts the most sensitive blocks first, until the gate passes.
A candidate that fails the self-test of the bundle runs on no image. The quantity that is furthest beyond its limit
decides which block is next: the map, the order of the scores, or the self-test.
A candidate runs piece by piece, and a candidate that cannot pass is given up after the first frames that prove it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, TypeVar

from numpy.typing import NDArray

from flowedge.calibration.gate_report import GateLimits, GateReport
from flowedge.calibration.precision.block_order import expected_reversions, order_of_reverting, share_of
from flowedge.calibration.precision.converted_graph import ConvertedPrecision, PrecisionConverter
from flowedge.calibration.precision.gate_images import GateImages
from flowedge.calibration.precision.pieces import PiecedGraph, Values
from flowedge.errors import PrecisionError
from flowedge.progress import Reports

# The two layouts of INT8 round alike, so the sensitivities of the CPU layout serve both.
_MEASURED_AS: Final[Mapping[ConvertedPrecision, ConvertedPrecision]] = MappingProxyType(
    {"int8-gpu": "int8-cpu"}
)

_Value = TypeVar("_Value")


class Search:
    """Search for the blocks of one precision.

    Attributes:
        sensitivities: The sensitivity of each block, empty before `measure`.
        score_errors: The error of the scores by each block, in units of what their ranks bear, empty before `measure`.
        self_test_errors: The error of each block in the self-test, in units of the limit that is nearest. The errors
            are empty where every candidate passed the self-test.
    """

    def __init__(
        self,
        converter: PrecisionConverter,
        precision: ConvertedPrecision,
        gate: GateImages,
        limits: GateLimits,
        graph: PiecedGraph,
        reports: Reports,
    ) -> None:
        """Prepare the search.

        Args:
            converter: The converter of the fp32 graph.
            precision: The lower precision.
            gate: The images that candidates are compared on.
            limits: The limits that a candidate must keep.
            graph: The pieces of the fp32 graph.
            reports: Receives the progress of each step.
        """
        self._gate, self._limits, self._graph = gate, limits, graph
        self._precision: ConvertedPrecision = precision
        self._reports = reports
        self._macs = converter.blocks(precision)
        self._blocks = tuple(self._macs)
        self.sensitivities: dict[str, float] = {}
        self.score_errors: dict[str, float] = {}
        self.self_test_errors: dict[str, float] = {}
        self._fails_self_test = False

    def first_that_passes(self, reverted: int = 0, *, likely: int = 0) -> int:
        """Return the smallest number of reverted blocks, at least ``reverted``, with which the gate passes.

        The search begins where the sensitivities let it expect the number, doubles its step until it has one number
        that fails and one that passes, and then halves the gap between them. Where there are many images it first does
        so on a part of them, so that all images see few candidates. The search assumes that one more reverted block
        never makes the gate fail.

        Args:
            reverted: The number to begin with.
            likely: A number that passed for a similar precision.

        Raises:
            PrecisionError: The gate fails as long as one block keeps the precision.
        """
        if reverted:
            self.measure()
        most = self._most()
        if reverted > most:
            raise PrecisionError(
                f"{self._precision} cannot pass its gate: none of its {len(self._blocks)} blocks would be left to "
                "compute anything in it. Nothing was written. Give more images, or loosen a limit with --gate."
            )
        # 1. Most graphs pass as they are, and then no expectation is needed.
        report = self._judge(reverted) if reverted else self._whole
        if report is not None and report.passed:
            return reverted
        self.measure()
        # 2. A number that passed for a similar precision needs no search on a part of the images.
        place, every = max(self._expected(), likely), self._gate.every_for_search
        if every > 1 and not likely:
            place = self._smallest(reverted, place, every)
        return self._smallest(reverted, place)

    def passes_whole(self) -> bool:
        """Return True if the graph passes with every block in the precision."""
        return self._whole is not None and self._whole.passed

    @cached_property
    def _whole(self) -> GateReport | None:
        """The report of the graph with every block in the precision, or None where it was given up."""
        return self._judge(0)

    def share_of_whole(self) -> float:
        """Return how far the graph with every block in the precision is from fp32, in units of what the limits bear.

        The value is the larger one of the error of the map and the noise of the scores.
        """
        effect = self._gate.effect(
            lambda image: self._graph.candidate(image, self._precision, self._blocks), self._reports
        )
        return max(self._share_on_map(effect.sensitivity), share_of(effect.score_noise, self._bearable_noise))

    @cached_property
    def _bearable_noise(self) -> float:
        return self._gate.bearable_score_noise(self._limits.rank_agreement)

    def _smallest(self, fails: int, place: int, every: int = 1) -> int:
        """Return the smallest number of reverted blocks that passes.

        Args:
            fails: A number that fails.
            place: The number to begin with.
            every: The images are every n-th. On a part of the images, the largest number counts as one that passes.

        Raises:
            PrecisionError: The gate fails on all images as long as one block keeps the precision.
        """
        most, passes, step = self._most(), None, 1
        while passes is None or passes - fails > 1:
            place = min(max(place, fails + 1), most)
            report = self._judge(place, every)
            if (report is not None and report.passed) or (every > 1 and place == most):
                passes = place
            elif report is None or place < most:
                fails = place
            else:
                raise PrecisionError(self._verdict(report))
            # Double the step upwards until a number passes. Downwards, half of the gap is the largest step.
            place = fails + step if passes is None else max(passes - step, (passes + fails) // 2)
            step *= 2
        return passes

    def measure(self) -> None:
        """Measure the effect of each block in the lower precision, once for both layouts of INT8.

        A block's sensitivity is the change of the map when this block alone has the lower precision. Its score error is
        the noise of the scores. The errors in the self-test are measured too where a candidate failed it.
        """
        gate = self._gate
        effects = self._measured(gate.effects, gate.measure)
        self.sensitivities = {block: effect.sensitivity for block, effect in effects.items()}
        self.score_errors = {
            block: share_of(effect.score_noise, self._bearable_noise) for block, effect in effects.items()
        }
        if self._fails_self_test:
            self.self_test_errors = self._measured(gate.self_test_errors, gate.self_test.measure)

    def _measured(
        self,
        known: dict[ConvertedPrecision, dict[str, _Value]],
        measure: Callable[[PiecedGraph, ConvertedPrecision, Sequence[str], Reports], dict[str, _Value]],
    ) -> dict[str, _Value]:
        """Return a quantity of all blocks, and measure it for blocks of which it is not known."""
        precision: ConvertedPrecision = _MEASURED_AS.get(self._precision, self._precision)
        values = known.setdefault(precision, {})
        # The layout for CPUs has blocks that the layout for GPUs does not have.
        missing = [block for block in self._blocks if block not in values]
        if missing:
            values |= measure(self._graph, precision, missing, self._reports)
        return values

    def revert_for_self_test(self) -> None:
        """Let the blocks that move the self-test most come first, after a whole graph failed its self-test."""
        self._fails_self_test = True

    def reason(self, block: str) -> str:
        """Return the reason for reverting a block, and name the quantity that the block moves most."""
        on_map, on_scores, on_self_test = self._shares(block)
        failed = "the gate failed before it was reverted"
        if on_self_test > max(on_map, on_scores):
            return (
                f"moves the self-test by {on_self_test:.2g} of its limit, and the self-test failed before it was "
                "reverted"
            )
        if on_scores > on_map:
            return f"adds {on_scores:.2g} of the noise that the ranks of the scores bear, and {failed}"
        return f"among the most sensitive, and {failed}"

    def _expected(self) -> int:
        """Return the number of reverted blocks with which map, ranks and self-test are expected to be good enough."""
        return expected_reversions([self._shares(name) for name in self._order()])

    def _shares(self, block: str) -> tuple[float, float, float]:
        """Return a block's errors of the map, of the scores and in the self-test, in units of what the limits bear."""
        return (
            self._share_on_map(self.sensitivities.get(block, 0.0)),
            self.score_errors.get(block, 0.0),
            self.self_test_errors.get(block, 0.0),
        )

    def _share_on_map(self, sensitivity: float) -> float:
        """Return a change of the map in units of what the limit of the map correlation bears."""
        limit = self._limits.map_correlation
        bearable = math.sqrt(1 / limit**2 - 1) if limit > 0 else math.inf
        return share_of(sensitivity, bearable)

    def chosen(self, reverted: int) -> tuple[str, ...]:
        """Return the blocks that keep the precision when some are reverted, in the graph's order."""
        gone = set(self._order()[:reverted])
        return tuple(name for name in self._blocks if name not in gone)

    def _order(self) -> list[str]:
        """Return the blocks in the order in which they are reverted."""
        return order_of_reverting(
            {name: (*self._shares(name), self.sensitivities.get(name, 0.0)) for name in self._blocks}
        )

    def _most(self) -> int:
        """Return the largest number of blocks that may be reverted, so that one that does work keeps the precision."""
        return max(
            (n for n, name in enumerate(self._order()) if self._macs[name]), default=len(self._blocks) - 1
        )

    def _judge(self, reverted: int, every: int = 1) -> GateReport | None:
        """Compare a candidate with fp32, or return None where it was given up before the last frame.

        The last candidate is compared on all frames, so that the error can name what failed.

        Args:
            reverted: The number of reverted blocks.
            every: Every n-th image is compared.
        """
        blocks, to_the_end = self.chosen(reverted), every == 1 and reverted >= self._most()

        def candidate(image: NDArray[Any]) -> Values:
            return self._graph.candidate(image, self._precision, blocks)

        self_test = self._gate.self_test.checks(candidate, self._precision)
        if not all(check.passed for check in self_test):
            self._fails_self_test = True
            if not to_the_end:
                return None
        return self._gate.trial(
            candidate, self._limits, self._reports, self_test=self_test, to_the_end=to_the_end, every=every
        )

    def _verdict(self, report: GateReport) -> str:
        worst = sorted(self.sensitivities.items(), key=lambda item: -item[1])[:3]
        other = (
            "Try another --calibrator or more images"
            if self._precision.startswith("int8")
            else "Give more images"
        )
        return (
            f"{self._precision} cannot pass its gate, however many blocks are reverted: {'; '.join(report.failures)}. "
            f"Most sensitive: {', '.join(f'{name} ({value:.2g})' for name, value in worst)}. "
            f"Nothing was written. {other}, or loosen a limit with --gate."
        )
