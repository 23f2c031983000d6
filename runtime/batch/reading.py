"""Read image files from this machine, from object stores, from tar shards and from Parquet tables."""

from __future__ import annotations

import functools
import lzma
import os
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import fsspec
import pyarrow
from pyarrow import parquet

from flowedge.errors import ImageError, SourceError
from flowedge.runtime.batch.rows import StoredImage
from flowedge.runtime.device.limits import MAX_BYTES
from flowedge.runtime.frames.finding import IMAGE_SUFFIXES
from flowedge.runtime.frames.images import check_content, read_content
from flowedge.text import printable

_TRIES: Final = 4
_FIRST_PAUSE_S: Final = 0.5
# The package tarfile lets some wrong numbers of a header through as errors of the value.
_DAMAGED: Final = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError)
# The key of a sample ends at the first dot of the name, as WebDataset defines it.
_MEMBER: Final = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_ROWS_AT_ONCE: Final = 64
_LONGEST_LABEL: Final = 1 << 16

_Read = TypeVar("_Read")


def is_address(name: str) -> bool:
    """Return True for an address such as ``s3://bucket/key``, and False for a path of this machine."""
    return re.match(r"[a-z][a-z0-9+.-]+://|[a-z0-9+.-]+::", name) is not None and not name.startswith(
        "file://"
    )


def read_address(name: str, size: int | None = None) -> bytes:
    """Return the content of an image file on this machine or in an object store.

    Args:
        name: A path, or an address that fsspec reads.
        size: The number of bytes that a listing of the store has told. Without it, the store is asked before the read.

    Raises:
        ImageError: There is no such file, it may not be read, or it is empty or too large.
        SourceError: The store does not answer, also when it was asked again.
    """
    if not is_address(name):
        return read_content(name.removeprefix("file://"))
    files, path = store_of(name)
    check_content(name, int(size if size is not None else tried(name, lambda: files.size(path)) or 1))
    content: bytes = tried(name, lambda: files.cat_file(path))
    return content


def store_of(address: str) -> tuple[Any, str]:
    """Return the file system of fsspec for an address, and the path in it.

    Raises:
        SourceError: The package of the store is not installed, or the address is not valid.
    """
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise SourceError(f"{printable(address)} cannot be opened: {printable(str(error))}") from error
    return found


def tried(name: str, work: Callable[[], _Read]) -> _Read:
    """Read from a store, and try again where the store does not answer.

    Args:
        name: The address for messages.
        work: The read.

    Raises:
        ImageError: There is no such file, or it may not be read. Trying again would change nothing.
        SourceError: The last of several tries failed.
    """
    for number in range(_TRIES):
        try:
            return work()
        except FileNotFoundError as error:
            raise ImageError(f"{name} does not exist any more.") from error
        except PermissionError as error:
            raise ImageError(f"{name} may not be read. Check the permissions at the store.") from error
        except IsADirectoryError as error:
            raise ImageError(f"{name} is a folder.") from error
        except Exception as error:  # the libraries of the stores have errors of their own
            if number == _TRIES - 1:
                raise SourceError(
                    f"{printable(name)} cannot be read: {printable(str(error) or type(error).__name__)}. The job "
                    "ended. Give the same command again to go on."
                ) from error
            time.sleep(_FIRST_PAUSE_S * 2**number)
    raise AssertionError("the last try returns or raises")


def images_of_shard(address: str, version: str, label_field: str | None) -> Iterator[StoredImage]:
    """Read the images of a tar shard, as WebDataset lays them out.

    Every member whose name ends in a suffix of an image behind its first dot is an image, such as ``7.png``. The other
    members with the same key are fields of the sample, such as ``7.mask.png``. Where a sample has images with several
    dots only, such as ``line.01.png`` and ``line.02.png``, each is an image of its own and not a field. A shard that
    ends too early gives the images before its end, and then one image that cannot be read, which stands for the rest.

    Args:
        address: The shard, also compressed by gzip, bzip2 or xz.
        version: The state of the shard.
        label_field: The field with the label, such as ``cls``. Without one, the images have no label.

    Raises:
        SourceError: The store does not answer.
    """
    names: dict[str, int] = {}
    sample: list[tuple[str, bytes | str]] = []
    dotted: list[tuple[str, bytes | str]] = []
    fields: dict[str, str] = {}
    key = ""

    def finished() -> Iterator[StoredImage]:
        for member, content in sample or dotted:
            names[member] = names.get(member, 0) + 1
            again = f" ({names[member]})" if names[member] > 1 else ""
            yield StoredImage(
                image=f"{address}#{member}{again}",
                read=functools.partial(_content_or_problem, content),
                id=key if sample else os.path.splitext(member)[0],
                source=address,
                version=version,
                label=fields.get(label_field or ""),
            )
        sample.clear()
        dotted.clear()
        fields.clear()

    try:
        with open_stored(address) as file, tarfile.open(fileobj=file, mode="r|*") as shard:
            for member in shard:
                found = _MEMBER.fullmatch(member.name)
                if not member.isfile() or found is None:
                    continue
                if found[1] != key:
                    yield from finished()
                    key = printable(found[1])
                is_image = os.path.splitext(member.name)[1].lower() in IMAGE_SUFFIXES
                images = dotted if "." in found[2] else sample
                if is_image and member.size > MAX_BYTES:
                    images.append(
                        (printable(member.name), f"the image has {member.size / 1e6:.0f} MB, too many.")
                    )
                elif is_image or found[2] == label_field:
                    if not is_image and member.size > _LONGEST_LABEL:
                        raise tarfile.ReadError(
                            f"the label {member.name} has {member.size} bytes, and {_LONGEST_LABEL} are allowed"
                        )
                    opened = shard.extractfile(member)
                    assert opened is not None  # a regular file
                    content = opened.read()
                    if len(content) < member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    if is_image:
                        images.append((printable(member.name), content))
                    else:
                        fields[found[2]] = printable(content.decode("utf-8", "backslashreplace").strip())
        yield from finished()
    except (ImageError, *_DAMAGED) as error:
        yield from finished()
        problem = (
            str(error)
            if isinstance(error, ImageError)
            else (
                f"the shard is damaged: {printable(str(error))}. The images behind this place were not read."
            )
        )
        yield unreadable(address, version, problem)
    except OSError as error:
        raise SourceError(
            f"{printable(address)} cannot be read: {printable(str(error))}. Give the same command again to go on."
        ) from error


def images_of_rows(
    address: str, version: str, row_group: int, *, content: str, identifier: str | None, label: str | None
) -> Iterator[StoredImage]:
    """Read the images of one row group of a Parquet table.

    Args:
        address: The table.
        version: The state of the table.
        row_group: The number of the row group.
        content: The column with the bytes of the image files, or with structures that have a field ``bytes``.
        identifier: The column with the name of each image, where there is one.
        label: The column with the label of each image. A table may be without the column.

    Raises:
        SourceError: The table cannot be read.
    """
    try:
        with open_stored(address) as file:
            table = parquet.ParquetFile(file)
            label = label if label in table.schema_arrow.names else None
            columns = [one for one in (content, identifier, label) if one is not None]
            row = sum(table.metadata.row_group(number).num_rows for number in range(row_group))
            for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=[row_group], columns=columns):
                contents, ids, labels = (
                    [None] * len(batch) if one is None else batch[one] for one in (content, identifier, label)
                )
                for value, number, word in zip(contents, ids, labels, strict=True):
                    yield StoredImage(
                        image=f"{address}#row={row}",
                        read=functools.partial(_content_of_cell, value),
                        id=_text_of_cell(number),
                        source=row_group_name(address, row_group),
                        version=version,
                        label=_text_of_cell(word),
                    )
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError(
            f"{printable(address)}, row group {row_group}, cannot be read: {printable(str(error))}. Repair or remove "
            "the table, and give the same command again to go on."
        ) from error


def row_group_name(address: str, row_group: int) -> str:
    """Return the name of a row group in the column ``source``."""
    return f"{address}#rowgroup={row_group}"


def unreadable(address: str, version: str, problem: str) -> StoredImage:
    """Return an image that stands for a whole file which cannot be read."""
    return StoredImage(
        image=address, read=functools.partial(_content_or_problem, problem), source=address, version=version
    )


def open_stored(address: str) -> BinaryIO:
    """Open a file on this machine or in a store for reading.

    Raises:
        ImageError: There is no such file, or it may not be read.
        SourceError: The store does not answer.
    """
    if is_address(address):
        files, path = store_of(address)
        opened: BinaryIO = tried(address, lambda: files.open(path, "rb"))
        return opened
    try:
        return Path(address).open("rb")
    except OSError as error:
        raise ImageError(f"{address} cannot be read: {error.strerror}.") from error


def _content_or_problem(content: bytes | str) -> bytes:
    """Return content, and raise a text as the reason why there is none."""
    if isinstance(content, str):
        raise ImageError(content)
    return content


def bytes_of_cell(value: Any) -> bytes:
    """Return the content of an image file that a table holds.

    Raises:
        ImageError: The value is none, or of another type.
    """
    if value is None:
        raise ImageError("the row has no content.")
    # A whole number would become so many zeros.
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise ImageError(f"the row holds no bytes, but {type(value).__name__}.")
    return bytes(value)


def _content_of_cell(cell: Any) -> bytes:
    value = cell.as_py()
    if isinstance(value, dict):
        value = value.get("bytes")
    return bytes_of_cell(value)


def _text_of_cell(cell: Any) -> str | None:
    value = None if cell is None else cell.as_py()
    return None if value is None else printable(str(value))


def read_stored_image(image: str) -> bytes:
    """Return the content of an image by its name in the column ``image``, also from a shard or a table.

    Raises:
        ImageError: There is no such image.
        SourceError: The store does not answer, or a table cannot be read.
    """
    container, mark, inside = image.rpartition("#")
    if not mark or _exists_here(image):
        return read_address(image)
    if row := re.fullmatch(r"row=(\d+)", inside):
        return _row_of_table(container, int(row[1]))
    for one in images_of_shard(container, "", None):
        if one.image == image:
            return one.read()
    raise ImageError(f"{container} has no member {inside}.")


def _exists_here(path: str) -> bool:
    return not is_address(path) and os.path.lexists(path)


def _row_of_table(address: str, row: int) -> bytes:
    """Return the image in a row of a table, whose first column of bytes has the images."""
    try:
        with open_stored(address) as file:
            table = parquet.ParquetFile(file)
            content = next(field.name for field in table.schema_arrow if _holds_bytes(field.type))
            first = 0
            for number in range(table.num_row_groups):
                rows = table.metadata.row_group(number).num_rows
                if row < first + rows:
                    group = table.read_row_group(number, columns=[content])
                    return _content_of_cell(group[content][row - first])
                first += rows
    except (pyarrow.ArrowException, OSError, StopIteration) as error:
        raise ImageError(f"{address} has no images: {printable(str(error))}.") from error
    raise ImageError(f"{address} has no row {row}.")


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    return any(
        test(kind)
        for test in (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_struct)
    )
