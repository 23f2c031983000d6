"""Unpack the strips and tiles of a TIFF file, each to exactly its size (TIFF 6.0, sections 9 and 13)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.frames.decoders.faults import DamagedError

Buffer: TypeAlias = bytes | memoryview

LZW: Final = 5
"""The number of this compression."""

MAX_LZW: Final = 30_000_000
"""The most bytes of LZW codes in a file. Python decodes code by code, about 7 MB in a second."""

_CLEAR, _END, _FIRST = 256, 257, 258
_LARGEST_CODE: Final = 4095


def unpacked(packed: memoryview, compression: int, row: int, rows: int) -> Buffer:
    """Unpack one piece.

    Args:
        packed: The bytes of the piece in the file.
        compression: A key of `COMPRESSIONS`.
        row: The number of bytes of a row.
        rows: The number of rows of the piece.

    Returns:
        ``row * rows`` bytes.

    Raises:
        DamagedError: The piece gives fewer bytes, or breaks its format.
    """
    size = row * rows
    raw = COMPRESSIONS[compression](packed, size)
    if len(raw) != size:
        raise DamagedError(f"it gives {len(raw)} bytes, {size} are needed")
    return raw


def _plain(packed: memoryview, size: int) -> memoryview:
    return packed[:size]


def _deflate(packed: memoryview, size: int) -> bytes:
    inflating = zlib.decompressobj()
    try:
        raw = inflating.decompress(packed, size)
        inflating.decompress(inflating.unconsumed_tail, 1)  # the checksum that ends the stream
    except zlib.error as error:
        raise DamagedError("its Deflate data are wrong") from error
    if not inflating.eof:
        raise DamagedError("its Deflate data do not end with the piece")
    return raw


def _pack_bits(packed: memoryview, size: int) -> bytes:
    raw = bytearray()
    at = 0
    while len(raw) < size and at < len(packed):
        code = packed[at]
        if code < 128:
            part = packed[at + 1 : at + 2 + code]
            if len(part) != code + 1:
                raise DamagedError("its PackBits data are cut off")
            raw += part
            at += 2 + code
        elif code > 128:
            raw += bytes(packed[at + 1 : at + 2]) * (257 - code)
            at += 2
        else:
            at += 1
    return bytes(raw)


def _lzw(packed: memoryview, size: int) -> bytes:
    raw: list[bytes] = []
    length = 0
    for codes in _lzw_tables(np.frombuffer(packed, np.uint8)):
        table = [bytes((value,)) for value in range(256)] + [b"", b""]
        previous = b""
        for code in codes:
            if code < len(table):
                text = table[code]
            elif code == len(table) and previous:
                text = previous + previous[:1]
            else:
                raise DamagedError("its LZW data hold a code that has no meaning yet")
            if previous:
                table.append(previous + text[:1])
            raw.append(text)
            length += len(text)
            previous = text
        if length >= size:
            break
    return b"".join(raw)[:size]


def _lzw_tables(packed: NDArray[np.uint8]) -> Iterator[list[int]]:
    """Yield the codes between two clearings of the table, up to the end code or the end of the data.

    The number of codes since a clearing decides how many bits a code has, so that all of them are cut out at once.
    """
    next_code = np.arange(_FIRST, _LARGEST_CODE + 2)
    widths = np.searchsorted([512, 1024, 2048], next_code, side="right") + 9
    starts = np.concatenate([[0], np.cumsum(widths)[:-1]])
    padded = np.concatenate([packed, np.zeros(4, np.uint8)]).astype(np.uint32)
    bit, last = 0, 8 * len(packed)
    is_first = True
    while True:
        positions = bit + starts
        positions = positions[positions + widths <= last]
        byte, shift = positions >> 3, positions & 7
        word = (padded[byte] << 24) | (padded[byte + 1] << 16) | (padded[byte + 2] << 8) | padded[byte + 3]
        width = widths[: len(positions)]
        codes = (word >> (32 - width - shift).astype(np.uint32)) & ((1 << width) - 1).astype(np.uint32)
        stops = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        stop = int(stops[0]) if stops.size else len(codes)
        if is_first and (stop or not stops.size or codes[0] != _CLEAR):
            raise DamagedError("its LZW data do not begin with a clearing")
        is_first = False
        yield codes[:stop].tolist()
        if not stops.size or codes[stop] == _END:
            return
        bit = int(positions[stop] + width[stop])


COMPRESSIONS: Final[Mapping[int, Callable[[memoryview, int], Buffer]]] = MappingProxyType(
    {1: _plain, LZW: _lzw, 8: _deflate, 32946: _deflate, 32773: _pack_bits}
)
"""The functions that unpack a piece, by the number of its compression. Each stops near the requested size."""
