"""Count the requests of a model: the statistics of the protocol, and what Prometheus reads."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from typing import Any, Final

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper limits of the times in histograms, in seconds."""

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128)
"""The upper limits of the numbers of frames in histograms."""


class Histogram:
    """The values that were counted, by limits."""

    def __init__(self, limits: tuple[float, ...]) -> None:
        """Begin with no values."""
        self.limits = limits
        self.buckets = [0] * (len(limits) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.buckets[bisect_left(self.limits, value)] += 1
        self.total += value


class _Duration:
    """The number and the total time of one stage, as the protocol gives it."""

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.ns += int(seconds * 1e9)

    def told(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


_STAGES: Final = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)


class ModelCounts:
    """The counts of one model since the server started. Threads may share them."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self._lock = threading.Lock()
        self._stages = {name: _Duration() for name in _STAGES}
        self._batches: dict[int, dict[str, _Duration]] = {}
        self._frames = 0
        self._runs = 0
        self._last_ms = 0
        self.outcomes: Counter[str] = Counter()
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.request_s = Histogram(BUCKETS_S)
        self.queue_s = Histogram(BUCKETS_S)
        self.batch_frames = Histogram(BATCHES)

    def run(self, frames: int, input_s: float, infer_s: float, output_s: float) -> None:
        """Count one run of the engine.

        Args:
            frames: The number of frames.
            input_s: The time of decoding and preprocessing in seconds.
            infer_s: The time of the engine in seconds.
            output_s: The time of deciding in seconds.
        """
        with self._lock:
            self._runs += 1
            self._frames += frames
            self._last_ms = int(time.time() * 1000)
            self.batch_frames.add(frames)
            of_size = self._batches.setdefault(
                frames, {name: _Duration() for name in ("compute_input", "compute_infer", "compute_output")}
            )
            for name, seconds in (
                ("compute_input", input_s),
                ("compute_infer", infer_s),
                ("compute_output", output_s),
            ):
                of_size[name].add(seconds)
                self._stages[name].add(seconds)

    def taken(self, queue_s: float) -> None:
        """Count a request that left the queue after a time in seconds."""
        with self._lock:
            self._stages["queue"].add(queue_s)
            self.queue_s.add(queue_s)

    def ended(self, outcome: str, seconds: float) -> None:
        """Count a request that has ended.

        Args:
            outcome: One word: ``ok``, or the reason of the failure.
            seconds: The time from the begin of its body in seconds.
        """
        with self._lock:
            self.outcomes[outcome] += 1
            self.request_s.add(seconds)
            self._stages["success" if outcome == "ok" else "fail"].add(seconds)

    def judged(self, product: str | None, verdict: str) -> None:
        """Count one verdict."""
        with self._lock:
            self.verdicts[product or "", verdict] += 1

    def statistics(self, name: str) -> dict[str, Any]:
        """Return the statistics of the protocol for this model."""
        with self._lock:
            return {
                "name": name,
                "version": "1",
                "last_inference": self._last_ms,
                "inference_count": self._frames,
                "execution_count": self._runs,
                "inference_stats": {stage: one.told() for stage, one in self._stages.items()},
                "batch_stats": [
                    {"batch_size": size, **{stage: one.told() for stage, one in stages.items()}}
                    for size, stages in sorted(self._batches.items())
                ],
            }
