"""Keep the journal of a station: every record and event once, numbered, on disk before anybody hears of it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec

from flowedge.errors import JournalError
from flowedge.runtime.station.journal_file import Reserve, begin_run, lock, open_for_writing
from flowedge.runtime.station.journal_reader import JournalReader, sortable
from flowedge.runtime.station.journal_writer import JournalWriter
from flowedge.runtime.station.record import Event, Record, picture_name
from flowedge.text import printable

RESERVE_BYTES: Final = 8 << 20
"""The size of the file that is deleted when the disk is full."""

Written = TypeVar("Written")
_CHECK_RECORD: Final = msgspec.json.Decoder(Record)


class Appended(NamedTuple):
    """The records and events that the journal has taken, with their numbers and names."""

    records: tuple[Record, ...]
    events: tuple[Event, ...]


class Journal(JournalReader):
    """The journal of a running station. One process writes to it, from any of its threads.

    A record that `append` has returned is on disk, and survives the end of the process and a power cut. The order is
    that of the numbers. No order and no age depends on the wall clock.

    Attributes:
        name: The name of the journal, 8 hexadecimal digits. The ids of its records begin with it.
        run: The name of this run of the station's process, unique over stations and restarts.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        station: str = "",
        reserve_bytes: int = RESERVE_BYTES,
        on_full: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the journal for writing, and make it where it is not there.

        Args:
            path: The file, whose folder must exist.
            station: The name of the station, for events of the journal itself.
            reserve_bytes: The size of the file beside it that is deleted when the disk is full.
            on_full: Called from the journal's thread where the disk is full and the reserve is used up, to make room.

        Raises:
            JournalError: The file cannot be opened, is no journal, is damaged, is of a newer FlowEdge, or is in use by
                another process.
        """
        file = Path(path)
        self._station = station
        with contextlib.ExitStack() as stack:
            handle = lock(file)
            stack.callback(os.close, handle)
            reserve = Reserve(file.with_name(file.name + ".reserve"), reserve_bytes)
            try:
                connection, (self.name, self.run) = _opened(file)
            except JournalError:
                # A station that starts on a full disk gets the room that a running one would get.
                if not (reserve.is_needed and reserve.free()):
                    raise
                connection, (self.name, self.run) = _opened(file)
            stack.callback(connection.close)
            super().__init__(file)
            self._lock = handle
            stack.pop_all()
        self._cursors = self.cursors()
        self._stored_cursors = self._storing = dict(self._cursors)
        self._moving = threading.Lock()
        self._operating_before = self._operating_time()
        self._opened = time.monotonic()
        self._writer = JournalWriter(
            file,
            connection,
            reserve,
            before_commit=self._before_commit,
            after_commit=self._after_commit,
            on_full=on_full,
            full_note=self._note_full_disk,
        )

    @property
    def problem(self) -> str:
        """The reason why nothing can be written at the moment. The text is empty where all is well."""
        return self._writer.problem

    def append(self, records: Iterable[Record] = (), events: Iterable[Event] = ()) -> Appended:
        """Write records and events in one commit, and return them with their numbers when they are on disk.

        Raises:
            JournalError: The disk is full, although the reserve was freed and ``on_full`` was called, or it cannot be
                written for another reason, or the journal was closed. Nothing was written, and the caller may try
                again.
        """
        return self.submit(records, events).result()

    def submit(self, records: Iterable[Record] = (), events: Iterable[Event] = ()) -> Future[Appended]:
        """Queue records and events as `append` does, without waiting for the disk."""
        records, events = tuple(records), tuple(events)
        return self._writer.submit(lambda connection: self._insert(connection, records, events))

    def seen(self, source_id: str, source_key: str) -> bool:
        """Return True where a file has its record, so that it is not judged again.

        Args:
            source_id: The name of the file, see `flowedge.runtime.protocols.Frame.id`.
            source_key: The state of the file, see `flowedge.runtime.protocols.Frame.version`.
        """
        return bool(
            self.rows(
                "SELECT 1 FROM records WHERE source_id = ? AND source_key = ? AND source_key != '' "
                "UNION ALL SELECT 1 FROM kept_files WHERE source_id = ? AND source_key = ? LIMIT 1",
                (printable(source_id), source_key) * 2,
            )
        )

    def cursor(self, sink: str) -> int | None:
        """Return the number of the last record that a sink has. The number is None for a sink that never was here."""
        with self._moving:
            return self._cursors.get(sink)

    def move_cursor(self, sink: str, number: int) -> None:
        """Note that a sink has everything up to a number.

        The note is on disk within a second. After a power cut before that, the sink gets the same records again.

        Args:
            sink: The name of the sink. A name that ends in ``/events`` stands for the sink's place among the events.
            number: The number of the last record or event that the sink has.
        """
        with self._moving:
            self._cursors[sink] = number

    @property
    def operating_s(self) -> float:
        """The time in seconds that all runs of the station have taken together. Ages are measured by it."""
        return self._operating_before + time.monotonic() - self._opened

    def write(self, job: Callable[[sqlite3.Connection], Written]) -> Written:
        """Run a job in the journal's thread, in one transaction with what else is written at the time.

        Raises:
            JournalError: Nothing was written, as `append` tells.
        """
        return self._writer.submit(job).result()

    def close(self) -> None:
        """Write what is left, and free the file for another process."""
        self._writer.close()
        super().close()
        # The last connection to be closed folds the write-ahead log into the file.
        self._writer.connection.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Journal:
        return self

    def _insert(
        self, connection: sqlite3.Connection, records: Sequence[Record], events: Sequence[Event]
    ) -> Appended:
        newest, last_event = _newest(connection)
        operating_s = self.operating_s
        # A journal that was restored from a backup gives its numbers again, but no id that a receiver knows.
        digits = self.run.rpartition("-")[2]
        numbered = tuple(
            msgspec.structs.replace(
                record,
                number=number,
                id=f"{self.name}-{number}-{digits}",
                picture=None if record.picture is None else picture_name(self.name, number, record.signal),
            )
            for number, record in enumerate(records, newest + 1)
        )
        for record in numbered:
            body = msgspec.json.encode(record)
            # A record that could not be read again would stop every sink, so it is refused here.
            _CHECK_RECORD.decode(body)
            connection.execute(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    record.number,
                    sortable(record.time),
                    operating_s,
                    record.signal,
                    record.source_id,
                    record.source_key,
                    body.decode(),
                ),
            )
        told = tuple(
            msgspec.structs.replace(
                event,
                number=number,
                id=f"{self.name}-e{number}-{digits}",
                record=newest + len(numbered),
                station=event.station or self._station,
                run=event.run or self.run,
            )
            for number, event in enumerate(events, last_event + 1)
        )
        for event in told:
            body = msgspec.json.encode(event, enc_hook=str)
            connection.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
                (event.number, sortable(event.time), operating_s, event.kind, body.decode()),
            )
        return Appended(numbered, told)

    def _before_commit(self, connection: sqlite3.Connection) -> None:
        with self._moving:
            self._storing = dict(self._cursors)
        moved = self._storing.items() - self._stored_cursors.items()
        connection.executemany("INSERT OR REPLACE INTO cursors VALUES (?, ?)", moved)

    def _after_commit(self) -> None:
        self._stored_cursors = self._storing

    def _note_full_disk(self, connection: sqlite3.Connection) -> None:
        text = f"the disk of {self.path} was full, and the reserve beside the journal was freed to go on"
        self._insert(connection, (), (Event(kind="disk_low", level="alarm", text=text),))

    def _operating_time(self) -> float:
        """Return the time in seconds that all runs have taken together, as the newest record or event tells."""
        times = [
            self.operating_at(last, table) for table in ("records", "events") if (last := self.span(table)[1])
        ]
        return max(times, default=0.0)


def _opened(file: Path) -> tuple[sqlite3.Connection, tuple[str, str]]:
    """Open the file for writing and begin a run.

    Raises:
        JournalError: The file cannot be opened or written.
    """
    connection = open_for_writing(file)
    try:
        return connection, begin_run(connection, file)
    except BaseException:
        connection.close()
        raise


def _newest(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the numbers of the newest record and of the newest event."""
    record, event = connection.execute(
        "SELECT (SELECT coalesce(max(number), 0) FROM records), (SELECT coalesce(max(number), 0) FROM events)"
    ).fetchone()
    return record, event
