"""Write to a station's journal in one thread, and commit together what arrives together."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, TypeVar

from flowedge.errors import JournalError
from flowedge.runtime.station.journal_file import Reserve

_LOG: Final = logging.getLogger(__name__)
_LARGEST_GROUP: Final = 256
_IDLE_S: Final = 0.5
_RETRY_S: Final = 0.5

# SQLite's messages for what can pass without a change of the program. Python 3.10 gives no error codes.
_PASSING: Final = ("full", "I/O", "readonly", "unable to open", "locked")

Made = TypeVar("Made")
Job = Callable[[sqlite3.Connection], Any]
"""Some writes of one caller, which are run inside of a transaction. A job may be run again after a rollback."""


class _Queued(NamedTuple):
    job: Job
    done: Future[Any]


class JournalWriter:
    """The thread that owns the writing connection. Jobs that wait at the same time share one commit.

    A commit waits for the disk, which takes milliseconds. Where the disk is full, or cannot be written for another
    reason that may pass, the jobs wait and are tried again until the writer is closed. Nothing is lost meanwhile.

    Attributes:
        connection: The writing connection. The caller closes it after the writer.
        problem: The reason why nothing can be written at the moment. The text is empty where all is well.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        connect: Callable[[], sqlite3.Connection],
        reserve: Reserve,
        *,
        before_commit: Job,
        after_commit: Callable[[], None],
        on_full: Callable[[], None],
        full_note: Job,
    ) -> None:
        """Start the thread.

        Args:
            connection: The writing connection.
            connect: Opens another one where this one fails.
            reserve: The space that is freed when the disk is full.
            before_commit: A job that is run at the end of every transaction, and where the queue is idle.
            after_commit: Called after every commit, before anybody gets the answer of a job.
            on_full: Called in the writer's thread while the disk is full, to make room.
            full_note: A job that records that the reserve had to be used.
        """
        self.problem = ""
        self._connect = connect
        self.connection = connection
        self._reserve = reserve
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._on_full = on_full
        self._full_note = full_note
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
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
            if self._stopping.is_set():
                raise _closed()
            self._queue.put(_Queued(job, done))
        return done

    def close(self) -> None:
        """Commit what is queued, and end the thread. Where the disk is full, the queued jobs fail."""
        with self._closing:
            if not self._stopping.is_set():
                self._stopping.set()
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
        """Write what waits for an idle moment, and take the reserve back where there is room again."""
        try:
            self._transaction([])
        except sqlite3.Error as error:
            # The next group meets the same error, and makes room.
            _LOG.debug("the journal's idle work waits: %s", error)
        self._reserve.take()

    def _write(self, group: Sequence[_Queued]) -> None:
        jobs = [one.job for one in group]
        while True:
            try:
                answers = self._transaction(jobs)
            except sqlite3.OperationalError as error:
                if not any(word in str(error) for word in _PASSING):
                    self._fail(group, error)
                    return
                if self._stopping.is_set():
                    reason = JournalError(f"the journal was closed while it could not be written: {error}")
                    for one in group:
                        one.done.set_exception(reason)
                    return
                if self._make_room(error) and self._full_note not in jobs:
                    jobs.append(self._full_note)
            except Exception as error:
                self._fail(group, error)
                return
            else:
                break
        self.problem = ""
        for one, answer in zip(group, answers, strict=False):  # a note may be the last job
            one.done.set_result(answer)

    def _fail(self, group: Sequence[_Queued], error: Exception) -> None:
        """Give an error to the job that has caused it. Of several jobs, each is tried alone."""
        if len(group) == 1:
            group[0].done.set_exception(error)
            return
        for one in group:
            self._write([one])

    def _transaction(self, jobs: Sequence[Job]) -> list[Any]:
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            answers = [job(connection) for job in jobs]
            self._before_commit(connection)
            connection.execute("COMMIT")
        except BaseException:
            # SQLite has ended the transaction itself where the disk was full.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._after_commit()
        return answers

    def _make_room(self, error: sqlite3.OperationalError) -> bool:
        """Do what can be done about a failed commit, and return True where the reserve was freed."""
        if not self.problem:
            _LOG.warning("the journal cannot be written: %s", error)
        self.problem = f"the journal cannot be written: {error}"
        if "full" not in str(error):
            self._stopping.wait(_RETRY_S)
            self._reconnect()
            return False
        if self._reserve.free():
            return True
        try:
            self._on_full()
        except Exception:
            _LOG.exception("making room on the full disk failed")
        self._stopping.wait(_RETRY_S)
        return False

    def _reconnect(self) -> None:
        """Open the file anew, since a connection may not recover from an error of the disk."""
        try:
            connection = self._connect()
        except JournalError as error:
            self.problem = str(error)
            return
        self.connection.close()
        self.connection = connection


def _closed() -> JournalError:
    return JournalError("the journal was closed. Open it again.")
