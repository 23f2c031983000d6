"""Write to a station's journal in one thread, and commit together what arrives together."""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from flowedge.errors import JournalError
from flowedge.runtime.station.journal_file import Reserve, open_for_writing

_LOG: Final = logging.getLogger(__name__)
_LARGEST_GROUP: Final = 256
_IDLE_S: Final = 0.5

Made = TypeVar("Made")
Job = Callable[[sqlite3.Connection], Any]
"""Some writes of one caller, which are run inside of a transaction. A job may be run again after a rollback."""


class _Queued(NamedTuple):
    job: Job
    done: Future[Any]


class JournalWriter:
    """The thread that owns the writing connection. Jobs that wait at the same time share one commit.

    A commit waits for the disk, which takes milliseconds. Where the disk is full, the reserve is freed.

    Attributes:
        connection: The writing connection. The caller closes it after the writer.
        problem: The reason why nothing can be written at the moment. The text is empty where all is well.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        reserve: Reserve,
        *,
        before_commit: Job,
        after_commit: Callable[[], None],
        on_full: Callable[[], None],
        full_note: Job,
    ) -> None:
        """Start the thread.

        Args:
            path: The file of the journal.
            connection: The writing connection.
            reserve: The space that is freed when the disk is full.
            before_commit: A job that is run at the end of every transaction, and where the queue is idle.
            after_commit: Called after every commit, before anybody gets the answer of a job.
            on_full: Called in the writer's thread where the disk is full and the reserve is used up, to make room.
            full_note: A job that records that the reserve had to be used.
        """
        self.problem = ""
        self._path = path
        self.connection = connection
        self._reserve = reserve
        self._owes_note = False
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._on_full = on_full
        self._full_note = full_note
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._is_closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[sqlite3.Connection], Made]) -> Future[Made]:
        """Queue a job.

        Returns:
            The answer of the job, which is there after the commit.

        Raises:
            JournalError: The writer was closed.
        """
        done: Future[Made] = Future()
        with self._closing:
            if self._is_closed:
                raise JournalError("the journal was closed. Open it again.")
            self._queue.put(_Queued(job, done))
        return done

    def close(self) -> None:
        """Commit what is queued, and end the thread."""
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        self._reserve.take()
        is_last = False
        while not is_last:
            group, is_last = self._next_group()
            if group:
                self._write(group)
            else:
                self._write_idle()
            self._reserve.take()

    def _next_group(self) -> tuple[list[_Queued], bool]:
        """Wait for a job, and take with it all that have arrived. The second value is True at the end."""
        group: list[_Queued] = []
        try:
            one = self._queue.get(timeout=_IDLE_S)
            while one is not None:
                group.append(one)
                if len(group) == _LARGEST_GROUP:
                    return group, False
                one = self._queue.get_nowait()
        except queue.Empty:
            return group, False
        return group, True

    def _write_idle(self) -> None:
        """Write what waits for an idle moment."""
        try:
            self._transaction([])
        except sqlite3.Error as error:
            # The next group meets the same error, and makes room.
            _LOG.debug("the journal's idle work waits: %s", error)

    def _write(self, group: Sequence[_Queued]) -> None:
        try:
            answers = self._commit([one.job for one in group])
        except sqlite3.OperationalError as error:
            self._note(error)
            refused = JournalError(self.problem)
            refused.__cause__ = error
            for one in group:
                one.done.set_exception(refused)
        except Exception as error:
            self._fail(group, error)
        else:
            self.problem = ""
            for one, answer in zip(group, answers, strict=True):
                one.done.set_result(answer)

    def _commit(self, jobs: Sequence[Job]) -> list[Any]:
        """Run jobs in a transaction, and try again after what may help.

        Raises:
            sqlite3.OperationalError: The disk stays full, or the file cannot be written.
        """
        try:
            return self._transaction(jobs)
        except sqlite3.OperationalError as error:
            self._note(error)
            if "full" not in str(error):
                # A connection may not recover from an error of the disk.
                self._reconnect()
                return self._transaction(jobs)
        if self._reserve.free():
            self._owes_note = True
            with contextlib.suppress(sqlite3.OperationalError):
                # The pages of the write-ahead log go into the file, so that the log begins again at its start.
                self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
                return self._transaction(jobs)
        try:
            self._on_full()
        except Exception:
            _LOG.exception("making room on the full disk failed")
        # The record of a part must not fail because of the note, which a later transaction writes.
        return self._transaction(jobs, with_note=False)

    def _note(self, error: sqlite3.OperationalError) -> None:
        if not self.problem:
            _LOG.warning("%s cannot be written: %s", self._path, error)
        self.problem = (
            f"{self._path} cannot be written: {error}. Make room on its disk, or check its permissions."
        )

    def _fail(self, group: Sequence[_Queued], error: Exception) -> None:
        """Give an error to the job that has caused it. Where there are several jobs, each is tried alone."""
        if len(group) == 1:
            group[0].done.set_exception(error)
            return
        for one in group:
            self._write([one])

    def _transaction(self, jobs: Sequence[Job], *, with_note: bool = True) -> list[Any]:
        """Run jobs in a transaction, and record with them that the reserve was used, where that is not recorded yet."""
        connection = self.connection
        writes_note = with_note and self._owes_note
        connection.execute("BEGIN IMMEDIATE")
        try:
            answers = [job(connection) for job in jobs]
            if writes_note:
                self._full_note(connection)
            self._before_commit(connection)
            connection.execute("COMMIT")
        except BaseException:
            # SQLite has ended the transaction itself where the disk was full.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if writes_note:
            self._owes_note = False
        self._after_commit()
        return answers

    def _reconnect(self) -> None:
        try:
            connection = open_for_writing(self._path)
        except JournalError as error:
            _LOG.warning("%s", error)
            return
        self.connection.close()
        self.connection = connection
