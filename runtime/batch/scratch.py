"""Keep the rows of one piece of work in a DuckDB database, so that memory does not grow with them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

import duckdb

from flowedge.errors import DataError
from flowedge.text import printable

_MEMORY: Final = "512MB"

_Self = TypeVar("_Self", bound="Scratch")


class Scratch:
    """A database in the folder for temporary files, which is deleted at the end. It holds at most 512 MB in memory."""

    def __init__(self, name: str) -> None:
        """Make an empty database.

        Args:
            name: The word for the work in the name of the folder.
        """
        self._folder = tempfile.TemporaryDirectory(prefix=f"flowedge-{name}-")
        self._base = duckdb.connect(str(Path(self._folder.name, f"{name}.duckdb")))
        self._base.execute(f"SET memory_limit='{_MEMORY}'")

    def read_labels(self, file: Path) -> None:
        """Add the rows of a CSV file with labels to the table ``labels``, which has the columns ``name`` and ``label``.

        Args:
            file: A file with the columns ``image`` and ``label``. A relative path is relative to the file's folder.

        Raises:
            DataError: The file cannot be read, or has no such columns.
        """
        self._base.execute("CREATE TABLE IF NOT EXISTS labels (name VARCHAR, label VARCHAR)")
        try:
            self._base.execute(
                "INSERT INTO labels SELECT CASE WHEN image LIKE '/%' OR image LIKE '%://%' THEN image "
                "ELSE ? || '/' || image END, label FROM read_csv(?, all_varchar = true, header = true)",
                [str(file.absolute().parent), str(file)],
            )
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            raise DataError(
                f"{file} is no table of labels: {printable(first)}. Write a CSV file with the columns image and label."
            ) from error

    def close(self) -> None:
        """Delete the database."""
        self._base.close()
        self._folder.cleanup()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
