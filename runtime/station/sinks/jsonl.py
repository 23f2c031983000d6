"""Write records as lines of JSON to a file or to the standard output."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Final

from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.sinks import SinkError, StationLink
from flowedge.runtime.station.sinks.payload import payload_of
from flowedge.runtime.station.sinks.settings import JsonLinesSettings

_TAIL_BYTES: Final = 1 << 20  # longer than the longest line


class JsonLinesSink:
    """A file with one line for each record. Full files are renamed with the number of their last record.

    A process that dies while it writes leaves half a line, which the next one cuts off before it writes the record
    again. Another program may rename or delete the file at any time, and a new one is begun then.
    """

    def __init__(self, settings: JsonLinesSettings) -> None:
        """Name the file, without opening it."""
        self._settings, self.name = settings, settings.cursor
        self._is_stdout = settings.path.name == "-"
        self._file: FileIO | None = None

    def open(self) -> None:
        """Open the file at its end. A half line at the end is cut off."""
        if self._is_stdout or self._is_current():
            return
        self.close()
        try:
            self._file = opened = _open_for_lines(self._settings.path)
            _cut_half_line(opened)
        except OSError as error:
            self.close()
            raise SinkError(_words(self._settings.path, error)) from error

    def deliver(self, records: Sequence[Record]) -> None:
        """Append a line for each record."""
        self._append(b"".join(payload_of(record) + b"\n" for record in records))
        limit = self._settings.rotate_mib * (1 << 20)
        if self._file is None or not limit or self._file.tell() < limit:
            return
        try:
            self._rotate(records[-1].number)
        except OSError as error:
            raise SinkError(_words(self._settings.path, error), delivered=len(records)) from error

    def event(self, event: Event) -> None:
        """Append a line for the event. An event has the key ``kind``, and no record has it."""
        self._append(payload_of(event) + b"\n")

    def beat(self) -> None:
        """Do nothing, since a file shows no life."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _append(self, lines: bytes) -> None:
        if self._is_stdout:
            try:
                # The command line wraps the stream, which takes text alone.
                with FileIO(sys.stdout.fileno(), "w", closefd=False) as stream:
                    _write_all(stream, lines)
            except (OSError, ValueError) as error:
                raise SinkError(f"the standard output takes no line: {error}.") from error
            return
        self.open()
        assert self._file is not None  # opened above
        end = self._file.seek(0, os.SEEK_END)
        try:
            _write_all(self._file, lines)
            if self._settings.fsync == "always":
                os.fsync(self._file.fileno())
        except OSError as error:
            # What fitted on a full disk is taken back, since the whole batch will be written again.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), end)
            self.close()
            raise SinkError(_words(self._settings.path, error)) from error

    def _is_current(self) -> bool:
        """Return True where the open file is still the one with this name."""
        if self._file is None:
            return False
        try:
            named = os.stat(self._settings.path, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(named, os.fstat(self._file.fileno()))

    def _rotate(self, last_number: int) -> None:
        """Rename the full file, and delete the oldest ones."""
        path, keep = self._settings.path, self._settings.keep
        self.close()
        full = path.with_name(f"{path.stem}-{last_number:012d}{path.suffix}")
        # A journal that began anew gives numbers again, and no full file may be lost for that.
        while full.exists():
            full = full.with_name(f"{full.stem}+{path.suffix}")
        path.rename(full)
        for old in _full_files(path)[:-keep] if keep else ():
            old.unlink(missing_ok=True)


def make(settings: JsonLinesSettings, link: StationLink) -> JsonLinesSink:
    """Make the sink of its settings."""
    del link  # a file shows nothing of the station
    return JsonLinesSink(settings)


def probe(settings: JsonLinesSettings, link: StationLink) -> str:
    """Look whether the file can be written, and leave nothing behind."""
    if settings.path.name == "-":
        return "the standard output is open."
    existed = os.path.lexists(settings.path)
    sink = make(settings, link)
    sink.open()
    sink.close()
    if not existed:
        settings.path.unlink()
    return f"{settings.path} can be written."


def _open_for_lines(path: Path) -> FileIO:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    handle = os.open(path, flags, 0o640)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "it is no regular file")
    # A buffer would write what is left of a failed batch when the file is closed.
    return FileIO(handle, "r+")


def _cut_half_line(file: FileIO) -> None:
    end = file.seek(0, os.SEEK_END)
    start = max(end - _TAIL_BYTES, 0)
    file.seek(start)
    tail = file.read(end - start)
    half = tail[tail.rfind(b"\n") + 1 :]
    if half.startswith(b"{"):
        os.ftruncate(file.fileno(), end - len(half))
    elif half:
        # A line that cannot be the station's belongs to somebody else, and stays.
        _write_all(file, b"\n")


def _write_all(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _full_files(path: Path) -> list[Path]:
    """Return the renamed files, the oldest first."""
    full = re.compile(rf"{re.escape(path.stem)}-\d{{12,}}\+*{re.escape(path.suffix)}")
    return sorted(
        (one for one in path.parent.iterdir() if full.fullmatch(one.name)),
        key=lambda one: one.stat().st_mtime_ns,
    )


def _words(path: Path, error: OSError) -> str:
    return (
        f"{path} cannot be written: {error.strerror}. Check the folder, the permissions and the free space."
    )
