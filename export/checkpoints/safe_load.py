"""Opening a checkpoint that nobody vouches for.

`torch.load` with ``weights_only`` reads what is plain; what it refuses goes through `inert_pickle`, which keeps
stand-ins in place of the file's classes. Neither runs code of the file, and nothing is fetched from anywhere.
"""

from __future__ import annotations

import hashlib
import mmap
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

from flowedge.errors import CheckpointError, UnsafeCheckpointError
from flowedge.export.checkpoints.inert_pickle import unpickle_inert
from flowedge.export.checkpoints.stand_ins import Storage

_ZIP_MAGIC: Final = b"PK\x03\x04"
_PICKLE_MAGIC: Final = b"\x80"  # of protocol 2, which torch.save used before it wrote archives
_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")
_TENSORS_HINT: Final = (
    "Save the state dict alone with torch.save of PyTorch 1.6 or later, and give that file."
)


def load_untrusted(path: Path) -> object:
    """Read a file written by ``torch.save`` without running anything in it.

    Args:
        path: A zip archive of PyTorch 1.6 or later, or the older format where it holds tensors and plain data.

    Returns:
        What was saved: plain data, containers, CPU tensors (their memory is mapped from the file, copy on write,
        where the format allows it), and `stand_ins.StandIn` and `stand_ins.Name` for everything else.

    Raises:
        UnsafeCheckpointError: The file asks for a class or a function that is not on the allow-list.
        CheckpointError: The file is missing, cut off, of another format, or cannot be read.
    """
    with _reasons(path):
        with path.open("rb") as file:
            magic = file.read(len(_ZIP_MAGIC))
        if not magic:
            raise CheckpointError(f"{path} is empty. Copy the checkpoint again.")
        if magic[:1] == _PICKLE_MAGIC:
            return _load_legacy(path)
        if magic != _ZIP_MAGIC:
            raise CheckpointError(
                f"{path} is not a file of torch.save: it begins with {magic!r}. Name the checkpoint that the training "
                "wrote."
            )
        with zipfile.ZipFile(path) as archive:
            folder = _checked_folder(archive, path)
            try:
                return _torch_load(path, mapped=True)
            except pickle.UnpicklingError:
                return _load_inert(path, archive, folder)


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes, 64 hexadecimal digits.

    Raises:
        CheckpointError: The file cannot be read.
    """
    with _reasons(path), path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a broken or hostile file into a CheckpointError with its reason."""
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist. Check the path.") from error
    except IsADirectoryError as error:
        if (path / "manifest.json").exists():
            raise CheckpointError(
                f"{path} is a bundle. Give the checkpoint that it was made from."
            ) from error
        raise CheckpointError(f"{path} is a folder. Give the checkpoint file inside it.") from error
    except PermissionError as error:
        raise CheckpointError(f"{path} may not be read by this user. Change its permissions.") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is cut off or damaged: {error}. Copy the checkpoint again.") from error
    except Exception as error:  # a hostile file can make torch and zipfile raise nearly anything
        reason = next(iter(str(error).strip().splitlines()), "")
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__}: {reason:.200}). {_TENSORS_HINT}"
        ) from error


def _torch_load(path: Path, *, mapped: bool) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecations while it reads old files
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _checked_folder(archive: zipfile.ZipFile, path: Path) -> str:
    """The folder of the archive that holds ``data.pkl``."""
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path} is a zip archive but not one of torch.save ({len(names)} files, no data.pkl). {_TENSORS_HINT}"
        )
    folder = pickles[0].removesuffix("/data.pkl")
    if f"{folder}/constants.pkl" in names:
        raise CheckpointError(
            f"{path} is a TorchScript archive: a program, not a checkpoint. {_TENSORS_HINT}"
        )
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise CheckpointError(
            f"{path} has compressed entries, which torch.save never writes. {_TENSORS_HINT}"
        )
    if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
        raise CheckpointError(f"{path} was written on a big-endian machine. {_TENSORS_HINT}")
    return folder


def _load_inert(path: Path, archive: zipfile.ZipFile, folder: str) -> object:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # lives as long as the tensors over it
    whole = torch.frombuffer(mapped, dtype=torch.uint8)

    def storage(dtype: torch.dtype, key: str, count: int) -> Storage:
        info = archive.getinfo(f"{folder}/data/{key}")
        header = _LOCAL_HEADER.unpack_from(mapped, info.header_offset)
        start = info.header_offset + _LOCAL_HEADER.size + header[-2] + header[-1]
        size = count * dtype.itemsize
        if not 0 <= size <= info.file_size or start + size > len(mapped):
            raise ValueError(f"array {key} should have {size} bytes and has {info.file_size}")
        data = whole[start : start + size]
        return dtype, data if start % dtype.itemsize == 0 else data.clone()

    value, _ = unpickle_inert(archive.read(f"{folder}/data.pkl"), storage)
    return value


def _load_legacy(path: Path) -> object:
    """Read the format of PyTorch before 1.6: pickles one after the other, then the arrays."""
    try:
        return _torch_load(path, mapped=False)
    except pickle.UnpicklingError as error:
        _refuse_unsafe_names(path.read_bytes())
        raise CheckpointError(
            f"{path} is not a file of torch.save, or an old one that holds whole objects. {_TENSORS_HINT}"
        ) from error


def _refuse_unsafe_names(data: bytes) -> None:
    """Raise UnsafeCheckpointError if one of the pickles at the start of an old file is unsafe."""

    def storage(dtype: torch.dtype, _key: str, count: int) -> Storage:
        return dtype, torch.empty(count * dtype.itemsize, dtype=torch.uint8, device="meta")

    position = 0
    for _ in range(4):  # magic number, protocol, system, object
        try:
            _, size = unpickle_inert(data[position:], storage)
        except UnsafeCheckpointError:
            raise
        except CheckpointError:
            return
        position += size
