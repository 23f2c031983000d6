"""Decode uncompressed Windows bitmaps (BMP) through Pillow."""

from __future__ import annotations

import io
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL.BmpImagePlugin import BmpImageFile

from flowedge.runtime.frames.decoders.faults import CUT_OFF, DamagedError, RefusedError, check_picture_size
from flowedge.runtime.frames.decoders.pillow import rgb_of

SIGNATURE: Final = rb"BM"
_OLD_HEADER: Final = 12  # the size of BITMAPCOREHEADER
_UNCOMPRESSED: Final = (0, 3)  # BI_RGB, BI_BITFIELDS
_DEPTHS: Final = (1, 4, 8, 16, 24, 32)


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decode a BMP file.

    Returns:
        ``(H, W, 3)`` uint8, RGB, the pixels that PIL gives.

    Raises:
        DamagedError: Rows are missing, or Pillow finds the file wrong.
        RefusedError: The file is compressed or too large.
    """
    offset, header = struct.unpack_from("<II", data, 10)
    is_old = header == _OLD_HEADER
    width, height, _, bits = struct.unpack_from("<HHHH" if is_old else "<iiHH", data, 18)
    compression = 0 if is_old else struct.unpack_from("<I", data, 30)[0]
    height = abs(height)  # a negative height says that the first row is the top one
    check_picture_size(height, width)
    if compression not in _UNCOMPRESSED:
        raise RefusedError("is a compressed BMP file. Save it as an uncompressed BMP or a PNG.")
    if bits not in _DEPTHS:
        raise DamagedError(f"its header says {bits} bits per pixel")
    if offset < 14 + header:
        raise DamagedError("its pixels begin inside of its header")
    if len(data) < offset + (width * bits + 31) // 32 * 4 * height:
        raise DamagedError(CUT_OFF)
    try:
        with BmpImageFile(io.BytesIO(data)) as image:
            return rgb_of(image)
    except OSError as error:
        if "nsupported" in str(error):
            raise RefusedError(
                f"is a BMP file that PIL does not read ({error}). Save it as a PNG."
            ) from error
        raise
