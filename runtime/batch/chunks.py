"""Define the chunks of a job: the images, the shard or the row group whose rows become one part of the output."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from flowedge.runtime.batch.reading import images_of_rows, images_of_shard, read_address, unreadable
from flowedge.runtime.batch.rows import StoredImage
from flowedge.text import printable

Kind: TypeAlias = Literal["image", "shard", "table"]

_NAME_LENGTH: Final = 24


class ListedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a job reads.

    Attributes:
        path: The absolute path or the address, as bytes, since a name need not be UTF-8.
        version: The state of the file: its size, and its time of change or its tag.
        label: The label of an image, where there is one.
    """

    path: bytes
    version: str
    label: str | None = None

    @property
    def name(self) -> str:
        """The path or the address as text that opens the file."""
        return os.fsdecode(self.path)


class Columns(msgspec.Struct, frozen=True, kw_only=True):
    """The names of the columns of tables, and of the fields of samples in shards.

    Attributes:
        content: The column of a table with the bytes of the images.
        id: The column of a table with the name of each image, where there is one.
        label: The column of a table, or the field of a sample, with the label, where there is one.
    """

    content: str = "image"
    id: str | None = None
    label: str | None = None


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """The work that makes one part of the output.

    Attributes:
        kind: The kind of the files.
        files: The images, or the only shard or table.
        row_group: The row group of a table. The value is None for other files.
        problem: The reason why the file cannot be read at all. The reason is empty for a file that can be tried.
    """

    kind: Kind
    files: tuple[ListedFile, ...]
    row_group: int | None = None
    problem: str = ""

    @property
    def part(self) -> str:
        """The name of the part, which is made of the names and the states of the files."""
        digest = hashlib.sha256(f"{self.kind} {self.row_group}\n".encode())
        for file in self.files:
            digest.update(b"%s\0%s\n" % (file.path, file.version.encode()))
        return f"part-{digest.hexdigest()[:_NAME_LENGTH]}.parquet"

    def images(self, columns: Columns) -> Iterator[StoredImage]:
        """Give the images of the chunk in their order.

        Raises:
            SourceError: A store does not answer.
        """
        first = self.files[0]
        if self.problem:
            yield unreadable(printable(first.name), first.version, self.problem)
        elif self.kind == "image":
            yield from map(_stored, self.files)
        elif self.row_group is None:
            yield from images_of_shard(first.name, first.version, columns.label)
        else:
            yield from images_of_rows(
                first.name,
                first.version,
                self.row_group,
                content=columns.content,
                identifier=columns.id,
                label=columns.label,
            )


def together(files: Sequence[ListedFile]) -> Chunk:
    """Return the chunk of several images."""
    return Chunk(kind="image", files=tuple(files))


def _stored(file: ListedFile) -> StoredImage:
    name, size = file.name, file.version.partition("-")[0]
    return StoredImage(
        image=printable(name),
        read=lambda: read_address(name, int(size) if size.isdigit() else None),
        version=file.version,
        label=file.label,
    )
