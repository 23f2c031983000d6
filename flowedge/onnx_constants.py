"""Replace constants of an ONNX file without the onnx package.

Calibration changes a few numbers of a finished graph on a device that has neither onnx nor torch. An ONNX file is a
protobuf message. A message is a row of fields, and a field is a tag (number and wire type) and a value. The elements of
a constant lie as plain little-endian bytes in one field. So a replacement of the same size is a write at the right
place. Nothing is encoded again, and only the named constants are loaded.

The field numbers are those of ``onnx.proto``. The wire format is that of the protobuf encoding guide.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import BundleError

# onnx.proto: ModelProto.graph, GraphProto.initializer, and the fields of TensorProto that are used.
_GRAPH: Final = 7
_INITIALIZER: Final = 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _DATA_LOCATION = 1, 2, 8, 9, 14

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# onnx.proto: TensorProto.DataType, as far as NumPy has the type.
_DTYPES: Final[Mapping[int, str]] = {
    1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8",
    12: "<u4", 13: "<u8",
}  # fmt: skip

# onnx.proto: the fields through which a message leads to tensors, and the fields of a tensor's external data.
_TENSORS_IN: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {13: "entry"},
}
_DEEPEST: Final = 100

_LONGEST_NAME_BYTES: Final = 1 << 16
_MOST_DIMS: Final = 32  # what NumPy 1.26 can hold
_MOST_ELEMENTS: Final = 1 << 31  # protobuf ends at 2 GB


def write_constants(source: Path, target: Path, values: Mapping[str, NDArray[Any]]) -> None:
    """Copy an ONNX file with new values for some of its initializers. Every other byte stays as it is.

    Args:
        source: The ONNX file to start from, which is not changed.
        target: The file to make, which must not exist.
        values: For each name an array of the same dtype and number of elements as the initializer.

    Raises:
        ValueError: A value has another dtype or another number of elements than the initializer.
        BundleError: The source cannot be read or is not ONNX, a name is not there or there twice, the elements are not
            stored as raw data inside the file, or ``target`` exists or cannot be written. Nothing is left behind.
    """
    with _reading(source) as file:
        places = _find(file, values)
        # The values are checked and encoded before the target is made, so a wrong value leaves no file.
        patches = [(place.offset, place.encode(values[name])) for name, place in places.items()]
        file.seek(0)
        with _creating(target) as copy:
            while chunk := file.read(1 << 20):
                copy.write(chunk)
            for offset, data in patches:
                copy.seek(offset)
                copy.write(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Constant:
    """The place of one initializer's elements in the file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def encode(self, value: NDArray[Any]) -> bytes:
        if value.dtype != self.dtype or value.size != math.prod(self.shape):
            raise ValueError(
                f"the constant {self.name!r} is {self.dtype} {self.shape}, got {value.dtype} {value.shape}"
            )
        return value.tobytes()


class _Field(NamedTuple):
    """One field of a message: the ``value`` of a number, or the range of bytes of other content."""

    number: int
    wire_type: int
    value: int
    start: int
    end: int


def _find(file: BinaryIO, names: Iterable[str]) -> dict[str, _Constant]:
    found: dict[str, _Constant | None] = dict.fromkeys(names)
    size = file.seek(0, os.SEEK_END)
    for graph in _messages(file, _GRAPH, 0, size):
        for tensor in _messages(file, _INITIALIZER, graph.start, graph.end):
            fields = list(_fields(file, tensor.start, tensor.end))
            name = _name(file, fields)
            if name not in found:
                continue
            if found[name] is not None:
                raise _malformed(file, f"it has two constants named {name!r}")
            found[name] = _constant(file, name, fields)
    missing = [name for name, constant in found.items() if constant is None]
    if missing:
        raise BundleError(
            f"{file.name} has no constants named {', '.join(map(repr, missing))}. Export the bundle again."
        )
    return {name: constant for name, constant in found.items() if constant is not None}


def external_files(source: Path) -> set[str]:
    """Return the names of the files beside an ONNX file that its tensors are stored in, wherever in it the tensors are.

    Raises:
        BundleError: The file cannot be read or is not ONNX.
    """
    with _reading(source) as file:
        return set(_locations(file, "model", 0, file.seek(0, os.SEEK_END), 0))


def _locations(file: BinaryIO, kind: str, start: int, end: int, depth: int) -> Iterator[str]:
    """Yield the locations of external data in a message of a kind of `_TENSORS_IN`."""
    if depth > _DEEPEST:
        raise _malformed(file, f"its messages are nested more than {_DEEPEST} deep")
    for field in _fields(file, start, end):
        inner = _TENSORS_IN[kind].get(field.number)
        if inner is None or field.wire_type != _BYTES:
            continue
        if inner != "entry":
            yield from _locations(file, inner, field.start, field.end, depth + 1)
            continue
        # Protobuf ignores a field whose wire type is not that of its number.
        texts = {
            one.number: _text(file, one)
            for one in _fields(file, field.start, field.end)
            if one.wire_type == _BYTES
        }
        if texts.get(1) == "location":
            yield texts.get(2, "")


def _text(file: BinaryIO, field: _Field) -> str:
    """Return the text of a field, or the beginning of a long one."""
    file.seek(field.start)
    return file.read(min(field.end - field.start, _LONGEST_NAME_BYTES)).decode("utf-8", errors="replace")


def _constant(file: BinaryIO, name: str, fields: list[_Field]) -> _Constant:
    """Return the place of a constant from the fields of its TensorProto."""
    # In protobuf the last field of a number counts where a message has several.
    last = {field.number: field for field in fields}
    data_type = last[_DATA_TYPE].value if _DATA_TYPE in last else 0
    if data_type not in _DTYPES:
        raise BundleError(
            f"{file.name}: the constant {name!r} has the ONNX data type {data_type}, which NumPy lacks. "
            "Export the bundle again."
        )
    if (_DATA_LOCATION in last and last[_DATA_LOCATION].value != 0) or _RAW_DATA not in last:
        raise BundleError(
            f"{file.name}: the elements of the constant {name!r} are not stored as raw data in the file. "
            "Export the bundle again."
        )
    raw = last[_RAW_DATA]
    dtype = np.dtype(_DTYPES[data_type])
    shape = _shape(file, fields)
    if raw.wire_type != _BYTES or math.prod(shape) * dtype.itemsize != raw.end - raw.start:
        raise _malformed(file, f"the constant {name!r} has {raw.end - raw.start} bytes for {dtype} {shape}")
    return _Constant(name=name, dtype=dtype, shape=shape, offset=raw.start)


def _name(file: BinaryIO, fields: list[_Field]) -> str:
    """Return the name in a TensorProto, or an empty string for a name that is missing or too long."""
    for field in reversed(fields):
        if field.number == _NAME and field.wire_type == _BYTES:
            if field.end - field.start > _LONGEST_NAME_BYTES:
                break
            file.seek(field.start)
            return file.read(field.end - field.start).decode("utf-8", errors="replace")
    return ""


def _shape(file: BinaryIO, fields: list[_Field]) -> tuple[int, ...]:
    """Return the dimensions in a TensorProto, which are stored one by one or packed."""
    shape: list[int] = []
    for field in fields:
        if field.number != _DIMS:
            continue
        if field.wire_type == _VARINT:
            shape.append(field.value)
        elif field.wire_type == _BYTES:  # packed: several numbers in one field
            file.seek(field.start)
            while file.tell() < field.end and len(shape) <= _MOST_DIMS:
                shape.append(_varint(file, field.end))
        if len(shape) > _MOST_DIMS:
            raise _malformed(file, f"a constant has more than {_MOST_DIMS} dimensions")
    if math.prod(max(size, 1) for size in shape) > _MOST_ELEMENTS:
        raise _malformed(file, f"a constant has the dimensions {shape}")
    return tuple(shape)


def _messages(file: BinaryIO, number: int, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of one number that hold a message."""
    for field in _fields(file, start, end):
        if field.number == number and field.wire_type == _BYTES:
            yield field


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message between two places of a file, without reading their content."""
    while start < end:
        file.seek(start)
        # A tag holds the field's number and, in its lowest three bits, the wire type.
        tag = _varint(file, end)
        number, wire_type = tag >> 3, tag & 7
        value = 0
        if wire_type == _VARINT:
            value = _varint(file, end)
            start, stop = file.tell(), file.tell()
        elif wire_type == _BYTES:
            size = _varint(file, end)
            start, stop = file.tell(), file.tell() + size
        elif wire_type in (_FIXED64, _FIXED32):
            start, stop = file.tell(), file.tell() + (8 if wire_type == _FIXED64 else 4)
        else:
            raise _malformed(file, f"byte {start} begins a field of wire type {wire_type}")
        if number == 0 or stop > end:
            raise _malformed(file, f"the field {number} at byte {start} does not end where its message does")
        yield _Field(number, wire_type, value, start, stop)
        start = stop


def _varint(file: BinaryIO, end: int) -> int:
    """Read a number of up to 64 bits, seven in a byte, the lowest first. All bytes but the last have the top bit."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte or file.tell() > end:
            raise _malformed(file, f"it ends within a number at byte {file.tell()}")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _malformed(file, f"the number before byte {file.tell()} is longer than 64 bits")


def _malformed(file: BinaryIO, reason: str) -> BundleError:
    return BundleError(f"{file.name} is not a whole ONNX file: {reason}. Copy or export the bundle again.")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}. Check the path and the disk.") from error


@contextlib.contextmanager
def _creating(path: Path) -> Iterator[BinaryIO]:
    """Open a new file, and remove it where it could not be finished."""
    try:
        with path.open("xb") as file:
            try:
                yield file
                file.flush()
            except BaseException:
                path.unlink()
                raise
    except OSError as error:
        raise BundleError(
            f"{path} cannot be written: {error.strerror}. It must be a new file, on a disk with enough space."
        ) from error
