"""Damage a picture by its structure: chunks whose checksum fits, segments, tags and header numbers."""

from __future__ import annotations

import struct
import zlib
from typing import Final

import numpy as np

from fuzz.mutate_bytes import INTERESTING_NUMBERS, mutate_bytes


def mutate_picture(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage a picture in a way that fits its format, or its bytes blindly."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, data)
    if data[:4] == b"\x89PNG":
        return _mutate_png(rng, data)
    if data[:2] == b"\xff\xd8":
        return _mutate_jpeg(rng, data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _mutate_tiff(rng, data)
    if data[:2] in (b"P5", b"P6"):
        return _mutate_pnm(rng, data)
    return _mutate_header(rng, data)


def _number(rng: np.random.Generator) -> int:
    return INTERESTING_NUMBERS[int(rng.integers(len(INTERESTING_NUMBERS)))]


def _mutate_png(rng: np.random.Generator, data: bytes) -> bytes:
    """Change, drop, double, shuffle or add chunks, and give each a checksum that fits."""
    chunks: list[tuple[bytes, bytes]] = []
    at = 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    at = int(rng.integers(len(chunks)))
    kind, content = chunks[at]
    match int(rng.integers(6)):
        case 0:
            chunks[at] = kind, mutate_bytes(rng, content)
        case 1:
            del chunks[at]
        case 2:
            chunks.insert(at, chunks[at])
        case 3:  # the size of the picture and its kind of pixels
            header = bytearray(chunks[0][1].ljust(13, b"\0"))
            struct.pack_into(">I", header, int(rng.choice([0, 4])), _number(rng))
            chunks[0] = chunks[0][0], bytes(header)
        case 4:  # kilobytes that unpack to a hundred megabytes
            bomb = zlib.compress(bytes(100_000_000 if rng.random() < 0.1 else 1_000_000), 9)
            kinds: list[bytes] = [b"zTXt", b"iCCP", b"IDAT"]
            chunks.insert(1, (kinds[int(rng.integers(3))], b"name\0\0" + bomb))
        case _:  # an animation, which shows another frame than its first to some readers
            chunks.insert(1, (b"acTL", struct.pack(">II", 2, 0)))
    return data[:8] + b"".join(_png_chunk(*chunk) for chunk in chunks)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _mutate_jpeg(rng: np.random.Generator, data: bytes) -> bytes:
    """Change the frame header, drop or repeat segments, or repeat scans."""
    segments: list[int] = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        segments.append(at)
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    scan = at
    frames = [start for start in segments if data[start + 1] in (0xC0, 0xC1, 0xC2)]
    match int(rng.integers(5)):
        case 0 if frames:
            changed = bytearray(data)
            struct.pack_into(">H", changed, frames[0] + int(rng.choice([5, 7])), _number(rng) & 0xFFFF)
            return bytes(changed)
        case 1 if segments:
            start = segments[int(rng.integers(len(segments)))]
            return data[:start] + data[start + 2 + struct.unpack_from(">H", data, start + 2)[0] :]
        case 2:  # the same scan again and again, which a decoder may do for minutes
            return data[:-2] + data[scan:-2] * int(rng.choice([1, 10, 2000])) + data[-2:]
        case 3:  # the end comes too early and still looks like an end
            keep = int(rng.integers(scan, len(data)))
            return data[:keep] + b"\xff\xd9"
        case _:
            return data[:scan] + mutate_bytes(rng, data[scan:])


_TIFF_TAGS: Final = (
    256,
    257,
    258,
    259,
    262,
    273,
    274,
    277,
    278,
    279,
    284,
    317,
    320,
    322,
    323,
    324,
    325,
    338,
    339,
)


def _mutate_tiff(rng: np.random.Generator, data: bytes) -> bytes:
    """Overwrite a tag, its type, its count or its value in the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    entry = directory + 2 + 12 * int(rng.integers(max(1, count)))
    changed = bytearray(data)
    match int(rng.integers(5)):
        case 0:
            struct.pack_into(order + "H", changed, entry, int(rng.choice(_TIFF_TAGS)))
        case 1:
            struct.pack_into(order + "H", changed, entry + 2, int(rng.integers(0, 14)))
        case 2:
            struct.pack_into(order + "I", changed, entry + 4, _number(rng))
        case 3:
            struct.pack_into(order + "I", changed, entry + 8, _number(rng))
        case _:
            struct.pack_into(order + "H", changed, entry + 8, int(rng.integers(0, 40)))
    return bytes(changed)


def _mutate_pnm(rng: np.random.Generator, data: bytes) -> bytes:
    """Replace a number of the header, or the header's kind."""
    header, _, pixels = data.partition(b"255\n")
    words = [*header.split(), b"255"]
    values = [b"0", b"-1", b"1", b"65535", b"65536", b"4294967296", b"9" * 500, b"#", b"1e9", b"255"]
    words[int(rng.integers(len(words)))] = values[int(rng.integers(len(values)))]
    return b" ".join(words) + b"\n" + pixels


def _mutate_header(rng: np.random.Generator, data: bytes) -> bytes:
    """Overwrite a number among the first 64 bytes, where BMP and WebP keep sizes and offsets."""
    changed = bytearray(data)
    at = int(rng.integers(2, min(60, len(data) - 4)))
    if rng.random() < 0.7:
        struct.pack_into("<I", changed, at, _number(rng))
    else:
        struct.pack_into("<H", changed, at, _number(rng) & 0xFFFF)
    return bytes(changed)
