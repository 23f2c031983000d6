"""Pair the rows of two results, of batches or of a station's exported journal, in a database on the disk."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import duckdb

from flowedge.errors import DataError
from flowedge.runtime.batch.reading import is_address, store_of
from flowedge.runtime.batch.scratch import Scratch
from flowedge.text import printable

By: TypeAlias = Literal["sha256", "image", "picture", "part"]

BY: Final[tuple[By, ...]] = ("sha256", "image", "picture", "part")
"""The ways to pair rows, in the order in which they are tried."""

_SUFFIXES: Final = (".parquet", ".pq")
_NEEDED: Final = ("verdict", "score")
# A journal's picture has three parts: the journal, the thousand and the number. A batch on the archive has its path.
_PICTURE: Final = "nullif(regexp_extract({}, '[^/]+/[^/]+/[^/]+$'), '')"


class Side(NamedTuple):
    """One of two results.

    Attributes:
        name: The path or the address.
        kind: The word ``batch`` or ``journal``.
        rows: The number of rows.
        images: The number of different images.
        bundles: The SHA-256 of each bundle that judged, with the precision.
        has: The ways in which the rows can be paired.
    """

    name: str
    kind: str
    rows: int
    images: int
    bundles: tuple[str, ...]
    has: tuple[By, ...]


class Pairing(Scratch):
    """The rows of two results, paired image by image.

    The database has the table ``pairs``: ``key``, ``name``, ``old_verdict``, ``new_verdict``, ``old_score``,
    ``new_score``, ``old_margin``, ``new_margin``, ``picture``, ``label`` and ``is_bad``. A margin is the distance of an
    answer from its limit, and is above 0 for an anomalous image. The columns of a side are null where only the other
    side has the image.

    Attributes:
        old: The old result.
        new: The new result.
        by: The way in which the rows were paired.
    """

    def __init__(self, old: str, new: str, *, by: By | None = None, labels: Path | None = None) -> None:
        """Read both results, and pair their rows.

        Args:
            old: A Parquet file, a folder of such files, or an address of either.
            new: The other one.
            by: The way to pair rows. Without one, the first of ``BY`` that pairs any rows is taken.
            labels: A CSV file with the columns ``image`` and ``label``, for results without labels.

        Raises:
            DataError: A result cannot be read, is no result, or no row has a partner.
        """
        super().__init__("compare")
        try:
            self._base.execute(f"SET temp_directory='{self._folder.name}/spilled'")
            self.old, self.new = self._read("old", old), self._read("new", new)
            self.by = self._pair(by)
            self._label(labels)
        except BaseException:
            self.close()
            raise

    def rows(self, query: str, given: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query of the database."""
        found: list[tuple[Any, ...]] = self._base.execute(query, list(given)).fetchall()
        return found

    def row(self, query: str, given: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Return the only row of a query of the database."""
        (found,) = self.rows(query, given)
        return found

    def _read(self, side: str, place: str) -> Side:
        """Read a result into the table of its side."""
        source = (
            f"read_parquet([{', '.join(map(_quoted, _files_of(self._base, place)))}], union_by_name = true)"
        )
        try:
            columns = [name for name, *_ in self.rows(f"DESCRIBE SELECT * FROM {source}")]
            return self._read_columns(side, place, source, columns)
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            raise DataError(
                f"{printable(place)} cannot be read: {printable(first)} Name a result of flowedge batch, or a journal "
                "from flowedge station export."
            ) from error

    def _read_columns(self, side: str, place: str, source: str, columns: Sequence[str]) -> Side:
        named = next((one for one in ("image", "source_id") if one in columns), None)
        missing = [one for one in _NEEDED if one not in columns]
        if named is None or missing:
            raise DataError(
                f"{printable(place)} is no result of flowedge batch and no journal of flowedge station export: it has "
                f"no column {missing[0] if missing else 'image or source_id'}."
            )
        is_journal = named == "source_id"

        def column(name: str, kind: str = "VARCHAR") -> str:
            return f"CAST({name} AS {kind})" if name in columns else f"CAST(NULL AS {kind})"

        limit = f"CASE WHEN {column('log_nfa_limit', 'DOUBLE')} IS NULL THEN score - {column('threshold', 'DOUBLE')} "
        limit += f"ELSE {column('log_nfa_limit', 'DOUBLE')} - {column('log_nfa', 'DOUBLE')} END"
        self._base.execute(
            f"CREATE TABLE {side} AS SELECT {column(named)} AS image, {column('sha256')} AS sha256, "
            f"{column('picture') if is_journal else _PICTURE.format(named)} AS picture, {column('part')} AS part, "
            f"{column('verdict')} AS verdict, CAST(score AS DOUBLE) AS score, {limit} AS margin, "
            f"{column('label')} AS label, {column('number', 'BIGINT')} AS number FROM {source}"
        )
        bundle = f"coalesce({column('bundle_sha256')}, '') || ' ' || coalesce({column('precision')}, '')"
        bundles = self.rows(
            f"SELECT DISTINCT {bundle} FROM {source} WHERE score IS NOT NULL ORDER BY 1 LIMIT 20"
        )
        has = ", ".join(f"count({by})" for by in BY)
        counts = self.row(f"SELECT count(*), count(DISTINCT image), {has} FROM {side}")
        return Side(
            name=place,
            kind="journal" if is_journal else "batch",
            rows=counts[0],
            images=counts[1],
            bundles=tuple(one for (one,) in bundles),
            has=tuple(by for by, count in zip(BY, counts[2:], strict=True) if count),
        )

    def _pair(self, wanted: By | None) -> By:
        """Pair the rows, and return the way in which they were paired."""
        common: list[By] = [by for by in BY if by in self.old.has and by in self.new.has]
        if wanted is not None and wanted not in common:
            raise DataError(
                f"the rows cannot be paired by {wanted}: {self.old.name} has {', '.join(self.old.has) or 'nothing'}, "
                f"and {self.new.name} has {', '.join(self.new.has) or 'nothing'}."
            )
        ways: list[By] = common if wanted is None else [wanted]
        for by in ways:
            if self.row(f"SELECT count(*) FROM (SELECT 1 FROM old JOIN new USING ({by}) LIMIT 1)")[0]:
                break
        else:
            raise DataError(
                f"no image of {printable(self.old.name)} is in {printable(self.new.name)} (compared by "
                f"{wanted or ', '.join(common)}). Compare results of the same images."
            )
        # An image may have several rows: a copy under another name, or a frame that a station judged again. The last
        # record counts.
        newest = (
            "(SELECT * FROM {0} WHERE {1} IS NOT NULL "
            "QUALIFY row_number() OVER (PARTITION BY {1} ORDER BY number DESC, image) = 1)"
        )
        self._base.execute(
            f"CREATE TABLE pairs AS SELECT coalesce(o.{by}, n.{by}) AS key, coalesce(n.image, o.image) AS name, "
            "o.verdict AS old_verdict, n.verdict AS new_verdict, o.score AS old_score, n.score AS new_score, "
            "o.margin AS old_margin, n.margin AS new_margin, coalesce(n.picture, o.picture) AS picture, "
            "coalesce(n.label, o.label) AS label, CAST(NULL AS BOOLEAN) AS is_bad "
            f"FROM {newest.format('old', by)} o FULL JOIN {newest.format('new', by)} n ON o.{by} = n.{by}"
        )
        return by

    def _label(self, labels: Path | None) -> None:
        """Take the labels of a table, and tell the bad images from the good ones."""
        if labels is not None:
            self.read_labels(labels)
            self._base.execute(
                "UPDATE pairs SET label = labels.label FROM labels WHERE labels.name = pairs.name"
            )
        self._base.execute("UPDATE pairs SET is_bad = (lower(label) <> 'good') WHERE label IS NOT NULL")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _files_of(base: duckdb.DuckDBPyConnection, place: str) -> list[str]:
    """Return the Parquet files of a result, as DuckDB names them. Hidden files are left out.

    Raises:
        DataError: There are none.
    """
    if is_address(place):
        files, path = store_of(place)
        schemes = files.protocol if isinstance(files.protocol, tuple) else (files.protocol,)
        if not set(schemes) & set(base.list_filesystems()):  # the other side may be in the same store
            base.register_filesystem(files)
        found = files.find(path) if files.isdir(path) else files.glob(path)
        listed = [files.unstrip_protocol(one) for one in found if _is_shown(one.removeprefix(path))]
    elif os.path.isdir(place):
        listed = [
            glob.escape(os.path.join(folder, name))
            for folder, _, names in os.walk(place)
            for name in names
            if _is_shown(os.path.join(folder, name).removeprefix(place))
        ]
    elif os.path.exists(place):
        return [glob.escape(place)]
    else:
        listed = [glob.escape(one) for one in glob.glob(place, recursive=True)]
    chosen = sorted(one for one in listed if one.lower().endswith(_SUFFIXES))
    if not chosen:
        what = "matches nothing" if glob.has_magic(place) else "holds no Parquet files, or does not exist"
        raise DataError(f"{printable(place)} {what}. Name a result of flowedge batch.")
    return chosen


def _is_shown(relative: str) -> bool:
    return not any(part.startswith((".", "_")) for part in relative.split("/"))
