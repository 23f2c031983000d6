"""Write arrays to NumPy's ``.npz`` form without the time of day, and read them with distrust of the header."""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# An archive cannot hold dates outside 1980 to 2107, and `numpy.savez` writes the clock's.
_DATE: Final = (1980, 1, 1, 0, 0, 0)
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 1
# Version 1.0 of the format: a magic, the header's length, and the header as NumPy writes it for numbers and text.
_HEADER: Final = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|][biufU][1-9]\d{0,3})', 'fortran_order': (False|True), "
    rb"'shape': \(((?:\d{1,10}, ?)*(?:\d{1,10})?)\), \} *\n",
    re.DOTALL,
)


def npz_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Pack named arrays as ``numpy.savez_compressed`` does, without the time of day.

    Raises:
        ValueError: An array holds Python objects.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()


def arrays_from_npz(data: bytes, *, largest: int) -> dict[str, NDArray[Any]]:
    """Unpack named arrays of numbers or text, whose sizes are checked before anything is allocated for them.

    Args:
        data: The archive, which is untrusted.
        largest: The largest size of all arrays together, in bytes.

    Raises:
        ValueError: The archive is damaged, is larger, or holds anything but arrays as `npz_from_arrays` packs them.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = [entry.filename.removesuffix(".npy") for entry in entries]
            if len(set(names)) != len(names):
                raise ValueError("it holds one name twice")
            if (size := sum(entry.file_size for entry in entries)) > largest:
                raise ValueError(f"it unpacks to {size} bytes, more than {largest}")
            for entry in entries:
                if entry.compress_type not in _METHODS or entry.flag_bits & _ENCRYPTED:
                    raise ValueError(f"{entry.filename!r} is packed in a way that is not read")
            return {name: _array(archive.read(entry)) for name, entry in zip(names, entries, strict=True)}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise ValueError(f"it is damaged ({error})") from error


def _array(content: bytes) -> NDArray[Any]:
    """Return the array of an archive's entry, which has exactly the bytes that its header declares."""
    header = _HEADER.match(content)
    if header is None:
        raise ValueError("an entry is no array of numbers or text")
    try:
        dtype = np.dtype(header[1].decode())
    except TypeError as error:
        raise ValueError(f"an array has the type {header[1]!r}") from error
    shape = tuple(int(side) for side in header[3].split(b",") if side.strip())
    stored = memoryview(content)[header.end() :]
    if len(stored) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of the shape {shape} has {len(stored)} bytes")
    return np.ndarray(shape, dtype, bytearray(stored), order="F" if header[2] == b"True" else "C")
