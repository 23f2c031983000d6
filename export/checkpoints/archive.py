"""Read the zip archive that ``torch.save`` writes: one pickle and one uncompressed entry for each stored array.

The archive is read as strictly as PyTorch writes it. An archive that two readers could understand in two ways is
refused. Such an archive has entries of one name or over one another, bytes before or behind it, or headers that
contradict its directory.
"""

from __future__ import annotations

import struct
import zipfile
from typing import BinaryIO, Final

import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.budget import MAX_ENTRIES, MAX_PICKLE_BYTES, above_budget
from flowedge.export.checkpoints.stand_ins import Storage

TENSORS_HINT: Final = "Save the state dict alone with torch.save of PyTorch 1.6 or later, and give that file."
_END: Final = struct.Struct("<4s4H2LH")  # end of central directory
_END_MAGIC: Final = b"PK\x05\x06"
_LOCATOR: Final = struct.Struct("<4sLQL")  # of the zip64 end of central directory
_LOCATOR_MAGIC: Final = b"PK\x06\x07"
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_END64_MAGIC: Final = b"PK\x06\x06"
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_ENCRYPTED: Final = 1
_UTF8: Final = 0x800
_HEADER_BYTES: Final = 46  # of an entry in the central directory, without its name
_UNKNOWN: Final = {0, 0xFFFFFFFF}  # local sizes that stand elsewhere: behind the data, or in zip64's field
_ONCE: Final = "Copy the checkpoint again; if that does not help, do not trust the file."


class TensorArchive:
    """Give the pickle and the arrays of an open zip archive whose directory and headers were checked."""

    def __init__(self, file: BinaryIO, mapped: memoryview) -> None:
        """Check the archive.

        Args:
            file: The archive's file.
            mapped: The bytes of that file, mapped so that writing to them does not change it.

        Raises:
            CheckpointError: The archive is not one that ``torch.save`` writes.
            zipfile.BadZipFile: The archive is cut off or damaged.
        """
        _check_directory(mapped)
        self._mapped = mapped
        self._whole = torch.frombuffer(mapped, dtype=torch.uint8)
        self._archive = zipfile.ZipFile(file)
        self._entries = {info.filename: info for info in self._archive.infolist()}
        self._starts = _checked_starts(self._archive.infolist(), mapped)
        self._folder = self._checked_folder()
        self._arrays: dict[str, torch.Tensor] = {}

    def pickle(self) -> bytes:
        """Read the pickle."""
        return self._read("data.pkl", MAX_PICKLE_BYTES)

    def array(self, dtype: torch.dtype, key: str, count: int) -> Storage:
        """Return a stored array, without a copy where its offset in the mapped file allows it.

        Args:
            dtype: The element type.
            key: The array's name in the archive.
            count: The number of elements that the pickle states.

        Raises:
            ValueError: The archive has no such array, or a shorter one.
        """
        name = f"{self._folder}/data/{key}"
        if name not in self._entries:
            raise ValueError(f"the array {key[:100]!r} is not in the file")
        size, held = count * dtype.itemsize, self._entries[name].file_size
        if not 0 <= size <= held:
            raise ValueError(f"array {key} should have {size} bytes and has {held}")
        if key not in self._arrays:
            start = self._starts[name]
            data = self._whole[start : start + held]
            # PyTorch aligns every array. Another archive's array is copied once, however often the pickle names it.
            self._arrays[key] = data if start % 16 == 0 else data.clone()
        return dtype, self._arrays[key][:size]

    def _read(self, name: str, limit: int) -> bytes:
        info = self._entries[f"{self._folder}/{name}"]
        if info.file_size > limit:
            raise above_budget(f"bytes of {name}", info.file_size, limit)
        return self._archive.read(info)

    def _checked_folder(self) -> str:
        """Find the folder that holds ``data.pkl``."""
        names = list(self._entries)
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(
                f"it is a zip archive but not one of torch.save ({len(names)} files, no data.pkl). {TENSORS_HINT}"
            )
        self._folder = pickles[0].removesuffix("/data.pkl")
        if f"{self._folder}/constants.pkl" in names:
            raise CheckpointError(f"it is a TorchScript archive: a program, not a checkpoint. {TENSORS_HINT}")
        if f"{self._folder}/byteorder" in names and self._read("byteorder", 16) != b"little":
            raise CheckpointError(f"it was written on a big-endian machine. {TENSORS_HINT}")
        return self._folder


def _check_directory(mapped: memoryview) -> None:
    """Check the directory at the end of an archive before `zipfile` reads its entries, whose number may be forged.

    Raises:
        CheckpointError: There are too many entries, or bytes outside the archive.
        zipfile.BadZipFile: The end is missing.
    """
    end = len(mapped) - _END.size
    if end < 0 or bytes(mapped[end : end + 4]) != _END_MAGIC:
        raise zipfile.BadZipFile("its end is not that of a zip archive")
    _, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(mapped, end)
    locator = end - _LOCATOR.size
    if locator >= 0 and bytes(mapped[locator : locator + 4]) == _LOCATOR_MAGIC:
        _, _, end64, _ = _LOCATOR.unpack_from(mapped, locator)
        if end64 != locator - _END64.size or bytes(mapped[end64 : end64 + 4]) != _END64_MAGIC:
            raise zipfile.BadZipFile("its zip64 directory is not where it should be")
        _, _, _, _, disk, first_disk, here, count, size, offset = _END64.unpack_from(mapped, end64)
        end = end64
    if count > MAX_ENTRIES:
        raise above_budget("files in the archive", count, MAX_ENTRIES)
    if disk or first_disk or here != count or comment or offset + size != end or size < count * _HEADER_BYTES:
        raise CheckpointError(
            f"the archive's directory contradicts itself, or other bytes are around it. {_ONCE}"
        )


def _checked_starts(entries: list[zipfile.ZipInfo], mapped: memoryview) -> dict[str, int]:
    """Compare each entry's own header with the directory, and return where its data begins.

    Raises:
        CheckpointError: A header contradicts the directory, an entry is compressed or encrypted, or two entries have
            one name or one place.
    """
    starts: dict[str, int] = {}
    free = 0
    for info in sorted(entries, key=lambda info: info.header_offset):
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise CheckpointError(
                f"it has compressed or encrypted entries, which torch.save never writes. {TENSORS_HINT}"
            )
        place = info.header_offset
        if place + _LOCAL.size > len(mapped):
            raise zipfile.BadZipFile("an entry begins behind its end")
        magic, _, _, method, _, _, _, packed, size, name_size, extra = _LOCAL.unpack_from(mapped, place)
        name_at = place + _LOCAL.size
        start = name_at + name_size + extra
        agrees = (
            magic == _LOCAL_MAGIC
            and method == zipfile.ZIP_STORED
            and bytes(mapped[name_at : name_at + name_size]) == _encoded_name(info)
            and info.compress_size == info.file_size
            and (size in _UNKNOWN or size == info.file_size)
            and (packed in _UNKNOWN or packed == info.file_size)
        )
        if not agrees or place < free or start + info.file_size > len(mapped) or info.filename in starts:
            raise CheckpointError(
                f"the archive's entry {info.filename[:100]!r} is there twice, lies over another one, or has a "
                f"header that contradicts the directory. {_ONCE}"
            )
        starts[info.filename] = start
        free = start + info.file_size
    return starts


def _encoded_name(info: zipfile.ZipInfo) -> bytes:
    """Encode an entry's name as the directory holds it."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437", "replace")
