"""Define the work on one frame, as it goes from stage to stage."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.protocols import Frame
from flowedge.runtime.result import Result
from flowedge.runtime.station.judges import Judge
from flowedge.runtime.station.record import Record


@dataclass(slots=True, eq=False)
class Work:
    """The work on one frame. Only the stage that has it changes it.

    Attributes:
        frame: The frame. Its pixels may be gone where there is a problem.
        begun_ns: The time of capture on the monotonic clock, in ns.
        dropped_before: The number of frames that were lost between the frame before and this one.
        problem: The reason why the frame is not inspected. The text is empty as long as it is.
        judge: The detector, with its facts for the record. The value is None where no product fits the frame.
        pixels: The frame as 8-bit RGB.
        image: The engine's input.
        outputs: The engine's answers.
        result: The findings. The value is None for a frame that was not judged.
        record: The record, once it was made.
        answer: The end of the inference, which gives the error of the engine where it failed. The value is None for a
            frame that no engine computes.
        stages_ms: The time of each stage, in ms.
        is_bare: True after `make_bare`.
    """

    frame: Frame
    begun_ns: int
    dropped_before: int = 0
    problem: str = ""
    judge: Judge | None = None
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    image: Any = None
    outputs: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    result: Result | None = None
    record: Record | None = None
    answer: Future[Exception | None] | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)
    is_bare: bool = False
    _since_ns: int = field(default_factory=time.monotonic_ns)

    def begin(self) -> None:
        """Count the time since the end of the stage before as waiting."""
        self._count("wait")

    def end(self, stage: str) -> None:
        """Count the time since `begin` for a stage."""
        self._count(stage)

    def give_up(self, problem: str) -> None:
        """Note why the frame is not inspected, and free its arrays. A first problem stays."""
        self.problem = self.problem or problem
        self.image, self.outputs = None, {}
        if self.result is None:
            self.pixels = []

    def make_bare(self, problem: str) -> None:
        """Leave nothing but the frame's name and a problem, since the record of what was found cannot be stored."""
        self.is_bare, self.problem = True, ""
        self.judge = self.result = self.record = None
        self.give_up(problem)

    def _count(self, name: str) -> None:
        now = time.monotonic_ns()
        self.stages_ms[name] = self.stages_ms.get(name, 0.0) + (now - self._since_ns) / 1e6
        self._since_ns = now


class EndOfSource:
    """The mark that follows the last frame of a source through the stages."""
