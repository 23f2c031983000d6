"""Decode JPEG files (ITU-T T.81) through libjpeg-turbo, whose warnings become errors.

libjpeg fills what is missing with grey and warns. simplejpeg reports these warnings. Three losses cause no warning: a
progressive file may lack its later scans, a file of several scans may lack a component, and a hole of zeros may decode
to as many blocks as it replaced. These three losses are found here. JPEG has no checksum, so other damage inside of the
coded data can stay unseen.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from flowedge.runtime.frames.decoders.faults import (
    CUT_OFF,
    DamagedError,
    RefusedError,
    check_parts,
    check_picture_size,
    several_pictures,
)
from flowedge.runtime.frames.decoders.pillow import rgb_of

SIGNATURE: Final = rb"\xff\xd8\xff"
_START: Final = b"\xff\xd8\xff"

MAX_SCANS: Final = 100
"""The most scans of a picture. Encoders write about ten."""

MAX_SCANNED_PIXELS: Final = 1_200_000_000
"""The most pixels of all scans together: twelve scans of the largest picture."""

MAX_CMYK_PIXELS: Final = 50_000_000
"""The most pixels of a picture in four inks."""

_DHT, _SOI, _EOI, _SOS, _DNL = 0xC4, 0xD8, 0xD9, 0xDA, 0xDC
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_NOT_FRAMES: Final = (0xC4, 0xC8, 0xCC)  # Huffman tables, reserved, arithmetic conditioning
_JFIF, _ADOBE = 0xE0, 0xEE
_ADOBES_BYTES: Final = 12  # of an Adobe header, whose last one is the colour transform
_BARE: Final = (0x01, *range(0xD0, 0xD8))  # markers without a segment
# In coded data a byte of 255 is followed by 0, and restart markers may lie between.
_NEXT_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# A byte of 255 may be repeated before a marker, and not before the 0 that makes it a part of the data.
_FILLED: Final = b"\xff\xff\x00"
_FILL: Final = re.compile(rb"\xff+")  # any number of bytes of 255 before a marker
_MAX_PARTS: Final = 10_000  # segments and markers; encoders write some dozens
_COEFFICIENTS: Final = 64
_HOLE: Final = bytes(8)
_LONG_HOLE: Final = bytes(64)  # for scans that refine, where a perfect ramp can give a short run of zeros
_LARGEST_SLOPE: Final = 2  # bits of the step from block to block in a smooth picture


@dataclass
class _Frame:
    """The facts of a picture that the headers of its file give.

    Attributes:
        kind: The marker of the frame header.
        height: The height in pixels.
        width: The width in pixels.
        missing: The number of low bits that no scan has brought yet, by component and for each of its 64 coefficients.
            A coefficient that no scan has brought at all counts as 16.
        scans: The number of scans so far.
        is_jfif: True where the file has a JFIF header, which allows grey and YCbCr alone.
        adobe: The colour transform that an Adobe header names, or None without one.
    """

    kind: int
    height: int
    width: int
    missing: dict[int, list[int]]
    scans: int = 0
    is_jfif: bool = False
    adobe: int | None = None


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG file.

    Returns:
        ``(H, W, 3)`` uint8, RGB, the pixels that PIL gives.

    Raises:
        DamagedError: Part of the picture is missing, or libjpeg-turbo warns.
        RefusedError: The file is of a rare variant, too large, or holds several pictures.
    """
    colours = "CMYK" if colours_of(data) == "CMYK" else "RGB"
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace=colours, strict=True)
    except ValueError as error:
        if "subsampling" in str(error):
            raise RefusedError(
                "is a JPEG file whose channels have rare sampling factors. Save it with 4:4:4, 4:2:2 or 4:2:0, in four "
                "inks with 4:4:4."
            ) from error
        raise DamagedError(str(error).rstrip(".")) from error
    if colours == "CMYK":
        # PIL has a convention of its own for inverted inks and for their conversion to RGB.
        del pixels
        with JpegImageFile(io.BytesIO(data)) as image:
            return rgb_of(image)
    return pixels


def colours_of(data: bytes) -> Literal["grey", "YCbCr", "RGB", "CMYK"]:
    """Check that a JPEG file is whole and of a kind that is read, and name the colours in it, without decoding it.

    Raises:
        DamagedError: Part of the picture is missing.
        RefusedError: The file is of a rare variant, too large, or holds several pictures.
    """
    frame = _frame(data)
    if len(frame.missing) != 3:
        return "grey" if len(frame.missing) == 1 else "CMYK"
    # These are the rules of libjpeg (jdapimin.c).
    if frame.is_jfif:
        return "YCbCr"
    is_rgb = bytes(frame.missing) == b"RGB" if frame.adobe is None else frame.adobe == 0
    return "RGB" if is_rgb else "YCbCr"


def _frame(data: bytes) -> _Frame:
    """Walk the segments to the end marker, and check that the scans bring all of every component."""
    at, frame = 2, None
    tables: dict[int, int] = {}
    count, is_jfif, adobe = 0, False, None
    while True:
        count += 1
        check_parts(count, _MAX_PARTS)
        at, marker = _marker(data, at)
        if marker == _EOI:
            break
        if marker in _BARE:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        segment = data[at + 2 : at + length]
        if length < 2 or len(segment) != length - 2:
            raise DamagedError(CUT_OFF)
        at += length
        if marker in (_SOI, _DNL):
            raise DamagedError(f"its marker {marker:02X} has no place there")
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            if frame is not None:
                raise DamagedError("it has two frame headers")
            frame = _frame_header(marker, segment)
        if marker == _JFIF and segment.startswith(b"JFIF\0"):
            is_jfif = True
        if marker == _ADOBE and segment.startswith(b"Adobe") and len(segment) >= _ADOBES_BYTES:
            adobe = segment[_ADOBES_BYTES - 1]
        if marker == _DHT:
            tables |= _first_symbols(segment)
        if marker == _SOS:
            if frame is None:
                raise DamagedError("its coded data comes before its header")
            _add_scan(frame, segment)
            following = _NEXT_MARKER.search(data, at)
            if following is None:
                raise DamagedError(CUT_OFF)
            hole = _LONG_HOLE if segment[-1] >> 4 else _HOLE
            if data.find(hole, at, following.start()) >= 0 and not _zeros_are_plausible(
                frame, segment, tables
            ):
                raise DamagedError("its coded data have a hole of zeros")
            if data.find(_FILLED, at, following.start()) >= 0:
                raise DamagedError("its coded data have a hole of ones")
            at = following.start()
    if frame is None:
        raise DamagedError("it holds no image")
    if any(any(bits) for bits in frame.missing.values()):
        raise DamagedError("some of its scans are missing")
    if data.find(_START, at) >= 0:
        raise several_pictures("a JPEG file")
    frame.is_jfif, frame.adobe = is_jfif, adobe
    return frame


def _marker(data: bytes, at: int) -> tuple[int, int]:
    """Return the place behind the next marker, and the marker."""
    start = _FILL.match(data, at)
    place = at if start is None else start.end()
    if place >= len(data):
        raise DamagedError(CUT_OFF)
    if start is None:
        raise DamagedError(f"there is no marker at byte {at}")
    return place + 1, data[place]


def _frame_header(kind: int, segment: bytes) -> _Frame:
    precision, height, width, count = struct.unpack_from(">BHHB", segment)
    if kind not in (_BASELINE, _EXTENDED, _PROGRESSIVE):
        raise RefusedError(
            "is a lossless, hierarchical or arithmetic-coded JPEG file. Save it as a baseline JPEG or a PNG."
        )
    if precision != 8:
        raise RefusedError(f"is a JPEG file of {precision} bits per channel. Save it as a PNG of 16 bits.")
    check_picture_size(height, width)
    if count not in (1, 3, 4) or len(segment) != 6 + 3 * count:
        raise RefusedError(f"is a JPEG file of {count} channels. Save it as RGB or grey.")
    if count == 4 and height * width > MAX_CMYK_PIXELS:
        raise RefusedError(
            f"is a CMYK JPEG file of more than {MAX_CMYK_PIXELS / 1e6:.0f} million pixels. Save it as RGB."
        )
    names = segment[6::3]
    if len(set(names)) != count:
        raise DamagedError("two of its components have one name")
    return _Frame(kind, height, width, {name: [16] * _COEFFICIENTS for name in names})


def _add_scan(frame: _Frame, segment: bytes) -> None:
    """Note what a scan brings (T.81, B.2.3)."""
    count = segment[0]
    if len(segment) != 4 + 2 * count:
        raise DamagedError("a scan header has another length than it says")
    first, last, precision = segment[1 + 2 * count :]
    if frame.kind != _PROGRESSIVE:
        first, last, precision = 0, _COEFFICIENTS - 1, 0
    if not first <= last < _COEFFICIENTS:
        raise DamagedError(f"a scan is of the coefficients {first} to {last}")
    for name in segment[1 : 1 + 2 * count : 2]:
        if name not in frame.missing:
            raise DamagedError(f"a scan is of a component {name}, which the header does not name")
        frame.missing[name][first : last + 1] = [precision & 15] * (last + 1 - first)
    frame.scans += 1
    if frame.scans > MAX_SCANS or frame.scans * frame.height * frame.width > MAX_SCANNED_PIXELS:
        raise RefusedError(
            f"is a JPEG file of {frame.scans} or more scans of {frame.width}x{frame.height} pixels, which takes too "
            "long. Save it as a baseline JPEG."
        )


def _first_symbols(segment: bytes) -> dict[int, int]:
    """Return the symbol whose code is all zeros, by class and number of a Huffman table (T.81, B.2.4.2)."""
    found: dict[int, int] = {}
    at = 0
    while at < len(segment):
        count = sum(segment[at + 1 : at + 17])
        if count:
            found[segment[at]] = segment[at + 17]
        at += 17 + count
    return found


def _zeros_are_plausible(frame: _Frame, segment: bytes, tables: dict[int, int]) -> bool:
    """Tell whether a long run of zeros in the coded data can be part of a picture.

    A run of zeros repeats the symbols whose codes are all zeros. The run is a smooth area where these symbols end each
    block at once, after a small step in brightness. The run is no picture where the symbols give every frequency of
    block after block one value.
    """
    count = segment[0]
    first, _, precision = segment[1 + 2 * count :]
    if frame.kind == _PROGRESSIVE and first == 0 and precision >> 4:
        return True  # the bits that refine the steps between blocks have no codes
    for selected in segment[2 : 1 + 2 * count : 2]:
        step, frequency = tables.get(selected >> 4, 0), tables.get(0x10 | selected & 15, 0)
        has_steps = frame.kind != _PROGRESSIVE or first == 0
        has_frequencies = frame.kind != _PROGRESSIVE or first > 0
        if has_steps and step > _LARGEST_SLOPE:
            return False
        # In a progressive scan every symbol of size 0, but that of 16 zeros, ends at least one block.
        if has_frequencies and (frequency & 15 or frequency == 0xF0):
            return False
    return True
