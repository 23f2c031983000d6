"""Write the numbers of a station for Prometheus, in the text format of version 0.0.4.

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

from flowedge.runtime.station.live import BUCKETS_S, Live
from flowedge.runtime.station.page.controls import Controls
from flowedge.runtime.station.record import Record
from flowedge.version import __version__

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_Type: TypeAlias = Literal["counter", "gauge", "histogram"]
_Sample: TypeAlias = tuple[str, dict[str, str], float]
_STATES: Final = ("ok", "warning", "down")


def metrics_of(station: Controls, live: Live, last_record: int | None, started: float) -> str:
    """Return the metrics of a station.

    Args:
        station: The station.
        live: The counters and states.
        last_record: The number of the newest record in the journal, 0 before the first. The value is None where the
            journal cannot be read.
        started: The wall time of the start, in seconds since 1970.
    """
    text = _Text()
    counts, newest = live.counts, live.newest
    text.add(
        "flowedge_station_info",
        "gauge",
        "The station and its version, as labels of the constant 1.",
        [("", {"station": station.name, "version": __version__} | _facts(newest and newest.record), 1)],
    )
    text.add(
        "flowedge_records_total",
        "counter",
        "The records since the start of the process.",
        [("", {"verdict": v, "signal": s}, n) for (v, s), n in sorted(counts.records.items())],
    )
    text.one("flowedge_frames_dropped_total", "counter", "The frames that were lost.", counts.dropped)
    text.one("flowedge_verdicts_late_total", "counter", "The verdicts after their deadline.", counts.late)
    text.optional("flowedge_journal_last_record", "The number of the newest record.", last_record)
    if newest is not None:
        text.one(
            "flowedge_last_record_age_seconds",
            "gauge",
            "The seconds since the newest record.",
            live.age_s(newest),
        )
        text.optional("flowedge_last_score", "The score of the newest record.", newest.record.score)
        text.optional("flowedge_last_log_nfa", "The log NFA of the newest record.", newest.record.log_nfa)
    text.add(
        "flowedge_limit",
        "gauge",
        "The limit that decides, a threshold of the score or a limit of log NFA.",
        [
            ("", {"product": one.product, "quantity": "log_nfa" if one.is_log_nfa else "score"}, one.value)
            for one in station.limits
            if one.value is not None
        ],
    )
    text.add(
        "flowedge_limit_version",
        "gauge",
        "The version of the limit that decides.",
        [("", {"product": one.product}, one.version) for one in station.limits],
    )
    text.add(
        "flowedge_stage_seconds",
        "histogram",
        "The time of each stage for one frame.",
        [
            sample
            for name, times in live.stages.items()
            for sample in _histogram(name, times.buckets, times.seconds)
        ],
    )
    parts = live.parts
    text.add(
        "flowedge_part_state",
        "gauge",
        "The state of a part: the sample of its state is 1.",
        [
            ("", {"part": one.name, "kind": one.kind, "state": state}, float(one.state == state))
            for one in parts
            for state in _STATES
        ],
    )
    for name, words in (("value", "A number that describes a part."), ("limit", "The limit of that number.")):
        text.add(
            f"flowedge_part_{name}",
            "gauge",
            words,
            [
                ("", {"part": one.name, "kind": one.kind, "unit": one.unit}, getattr(one, name))
                for one in parts
                if getattr(one, name) is not None
            ],
        )
    if live.beat_age_s is not None:
        text.one(
            "flowedge_loop_age_seconds",
            "gauge",
            "The seconds since the loop's sign of life.",
            live.beat_age_s,
        )
    _process(text, started)
    return str(text)


class _Text:
    """The text of metrics, a family at a time."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, kind: _Type, words: str, samples: Iterable[_Sample]) -> None:
        """Add a family of samples, each with the end of its name, its labels and its value.

        A family without samples is left out.
        """
        lines = [f"{name}{end}{_labels(labels)} {_number(value)}" for end, labels, value in samples]
        if lines:
            self._lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}", *lines]

    def one(self, name: str, kind: _Type, words: str, value: float) -> None:
        """Add a family of one sample without labels."""
        self.add(name, kind, words, [("", {}, value)])

    def optional(self, name: str, words: str, value: float | None) -> None:
        """Add a gauge, if there is a value."""
        if value is not None:
            self.one(name, "gauge", words, value)

    def __str__(self) -> str:
        return "\n".join((*self._lines, ""))


def _histogram(stage: str, buckets: Sequence[int], seconds: float) -> list[_Sample]:
    """Return the samples of one histogram. The buckets of the format count all times up to their limit."""
    samples: list[_Sample] = []
    count = 0
    for limit, inside in zip((*BUCKETS_S, float("inf")), buckets, strict=True):
        count += inside
        samples.append(("_bucket", {"stage": stage, "le": _number(limit)}, count))
    return [*samples, ("_sum", {"stage": stage}, seconds), ("_count", {"stage": stage}, count)]


def _facts(record: Record | None) -> dict[str, str]:
    if record is None:
        return {}
    return {
        "engine": record.engine,
        "precision": record.precision,
        "product": record.product,
        "bundle": record.bundle_sha256[:16],
    }


def _process(text: _Text, started: float) -> None:
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
