"""Decode pictures of every format that is read. Missing parts are found, and time and memory are bounded.

Each format has a module with a ``SIGNATURE`` and a ``decode``, which gives the pixels that PIL's
``Image.open(path).convert("RGB")`` gives, or an error.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.frames.decoders import bmp, jpeg, png, pnm, tiff, webp
from flowedge.runtime.frames.decoders.faults import CUT_OFF, DamagedError, RefusedError

__all__ = ["DamagedError", "DecodeJpeg", "RefusedError", "decode"]

DecodeJpeg: TypeAlias = Callable[[bytes], NDArray[np.uint8]]
"""A function from a JPEG file to ``(H, W, 3)`` uint8, RGB, such as `flowedge.runtime.frames.decoders.jpeg.decode`."""

_FORMATS: Final[tuple[tuple[bytes, Callable[[bytes], NDArray[Any]]], ...]] = (
    (jpeg.SIGNATURE, jpeg.decode),
    (png.SIGNATURE, png.decode),
    (tiff.SIGNATURE, tiff.decode),
    (bmp.SIGNATURE, bmp.decode),
    (webp.SIGNATURE, webp.decode),
    (pnm.SIGNATURE, pnm.decode),
)
# The exceptions that Pillow raises for bytes that it cannot decode.
_PILLOWS: Final = (OSError, ValueError, SyntaxError, TypeError, KeyError, EOFError, OverflowError, zlib.error)


def decode(data: bytes, decode_jpeg: DecodeJpeg | None = None) -> NDArray[Any]:
    """Decode a picture.

    Args:
        data: The whole file.
        decode_jpeg: Decodes JPEG files in place of libjpeg-turbo.

    Returns:
        ``(H, W, 3)`` uint8, RGB. A picture of more than 8 bits gives ``(H, W)`` or ``(H, W, 3)`` in its own type.

    Raises:
        DamagedError: Part of the picture is missing or wrong.
        RefusedError: The format, its variant or the picture's size is not read.
    """
    decoders = (
        decode_format for signature, decode_format in _FORMATS if re.match(signature, data, re.DOTALL)
    )
    decode_format = next(decoders, None)
    if decode_format is None:
        raise RefusedError("is not a JPEG, PNG, BMP, TIFF, WebP or PNM image. Convert or remove it.")
    if decode_jpeg is not None and decode_format is jpeg.decode:
        decode_format = decode_jpeg
    try:
        return decode_format(data)
    except (struct.error, IndexError) as error:
        raise DamagedError(CUT_OFF) from error
    except _PILLOWS as error:
        raise DamagedError(str(error) or type(error).__name__) from error
