"""Decode Netpbm's PBM, PGM and PPM, and PFM with floating-point samples."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.frames.decoders.faults import (
    CUT_OFF,
    DamagedError,
    RefusedError,
    check_picture_size,
    several_pictures,
)

SIGNATURE: Final = rb"P[1-6fF]\s"
_MAX_HEADER: Final = 1 << 16  # bytes with its comments; each needs memory while they are matched
_MAX_TEXT: Final = 32_000_000  # bytes of samples in plain text
# A comment with no space before it joins the numbers on its two sides in Pillow, and separates them elsewhere.
_GAP: Final = rb"\s(?:\s|#[^\n\r]*[\n\r])*"
_WHOLE: Final = rb"(\d{1,9})"
_BITMAP: Final = re.compile(rb"P[14]" + _GAP + _WHOLE + _GAP + _WHOLE + rb"\s")
_MAP: Final = re.compile(rb"P[2356]" + _GAP + _WHOLE + _GAP + _WHOLE + _GAP + _WHOLE + rb"\s")
_FLOATS: Final = re.compile(rb"P[fF]\s+" + _WHOLE + rb"\s+" + _WHOLE + rb"\s+(-?\d+(?:\.\d+)?)\s")


def decode(data: bytes) -> NDArray[Any]:
    """Decode a PNM or PFM file.

    Returns:
        ``(H, W, 3)`` uint8, RGB, the pixels that PIL gives. A file of more than 8 bits gives ``(H, W)`` or
        ``(H, W, 3)`` uint16 or float32.

    Raises:
        DamagedError: Samples are missing or beyond the largest one that the header says.
        RefusedError: The file is too large or holds several pictures.
    """
    kind = data[1:2]
    if kind in b"fF":
        return _floats(data)
    header = (_BITMAP if kind in b"14" else _MAP).match(data, 0, _MAX_HEADER)
    if header is None:
        raise DamagedError("its header is not complete")
    width, height = int(header[1]), int(header[2])
    check_picture_size(height, width)
    maximum = 1 if kind in b"14" else int(header[3])
    if not 1 <= maximum <= 65535:
        raise DamagedError(f"its header says a largest sample of {maximum}")
    shape = (height, width, 3) if kind in b"36" else (height, width)
    body = memoryview(data)[header.end() :]
    samples: NDArray[Any]
    if kind in b"123":
        samples = _plain(bytes(body), shape, is_bitmap=kind == b"1")
    elif kind == b"4":
        samples = _bits(body, height, width)
    else:
        samples = _binary(body, shape, np.dtype(np.uint8) if maximum < 256 else np.dtype(">u2"))
    is_any_level = samples.dtype == np.uint8 and maximum == 255
    if not is_any_level and int(samples.max()) > maximum:
        raise DamagedError(f"a sample is above {maximum}, the largest that its header says")
    if maximum > 255:
        return samples.astype(np.uint16)
    if maximum == 255 and samples.ndim == 3:
        return samples.astype(np.uint8)
    levels = np.arange(256) if kind not in b"14" else np.array([1, 0])  # a bitmap's ones are black
    # PIL rounds halves to even, as NumPy does.
    grey = np.rint(levels / maximum * 255).clip(0, 255).astype(np.uint8)[samples]
    return grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)


def _binary(body: memoryview, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    count = int(np.prod(shape))
    if len(body) < count * dtype.itemsize:
        raise DamagedError(CUT_OFF)
    _check_rest(body[count * dtype.itemsize :])
    return np.frombuffer(body, dtype, count).reshape(shape)


def _bits(body: memoryview, height: int, width: int) -> NDArray[np.uint8]:
    rows = _binary(body, (height, (width + 7) // 8), np.dtype(np.uint8))
    return np.unpackbits(rows, axis=1, count=width)


def _plain(body: bytes, shape: tuple[int, ...], *, is_bitmap: bool) -> NDArray[np.uint32]:
    """Return the samples of a file in plain text. A bitmap's digits need no space between."""
    if len(body) > _MAX_TEXT:
        raise RefusedError(f"has {len(body) / 1e6:.0f} MB of numbers in plain text. Save it as a binary PNM.")
    count = int(np.prod(shape))
    if not is_bitmap and re.search(rb"\d#", body):
        raise DamagedError("a comment touches a number")
    text = re.sub(rb"#[^\n\r]*", b"", body)
    if not re.fullmatch(rb"[\d\s]*", text):
        raise DamagedError("something else lies between its numbers")
    if is_bitmap:
        digits = np.frombuffer(text.translate(None, b" \t\n\r\v\f"), np.uint8) - np.uint8(ord("0"))
        samples = digits.astype(np.uint32)
    else:
        if re.search(rb"\d{10}", text):
            raise DamagedError("a sample has more than nine digits")
        samples = np.fromstring(text, np.uint32, sep=" ") if text.strip() else np.empty(0, np.uint32)
    if samples.size < count:
        raise DamagedError(CUT_OFF)
    if samples.size > count:
        raise DamagedError("it has more samples than its size says")
    return samples.reshape(shape)


def _floats(data: bytes) -> NDArray[np.float32]:
    """Return the samples of a PFM file. The rows of the file go from the bottom to the top."""
    header = _FLOATS.match(data, 0, _MAX_HEADER)
    if header is None:
        raise DamagedError("its header is not complete")
    width, height = int(header[1]), int(header[2])
    check_picture_size(height, width)
    shape = (height, width, 3) if data[1:2] == b"F" else (height, width)
    order = "<" if header[3].startswith(b"-") else ">"
    samples = _binary(memoryview(data)[header.end() :], shape, np.dtype(f"{order}f4"))
    return np.ascontiguousarray(samples[::-1], np.float32)


def _check_rest(rest: memoryview) -> None:
    """Refuse a second picture behind the first one. Netpbm's tools write them so."""
    if re.match(rb"\s*P[1-7fF]\s", bytes(rest[:64])):
        raise several_pictures("a PNM file")
