"""Read and write the messages of an ONNX file without a package, by the protobuf encoding guide."""

from __future__ import annotations

from typing import Final, TypeAlias

from flowedge.errors import BundleError

VARINT: Final = 0
"""The wire type of a whole number."""
BYTES: Final = 2
"""The wire type of bytes, of texts and of messages inside of a message."""
_FIXED64, _FIXED32 = 1, 5

Value: TypeAlias = int | memoryview
"""The value of a field."""
Fields: TypeAlias = list[tuple[int, int, Value]]
"""The fields of a message: the number, the wire type and the value of each."""


def fields_of(data: Value) -> Fields:
    """Return the fields of a message: their number, their wire type and their value.

    Raises:
        BundleError: The bytes are no message, or end within a field.
    """
    assert isinstance(data, memoryview)
    fields: Fields = []
    place = 0
    while place < len(data):
        tag, place = varint(data, place)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, place = varint(data, place)
            fields.append((number, kind, value))
            continue
        if kind == BYTES:
            size, place = varint(data, place)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise BundleError(f"the graph is no ONNX model that can be read: it has the wire type {kind}.")
        if place + size > len(data):
            raise BundleError("the graph is no ONNX model that can be read: it ends within a field.")
        fields.append((number, kind, data[place : place + size]))
        place += size
    return fields


def encoded(fields: Fields) -> bytes:
    """Return a message of these fields."""
    parts: list[bytes | memoryview] = []
    for number, kind, value in fields:
        parts.append(_varint_bytes(number << 3 | kind))
        if isinstance(value, int):
            parts.append(_varint_bytes(value))
        else:
            if kind == BYTES:
                parts.append(_varint_bytes(len(value)))
            parts.append(value)
    return b"".join(parts)


def varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return the number at a place of a message, and the place behind it.

    Raises:
        BundleError: The number has more than 64 bits.
    """
    value = shift = 0
    while shift < 70:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise BundleError("the graph is no ONNX model that can be read: a number is longer than 64 bits.")


def _varint_bytes(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
