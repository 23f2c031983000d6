"""Compare candidates of the search with the self-test of a bundle, by the limits of an opening on a device.

A device replays the self-test before it judges parts, and refuses a graph outside of the limits. A plan that passes on
images may still fail there, because the frames of the self-test are synthetic. So the gate replays the self-test too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.calibration.precision.converted_graph import ConvertedPrecision
from flowedge.calibration.precision.in_order import in_order
from flowedge.calibration.precision.pieces import PiecedGraph, Values
from flowedge.progress import Reports
from flowedge.runtime.opening.selftest import FRAMES, read_pruned_answers, read_selftest
from flowedge.runtime.verify import Check, WorstDifference, check_of_output, images_of_selftest

_AGAINST: Final = "the expected answers"


class SelfTestGate:
    """The self-test of one bundle, for candidates that are no whole graphs yet.

    The device's further checks compare the graph with itself, so they need the whole graph. `GateImages.judge` makes
    them.
    """

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        """Read the self-test of a bundle. Without a self-test there is nothing to compare, and every candidate passes.

        Args:
            bundle: The bundle.
            threads: The number of frames that run at a time.

        Raises:
            BundleError: The self-test does not fit the manifest.
        """
        self._manifest = bundle.manifest
        self._threads = threads
        self._images: list[NDArray[Any]] = []
        self._expected: Mapping[str, NDArray[np.float32]] = {}
        if has_self_test(bundle):
            selftest = read_selftest(bundle)
            images = images_of_selftest(bundle, selftest)
            self._images = [images[n : n + 1] for n in range(len(images))]
            # What rests on a pruned graph is compared with that graph.
            self._expected = read_pruned_answers(bundle, "fp32") or selftest.answers

    def checks(self, candidate: Callable[[NDArray[Any]], Values], precision: str) -> tuple[Check, ...]:
        """Compare the answers of a candidate with the expected answers, by the limits of a precision.

        Args:
            candidate: A function from a graph's input for one image to all outputs of the graph. Threads may call it.
            precision: The precision.
        """
        answers = in_order(candidate, self._images, self._threads)
        return tuple(self._compared(answers, precision)) if self._images else ()

    def measure(
        self, graph: PiecedGraph, precision: ConvertedPrecision, blocks: Sequence[str], reports: Reports
    ) -> dict[str, float]:
        """Return how far each block alone moves the self-test when it has a lower precision.

        The unit is the limit of the check that the block moves most, so a block beyond 1 fails by itself.

        Args:
            graph: The pieces of the fp32 graph.
            precision: The lower precision.
            blocks: The blocks.
            reports: Receives the progress, one unit for each block and frame.
        """
        reports.step("replaying the self-test for each block", len(blocks) * len(self._images))

        def changed(image: NDArray[Any]) -> list[Values]:
            values = graph.values(image)
            return [graph.changed(values, precision, block) for block in blocks]

        answers: list[list[Values]] = []
        for one in in_order(changed, self._images, self._threads):
            answers.append(one)
            reports.advance(len(blocks))
        return {
            block: max(map(_share_of_limit, self._compared((one[n] for one in answers), precision)))
            for n, block in enumerate(blocks)
        }

    def _compared(self, answers: Iterator[Values], precision: str) -> Iterator[Check]:
        """Compare the answers to the frames, in their order, with the expected answers."""
        worst = {name: WorstDifference() for name in self._expected}
        # Values that are not finite fail their check, and NumPy's warnings would add nothing.
        with np.errstate(all="ignore"):
            for n, answer in enumerate(answers):
                for name, expected in self._expected.items():
                    worst[name].add(answer[name], expected[n : n + 1])
        for name, one in worst.items():
            yield check_of_output(self._manifest, precision, name, one, _AGAINST)


def has_self_test(bundle: Bundle) -> bool:
    """Return True where a bundle has a self-test. Only bundles of other programs have none."""
    return FRAMES in {file.path for file in bundle.manifest.files}


def _share_of_limit(check: Check) -> float:
    share = check.value / check.limit
    return share if math.isfinite(share) else math.inf
