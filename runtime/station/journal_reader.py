"""Read a station's journal, from any thread and beside the station that writes it."""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias

import msgspec

from flowedge.errors import JournalError
from flowedge.runtime.record import Verdict
from flowedge.runtime.station.journal_file import open_for_reading
from flowedge.runtime.station.record import Event, Record, Signal

Table: TypeAlias = Literal["records", "events"]

_DECODE_RECORD: Final = msgspec.json.Decoder(Record)
_DECODE_EVENT: Final = msgspec.json.Decoder(Event)


class JournalReader:
    """Read a journal, from any thread and beside the station that writes.

    Examples:
        >>> from flowedge.runtime.station.journal_reader import JournalReader
        >>> with JournalReader("state/journal.sqlite") as journal:
        ...     newest = journal.records(limit=10, newest=True)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the journal.

        Raises:
            JournalError: The file cannot be opened, is no journal, is damaged, or is of a newer FlowEdge.
        """
        self.path = Path(path)
        # Each read borrows a connection, so threads never share one at the same time.
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._idle.put(open_for_reading(self.path))
        self._is_closed = False

    def records(
        self,
        after: int = 0,
        limit: int = 1000,
        *,
        before: int | None = None,
        signal: Signal | None = None,
        verdict: Verdict | None = None,
        part: str | None = None,
        since: datetime.datetime | None = None,
        newest: bool = False,
    ) -> list[Record]:
        """Read records in the order of their numbers.

        Args:
            after: Only records with a larger number.
            limit: The largest number of records.
            before: Only records with a smaller number.
            signal: Only records with this signal.
            verdict: Only records with this verdict.
            part: Only records of this part.
            since: Only frames that were taken at this time or later, by the wall clock.
            newest: Where there are more than ``limit``, give the last ones in place of the first.
        """
        bounds = ["number > ?"]
        values: list[Any] = [after]
        if before is not None:
            bounds.append("number < ?")
            values.append(before)
        if signal is not None:
            # SQLite takes the index of rejected records only where the statement has the word itself.
            bounds.append("signal = 'nok'" if signal == "nok" else "signal = 'ok'")
        for name, wanted in (("verdict", verdict), ("part", part)):
            if wanted is not None:
                bounds.append(f"json_extract(body, '$.{name}') = ?")
                values.append(wanted)
        if since is not None:
            bounds.append("time >= ?")
            values.append(sortable(since))
        rows = self.rows(
            f"SELECT body FROM records WHERE {' AND '.join(bounds)} "
            f"ORDER BY number {'DESC' if newest else 'ASC'} LIMIT ?",
            (*values, limit),
        )
        found = [_DECODE_RECORD.decode(body) for (body,) in rows]
        return found[::-1] if newest else found

    def record(self, number: int) -> Record | None:
        """Read one record, or None where no record has this number."""
        rows = self.rows("SELECT body FROM records WHERE number = ?", (number,))
        return _DECODE_RECORD.decode(rows[0][0]) if rows else None

    def events(self, after: int = 0, limit: int = 1000, *, newest: bool = False) -> list[Event]:
        """Read events in the order of their numbers.

        Args:
            after: Only events with a larger number.
            limit: The largest number of events.
            newest: Where there are more than ``limit``, give the last ones in place of the first.
        """
        rows = self.rows(
            f"SELECT body FROM events WHERE number > ? ORDER BY number {'DESC' if newest else 'ASC'} LIMIT ?",
            (after, limit),
        )
        found = [_DECODE_EVENT.decode(body) for (body,) in rows]
        return found[::-1] if newest else found

    def last(self) -> int:
        """Return the number of the newest record, which is 0 for an empty journal."""
        return self.span("records")[1]

    def first(self) -> int:
        """Return the number of the oldest record, which is 0 for an empty journal."""
        return min(self.span("records"))

    def last_event(self) -> int:
        """Return the number of the newest event, which is 0 where there is none."""
        return self.span("events")[1]

    def span(self, table: Table) -> tuple[int, int]:
        """Return the numbers of the oldest and of the newest record or event, ``(1, 0)`` where there is none."""
        # SQLite answers min and max from the ends of the table only where they are asked for one by one.
        oldest, newest = self.rows(
            f"SELECT (SELECT coalesce(min(number), 1) FROM {table}), (SELECT coalesce(max(number), 0) FROM {table})"
        )[0]
        return oldest, newest

    def operating_at(self, number: int, table: Table) -> float:
        """Return the station's time of operation in seconds at which a record or an event was written."""
        return float(self.rows(f"SELECT operating_s FROM {table} WHERE number = ?", (number,))[0][0])

    @property
    def used_bytes(self) -> int:
        """The bytes of the file that are in use."""
        (pages,), (free,), (size,) = (
            self.rows(f"PRAGMA {name}")[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def cursors(self) -> dict[str, int]:
        """Return the stored cursors by name, see `flowedge.runtime.station.journal.Journal.move_cursor`."""
        return dict(self.rows("SELECT sink, number FROM cursors"))

    def damage(self) -> list[str]:
        """Check the whole file, which takes a minute for some gigabytes, and describe what is damaged."""
        return [text for (text,) in self.rows("PRAGMA integrity_check") if text != "ok"]

    def close(self) -> None:
        """Close the file. A read that goes on in another thread ends with its answer."""
        self._is_closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run a statement that reads, and return all of its rows."""
        with self._reading() as connection:
            return connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if self._is_closed:
            raise JournalError(f"{self.path} was closed. Open it again.")
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = open_for_reading(self.path)
        try:
            yield connection
        finally:
            if self._is_closed:
                connection.close()
            else:
                self._idle.put(connection)


def sortable(moment: datetime.datetime) -> str:
    """Return a time in UTC as text whose order is that of time."""
    return moment.astimezone(datetime.timezone.utc).isoformat(timespec="microseconds")
