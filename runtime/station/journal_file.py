"""Open the SQLite file of a station's journal: lock, schema, migrations, and the reserve for a full disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flowedge.errors import JournalError

NAME: Final = "journal.sqlite"
"""The name of the journal's file in the station's state folder."""

_APPLICATION: Final = 0x464C4557  # "FLEW", by which SQLite's header tells a journal from any other database

MIGRATIONS: Final = (
    """
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE records (
        number INTEGER PRIMARY KEY,
        time TEXT NOT NULL,
        operating_s REAL NOT NULL,
        signal TEXT NOT NULL,
        source_id TEXT NOT NULL,
        source_key TEXT NOT NULL,
        body TEXT NOT NULL
    );
    CREATE INDEX records_by_time ON records (time);
    CREATE INDEX records_nok ON records (number) WHERE signal = 'nok';
    CREATE INDEX records_of_files ON records (source_id, source_key) WHERE source_key != '';
    CREATE TABLE events (
        number INTEGER PRIMARY KEY,
        time TEXT NOT NULL,
        operating_s REAL NOT NULL,
        kind TEXT NOT NULL,
        body TEXT NOT NULL
    );
    CREATE TABLE cursors (sink TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE kept_files (source_id TEXT, source_key TEXT, PRIMARY KEY (source_id, source_key)) WITHOUT ROWID;
    CREATE INDEX records_of_parts ON records (json_extract(body, '$.part'))
        WHERE json_extract(body, '$.part') IS NOT NULL;
    """,
)
"""The statements that make each version of the schema from the one before. The first makes version 1 of nothing."""

VERSION: Final = len(MIGRATIONS)
"""The version of the schema that this FlowEdge writes."""


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open a journal for the one thread that writes, make it where it is not there, and bring it up to date.

    Raises:
        JournalError: The file cannot be opened, is no journal, is damaged, or is of a newer FlowEdge.
    """
    with _in_words(path):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            # The pages of deleted records can be freed later only where this is set before the first table is made.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            version = _version_of(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            # FULL makes every commit wait for the disk, so that a committed record survives a power cut.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {8 << 20}")
            _migrate(connection, version)
        except BaseException:
            connection.close()
            raise
    return connection


def begin_run(connection: sqlite3.Connection, path: Path) -> tuple[str, str]:
    """Count a run of the station's process, and return the names of the journal and of the run.

    The name of a run ends in random digits. A journal that was restored from a backup counts its runs and records from
    the backup on again, and the digits keep their names and ids apart from those that receivers have.

    Raises:
        JournalError: The file cannot be written.
    """
    with _in_words(path):
        connection.execute("UPDATE facts SET value = value + 1 WHERE name = 'runs'")
        facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
    return facts["journal"], f"{facts['journal']}-r{facts['runs']}-{secrets.token_hex(3)}"


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open a journal for reading, beside the process that writes.

    Raises:
        JournalError: The file cannot be opened, is no journal, is damaged, or is of a newer FlowEdge.
    """
    if not path.is_file():
        raise JournalError(
            f"{path} does not exist. A station makes it when it runs for the first time: flowedge station run FILE."
        )
    with _in_words(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=10,
        )
        try:
            version = _version_of(connection, path)
        except BaseException:
            connection.close()
            raise
    if version == 0:
        connection.close()
        raise JournalError(f"{path} is empty: no station has written to it yet.")
    return connection


def lock(path: Path) -> int:
    """Lock a journal for this process, since two stations must not write to one.

    Returns:
        The handle of the lock. The kernel frees the lock when the handle is closed or the process ends.

    Raises:
        JournalError: Another process holds the lock, or the folder cannot be written.
    """
    file = path.with_name(path.name + ".lock")
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise JournalError(
            f"{file} cannot be made: {error.strerror}. Check the permissions of the station's state folder."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(handle, 20).decode("ascii", "replace").strip()
        os.close(handle)
        raise JournalError(
            f"{path} is in use by another station (process {owner or 'unknown'}). Stop that one, or give this one "
            "another state folder."
        ) from error
    # The number only helps a person. A station that starts on a full disk goes on without it.
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
    return handle


class Reserve:
    """A file that takes up space beside the journal, so that a full disk has room again when it is deleted.

    SQLite can neither insert nor delete on a full disk, so it cannot make room by itself.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Name the file.

        Args:
            path: The file.
            size: The number of bytes.
        """
        self._path = path
        self._size = size

    @property
    def is_needed(self) -> bool:
        """True where the disk has less room than the file takes."""
        return self._room() < self._size

    def free(self) -> bool:
        """Delete the file, and return True where there was one."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def take(self) -> bool:
        """Make the file where it is missing and the disk has room for it twice. Return True where it is there."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_size == self._size:
                return True
        try:
            if self._room() < 2 * self._size:
                return False
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                # A file that is only truncated to a size has no blocks that could be freed.
                os.posix_fallocate(handle, 0, self._size)
            finally:
                os.close(handle)
        except OSError:
            self.free()
            return False
        return True

    def _room(self) -> int:
        return shutil.disk_usage(self._path.parent).free


def _version_of(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of a journal, which is 0 for a file without tables.

    Raises:
        JournalError: The file is another program's database, or is of a newer FlowEdge.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION and (application or version or tables):
        raise JournalError(f"{path} is a database, but no station's journal. Name another state folder.")
    if version > VERSION:
        raise JournalError(
            f"{path} is of a newer FlowEdge: its schema has version {version}, and this one knows versions up to "
            f"{VERSION}. Install the newer FlowEdge again, or name another state folder."
        )
    return int(version)


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the schema up to date in one transaction, so that an interrupted migration leaves the old version."""
    if version == VERSION:
        return
    script = "".join(MIGRATIONS[version:])
    if version == 0:
        script += f"INSERT INTO facts VALUES ('journal', '{secrets.token_hex(4)}'), ('runs', '0');"
    connection.executescript(
        f"BEGIN IMMEDIATE; {script} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
    )


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turn SQLite's errors at opening into errors that name the file and the next step."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise JournalError(
                f"{path} cannot be opened: {error}. Check the permissions and the free space of its folder."
            ) from error
        raise JournalError(
            f"{path} is damaged or is no database: {error}. Move it away, and the station makes a new one."
        ) from error
