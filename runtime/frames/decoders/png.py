"""Decode Portable Network Graphics (W3C, 2003): chunks are checked one by one here and decoded by Pillow.

Pillow takes a stream that ends in the last row for a whole one, and a profile or a text may be a bomb. So the stream
is inflated here, to exactly its size, and Pillow decodes a file that holds the picture's own chunks and nothing else.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import MAX_TEXT_MEMORY, PngImageFile

from flowedge.runtime.frames.decoders.faults import (
    CUT_OFF,
    DamagedError,
    RefusedError,
    check_parts,
    check_picture_size,
    check_sample_bytes,
    several_pictures,
)
from flowedge.runtime.frames.decoders.pillow import rgb_of

SIGNATURE: Final = rb"\x89PNG\r\n\x1a\n"
_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Section 8.2: the first column and row of each pass, and the steps from one to the next.
_ADAM7: Final = [
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
]
_MAX_PARTS: Final = 200_000  # encoders write their data in parts of 8 kB and more
_MAX_OTHERS: Final = 256  # parts beside the picture; cameras and editors write a few
_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type


def decode(data: bytes) -> NDArray[Any]:
    """Decode a PNG file.

    Returns:
        ``(H, W, 3)`` uint8, RGB, the pixels that PIL gives. A file of 16 bits gives ``(H, W)`` or ``(H, W, 3)`` uint16.

    Raises:
        DamagedError: A checksum is wrong, or part of the picture is missing.
        RefusedError: The file is too large, animated, or needs an extension of the format.
    """
    chunks, others = _chunks(data)
    _check_others(chunks[b"IHDR"], others)
    depth, colours = chunks[b"IHDR"][8:10]
    if colours == _PALETTE and b"PLTE" not in chunks:
        raise DamagedError("its palette is missing")
    chunks[b"IDAT"] = _stored(chunks[b"IDAT"], _inflated_size(chunks[b"IHDR"]))
    own = list(chunks.items())
    chunks.clear()
    if depth < 16 or colours == _GREY:
        with PngImageFile(io.BytesIO(_file_of(own))) as image:
            return rgb_of(image) if depth < 16 else np.array(image, np.uint16)
    # OpenCV gives both bytes of a sample, Pillow keeps the high byte only.
    deep = cv2.imdecode(np.frombuffer(_file_of(own), np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is None or deep.dtype != np.uint16 or deep.ndim != 3:
        raise DamagedError("its 16-bit colours cannot be decoded")
    return np.ascontiguousarray(deep[..., 2::-1]).astype(np.uint16, copy=False)


def _chunks(data: bytes) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """Return the picture's own chunks, with its data as one, and the others, after all checksums were compared."""
    found: dict[bytes, bytes] = {}
    others: list[tuple[bytes, bytes]] = []
    parts: list[bytes] = []
    at, previous = len(_MAGIC), b""
    count = 0
    while previous != b"IEND":
        count += 1
        check_parts(count, _MAX_PARTS)
        if at + 12 > len(data):
            raise DamagedError(CUT_OFF)
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            raise DamagedError(CUT_OFF)
        body = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(memoryview(data)[at + 4 : at + 8 + length]) != checksum:
            raise DamagedError(
                f"the checksum of its part {kind.decode('ascii', 'backslashreplace')} is wrong"
            )
        if not previous:
            _check_header(kind, body)
            found[kind] = body
        elif kind in found and kind != b"IDAT":
            raise DamagedError(f"its part {kind.decode('ascii', 'backslashreplace')} is there twice")
        elif kind == b"acTL":
            raise several_pictures("a PNG file")
        elif kind == b"IDAT":
            if parts and previous != b"IDAT":
                raise DamagedError("other parts lie between those of its data")
            found.setdefault(kind, b"")
            parts.append(body)
        elif kind in (b"PLTE", b"IEND"):
            found[kind] = body
        elif not kind[0] & 0x20:  # An upper-case letter marks a part that no reader may ignore.
            raise RefusedError(
                f"is a PNG file with the extension {kind.decode('ascii', 'backslashreplace')}. Save it as a plain PNG."
            )
        else:
            others.append((kind, body))
        previous = kind
        at += 12 + length
    if not parts:
        raise DamagedError("it holds no image")
    found[b"IDAT"] = b"".join(parts)
    return found, others


def _check_others(header: bytes, others: list[tuple[bytes, bytes]]) -> None:
    """Have Pillow read the parts beside the picture, since Pillow refuses a file for a wrong part or a bomb.

    Raises:
        RefusedError: There are too many parts beside the picture.
        ValueError: Pillow, which inflates each part to a megabyte at most, refuses a part.
    """
    if len(others) > _MAX_OTHERS or sum(len(body) for _, body in others) > MAX_TEXT_MEMORY:
        raise RefusedError(
            f"is a PNG file with more than {_MAX_OTHERS} parts or {MAX_TEXT_MEMORY >> 20} MB beside its picture. "
            "Save it without its texts and profiles."
        )
    file = _file_of([(b"IHDR", header), *others, (b"IDAT", b""), (b"IEND", b"")])
    PngImageFile(io.BytesIO(file)).close()


def _file_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Return a file of these chunks, and empty the list: their data may be as large as the picture."""
    parts = [_MAGIC]
    chunks.reverse()
    while chunks:
        kind, body = chunks.pop()
        checksum = struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
        parts += [struct.pack(">I", len(body)), kind, body, checksum]
    return b"".join(parts)


def _stored(packed: bytes, size: int) -> bytes:
    """Return the same stream without compression, after it was found to hold ``size`` bytes and its checksum."""
    inflating = zlib.decompressobj()
    try:
        rows = inflating.decompress(packed, size)
        extra = inflating.decompress(inflating.unconsumed_tail, 1)
    except zlib.error as error:
        raise DamagedError("its compressed data are wrong") from error
    if len(rows) != size or extra or not inflating.eof:
        raise DamagedError(f"its data do not give the {size} bytes that its size needs")
    return zlib.compress(rows, 0)


def _inflated_size(header: bytes) -> int:
    """Return the bytes of all rows, each with the byte that names its filter."""
    width, height, depth, colours, _, _, interlace = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS[colours]
    passes = _ADAM7 if interlace else [(0, 0, 1, 1)]
    sizes = [(-((left - width) // across), -((top - height) // down)) for left, top, across, down in passes]
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0)


def _check_header(kind: bytes, body: bytes) -> None:
    if kind != b"IHDR" or len(body) != 13:
        raise DamagedError("it does not begin with its header")
    width, height, depth, colours, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    check_picture_size(height, width)
    if depth not in _DEPTHS.get(colours, ()) or compression or filtering or interlace > 1:
        raise DamagedError("its header says a format that does not exist")
    check_sample_bytes(height * width * _CHANNELS[colours] * depth // 8)
