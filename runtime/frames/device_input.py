"""Write the graph that makes the network's input from frames, for engines that preprocess on their device.

A bundle that was exported for one size of frames has such a graph in front of its own. For any other bundle it is
written here, without the package onnx, once the size of the frames is known. Its matrices, and the exact parts of PIL's
integer weights, are those of the host and of the exporter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.framing import Framing, Size, framing
from flowedge.geometry import GREY_WEIGHTS, input_matrices, placement
from flowedge.manifest import Preprocessing
from flowedge.protobuf import BYTES, VARINT, Fields, encoded
from flowedge.resampling import PIL_FRACTION_BITS, exact_parts, pil_fixed_point, pil_resizes_rows_first

FRAMES: Final = "frames"
"""The name of the graph's input, ``(N, H, W, 3)`` uint8, RGB."""
IMAGE: Final = "image"
"""The name of the graph's output, the network's input ``(N, 3, h, w)`` float32."""

_OPSET: Final = 13
_IR_VERSION: Final = 8
_FLOAT, _UINT8, _INT64 = 1, 2, 7
_TYPES: Final = {"float32": _FLOAT, "uint8": _UINT8, "int64": _INT64}
_ROWS, _COLUMNS = 0, 1
_Field: TypeAlias = tuple[int, int | str | bytes]


def input_graph(preprocessing: Preprocessing, frame: Size) -> bytes | None:
    """Return an ONNX graph from frames of a size to the network's input.

    The grey levels of the ``pil_`` methods are PIL's to the last one. In the ``float_`` methods only the order of sums
    differs from the host's.

    Args:
        preprocessing: The preprocessing of the bundle.
        frame: ``(height, width)`` of the frames in pixels.

    Returns:
        The encoded model. The result is None for OpenCV's resize, which only the host computes.

    Raises:
        ImageError: The preprocessing cannot resize such frames.
    """
    if preprocessing.method == "cv2_bilinear":
        return None
    graph = _Graph()
    # Every size of a graph but the batch is known, so that each shape is.
    x = graph.node("Cast", [FRAMES], to=_FLOAT)
    size = frame
    if preprocessing.frame_steps:
        changed = framing(preprocessing.frame_steps, frame)
        x, size = _framed(graph, x, changed), changed.size
        preprocessing = msgspec.structs.replace(preprocessing, frame_steps=())
    x = graph.node("Transpose", [x], perm=(0, 3, 1, 2))
    rows, columns = input_matrices(preprocessing, size)
    if preprocessing.method.startswith("float_"):
        rows_first = rows.size * size[1] + columns.size * len(rows) <= columns.size * size[
            0
        ] + rows.size * len(columns)
        resize = _float_pass
    else:
        rows_first = pil_resizes_rows_first(size, placement(preprocessing, size).resized)
        resize = _grey_pass
    passes = [(rows, _ROWS), (columns, _COLUMNS)]
    for matrix, axis in passes if rows_first else reversed(passes):
        x = resize(graph, x, matrix, axis)
    x = graph.node("Div", [x, graph.constant(np.array(255, np.float32))])
    if preprocessing.grayscale:
        x = graph.node("Mul", [x, graph.constant(GREY_WEIGHTS[:, None, None])])
        x = graph.node("ReduceSum", [x, graph.constant(np.array([1]))], keepdims=1)
    for op, values in (("Sub", preprocessing.mean), ("Div", preprocessing.std)):
        x = graph.node(op, [x, graph.constant(np.array(values, np.float32)[:, None, None])])
    return graph.encoded(x, (None, *frame, 3), (None, 3, len(rows), len(columns)))


def _framed(graph: _Graph, x: str, changed: Framing) -> str:
    """Crop and pad by gathers of rows and columns, and fill the pixels outside of the frame."""
    x = graph.node("Gather", [x, graph.constant(np.maximum(changed.rows, 0))], axis=1)
    x = graph.node("Gather", [x, graph.constant(np.maximum(changed.columns, 0))], axis=2)
    for step, fill in enumerate(changed.fills):
        rows, columns = (~filled for filled in changed.filled_by(step))
        if rows.all() and columns.all():
            continue
        kept = (rows[:, None, None] & columns[:, None]).astype(np.float32)
        x = graph.node("Mul", [x, graph.constant(kept)])
        x = graph.node("Add", [x, graph.constant((1 - kept) * np.array(fill, np.float32))])
    return x


def _float_pass(graph: _Graph, x: str, matrix: NDArray[np.float64], axis: int) -> str:
    matrix_32 = matrix.astype(np.float32)
    return x if _is_identity(matrix_32) else graph.product(x, matrix_32, axis)


def _grey_pass(graph: _Graph, x: str, matrix: NDArray[np.float64], axis: int) -> str:
    """Resize as PIL does along one axis: ``(weights @ levels + 2**21) >> 22``, clipped to 0..255."""
    weights = pil_fixed_point(matrix)
    if _is_identity(weights / (1 << PIL_FRACTION_BITS)):
        return x
    parts, bits = exact_parts(weights)
    left = PIL_FRACTION_BITS - bits * (len(parts) - 1)
    low, *higher = (graph.product(x, part, axis) for part in parts)
    # Each part carries its upper bits into the next one. The shift by 22 bits is what is left after that.
    for part in higher:
        low = graph.node("Add", [part, graph.node("Floor", [graph.scaled(low, 2.0**-bits)])])
    half = graph.node("Add", [low, graph.constant(np.array(2.0 ** (left - 1), np.float32))])
    levels = graph.node("Floor", [graph.scaled(half, 2.0**-left)])
    return graph.node("Clip", [levels, *(graph.constant(np.array(one, np.float32)) for one in (0, 255))])


def _is_identity(matrix: NDArray[Any]) -> bool:
    return matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix)))


class _Graph:
    """Nodes and constants of a graph, as they are encoded in ``onnx.proto``."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []

    def node(self, op: str, inputs: Sequence[str], **attributes: int | tuple[int, ...]) -> str:
        """Add a node with one output, and return the name of the output."""
        name = f"t{len(self._nodes)}"
        fields: list[_Field] = [*((1, one) for one in inputs), (2, name), (3, name), (4, op)]
        fields += [(5, _attribute(key, value)) for key, value in attributes.items()]
        self._nodes.append(_message(fields))
        return name

    def constant(self, values: NDArray[Any]) -> str:
        """Add a constant of float32 or int64, and return its name."""
        name = f"c{len(self._constants)}"
        content = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
        dims = [(1, size) for size in values.shape]
        self._constants.append(_message([*dims, (2, _TYPES[values.dtype.name]), (8, name), (9, content)]))
        return name

    def product(self, x: str, matrix: NDArray[np.float32], axis: int) -> str:
        """Multiply planes by a matrix along the rows or the columns."""
        if axis == _ROWS:
            return self.node("MatMul", [self.constant(matrix), x])
        return self.node("MatMul", [x, self.constant(np.ascontiguousarray(matrix.T))])

    def scaled(self, x: str, factor: float) -> str:
        return self.node("Mul", [x, self.constant(np.array(factor, np.float32))])

    def encoded(self, output: str, taken: Sequence[int | None], given: Sequence[int | None]) -> bytes:
        """Return the ModelProto, whose only output is the one that is named."""
        last = _message([(1, output), (2, IMAGE), (3, IMAGE), (4, "Identity")])
        graph: list[_Field] = [
            *((1, node) for node in (*self._nodes, last)),
            (2, "input"),
            *((5, constant) for constant in self._constants),
            (11, _value(FRAMES, _UINT8, taken)),
            (12, _value(IMAGE, _FLOAT, given)),
        ]
        return _message([(1, _IR_VERSION), (8, _message([(1, ""), (2, _OPSET)])), (7, _message(graph))])


def _attribute(name: str, value: int | tuple[int, ...]) -> bytes:
    if isinstance(value, int):
        return _message([(1, name), (3, value), (20, 2)])
    return _message([(1, name), *((8, one) for one in value), (20, 7)])


def _value(name: str, data_type: int, shape: Sequence[int | None]) -> bytes:
    """Return a ValueInfoProto. An open dimension has the name N."""
    dims = [(1, _message([(2, "N")] if size is None else [(1, size)])) for size in shape]
    tensor = _message([(1, data_type), (2, _message(dims))])
    return _message([(1, name), (2, _message([(1, tensor)]))])


def _message(fields: Sequence[_Field]) -> bytes:
    """Return a message of numbers, texts and bytes."""
    typed: Fields = []
    for number, value in fields:
        if isinstance(value, int):
            typed.append((number, VARINT, value))
        else:
            typed.append((number, BYTES, memoryview(value.encode() if isinstance(value, str) else value)))
    return encoded(typed)
