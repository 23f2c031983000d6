"""Write the numbers of a station for Prometheus."""

from __future__ import annotations

from typing import Final

from flowedge.runtime.exposition import MetricsText, add_process, histogram_samples
from flowedge.runtime.station.live import BUCKETS_S, Live
from flowedge.runtime.station.page.controls import Controls
from flowedge.runtime.station.record import Record
from flowedge.version import __version__

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
    text = MetricsText()
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
            for sample in histogram_samples({"stage": name}, BUCKETS_S, times.buckets, times.seconds)
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
    add_process(text, started)
    return str(text)


def _facts(record: Record | None) -> dict[str, str]:
    if record is None:
        return {}
    return {
        "engine": record.engine,
        "precision": record.precision,
        "product": record.product,
        "bundle": record.bundle_sha256[:16],
    }
