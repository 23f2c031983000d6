"""Make records of a station, and a journal in memory, for tests of what reads a journal."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Sequence
from typing import Any

from flowedge.runtime.station.record import Event, Record


def made_record(number: int = 1, **fields: Any) -> Record:
    """Make the record of an accepted frame, with any field replaced."""
    return Record(
        **{
            "number": number,
            "id": f"line-1/{number}",
            "station": "line-1",
            "run": "run-1",
            "time": datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.timezone.utc),
            "monotonic_ns": time.monotonic_ns(),
            "source": "camera",
            "source_id": f"frame {number}",
            "verdict": "ok",
            "signal": "ok",
            "reason": "the score is below the threshold",
            "score": 0.25,
            **fields,
        }
    )


class MemoryJournal:
    """A journal that a test can fill and look at, with the part of the interface that a delivery uses."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.kept: list[Record] = []
        self.told: list[Event] = []
        self.cursors: dict[str, int] = {}

    def add(self, *records: Record) -> None:
        with self._lock:
            self.kept += records

    def tell(self, event: Event) -> None:
        with self._lock:
            self.told.append(
                Event(kind=event.kind, text=event.text, number=len(self.told) + 1, data=event.data)
            )

    def records(self, after: int = 0, *, limit: int = 100) -> Sequence[Record]:
        with self._lock:
            return [one for one in self.kept if one.number > after][:limit]

    def events(self, after: int = 0, *, limit: int = 100) -> Sequence[Event]:
        with self._lock:
            return [one for one in self.told if one.number > after][:limit]

    def last(self) -> int:
        with self._lock:
            return self.kept[-1].number if self.kept else 0

    def last_event(self) -> int:
        with self._lock:
            return len(self.told)

    def cursor(self, sink: str) -> int | None:
        return self.cursors.get(sink)

    def move_cursor(self, sink: str, number: int) -> None:
        self.cursors[sink] = number

    def kinds(self) -> list[str]:
        with self._lock:
            return [one.kind for one in self.told]
