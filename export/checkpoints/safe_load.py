"""Open a checkpoint from an untrusted source.

`inert_pickle` reads the pickle and keeps stand-ins in place of the file's classes. No code of the file runs, nothing is
fetched from anywhere, and `budget` limits the time and memory that the file may cost.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.archive import TENSORS_HINT, TensorArchive
from flowedge.export.checkpoints.budget import MAX_TENSORS, Budget
from flowedge.export.checkpoints.inert_pickle import unpickle_inert
from flowedge.export.checkpoints.safetensors_file import HEAD_BYTES, is_safetensors, load_safetensors
from flowedge.export.checkpoints.stand_ins import Storage
from flowedge.files import open_regular_file, why_unreadable
from flowedge.text import printable

_ZIP_MAGIC: Final = b"PK\x03\x04"
# The first bytes in protocol 2, which torch.save used before it wrote archives, and of its first number in protocol 1.
_PICKLE_MAGICS: Final = (b"\x80", b"L119")
_OLD_FORMAT: Final = (0x1950A86A20F9469CFC6C, 1001)  # the numbers with which such a file begins
_COUNT: Final = struct.Struct("<q")


def load_untrusted(path: Path) -> object:
    """Read a file written by ``torch.save``, or one of safetensors, without running anything in it.

    Args:
        path: A zip archive of PyTorch 1.6 or later, a file of the format before it, or a safetensors file, whatever
            its name ends in.

    Returns:
        The saved object: plain data, containers, CPU tensors, and `stand_ins.StandIn` and `stand_ins.Name` for
        everything else. A tensor's memory is mapped from the file, copy on write, where its offset allows it.

    Raises:
        UnsafeCheckpointError: The file asks for a class or a function that is not on the allow-list.
        CheckpointError: The file is missing, cut off, of another format, above the budget, or cannot be read. The
            message begins with the file's name.
    """
    with _reasons(path), open_regular_file(path) as file:
        head = file.read(HEAD_BYTES)
        magic = head[: len(_ZIP_MAGIC)]
        file.seek(0)
        if not magic:
            raise CheckpointError("the file is empty. Copy the checkpoint again.")
        if magic != _ZIP_MAGIC and (
            path.suffix == ".safetensors" or is_safetensors(head, os.fstat(file.fileno()).st_size)
        ):
            return load_safetensors(path)
        if head[:1] == b"{":
            raise CheckpointError(
                "it is JSON, such as the index of a model in several safetensors files. Save the model as one file, "
                "and give that."
            )
        if magic != _ZIP_MAGIC and not magic.startswith(_PICKLE_MAGICS):
            raise CheckpointError(
                f"not a file of torch.save: it begins with {magic!r}. Name the checkpoint that the training wrote."
            )
        # The memory lives as long as the tensors over it. Writing to them does not change the file.
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        budget = Budget(len(mapped))
        if magic == _ZIP_MAGIC:
            archive = TensorArchive(file, mapped)
            return unpickle_inert(archive.pickle(), archive.array, budget)
        return _load_old(file, mapped, budget)


def file_sha256(path: Path) -> str:
    """Compute the hash of a file's bytes, 64 hexadecimal digits.

    Raises:
        CheckpointError: The file cannot be read.
    """
    with _reasons(path), open_regular_file(path) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Put the file's name at the beginning of the message of every CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        start = printable(str(path))
        if str(error).startswith(start):
            raise
        raise type(error)(f"{start}: {error}") from error


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Turn any error of a broken or hostile file into a CheckpointError with its name and the reason."""
    with naming_file(path):
        try:
            yield
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(why_unreadable(path, error)) from error
        except zipfile.BadZipFile as error:
            raise CheckpointError(f"it is cut off or damaged: {error}. Copy the checkpoint again.") from error
        except Exception as error:  # a hostile file can make torch and zipfile raise nearly anything
            reason = next(iter(str(error).strip().splitlines()), "")
            raise CheckpointError(
                f"it cannot be read as a PyTorch checkpoint ({type(error).__name__}: {reason:.200}). {TENSORS_HINT}"
            ) from error


def _load_old(file: BinaryIO, mapped: memoryview, budget: Budget) -> object:
    """Read the format of PyTorch before 1.6: five pickles one after the other, then the arrays.

    The pickles are two numbers, facts on the system, the object, and the keys of the arrays in their order.
    """
    for number in _OLD_FORMAT:
        if unpickle_inert(file, _unknown_array, budget) != number:
            raise CheckpointError(f"not a file of torch.save. {TENSORS_HINT}")
    system = unpickle_inert(file, _unknown_array, budget)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"it was written on a big-endian machine. {TENSORS_HINT}")
    # The offsets of the arrays stand behind the object that refers to them, so the object is read twice.
    start = file.tell()
    sizes: dict[str, int] = {}

    def size_only(dtype: torch.dtype, key: str, count: int) -> Storage:
        sizes[key] = dtype.itemsize
        return dtype, torch.empty(count * dtype.itemsize, dtype=torch.uint8, device="meta")

    unpickle_inert(file, size_only, Budget(len(mapped)))
    keys = unpickle_inert(file, _unknown_array, budget)
    arrays = _old_arrays(keys, sizes, mapped, file.tell())

    def array(dtype: torch.dtype, key: str, count: int) -> Storage:
        size = count * dtype.itemsize
        if not 0 <= size <= arrays[key].numel():
            raise ValueError(f"array {key} should have {size} bytes and has {arrays[key].numel()}")
        return dtype, arrays[key][:size]

    file.seek(start)
    return unpickle_inert(file, array, budget)


def _old_arrays(
    keys: object, sizes: dict[str, int], mapped: memoryview, start: int
) -> dict[str, torch.Tensor]:
    """Find the arrays after the pickles of an old file. Each is a count of elements and then the elements.

    Args:
        keys: The arrays' keys in order.
        sizes: Bytes of an element, by key.
        mapped: The whole file.
        start: The offset of the first array.
    """
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    arrays: dict[str, torch.Tensor] = {}
    if not isinstance(keys, list) or len(keys) > MAX_TENSORS or set(keys) != sizes.keys():
        raise ValueError("the keys of the arrays are not those of the tensors")
    for key in keys:
        (count,) = _COUNT.unpack_from(mapped, start)
        start += _COUNT.size
        size = count * sizes[key]
        if not 0 <= size <= len(mapped) - start or key in arrays:
            raise ValueError(
                f"array {key[:100]} has {count} elements, more than the file holds, or is there twice"
            )
        # Nothing aligns an array in this format.
        arrays[key] = whole[start : start + size].clone()
        start += size
    return arrays


def _unknown_array(_dtype: torch.dtype, key: str, _count: int) -> Storage:
    raise KeyError(key)
