"""Keep the pictures of a station in a folder: write whole files, count their bytes, and delete the oldest."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from flowedge.files import existing_folder
from flowedge.runtime.station.record import Signal, picture_name

_JOURNAL: Final = re.compile(r"[0-9a-f]{8}")
_CHUNK: Final = re.compile(r"[0-9]{7}")
_PICTURE: Final = re.compile(r"([0-9]{10})-(ok|nok)(\.frame)?\.(jpg|png)")
_PARTIAL: Final = re.compile(r"\.[0-9]{10}-(ok|nok)(\.frame)?\.(jpg|png)\.partial")
_ID: Final = re.compile(r"([0-9a-f]{8})-([0-9]{1,10})(-[0-9a-f]{6})?")


class _Chunk(NamedTuple):
    """A folder of the pictures of a thousand records. Chunks sort by age within a journal.

    Attributes:
        is_current: True for the journal that is written now. The pictures of a journal before it are older.
        journal: The name of the journal.
        place: The thousands of the records' numbers.
    """

    is_current: bool
    journal: str
    place: str


class _Picture(NamedTuple):
    number: int
    signal: str
    path: str
    size: int


class PictureStore:
    """The folder of the pictures. Threads may share it.

    The names of files are made of the journal's name, the record's number and the signal. The folder may hold other
    files, which are neither counted nor deleted.
    """

    def __init__(self, folder: Path, journal: str) -> None:
        """Name the folder.

        Args:
            folder: The folder, which is made with the first picture.
            journal: The name of the journal that gives the numbers.
        """
        self.folder = folder
        self._journal = journal
        self._sizes: dict[_Chunk, dict[str, int]] = {}
        self._size = 0
        self._lock = threading.RLock()

    def scan(self) -> None:
        """Count what is there, and delete what an interrupted run left half-written."""
        sizes: dict[_Chunk, dict[str, int]] = {}
        with self._changing():
            for journal in _folders(self.folder, _JOURNAL):
                for place in _folders(self.folder / journal, _CHUNK):
                    chunk = _Chunk(journal == self._journal, journal, place)
                    self._delete_partials(chunk)
                    sizes[chunk] = {"ok": 0, "nok": 0}
                    for one in self._pictures(chunk):
                        sizes[chunk][one.signal] += one.size
            self._sizes = sizes

    @property
    def size(self) -> int:
        """The bytes of all pictures when the last change of the folder was over. Nobody waits for it."""
        return self._size

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the folder, which one thread does at a time, and count the bytes."""
        with self._lock:
            try:
                yield
            finally:
                self._size = sum(sum(sizes.values()) for sizes in self._sizes.values())

    @property
    def free(self) -> int:
        """The bytes that are free on the disk, for a user without privileges."""
        return shutil.disk_usage(existing_folder(self.folder)).free

    def shares_disk_with(self, folder: Path) -> bool:
        """Return True where the pictures are on the same file system as a folder."""
        return os.stat(existing_folder(self.folder)).st_dev == os.stat(folder).st_dev

    def write(self, name: str, content: bytes) -> None:
        """Write a picture. After a power cut the whole picture is there, or none of it.

        Args:
            name: The name, as `flowedge.runtime.station.record.picture_name` makes it, perhaps with another ending.
            content: The bytes of the file.

        Raises:
            OSError: The file cannot be written. Nothing of it stays.
        """
        journal, place, file = name.split("/")
        folder = self.folder / journal / place
        signal = _PICTURE.fullmatch(file)
        assert signal is not None, "the journal makes the names"
        partial = folder / f".{file}.partial"
        # Another thread may remove an empty folder, or a partial file that it takes for one of an earlier run.
        with self._changing():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as opened:
                    opened.write(content)
                    opened.flush()
                    # Without this a power cut can leave the name with an empty file.
                    os.fsync(opened.fileno())
                partial.replace(folder / file)
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
            chunk = _Chunk(journal == self._journal, journal, place)
            self._sizes.setdefault(chunk, {"ok": 0, "nok": 0})[signal[2]] += len(content)

    def find(self, record_id: str, signal: Signal) -> Path | None:
        """Return the picture of a record, if it is there.

        Args:
            record_id: The id that the journal gave to the record. Any other text finds nothing.
            signal: The signal of the record.
        """
        found = _ID.fullmatch(record_id)
        if found is None:
            return None
        path = self.folder / picture_name(found[1], int(found[2]), signal)
        return path if path.is_file() else None

    def delete_oldest(self, size: int) -> int:
        """Delete the oldest pictures of accepted frames, and then of rejected ones.

        Args:
            size: The number of bytes to delete.

        Returns:
            The number of bytes that were deleted, which is smaller only where nothing is left.
        """
        deleted = 0
        with self._changing():
            for signal in ("ok", "nok"):
                for chunk in sorted(self._sizes, key=_age):
                    if deleted >= size:
                        return deleted
                    if self._sizes[chunk][signal]:
                        deleted += self._delete(chunk, signal, size - deleted)
        return deleted

    def delete_up_to(self, number: int, signal: Signal) -> int:
        """Delete the pictures with a signal of the journal's records up to a number, and return their bytes."""
        deleted = 0
        with self._changing():
            for chunk in sorted(self._sizes, key=_age):
                if chunk.is_current and int(chunk.place) <= number // 1000 and self._sizes[chunk][signal]:
                    deleted += self._delete(chunk, signal, self._sizes[chunk][signal], number)
        return deleted

    def _delete(self, chunk: _Chunk, signal: str, size: int, last: int | None = None) -> int:
        """Delete pictures of one chunk, the oldest first, until enough bytes are deleted."""
        deleted = 0
        for one in self._pictures(chunk):
            if deleted >= size or (last is not None and one.number > last):
                break
            if one.signal == signal:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(one.path)
                deleted += one.size
        else:
            # Whatever was counted, nothing with this signal is left.
            self._sizes[chunk][signal] = deleted
        self._sizes[chunk][signal] -= deleted
        if not any(self._sizes[chunk].values()):
            del self._sizes[chunk]
            with contextlib.suppress(OSError):  # another file lies in it
                self._folder_of(chunk).rmdir()
        return deleted

    def _pictures(self, chunk: _Chunk) -> list[_Picture]:
        """List the pictures of one chunk, the oldest first."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder_of(chunk)) as entries:
            for entry in entries:
                if (name := _PICTURE.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        size = entry.stat(follow_symlinks=False).st_size
                        found.append(_Picture(int(name[1]), name[2], entry.path, size))
        return sorted(found)

    def _delete_partials(self, chunk: _Chunk) -> None:
        with os.scandir(self._folder_of(chunk)) as entries:
            for entry in entries:
                if _PARTIAL.fullmatch(entry.name):
                    os.unlink(entry.path)

    def _folder_of(self, chunk: _Chunk) -> Path:
        return self.folder / chunk.journal / chunk.place


def frame_name(picture: str, kind: str) -> str:
    """Return the name of the bare frame that belongs to a picture.

    Args:
        picture: The name of the picture.
        kind: The ending of the frame's file: ``jpg`` or ``png``.
    """
    return f"{picture.removesuffix('.jpg')}.frame.{kind}"


def _age(chunk: _Chunk) -> tuple[bool, str, str]:
    return chunk.is_current, chunk.journal, chunk.place


def _folders(folder: Path, pattern: re.Pattern[str]) -> Iterator[str]:
    """Give the names of the folders inside of a folder that match a pattern. Links are left out."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield entry.name
