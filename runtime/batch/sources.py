"""Find the files that the sources of a job stand for: on this machine, in object stores, and the parts of tables."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow
from pyarrow import parquet

from flowedge.errors import DataError, ImageError
from flowedge.runtime.batch.chunks import Columns, Kind
from flowedge.runtime.batch.reading import is_address, open_stored, row_group_name, store_of
from flowedge.runtime.frames.finding import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    files_below,
    find_images,
    may_be_an_image,
)
from flowedge.runtime.image_files import version_of
from flowedge.text import printable

_SHARDS: Final = re.compile(r"\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2|txz)$", re.IGNORECASE)
_TABLES: Final = re.compile(r"\.(parquet|pq)$", re.IGNORECASE)
# What the libraries of the stores call the state of an object.
_STATES: Final = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
)


def entries_of(source: str) -> Iterator[dict[str, Any]]:
    """Give the columns of a listing for each image, tar shard and table that a source stands for.

    Args:
        source: A folder, a pattern, a file, or an address that fsspec reads.

    Raises:
        DataError: The source does not exist, or it cannot be listed.
        SourceError: The store cannot be opened.
    """
    if is_address(source):
        yield from _stored_entries(source)
        return
    place = os.path.abspath(source.removeprefix("file://"))
    if os.path.isdir(place):
        with contextlib.closing(_scan(place)):
            paths: Iterable[Path] = files_below(Path(place))
    elif os.path.lexists(place):
        yield _entry(os.fsencode(place), _kind_of(place) or "image", version_of(Path(place)))
        return
    elif glob.has_magic(place):
        found = find_images(place)
        paths = [*found.images, *found.others]
    else:
        raise DataError(
            f"{printable(source)} does not exist. Name a folder, a quoted pattern, a file or an address such as "
            "s3://bucket/folder."
        )
    for path in paths:
        if path.name.startswith("."):
            continue
        kind = _kind_of(path.name) or ("image" if may_be_an_image(path) else None)
        if kind is not None:
            yield _entry(os.fsencode(path), kind, version_of(path))


def _scan(folder: str) -> Any:
    try:
        return os.scandir(folder)
    except OSError as error:
        raise DataError(
            f"{printable(folder)} cannot be read: {error.strerror}. Check its permissions."
        ) from error


def _stored_entries(source: str) -> Iterator[dict[str, Any]]:
    """List the objects of a store."""
    files, path = store_of(source)
    try:
        if glob.has_magic(path):
            found: Iterable[dict[str, Any]] = files.glob(path, detail=True).values()
        elif files.isdir(path):
            found = (info for _, _, inside in files.walk(path, detail=True) for info in inside.values())
        else:
            info = files.info(path)
            yield _entry(_address(files, info["name"]), _kind_of(path) or "image", _state_of(info))
            return
        for info in found:
            relative = info["name"].removeprefix(path)
            if info["type"] != "file" or any(one.startswith(".") for one in relative.split("/")):
                continue
            suffix = os.path.splitext(info["name"])[1].lower()
            kind = _kind_of(info["name"]) or ("image" if suffix in IMAGE_SUFFIXES | UNREAD_SUFFIXES else None)
            if kind is not None:
                yield _entry(_address(files, info["name"]), kind, _state_of(info))
    except FileNotFoundError as error:
        raise DataError(f"{printable(source)} does not exist. Check the address.") from error
    except PermissionError as error:
        raise DataError(f"{printable(source)} may not be read: {printable(str(error))}.") from error


def _address(files: Any, path: str) -> bytes:
    return os.fsencode(files.unstrip_protocol(path))


def _state_of(info: dict[str, Any]) -> str:
    state = next((info[name] for name in _STATES if info.get(name)), "")
    return f"{info.get('size')}-{state}"


def _kind_of(name: str) -> Kind | None:
    if _SHARDS.search(name):
        return "shard"
    return "table" if _TABLES.search(name) else None


def _entry(path: bytes, kind: Kind, version: str) -> dict[str, Any]:
    images = 1 if kind == "image" else None
    return {
        "path": path,
        "name": printable(os.fsdecode(path)),
        "kind": kind,
        "version": version,
        "images": images,
    }


def row_groups_of(path: bytes, version: str, columns: Columns) -> Iterator[dict[str, Any]]:
    """Give the columns of a listing for each row group of a table, or for the table where it cannot be read.

    Raises:
        DataError: The table lacks a column.
    """
    address = os.fsdecode(path)
    entry = _entry(path, "table", version)
    try:
        with open_stored(address) as file:
            table = parquet.ParquetFile(file)
            facts, names = table.metadata, table.schema_arrow.names
            sizes = [facts.row_group(number).num_rows for number in range(facts.num_row_groups)]
    except (pyarrow.ArrowException, OSError, ImageError) as error:
        yield entry | {"problem": f"the table cannot be read: {printable(str(error))}", "images": 1}
        return
    for option, column in {"--content-column": columns.content, "--id-column": columns.id}.items():
        if column is not None and column not in names:
            raise DataError(
                f"{printable(address)} has no column {printable(column)}, but {printable(', '.join(names))}. Name the "
                f"column with {option}."
            )
    for number, size in enumerate(sizes):
        name = printable(row_group_name(address, number))
        yield entry | {"name": name, "row_group": number, "images": size}
