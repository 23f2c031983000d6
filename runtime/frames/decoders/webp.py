"""Decode WebP files (RFC 9649) through Pillow, after their chunks were checked."""

from __future__ import annotations

import io
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL.WebPImagePlugin import WebPImageFile

from flowedge.runtime.frames.decoders.faults import (
    CUT_OFF,
    DamagedError,
    RefusedError,
    check_parts,
    check_picture_size,
    several_pictures,
)
from flowedge.runtime.frames.decoders.pillow import rgb_of

MAX_WEBP_PIXELS: Final = 40_000_000
"""The most pixels of a WebP picture. The decoder of WebP needs five times the memory of other formats."""

SIGNATURE: Final = rb"RIFF....WEBP"
_MAX_PARTS: Final = 1_000  # encoders write less than ten
_ANIMATED: Final = (b"ANIM", b"ANMF")


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decode a WebP file.

    Returns:
        ``(H, W, 3)`` uint8, RGB, the pixels that PIL gives.

    Raises:
        DamagedError: A part is missing, or libwebp finds the file wrong.
        RefusedError: The file is too large or animated.
    """
    sizes = _sizes(data)
    if not sizes:
        raise DamagedError("it holds no image")
    if len(set(sizes)) != 1:
        raise DamagedError("its parts disagree about its size")
    with WebPImageFile(io.BytesIO(data)) as image:
        return rgb_of(image)


def _sizes(data: bytes) -> list[tuple[int, int]]:
    """Return the ``(height, width)`` that each part says, after all parts were found whole."""
    (length,) = struct.unpack_from("<I", data, 4)
    end = length + 8
    if len(data) < end:
        raise DamagedError(CUT_OFF)
    sizes: list[tuple[int, int]] = []
    at, count = 12, 0
    while at < end:
        count += 1
        check_parts(count, _MAX_PARTS)
        kind, size = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : min(at + 8 + size, end)]
        if len(body) != size:
            raise DamagedError(CUT_OFF)
        if kind in _ANIMATED:
            raise several_pictures("a WebP file")
        found = _size(kind, body)
        if found is not None:
            check_picture_size(*found)
            if found[0] * found[1] > MAX_WEBP_PIXELS:
                raise RefusedError(
                    f"is a WebP file of {found[1]}x{found[0]} pixels, more than {MAX_WEBP_PIXELS / 1e6:.0f} million. "
                    "Save it as a PNG."
                )
            sizes.append(found)
        at += 8 + size + size % 2
    return sizes


def _size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    """Return the ``(height, width)`` that a part of the extended, lossless or lossy format says."""
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 1)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return height & 0x3FFF, width & 0x3FFF
    return None
