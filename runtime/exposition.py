"""Write numbers for Prometheus, in the text format of version 0.0.4.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/. The format is a few lines, so no library writes
it. A test reads the text by the parser of prometheus-client.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

MetricType: TypeAlias = Literal["counter", "gauge", "histogram"]
"""The type of a family of samples."""

Sample: TypeAlias = tuple[str, dict[str, str], float]
"""The end of a sample's name, its labels and its value."""


class MetricsText:
    """The text of metrics, a family at a time."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, kind: MetricType, words: str, samples: Iterable[Sample]) -> None:
        """Add a family of samples, each with the end of its name, its labels and its value.

        A family without samples is left out.
        """
        lines = [f"{name}{end}{_labels(labels)} {_number(value)}" for end, labels, value in samples]
        if lines:
            self._lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}", *lines]

    def one(self, name: str, kind: MetricType, words: str, value: float) -> None:
        """Add a family of one sample without labels."""
        self.add(name, kind, words, [("", {}, value)])

    def optional(self, name: str, words: str, value: float | None) -> None:
        """Add a gauge, if there is a value."""
        if value is not None:
            self.one(name, "gauge", words, value)

    def __str__(self) -> str:
        return "\n".join((*self._lines, ""))


def histogram_samples(
    labels: dict[str, str], limits: Sequence[float], buckets: Sequence[int], total: float
) -> list[Sample]:
    """Return the samples of one histogram. The buckets of the format count all values up to their limit.

    Args:
        labels: The labels of the histogram.
        limits: The upper limits of the buckets. The last bucket has no limit and is not named.
        buckets: The number of values in each bucket, one more than limits.
        total: The sum of all values.
    """
    samples: list[Sample] = []
    count = 0
    for limit, inside in zip((*limits, float("inf")), buckets, strict=True):
        count += inside
        samples.append(("_bucket", {**labels, "le": _number(limit)}, count))
    return [*samples, ("_sum", labels, total), ("_count", labels, count)]


def add_process(text: MetricsText, started: float) -> None:
    """Add the numbers of the process under the names that all Prometheus clients give them."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    text.one(
        "process_cpu_seconds_total", "counter", "The CPU time of the process.", used.ru_utime + used.ru_stime
    )
    text.one(
        "process_start_time_seconds", "gauge", "The start of the process, in seconds since 1970.", started
    )
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        descriptors = len(os.listdir("/proc/self/fd"))
    except (OSError, IndexError, ValueError):
        return
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    text.one("process_resident_memory_bytes", "gauge", "The memory of the process.", resident)
    text.one("process_open_fds", "gauge", "The open files of the process.", descriptors)


def start_time() -> float:
    """Return the wall time of now in seconds since 1970, 0 where the clock is beyond what Python can tell."""
    try:
        return time.time()
    except OverflowError:
        return 0.0


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    valid = value.encode("utf-8", "replace").decode()
    return valid.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return f"{value:.17g}" if isinstance(value, float) and not value.is_integer() else str(int(value))
