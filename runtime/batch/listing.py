"""List the files of a job, and find those that no part of the output has yet. A database on the disk holds the list."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import pyarrow

from flowedge.errors import DataError
from flowedge.runtime.batch.chunks import Chunk, Columns, Kind, ListedFile, together
from flowedge.runtime.batch.output import PartFolder
from flowedge.runtime.batch.rows import files_of_rows
from flowedge.runtime.batch.scratch import Scratch
from flowedge.runtime.batch.sources import entries_of, row_groups_of
from flowedge.text import printable

_KINDS: Final[tuple[Kind, ...]] = ("image", "shard", "table")
_AT_ONCE: Final = 10_000

_LISTED: Final = pyarrow.schema(
    [
        ("path", pyarrow.binary()),
        ("name", pyarrow.string()),
        ("kind", pyarrow.string()),
        ("version", pyarrow.string()),
        ("origin", pyarrow.int32()),
        ("row_group", pyarrow.int32()),
        ("images", pyarrow.int64()),
        ("problem", pyarrow.string()),
    ]
)


class Counts(NamedTuple):
    """The numbers of a finished output.

    Attributes:
        rows: The number of rows.
        images: The number of different images.
        lost: The number of listed image files without a row.
        verdicts: The number of rows by verdict.
    """

    rows: int
    images: int
    lost: int
    verdicts: dict[str, int]


class Listing(Scratch):
    """The files of a job in a database, which is deleted with the listing. Memory does not grow with the files."""

    def __init__(self) -> None:
        """Make an empty database in the folder for temporary files."""
        super().__init__("batch")
        self._base.execute("SET threads=1; SET preserve_insertion_order=false")
        self._base.execute(
            "CREATE TABLE listed (path BLOB, name VARCHAR, kind VARCHAR, version VARCHAR, origin INTEGER, "
            "row_group INTEGER, images BIGINT, problem VARCHAR);"
            "CREATE TABLE labels (name VARCHAR, label VARCHAR);"
            "CREATE TABLE done (name VARCHAR, version VARCHAR, part VARCHAR)"
        )

    def add(self, sources: Sequence[str], columns: Columns) -> list[str]:
        """List the files of sources.

        A folder or a pattern stands for its images. Where it has none, it stands for its tar shards, and where it has
        none of these either, for its Parquet tables.

        Args:
            sources: Folders, patterns, files, and addresses that fsspec reads.
            columns: The columns that tables must have.

        Returns:
            Sentences about what was left out.

        Raises:
            DataError: Nothing is there, a folder cannot be listed, or a table lacks a column.
            SourceError: A store cannot be opened.
        """
        notes = []
        for origin, source in enumerate(sources):
            self._insert("listed", _LISTED, (one | {"origin": origin} for one in entries_of(source)))
            found = dict(
                self._base.execute(
                    "SELECT kind, count(*) FROM listed WHERE origin = ? GROUP BY kind", [origin]
                ).fetchall()
            )
            kind = next((one for one in _KINDS if one in found), None)
            if kind is None:
                raise DataError(
                    f"{printable(source)} holds no images, no tar shards and no Parquet tables. Name a folder, a "
                    "pattern, a file or an address that does."
                )
            self._base.execute("DELETE FROM listed WHERE origin = ? AND kind <> ?", [origin, kind])
            others = sum(count for one, count in found.items() if one != kind)
            if others:
                notes.append(
                    f"{printable(source)}: {others} shards and tables beside the images were left out."
                )
        self._expand_tables(columns)
        # Sources may overlap. Each file is taken once.
        self._base.execute(
            "CREATE TABLE unique_files AS SELECT DISTINCT ON (name) * FROM listed ORDER BY name, origin;"
            "DROP TABLE listed; ALTER TABLE unique_files RENAME TO listed"
        )
        return notes

    def label_by_folder(self) -> None:
        """Give each image the name of its folder as its label."""
        self._base.execute(
            "INSERT INTO labels SELECT name, regexp_extract(name, '([^/]*)/[^/]*$', 1) FROM listed WHERE kind = 'image'"
        )

    def add_done(self, parts: PartFolder, names: Sequence[str]) -> None:
        """Read which files the parts of the output have rows of.

        Raises:
            DataError: A part cannot be read.
        """
        schema = pyarrow.schema([(one, pyarrow.string()) for one in ("name", "version", "part")])
        for part in names:
            with parts.open(part) as opened:
                for batch in opened.iter_batches(_AT_ONCE, columns=["image", "source", "version"]):
                    name = files_of_rows(batch)
                    of_part = pyarrow.repeat(part, len(batch))
                    found = pyarrow.Table.from_arrays([name, batch["version"], of_part], schema=schema)
                    self._base.register("found", found)
                    self._base.execute("INSERT INTO done SELECT DISTINCT * FROM found")

    def outdated(self) -> dict[str, list[str]]:
        """Return the files that changed since a part got their rows, by the name of the part."""
        found = self._base.execute(
            "SELECT done.part, done.name FROM done JOIN listed USING (name) WHERE done.version <> listed.version"
        ).fetchall()
        by_part: dict[str, list[str]] = {}
        for part, name in found:
            by_part.setdefault(part, []).append(name)
        return by_part

    def totals(self) -> tuple[int, int | None, int]:
        """Return the number of listed files, of images that are not done, and of files whose rows are there.

        The number of images is None where a shard is not done, since nobody has counted its images.
        """
        files, images, unknown = self._base.execute(
            f"SELECT (SELECT count(*) FROM listed), coalesce(sum(images), 0), count(*) FILTER (WHERE kind = 'shard') "
            f"FROM ({_REMAINING})"
        ).fetchall()[0]
        (done,) = self._base.execute(
            "SELECT count(*) FROM listed WHERE EXISTS (SELECT 1 FROM done WHERE done.name = listed.name AND "
            "done.version = listed.version)"
        ).fetchall()[0]
        return files, None if unknown else int(images), done

    def chunks(self, images: int) -> Iterator[Chunk]:
        """Give the chunks that are not done, the files in the order of their names.

        Args:
            images: The number of images of a chunk. A shard or a row group is a chunk of its own.
        """
        cursor = self._base.cursor()
        rows = cursor.execute(
            f"SELECT path, version, label, kind, row_group, problem FROM ({_REMAINING}) LEFT JOIN labels USING (name) "
            "ORDER BY kind, name"
        )
        files = _fetched(rows)
        for kind, of_kind in itertools.groupby(files, key=lambda row: row[3]):
            if kind == "image":
                while taken := list(itertools.islice(of_kind, images)):
                    yield together(
                        [ListedFile(path=bytes(row[0]), version=row[1], label=row[2]) for row in taken]
                    )
            else:
                for path, version, _, _, row_group, problem in of_kind:
                    file = ListedFile(path=bytes(path), version=version)
                    yield Chunk(kind=kind, files=(file,), row_group=row_group, problem=problem or "")

    def count(self, parts: PartFolder, names: Sequence[str]) -> Counts:
        """Count the rows of an output.

        Raises:
            DataError: A part cannot be read.
        """
        self._base.execute("CREATE OR REPLACE TABLE rows_found (image VARCHAR, verdict VARCHAR)")
        for part in names:
            with parts.open(part) as opened:
                for batch in opened.iter_batches(_AT_ONCE, columns=["image", "verdict"]):
                    self._base.register("found", pyarrow.Table.from_batches([batch]))
                    self._base.execute("INSERT INTO rows_found SELECT * FROM found")
        rows, images = self._base.execute(
            "SELECT count(*), count(DISTINCT image) FROM rows_found"
        ).fetchall()[0]
        (lost,) = self._base.execute(
            "SELECT count(*) FROM listed WHERE kind = 'image' AND NOT EXISTS (SELECT 1 FROM rows_found WHERE "
            "rows_found.image = listed.name)"
        ).fetchall()[0]
        verdicts = self._base.execute(
            "SELECT verdict, count(*) FROM rows_found GROUP BY ALL ORDER BY 1"
        ).fetchall()
        return Counts(rows, images, lost, dict(verdicts))

    def _insert(self, table: str, schema: pyarrow.Schema, rows: Iterable[dict[str, Any]]) -> None:
        waiting = iter(rows)
        while taken := list(itertools.islice(waiting, _AT_ONCE)):
            self._base.register("found", pyarrow.Table.from_pylist(taken, schema=schema))
            self._base.execute(f"INSERT INTO {table} SELECT * FROM found")

    def _expand_tables(self, columns: Columns) -> None:
        """Put a row for each row group in the place of each table."""
        tables = self._base.execute(
            "SELECT path, version, origin FROM listed WHERE kind = 'table'"
        ).fetchall()
        self._base.execute("DELETE FROM listed WHERE kind = 'table'")
        self._insert(
            "listed",
            _LISTED,
            (
                one | {"origin": origin}
                for path, version, origin in tables
                for one in row_groups_of(bytes(path), version, columns)
            ),
        )


_REMAINING: Final = (
    "SELECT listed.* FROM listed WHERE NOT EXISTS (SELECT 1 FROM done WHERE done.name = listed.name AND "
    "done.version = listed.version)"
)


def _fetched(rows: Any) -> Iterator[tuple[Any, ...]]:
    while found := rows.fetchmany(_AT_ONCE):
        yield from found


def described(files: int, done: int) -> str:
    """Return a sentence on how much of a job is done already. A row group of a table counts as a file."""
    listed = f"{files} {'file' if files == 1 else 'files'} listed"
    return f"{listed}, {done} of them judged before" if done else listed
