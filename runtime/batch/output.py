"""Keep the parts of a job's output in a folder on this machine or in an object store."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow
from pyarrow import parquet

from flowedge.errors import DataError
from flowedge.replacing import link_or_copy
from flowedge.runtime.batch.reading import is_address, store_of
from flowedge.text import printable

IDENTITY: Final = b"flowedge.batch"
"""The key of a Parquet file's metadata under which a part keeps the identity of its job."""

_PARTIAL: Final = ".tmp-"
"""The beginning of the names of files that are being written. Readers of Parquet folders skip such names."""

_COMPRESSION: Final = "zstd"
_PIECE: Final = 1 << 20


class PartFolder:
    """A folder of parts. A reader finds each part whole or not at all.

    A part on this machine is written under a temporary name, brought to the disk and renamed. A part in an object store
    is put by one request.
    """

    def __init__(self, place: str) -> None:
        """Name the folder, which need not exist.

        Args:
            place: A path, or an address that fsspec reads.
        """
        self.place = place.rstrip("/") or place
        self._files: Any = None
        self._path = self.place
        if is_address(place):
            self._files, self._path = store_of(self.place)

    def make(self) -> None:
        """Make the folder where it is not there.

        Raises:
            DataError: The folder cannot be made.
        """
        if self._files is not None:
            return
        try:
            Path(self._path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.place} cannot be a folder: {error.strerror}. Name another -o.") from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other jobs on this machine out, and remove what a killed job was writing.

        An object store has no locks, so nothing is locked there.

        Raises:
            DataError: Another job writes into the folder.
        """
        if self._files is not None:
            yield
            return
        handle = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"another job writes into {self.place} now. Wait for its end, or name another -o."
                ) from error
            for left in Path(self._path).glob(f"{_PARTIAL}*"):
                left.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)

    def names(self) -> list[str]:
        """Return the names of all files in the folder that are not hidden, sorted. A missing folder has none."""
        if self._files is None:
            found = os.listdir(self._path) if os.path.isdir(self._path) else []
        else:
            self._files.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                listed = self._files.ls(self._path, detail=False)
                return sorted(name for one in listed if (name := one.rsplit("/", 1)[-1]) and name[0] != ".")
            return []
        return sorted(name for name in found if not name.startswith("."))

    def __contains__(self, name: str) -> bool:
        """Return True where a part is there."""
        place = f"{self._path}/{name}"
        return os.path.exists(place) if self._files is None else bool(self._files.exists(place))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[parquet.ParquetFile]:
        """Open a part for reading.

        Raises:
            DataError: The file is no whole Parquet file.
        """
        place = f"{self._path}/{name}"
        with contextlib.ExitStack() as stack:
            try:
                opens = open if self._files is None else self._files.open
                file = stack.enter_context(opens(place, "rb"))
                opened = parquet.ParquetFile(file)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(
                    f"{self.place}/{name} is no whole Parquet file: {printable(str(error))}. Remove it, and give the "
                    "same command again."
                ) from error
            yield opened

    def put(self, name: str, table: pyarrow.Table) -> None:
        """Write a part. A part of the same name is replaced.

        Raises:
            DataError: The part cannot be written.
        """
        buffer = pyarrow.BufferOutputStream()
        parquet.write_table(table, buffer, compression=_COMPRESSION)
        content = buffer.getvalue().to_pybytes()
        place = f"{self._path}/{name}"
        try:
            if self._files is not None:
                self._files.pipe_file(place, content)
                return
            with _whole_file(Path(place)) as file:
                file.write(content)
        except OSError as error:
            raise DataError(
                f"{self.place}/{name} cannot be written: {error.strerror or printable(str(error))}. Make room or "
                "check the permissions, and give the same command again to go on."
            ) from error

    def remove(self, name: str) -> None:
        """Delete a part."""
        place = f"{self._path}/{name}"
        if self._files is None:
            Path(place).unlink(missing_ok=True)
        else:
            self._files.rm_file(place)

    def join(self, names: list[str], target: str, schema: pyarrow.Schema) -> None:
        """Write the rows of parts into one file in the order of the names. A reader sees all of it or the old file.

        Args:
            names: The parts.
            target: The path or the address of the file.
            schema: The columns and the metadata of the file.

        Raises:
            DataError: The file cannot be written.
        """
        try:
            with (
                _whole_object(target) if is_address(target) else _whole_file(Path(target)) as file,
                parquet.ParquetWriter(file, schema, compression=_COMPRESSION) as writer,
            ):
                for name in names:
                    with self.open(name) as part:
                        for batch in part.iter_batches():
                            writer.write_batch(pyarrow.RecordBatch.from_arrays(batch.columns, schema=schema))
        except OSError as error:
            raise DataError(
                f"{target} cannot be written: {error.strerror or printable(str(error))}. Make room or check the "
                "permissions, and give the same command again to go on."
            ) from error

    def delete(self) -> None:
        """Delete the folder and its parts."""
        for name in self.names():
            self.remove(name)
        if self._files is None:
            with contextlib.suppress(OSError):
                os.rmdir(self._path)

    def name_of_taken(self, file: str) -> str:
        """Return the name of the part that `take` makes of a file."""
        return f"part-of-{Path(file).name}"

    def take(self, file: str) -> None:
        """Begin a folder with the rows of a file that an earlier job wrote. The file stays as it is.

        Args:
            file: The path or the address of the file.
        """
        name = self.name_of_taken(file)
        if self._files is not None:
            self._files.copy(file, f"{self._path}/{name}")
            return
        # The folder appears together with its first part, so a job that is killed here leaves nothing half done.
        draft = Path(f"{self._path}{_PARTIAL}{secrets.token_hex(4)}")
        draft.mkdir()
        link_or_copy(Path(file), draft / name)
        draft.rename(self._path)


def identity_of(part: parquet.ParquetFile) -> bytes | None:
    """Return the identity of the job that wrote a part, or None for a file that no job wrote."""
    found: bytes | None = (part.schema_arrow.metadata or {}).get(IDENTITY)
    return found


@contextlib.contextmanager
def _whole_object(target: str) -> Iterator[Any]:
    """Give a file to write that is put into an object store only where nothing fails on the way."""
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with store_of(target)[0].open(target, "wb") as stored:
            shutil.copyfileobj(file, stored, _PIECE)


@contextlib.contextmanager
def _whole_file(target: Path) -> Iterator[Any]:
    """Give a file to write that gets its name when all of it is on the disk."""
    partial = target.with_name(f"{_PARTIAL}{target.name}-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        partial.unlink(missing_ok=True)
