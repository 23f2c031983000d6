"""Tell the page, the metrics and the readiness how each part of a running station is."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from flowedge.runtime.station.archive import ArchiveStatus
from flowedge.runtime.station.delivery import DeliveryStatus
from flowedge.runtime.station.judges import Judges
from flowedge.runtime.station.live import Health, Live

LOW_DISK_BYTES: Final = 1 << 30
"""The free bytes of the journal's disk below which a person is warned."""

_LONG_BACKLOG: Final = 100


class HealthReport:
    """Tells the states of a station's parts to `Live`, once a second. One thread calls it."""

    def __init__(self, live: Live, state: Path) -> None:
        """Take the place where the states are told, and the state folder."""
        self._live = live
        self._state = state

    def source(self, problem: str, name: str) -> None:
        """Tell the state of the source.

        Args:
            problem: The reason why no frame comes. The text is empty where all is well.
            name: The name of the source without secrets.
        """
        self._live.tell("source", "down" if problem else "ok", problem or name, kind="source", is_needed=True)

    def engine(self, judges: Judges) -> None:
        """Tell the state of the engine."""
        now = judges.judges
        if not now:
            self._live.tell("engine", "down", judges.problem, kind="engine", is_needed=True)
            return
        detector = now[0].detector
        text = f"{detector.engine_name} ({detector.precision}), {detector.engine_reason}"
        is_first = judges.is_first_choice
        self._live.tell("engine", "ok" if is_first else "warning", text, kind="engine", is_needed=True)

    def watch(self, status: Mapping[str, Any]) -> None:
        """Tell the states of the self-test and of the drift, by product."""
        for product, state in status.items():
            behind = f" {product}" if product else ""
            problem = state["self_test"]
            self._live.tell(
                f"self-test{behind}",
                "down" if problem else "ok",
                problem,
                kind="self_test",
                is_needed=True,
            )
            drift = state["drift"] or {"quantities": (), "limit_log10": 0.0}
            for one in drift["quantities"]:
                self._live.tell(
                    f"{one['quantity']}{behind}",
                    "warning" if one["drifted"] else "ok",
                    f"{one['value']:.4g}, and {one['reference']:.4g} in {one['compared_with']}",
                    kind="drift",
                    value=max(one["evidence_log10"], 0.0),
                    limit=drift["limit_log10"],
                    unit="log10 of evidence",
                )

    def journal(self, problem: str) -> None:
        """Tell the state of the journal and of its disk."""
        self._live.tell("journal", "down" if problem else "ok", problem, kind="journal", is_needed=True)
        try:
            free = shutil.disk_usage(self._state).free
        except OSError as error:
            self._live.tell("disk", "down", str(error.strerror), kind="disk")
            return
        self._live.tell(
            "disk",
            "ok" if free > LOW_DISK_BYTES else "warning",
            "" if free > LOW_DISK_BYTES else "the disk of the journal is nearly full",
            kind="disk",
            value=float(free),
            limit=float(LOW_DISK_BYTES),
            unit="bytes",
        )

    def archive(self, status: ArchiveStatus) -> None:
        """Tell the state of the archive."""
        dropped = f"{status.dropped} pictures were not kept" if status.dropped else ""
        self._live.tell(
            "archive",
            "warning" if status.problem or dropped else "ok",
            status.problem or dropped,
            kind="archive",
            value=float(status.size),
            unit="bytes",
        )

    def rollout(self, status: Mapping[str, Any] | None) -> None:
        """Tell the state of the rollout, where the station follows one."""
        if status is not None:
            version = f"version {status['version']}" if status["version"] else "not read yet"
            problem = status["problem"]
            self._live.tell("rollout", "warning" if problem else "ok", problem or version, kind="rollout")

    def sinks(self, all_of_them: Iterable[DeliveryStatus]) -> None:
        """Tell the state of each sink."""
        for one in all_of_them:
            is_slow = one.backlog > _LONG_BACKLOG
            text = one.problem or (f"{one.backlog} records wait" if is_slow else "")
            state: Health = "down" if one.problem else "warning" if is_slow else "ok"
            self._live.tell(
                one.name, state, text, kind="sink", value=float(one.backlog), unit="records waiting"
            )
