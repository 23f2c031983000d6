"""Write pictures in many formats, with Pillow and by hand, and read them with PIL."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def photograph(height: int = 97, width: int = 131) -> Image.Image:
    """Return smooth colours with some noise, like a photograph's."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    blurred = cv2.GaussianBlur(noise, (0, 0), 3).astype(np.float64)
    stretched = (blurred - blurred.min()) * 255 / (blurred.max() - blurred.min())
    return Image.fromarray((stretched + rng.normal(0, 6, blurred.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pil_pixels(data: bytes) -> NDArray[np.uint8]:
    """Return what PIL's ``Image.open(path).convert("RGB")`` gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a palette's transparency, which is dropped
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))


def png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG file of these chunks, with their checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a PNG file."""
    chunks: list[tuple[bytes, bytes]] = []
    at = 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def raw_png(
    width: int,
    height: int,
    depth: int,
    colours: int,
    samples: bytes,
    *,
    before: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return a PNG file of unfiltered rows, packed in ``samples`` without their filter bytes."""
    row = len(samples) // height
    rows = b"".join(b"\0" + samples[n * row : (n + 1) * row] for n in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return png([(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


Tag = tuple[int, int, Sequence[int]]
"""The number, the type (1 BYTE, 3 SHORT, 4 LONG) and the values."""


def tiff(tags: Sequence[Tag], pieces: Sequence[bytes], *, order: str = "<", tiled: bool = False) -> bytes:
    """Return a TIFF file of one directory. The tags of the pieces' places and sizes are added."""
    offsets = [8 + sum(map(len, pieces[:n])) for n in range(len(pieces))]
    places = (324, 325) if tiled else (273, 279)
    every = [*tags, (places[0], 4, offsets), (places[1], 4, [len(piece) for piece in pieces])]
    return tiff_of(every, b"".join(pieces), order=order)


def tiff_of(tags: Sequence[Tag], data: bytes, *, order: str = "<", following: int = 0) -> bytes:
    """Return a TIFF file with ``data`` from byte 8 on, and then a directory of exactly these tags."""
    data += b"\0" * (len(data) % 2)
    at = 8 + len(data)
    end = at + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, kind, numbers in sorted(tags, key=lambda one: one[0]):
        packed = struct.pack(f"{order}{len(numbers)}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }", *numbers)
        place = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", end + len(values))
        if len(packed) > 4:
            values += packed + b"\0" * (len(packed) % 2)
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + place
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, at)
    return (
        magic
        + data
        + struct.pack(f"{order}H", len(tags))
        + entries
        + struct.pack(f"{order}I", following)
        + values
    )


def grey_tags(height: int, width: int, **changed: int) -> list[Tag]:
    """Return the tags of a grey picture of 8 bits in one strip. An argument ``t259=5`` changes the tag 259."""
    tags: Mapping[int, int] = {
        256: width,
        257: height,
        258: 8,
        259: 1,
        262: 1,
        277: 1,
        278: height,
        **{int(name[1:]): value for name, value in changed.items()},
    }
    return [(tag, 4 if tag in (256, 257, 278, 322, 323) else 3, [value]) for tag, value in tags.items()]


def bmp(
    width: int,
    height: int,
    bits: int,
    rows: bytes,
    *,
    palette: bytes = b"",
    compression: int = 0,
    masks: bytes = b"",
) -> bytes:
    """Return a BMP file with a BITMAPINFOHEADER, whose rows are packed and padded already."""
    offset = 14 + 40 + len(masks) + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(rows), 2835, 2835, len(palette) // 4, 0
    )
    return struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset) + header + masks + palette + rows
