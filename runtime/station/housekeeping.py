"""Remove old pictures and old records, in a thread of its own, and never a record that a sink still needs."""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from flowedge.errors import JournalError
from flowedge.runtime.station.archive import Archive
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.journal_reader import Table
from flowedge.runtime.station.keeping_settings import JournalSettings
from flowedge.runtime.station.record import Event, Tell
from flowedge.runtime.station.sinks.settings import AnySink
from flowedge.runtime.station.throttle import Throttle

_LOG: Final = logging.getLogger(__name__)
_GIB: Final = 1 << 30
_DAY_S: Final = 86400.0
_EVERY_S: Final = 60.0
_WARN_S: Final = 6 * 3600.0
_LOOK_S: Final = 3600.0
_ROWS_AT_ONCE: Final = 500
_PAGES_AT_ONCE: Final = 500


class Housekeeper:
    """Removes what is older than the settings allow, once a minute.

    An age is counted in days of operation, so a clock that jumps removes nothing. The pictures of a record are deleted
    before the record, so that no picture is without its record. A file that still lies in its folder stays known after
    its record was removed, so that it is not judged again.
    """

    def __init__(
        self,
        journal: Journal,
        settings: JournalSettings,
        sinks: Sequence[AnySink],
        archive: Archive,
        tell: Tell = lambda event: None,
    ) -> None:
        """Take the parts. The thread begins with `start`.

        Args:
            journal: The journal.
            settings: The limits of the journal.
            sinks: The settings of the sinks, whose cursors hold records back.
            archive: The pictures.
            tell: Journals an event.
        """
        self._journal = journal
        self._settings = settings
        self._sinks = sinks
        self._archive = archive
        self._tell = tell
        self._may_warn, self._may_look = Throttle(_WARN_S), Throttle(_LOOK_S)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def clean(self) -> None:
        """Remove now what may be removed.

        Raises:
            JournalError: The journal cannot be written.
            OSError: A picture cannot be deleted.
        """
        policy = self._archive.settings
        self._archive.delete_up_to(self._older_than(policy.keep_ok_days), "ok")
        self._archive.delete_up_to(self._older_than(policy.keep_nok_days), "nok")
        self._remove("records")
        self._remove("events")
        if self._may_look():
            self._forget_files()
        self._journal.write(_shrink)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.clean()
            except (JournalError, OSError) as error:
                _LOG.warning("old records and pictures were not removed: %s", error)
            except Exception:
                _LOG.exception("old records and pictures were not removed")
            self._stop.wait(_EVERY_S)

    def _remove(self, table: Table) -> None:
        """Remove old rows in portions, so that no frame waits for it."""
        first, last = self._journal.span(table)
        # The newest row stays, since the next one takes its number from it.
        wanted = min(
            max(self._older_than(self._settings.keep_days, table), self._too_many(first, last)), last - 1
        )
        allowed = min([wanted, *self._delivered(table)])
        if allowed < wanted and self._may_warn():
            text = f"{wanted - allowed} old {table} are kept, since a sink has not got them yet"
            self._tell(
                Event(kind="backlog_kept", level="warning", text=text, data={"kept": wanted - allowed})
            )
        if table == "records" and allowed >= first:
            self._archive.delete_up_to(allowed, "ok")
            self._archive.delete_up_to(allowed, "nok")
        while first <= allowed and not self._stop.is_set():
            end = min(first + _ROWS_AT_ONCE - 1, allowed)
            kept = self._files_still_there(first, end) if table == "records" else []
            self._journal.write(partial(_remove_rows, table=table, end=end, kept=kept))
            first = end + 1

    def _older_than(self, days: float, table: Table = "records") -> int:
        """Return the number of the newest record or event that is older, 0 where none is."""
        limit = self._journal.operating_s - days * _DAY_S
        first, last = self._journal.span(table)
        low, high = first - 1, last
        while low < high:
            middle = (low + high + 1) // 2
            if self._journal.operating_at(middle, table) < limit:
                low = middle
            else:
                high = middle - 1
        return low

    def _too_many(self, first: int, last: int) -> int:
        """Return the number up to which rows are to be removed for the sake of the size, 0 for none."""
        used, most = self._journal.used_bytes, self._settings.max_gib * _GIB
        if used <= most:
            return 0
        return first - 1 + math.ceil((last - first + 1) * (1 - most / used))

    def _delivered(self, table: Table) -> list[int]:
        """Return the numbers up to which each sink has the records or the events."""
        if table == "records":
            names = [one.cursor for one in self._sinks]
        else:
            names = [f"{one.cursor}/events" for one in self._sinks if one.events]
        return [self._journal.cursor(name) or 0 for name in names]

    def _files_still_there(self, first: int, end: int) -> list[tuple[str, str]]:
        """Return the files of records that still lie where they were judged."""
        return [
            (source_id, key)
            for source_id, key in self._journal.rows(
                "SELECT source_id, source_key FROM records WHERE number BETWEEN ? AND ? AND source_key != ''",
                (first, end),
            )
            if _may_exist(source_id)
        ]

    def _forget_files(self) -> None:
        """Forget files without a record that are gone."""
        gone = [
            (source_id, key)
            for source_id, key in self._journal.rows("SELECT source_id, source_key FROM kept_files", ())
            if not _may_exist(source_id)
        ]
        if gone:
            self._journal.write(
                lambda connection: connection.executemany(
                    "DELETE FROM kept_files WHERE source_id = ? AND source_key = ?", gone
                )
            )


def _may_exist(source_id: str) -> bool:
    """Return True where a file is there, and where its name was escaped, so that nobody can tell."""
    return "\\" in source_id or os.path.lexists(source_id)


def _remove_rows(
    connection: sqlite3.Connection, table: str, end: int, kept: Sequence[tuple[str, str]]
) -> None:
    connection.executemany("INSERT OR IGNORE INTO kept_files VALUES (?, ?)", kept)
    connection.execute(f"DELETE FROM {table} WHERE number <= ?", (end,))


def _shrink(connection: sqlite3.Connection) -> Any:
    """Give pages of removed rows back to the disk, some at a time."""
    return connection.execute(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})").fetchall()
