"""Replay the bundle's self-test on the engine that judges, at the start and between frames."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.errors import FlowEdgeError
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.selftest import SelfTest, read_selftest
from flowedge.runtime.station.record import Event
from flowedge.runtime.verify import Check, checks_of_answers, infer_in_batches, replay_selftest

_LOG: Final = logging.getLogger(__name__)

RETRY_S: Final = 60.0
"""Seconds after which an engine that answered wrongly is tested again."""


class Tested(Protocol):
    """The parts of a detector that a self-test needs. `flowedge.runtime.detector.Detector` has them."""

    bundle: Bundle
    engine: Opened


class EngineTest:
    """Tests one detector's engine, on the thread that owns the engine.

    The first test of an engine is the whole one of ``flowedge verify``. A later test infers one frame at each call, so
    that no frame of the line waits for more than one inference.

    Attributes:
        problem: The reason why the engine must judge nothing, as a clause. The text is empty once a test has passed.
    """

    def __init__(self, hours: float) -> None:
        """Choose the hours between two tests. With 0 an engine is tested only once."""
        self._interval_s = hours * 3600
        self._tested: Opened | None = None
        self._next = 0.0
        self._answers: list[Mapping[str, NDArray[np.float32]]] = []
        self._test: SelfTest | None = None
        self.problem = "the engine has not been tested yet"

    def due(self, detector: Tested) -> bool:
        """Return True where `step` is to be called before the next frame."""
        if self._tested is not detector.engine or self._answers:
            return True
        return time.monotonic() >= self._next

    def step(self, detector: Tested) -> Sequence[Event]:
        """Do the next part of the test, and return an event where a test has ended.

        An engine that cannot run counts as one that answers wrongly.
        """
        is_new = self._tested is not detector.engine
        begun = time.monotonic()
        try:
            checks = self._whole(detector) if is_new else self._one_frame(detector)
        except Exception as error:
            if not isinstance(error, FlowEdgeError):
                _LOG.exception("the self-test of %s failed", detector.engine.name)
            return [self._failed(detector, f"the self-test could not run: {error}")]
        if checks is None:
            return []
        if failed := [check for check in checks if not check.passed]:
            worst = max(
                failed, key=lambda check: check.value / check.limit if check.value == check.value else np.inf
            )
            return [
                self._failed(
                    detector,
                    f"{worst.name} differs by {worst.value:.2g}, and the limit is {worst.limit:.2g} "
                    f"({len(failed)} of {len(checks)} comparisons failed)",
                )
            ]
        was_stopped = self.problem
        self._end(detector, "", self._interval_s if self._interval_s else np.inf)
        engine = detector.engine
        return [
            Event(
                kind="self_test_passed",
                text=f"{engine.name} gave the expected answers of {detector.bundle.path.name} ({engine.precision})",
                data={
                    "engine": engine.name,
                    "precision": engine.precision,
                    "comparisons": len(checks),
                    "whole": is_new,
                    "seconds": round(time.monotonic() - begun, 3),
                    "stopped_before": was_stopped,
                },
            )
        ]

    def _whole(self, detector: Tested) -> Sequence[Check]:
        self._answers, self._test = [], None
        return replay_selftest(detector.bundle, detector.engine)

    def _one_frame(self, detector: Tested) -> Sequence[Check] | None:
        """Infer the next frame of the self-test, and compare all answers after the last one."""
        if self._test is None:
            self._test = read_selftest(detector.bundle)
        frame = self._test.frames[len(self._answers)]
        self._answers.append(infer_in_batches(detector.engine, self._input(detector, frame)))
        if len(self._answers) < len(self._test.frames):
            return None
        alone = {
            name: np.concatenate([one[name] for one in self._answers])
            for name in detector.engine.output_names
        }
        with np.errstate(all="ignore"):  # NaN fails its check
            return tuple(
                checks_of_answers(
                    detector.bundle,
                    detector.engine.precision,
                    alone,
                    self._test.answers,
                    rounding=detector.engine.spec.covered_by or None,
                )
            )

    @staticmethod
    def _input(detector: Tested, frame: NDArray[np.uint8]) -> NDArray[Any]:
        return GraphInput(detector.bundle.manifest)([frame])

    def _failed(self, detector: Tested, reason: str) -> Event:
        engine = detector.engine
        self._end(detector, f"the engine failed its self-test: {reason}", RETRY_S)
        return Event(
            kind="self_test_failed",
            level="alarm",
            text=f"{engine.name} does not give the expected answers of {detector.bundle.path.name} "
            f"({engine.precision}), so no frame is inspected until an engine does: {reason}",
            data={"engine": engine.name, "precision": engine.precision, "reason": reason},
        )

    def _end(self, detector: Tested, problem: str, wait_s: float) -> None:
        self._tested = detector.engine
        self._answers, self._test = [], None
        self._next = time.monotonic() + wait_s
        self.problem = problem
