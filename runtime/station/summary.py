"""Sum up what a running station does, for ``flowedge station status``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from flowedge.runtime.station.archive import ArchiveStatus
from flowedge.runtime.station.delivery import DeliveryStatus
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.judges import Judges
from flowedge.runtime.station.live import Live
from flowedge.runtime.station.loop import Loop


def summary(
    *,
    name: str,
    source: str,
    source_problem: str,
    journal: Journal,
    judges: Judges,
    loop: Loop,
    live: Live,
    sinks: Iterable[DeliveryStatus],
    archive: ArchiveStatus,
    page: str,
    watch: Mapping[str, Any],
    shadow: Mapping[str, Any] | None,
    rollout: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a station does, as JSON's own types.

    Args:
        name: The name of the station.
        source: The name of the source without secrets.
        source_problem: The reason why no frame comes. The text is empty where all is well.
        journal: The journal.
        judges: The detectors.
        loop: The loop.
        live: The counters.
        sinks: The states of the sinks.
        archive: The state of the archive.
        page: The address of the page. The text is empty where there is none.
        watch: The state of the watch.
        shadow: The state of the second bundle. The value is None where there is none.
        rollout: The state of the rollout. The value is None where the station follows none.
    """
    counts, rates = live.counts, live.rates
    detector = judges.judges[0].detector if judges.judges else None
    not_inspected = sum(count for (verdict, _), count in counts.records.items() if verdict == "not_inspected")
    return {
        "station": name,
        "run": journal.run,
        "uptime_s": round(live.uptime_s, 1),
        "page": page,
        "source": {"address": source, "problem": source_problem},
        "engine": {
            "name": detector.engine_name if detector else None,
            "precision": detector.precision if detector else None,
            "reason": detector.engine_reason if detector else None,
            "problem": "" if detector else judges.problem,
        },
        "products": [judge.product for judge in judges.judges],
        "records": {
            "all": counts.total,
            "ok": counts.of_signal("ok"),
            "nok": counts.of_signal("nok"),
            "not_inspected": not_inspected,
            "late": counts.late,
            "last": journal.last(),
        },
        "dropped": counts.dropped,
        "waiting": loop.queues,
        "per_second": round(rates.records / rates.seconds, 2),
        "stages_ms": {
            stage: {"p50": round(times.quantile_ms(0.5), 3), "p99": round(times.quantile_ms(0.99), 3)}
            for stage, times in live.stages.items()
        },
        "journal": {"problem": journal.problem or loop.write_problem},
        "archive": msgspec.to_builtins(archive),
        "watch": watch,
        "shadow": shadow,
        "rollout": rollout,
        "sinks": [msgspec.to_builtins(one) for one in sinks],
    }
