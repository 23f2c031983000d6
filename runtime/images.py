"""Find and read image files, as PIL's ``Image.open(path).convert("RGB")`` reads them.

Files are untrusted: their type, size and completeness are checked before a decoder sees them, so that a small
file cannot ask for gigabytes and half an image is never taken for a whole one.
"""

from __future__ import annotations

import glob
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import DataError, ImageError

IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS: Final = 100_000_000
"""The largest image that is decoded: 300 MB as RGB."""

PICTURES: Final = (".overlay.png", ".mask.png")
"""How the names end of what ``flowedge run --out`` writes."""
_MAX_BYTES: Final = 4 * MAX_PIXELS + (1 << 20)  # the largest uncompressed file of so many pixels
_TO_RGB: Final = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
_CUT_OFF: Final = "it is cut off"


def find_images(source: str | Path) -> list[Path]:
    """List the images that a name stands for.

    Args:
        source: An image file, a folder (searched with all its subfolders; links to folders are not followed), or
            a pattern with ``*``, ``?``, ``[...]`` or ``**``. Hidden files are left out, and so is what an earlier
            run wrote (`PICTURES`).

    Returns:
        At least one path, in natural order: ``part2.png`` before ``part10.png``. A file that is named outright is
        returned whatever its suffix; otherwise only files with one of `IMAGE_SUFFIXES` are.

    Raises:
        DataError: Nothing is there, or a folder cannot be read.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    if path.is_dir():
        files = _files_below(path)
        advice = f"The folder and its subfolders hold {len(files)} files; images end in {suffixes}."
    elif glob.has_magic(str(source)):
        files = [Path(name) for name in glob.iglob(str(source), recursive=True)]
        advice = f"The pattern matches {len(files)} files and folders; images end in {suffixes}."
    else:
        raise DataError(f"{source} does not exist. Name an image, a folder of images or a quoted pattern.")
    images = [
        file
        for file in files
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not file.name.startswith(".")
        and not file.name.endswith(PICTURES)
        and file.is_file()
    ]
    if not images:
        raise DataError(f"{source} has no images. {advice}")
    return sorted(images, key=_natural_order)


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file.

    Grey is repeated three times, a palette is looked up, transparency is dropped without blending, and the
    orientation that a camera noted in a JPEG or PNG is not applied: all as PIL's ``convert("RGB")`` does, to the
    last grey level (for CMYK JPEG files to one grey level).

    Returns:
        ``(H, W, 3)`` uint8, RGB, C-contiguous, owned by the caller.

    Raises:
        ImageError: The file is missing, empty, cut off, damaged, of another type than PNG, JPEG, BMP, TIFF or
            WebP, larger than `MAX_PIXELS`, of more than 8 bits per channel (which grey levels the network was
            trained on is not known), or a TIFF with four channels (whose colours may or may not be multiplied by
            their alpha).
    """
    path = Path(path)
    data = _read(path)
    inspect = next((read for signature, read in _HEADERS if re.match(signature, data, re.DOTALL)), None)
    if inspect is None:
        raise ImageError(f"{path} is not a PNG, JPEG, BMP, TIFF or WebP image. Convert or remove it.")
    try:
        width, height = inspect(data)
    except (struct.error, IndexError):
        raise _damaged(path, _CUT_OFF) from None
    except _BadImageError as error:
        raise _damaged(path, str(error)) from None
    if width < 1 or height < 1:
        raise _damaged(path, f"its header says {width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{path} has {width}x{height} pixels, more than {MAX_PIXELS / 1e6:.0f} million. Cut it into pieces."
        )
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _damaged(path, str(error)) from error
    if pixels is None:
        raise _damaged(path, "it cannot be decoded, perhaps because it is cut off")
    if pixels.dtype != np.uint8:
        raise ImageError(
            f"{path} has {pixels.dtype} pixels; 8 bits per channel are needed. Convert it with the scale that the "
            "training images were converted with."
        )
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 4 and inspect is _tiff_size:
        raise ImageError(f"{path} is a TIFF with transparency or CMYK colours. Convert it to RGB.")
    return np.asarray(cv2.cvtColor(pixels, _TO_RGB[channels]), np.uint8)


class _BadImageError(Exception):
    """Why a file is damaged."""


def _damaged(path: Path, reason: str) -> ImageError:
    return ImageError(f"{path} is damaged: {reason}. Copy it again from its source, or remove it.")


def _read(path: Path) -> bytes:
    if not path.exists():
        raise ImageError(f"{path} does not exist. Check the name.")
    if not path.is_file():
        raise ImageError(f"{path} is not a file. Name an image file.")
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _MAX_BYTES else b""
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    if size > _MAX_BYTES:
        raise ImageError(
            f"{path} has {size / 1e6:.0f} MB, more than an image of {MAX_PIXELS / 1e6:.0f} million pixels needs. "
            "Cut it into pieces."
        )
    if not data:
        raise ImageError(f"{path} is empty. Copy it again from its source, or remove it.")
    return data


def _files_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be read: {error.strerror}. Check its permissions."
        ) from error

    return [Path(parent, name) for parent, _, names in os.walk(folder, onerror=refuse) for name in names]


def _natural_order(path: Path) -> tuple[list[list[str | int]], str]:
    """Compare runs of digits as numbers; a split puts text at even places and digits at odd ones."""
    split = (re.split(r"([0-9]+)", part) for part in path.parts)
    key: list[list[str | int]] = [[int(t) if n % 2 else t.casefold() for n, t in enumerate(s)] for s in split]
    return key, str(path)


# Each reader below returns (width, height) and raises when the file is shorter than it says or does not end.


def _png_size(data: bytes) -> tuple[int, int]:
    """Portable Network Graphics, W3C 2003, sections 5 and 11.2.2: every chunk is whole, up to IEND."""
    size = struct.unpack_from(">II", data, 16)
    at, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(memoryview(data)[at + 4 : at + 8 + length]) != checksum:
            raise _BadImageError(f"the checksum of its part {kind.decode('ascii', 'replace')} is wrong")
        at += 12 + length
    return size[0], size[1]


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """ITU-T T.81, annex B: walk the segments to the end marker; between scans, skip the coded data."""
    at, size = 2, None
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise _BadImageError(_CUT_OFF)
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2
        if marker == 0xD9:
            break
        if (
            marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8
        ):  # inside of coded data, or a marker without a segment
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and size is None:
            height, width = struct.unpack_from(">HH", data, at + 3)
            size = width, height
        at += length
    if size is None:
        raise _BadImageError("it holds no image")
    return size


def _bmp_size(data: bytes) -> tuple[int, int]:
    """BITMAPCOREHEADER or BITMAPINFOHEADER; the rows of an uncompressed file are all there."""
    offset, header = struct.unpack_from("<II", data, 10)
    width, height, _, bits = struct.unpack_from("<HHHH" if header == 12 else "<iiHH", data, 18)
    compression = struct.unpack_from("<I", data, 30)[0] if header > 12 else 0
    height = abs(height)  # negative: the first row is the top one
    if compression in (0, 3) and len(data) < offset + (width * bits + 31) // 32 * 4 * height:
        raise _BadImageError(_CUT_OFF)
    return width, height


def _tiff_size(data: bytes) -> tuple[int, int]:
    """TIFF 6.0, section 2: the first directory's ImageWidth and ImageLength."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    found = {256: 0, 257: 0}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in found:
            (found[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)
    return found[256], found[257]


def _webp_size(data: bytes) -> tuple[int, int]:
    """RFC 9649, section 2: the size of the extended, the lossless or the lossy format."""
    (length,) = struct.unpack_from("<I", data, 4)
    if len(data) < length + 8:
        raise _BadImageError(_CUT_OFF)
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise _BadImageError("it holds no image")


_HEADERS: Final[tuple[tuple[bytes, Callable[[bytes], tuple[int, int]]], ...]] = (
    (rb"\x89PNG\r\n\x1a\n", _png_size),
    (rb"\xff\xd8\xff", _jpeg_size),
    (rb"BM", _bmp_size),
    (rb"II\*\x00|MM\x00\*", _tiff_size),
    (rb"RIFF....WEBP", _webp_size),
)
