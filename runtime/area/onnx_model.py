"""Read an ONNX model into nodes and constants, change the inputs of nodes, and write it again without the package onnx.

A device has no onnx package. Only the messages that name nodes, constants and values are decoded. The elements of the
weights stay the bytes of the file. The field numbers are those of ``onnx.proto``, the wire format is that of the
protobuf encoding guide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import BundleError
from flowedge.protobuf import BYTES, VARINT, Fields, Value, encoded, fields_of, varint

# onnx.proto: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto, ValueInfoProto and its types.
_MODEL_GRAPH: Final = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TEXT, _ATTRIBUTE_INTS = 1, 3, 4, 8
_ATTRIBUTE_GRAPHS: Final = (6, 11)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_INT64, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_LOCATION = 1, 2, 7, 8, 9, 14
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_TYPE_SHAPE, _SHAPE_DIM, _DIM_VALUE = 1, 2, 1, 2, 1, 1
_DTYPES: Final[Mapping[int, str]] = {1: "<f4", 7: "<i8", 9: "?", 10: "<f2"}
_INT64: Final = 7


@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """One node of a graph.

    Attributes:
        op: The operator, with its domain in front of it where it is none of ONNX.
        name: The name of the node.
        inputs: The names of the tensors that it reads. An empty name is an input that was left out.
        outputs: The names of the tensors that it gives.
        attributes: By name, a number, a text or a list of numbers. Other attributes are None.
        rest: The encoded fields that never change.
    """

    op: str
    name: str = ""
    inputs: list[str]
    outputs: list[str]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    rest: Fields = field(default_factory=list)

    def encoded(self) -> bytes:
        """Return the NodeProto."""
        texts = [(_NODE_INPUT, one) for one in self.inputs] + [(_NODE_OUTPUT, one) for one in self.outputs]
        texts.append((_NODE_NAME, self.name))
        if not self.rest:
            texts.append((_NODE_OP, self.op))
        return encoded([*((number, BYTES, memoryview(text.encode())) for number, text in texts), *self.rest])


@dataclass(slots=True, eq=False)
class Constant:
    """An initializer of a graph: its shape, its ONNX data type, and its encoded TensorProto."""

    shape: tuple[int, ...]
    data_type: int
    proto: memoryview

    def array(self) -> NDArray[Any] | None:
        """Decode the elements. The result is None for a type or a place that this module does not read."""
        last = {number: value for number, _, value in fields_of(self.proto)}
        raw = last.get(_TENSOR_RAW)
        if self.data_type not in _DTYPES or last.get(_TENSOR_LOCATION):
            return None
        if isinstance(raw, memoryview):
            return np.frombuffer(raw, _DTYPES[self.data_type]).reshape(self.shape)
        packed = last.get(_TENSOR_INT64)
        if self.data_type == _INT64 and isinstance(packed, memoryview):
            return np.array(_packed(packed), np.int64).reshape(self.shape)
        return None


class OnnxModel:
    """A model whose nodes can be changed.

    Attributes:
        nodes: The nodes in an order in which they can run.
        constants: The initializers by name.
        inputs: The names of the graph's inputs that are no initializers.
        outputs: The names of the graph's outputs.
        shapes: The shapes that the file notes, by the tensor's name. An open dimension is None.
    """

    def __init__(self, data: bytes) -> None:
        """Decode a model.

        Raises:
            BundleError: The bytes are no ONNX model, or a node holds a graph of its own.
        """
        try:
            self._model = fields_of(memoryview(data))
            graph = fields_of(next(value for number, _, value in self._model if number == _MODEL_GRAPH))
            self.nodes = [_node(value) for number, _, value in graph if number == _NODE]
            self.constants = dict(_constant(value) for number, _, value in graph if number == _INITIALIZER)
            described = {
                kind: [_described(value) for number, _, value in graph if number == kind]
                for kind in (_INPUT, _OUTPUT, _VALUE_INFO)
            }
        except (StopIteration, IndexError, UnicodeDecodeError, TypeError) as error:
            raise BundleError(f"the graph is no ONNX model that can be read: {error}") from error
        self.inputs = [name for name, _ in described[_INPUT] if name not in self.constants]
        self.outputs = [name for name, _ in described[_OUTPUT]]
        self.shapes = {name: shape for values in described.values() for name, shape in values}
        self.shapes |= {name: one.shape for name, one in self.constants.items()}
        replaced = (_NODE, _INITIALIZER, _OUTPUT, _VALUE_INFO)
        self._rest = [one for one in graph if one[0] not in replaced]

    def add_int64(self, name: str, values: Sequence[int]) -> str:
        """Add a constant of whole numbers and return its name."""
        raw = np.array(values, "<i8").tobytes()
        proto: Fields = [
            (_TENSOR_DIMS, VARINT, len(values)),
            (_TENSOR_TYPE, VARINT, _INT64),
            (_TENSOR_NAME, BYTES, memoryview(name.encode())),
            (_TENSOR_RAW, BYTES, memoryview(raw)),
        ]
        self.constants[name] = Constant((len(values),), _INT64, memoryview(encoded(proto)))
        return name

    def encoded(self, outputs: Mapping[str, Sequence[int | None]]) -> bytes:
        """Return the model with these outputs of float32, without what they do not need.

        Args:
            outputs: The shape of each output by its name. An open dimension is None.
        """
        nodes = self._needed(outputs)
        read = {name for node in nodes for name in node.inputs}
        graph: Fields = [(_NODE, BYTES, memoryview(node.encoded())) for node in nodes]
        graph += [(_INITIALIZER, BYTES, one.proto) for name, one in self.constants.items() if name in read]
        graph += self._rest
        graph += [(_OUTPUT, BYTES, memoryview(_value(name, shape))) for name, shape in outputs.items()]
        content = memoryview(encoded(graph))
        return encoded(
            [
                (number, kind, content if number == _MODEL_GRAPH else value)
                for number, kind, value in self._model
            ]
        )

    def _needed(self, outputs: Iterable[str]) -> list[Node]:
        """Return the nodes that the outputs need, in their order."""
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                kept.append(node)
                wanted.update(node.inputs)
        return kept[::-1]


def _node(data: Value) -> Node:
    fields = fields_of(data)
    texts: dict[int, list[str]] = {}
    for number, _, value in fields:
        if number in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP, _NODE_DOMAIN):
            texts.setdefault(number, []).append(_text(value))
    domain = "".join(texts.get(_NODE_DOMAIN, []))
    op = "".join(texts.get(_NODE_OP, []))
    return Node(
        op=f"{domain}.{op}" if domain not in ("", "ai.onnx") else op,
        name="".join(texts.get(_NODE_NAME, [])),
        inputs=texts.get(_NODE_INPUT, []),
        outputs=texts.get(_NODE_OUTPUT, []),
        attributes=dict(_attribute(value) for number, _, value in fields if number == _NODE_ATTRIBUTE),
        rest=[one for one in fields if one[0] not in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME)],
    )


def _attribute(data: Value) -> tuple[str, Any]:
    name = ""
    value: int | str | None = None
    numbers: list[int] = []
    for number, kind, content in fields_of(data):
        if number == _ATTRIBUTE_NAME:
            name = _text(content)
        elif number == _ATTRIBUTE_INT:
            value = _signed(content)
        elif number == _ATTRIBUTE_TEXT:
            value = _text(content)
        elif number == _ATTRIBUTE_INTS:
            numbers += _packed(content) if kind == BYTES else [_signed(content)]
        elif number in _ATTRIBUTE_GRAPHS:
            raise BundleError(f"the attribute {name} of a node holds a graph, which cannot be cropped.")
    return name, tuple(numbers) if numbers else value


def _constant(data: Value) -> tuple[str, Constant]:
    assert isinstance(data, memoryview)
    name, data_type, dims = "", 0, list[int]()
    for number, kind, value in fields_of(data):
        if number == _TENSOR_DIMS:
            dims += _packed(value) if kind == BYTES else [_signed(value)]
        elif number == _TENSOR_TYPE:
            data_type = _signed(value)
        elif number == _TENSOR_NAME:
            name = _text(value)
    return name, Constant(tuple(dims), data_type, data)


def _described(data: Value) -> tuple[str, tuple[int | None, ...]]:
    """Return the name and the shape in a ValueInfoProto. The shape is empty where none is noted."""
    name, shape = "", list[int | None]()
    for number, _, value in fields_of(data):
        if number == _VALUE_NAME:
            name = _text(value)
        elif number == _VALUE_TYPE:
            for tensor in _inner(value, _TYPE_TENSOR):
                for noted in _inner(tensor, _TENSOR_TYPE_SHAPE):
                    for dim in _inner(noted, _SHAPE_DIM):
                        known = [_signed(one) for one in _inner(dim, _DIM_VALUE)]
                        shape.append(known[0] if known else None)
    return name, tuple(shape)


def _value(name: str, shape: Sequence[int | None]) -> bytes:
    """Return a ValueInfoProto of float32."""
    dims: Fields = [
        (_SHAPE_DIM, BYTES, memoryview(encoded([] if size is None else [(_DIM_VALUE, VARINT, size)])))
        for size in shape
    ]
    tensor: Fields = [(1, VARINT, 1), (_TENSOR_TYPE_SHAPE, BYTES, memoryview(encoded(dims)))]
    kind: Fields = [(_TYPE_TENSOR, BYTES, memoryview(encoded(tensor)))]
    return encoded(
        [
            (_VALUE_NAME, BYTES, memoryview(name.encode())),
            (_VALUE_TYPE, BYTES, memoryview(encoded(kind))),
        ]
    )


def _inner(data: Value, wanted: int) -> Iterator[Value]:
    for number, _, value in fields_of(data):
        if number == wanted:
            yield value


def _packed(data: Value) -> list[int]:
    assert isinstance(data, memoryview)
    numbers, place = [], 0
    while place < len(data):
        number, place = varint(data, place)
        numbers.append(_signed(number))
    return numbers


def _signed(value: Value) -> int:
    assert isinstance(value, int)
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(value: Value) -> str:
    assert isinstance(value, memoryview)
    return bytes(value).decode()
