"""Choose the method for the ranges of INT8 by the answers of the graph with every block in INT8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from flowedge.calibration.precision.calibrators import CalibratorName
from flowedge.calibration.precision.converted_graph import ConvertedPrecision
from flowedge.calibration.precision.pieces import PiecedGraph
from flowedge.calibration.precision.search import Search
from flowedge.progress import Reports

FIRST: Final[CalibratorName] = "percentile"
_OTHERS: Final[tuple[CalibratorName, ...]] = ("min-max", "mse")
# The errors are measured on few frames, so a method must be better than the first by more than chance.
_CLEARLY: Final = 0.75
# Where a graph is so many times further from fp32 than the limits bear, no method brings it near. Most of its blocks
# are reverted in any case.
_HOPELESS: Final = 20.0


class Int8Searches(NamedTuple):
    """The searches of both layouts of INT8 with one method for the ranges.

    Attributes:
        calibrator: The method for the ranges.
        graph: The pieces that the searches share.
        by_name: The search of each layout.
    """

    calibrator: CalibratorName
    graph: PiecedGraph
    by_name: Mapping[ConvertedPrecision, Search]

    def failed(self) -> Search | None:
        """Return the search of the first layout that fails with every block in INT8, or None where all pass."""
        return next((search for search in self.by_name.values() if not search.passes_whole()), None)

    def error(self) -> float:
        """Return how far the graph with every block in INT8 is from fp32, in the layout in which it is further."""
        return max(search.share_of_whole() for search in self.by_name.values())


def chosen_searches(
    searches_with: Callable[[CalibratorName], Int8Searches], reports: Reports
) -> Int8Searches:
    """Return the searches with the method for the ranges of INT8 that leaves most blocks in INT8.

    The first method with which both layouts pass with every block in INT8 is taken. Where they pass with no method, the
    method is taken with which such graphs are nearest to fp32, on the frames that sensitivities are measured on. Where
    the first method is very far from fp32, it is taken, and no other is tried.

    Args:
        searches_with: A function that makes the searches with a method.
        reports: Receives the progress.
    """
    made: list[Int8Searches] = []
    for name in (FIRST, *_OTHERS):
        made.append(searches_with(name))
        failed = made[-1].failed()
        if failed is None or (name == FIRST and failed.share_of_whole() > _HOPELESS):
            return _alone(made[-1], made)
    reports.step("choosing the calibrator", len(made))
    errors: list[float] = []
    for one in made:
        errors.append(one.error() / (1.0 if one.calibrator == FIRST else _CLEARLY))
        reports.advance()
    return _alone(made[errors.index(min(errors))], made)


def _alone(chosen: Int8Searches, made: Sequence[Int8Searches]) -> Int8Searches:
    """Free the memory of all searches but the chosen ones, and return these."""
    for one in made:
        if one is not chosen:
            one.graph.close()
    return chosen
