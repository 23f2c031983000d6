"""Read requests and write answers of the Open Inference Protocol, version 2, with its extension for binary tensors.

Sources: https://github.com/kserve/open-inference-protocol, and the extensions for binary data and parameters of
https://github.com/triton-inference-server/server/tree/main/docs/protocol.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.serving.refusal import RequestError
from flowedge.text import shown

HEADER_LENGTH: Final = "inference-header-content-length"
MOST_JSON_BYTES: Final = 16 << 20
_MOST_SIDES: Final = 8
_LARGEST_SIDE: Final = 1 << 31


class InputMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One input tensor as the JSON describes it. The elements are in ``data``, or in the bytes behind the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    data: msgspec.Raw = msgspec.Raw()  # empty where the elements are behind the JSON


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One output that a request asks for."""

    name: str
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class InferMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of an inference request."""

    inputs: list[InputMessage]
    outputs: list[OutputMessage] | None = None
    id: str = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class InferRequest:
    """An inference request with the elements of its tensors.

    Attributes:
        message: The JSON of the request.
        tensors: By name, the input tensors: ``uint8`` arrays, or lists of bytes for the datatype BYTES.
        outputs: By name, True for an output that is wanted as binary data. The value is None where all are wanted.
        binary: True where outputs without a wish of their own are wanted as binary data.
    """

    def __init__(self, message: InferMessage, binary: memoryview) -> None:
        """Read the tensors.

        Args:
            message: The JSON of the request.
            binary: The bytes behind the JSON.

        Raises:
            RequestError: A tensor or an output is not described correctly.
        """
        self.message = message
        self.tensors: dict[str, NDArray[np.uint8] | list[bytes]] = {}
        used = 0
        for tensor in message.inputs:
            if tensor.name in self.tensors:
                raise RequestError(f"the input {shown(tensor.name)} is there twice. Send each input once.")
            _refuse_extensions(tensor.parameters, f"the input {shown(tensor.name)}")
            size = tensor.parameters.get("binary_data_size")
            part = None
            if size is not None:
                if bytes(tensor.data):
                    raise RequestError(
                        f"the input {shown(tensor.name)} has data and binary_data_size. Send one of the two."
                    )
                if type(size) is not int or not 0 <= size <= len(binary) - used:
                    raise RequestError(
                        f"the input {shown(tensor.name)} has the binary_data_size {shown(size)}, and "
                        f"{len(binary) - used} bytes are left in the body."
                    )
                part = binary[used : used + size]
                used += size
            self.tensors[tensor.name] = _elements(tensor, part)
        if used != len(binary):
            raise RequestError(
                f"the body has {len(binary)} bytes behind its JSON, and the inputs name {used} of them by their "
                "binary_data_size."
            )
        self.binary = _flag(message.parameters, "binary_data_output")
        self.outputs: dict[str, bool] | None = None
        if message.outputs:
            self.outputs = {}
            for output in message.outputs:
                _refuse_extensions(output.parameters, f"the output {shown(output.name)}")
                wish = output.parameters.get("binary_data")
                self.outputs[output.name] = (
                    self.binary if wish is None else _flag(output.parameters, "binary_data")
                )


def parse_request(body: memoryview, header_length: str | None) -> InferRequest:
    """Read an inference request.

    Args:
        body: The body after decompression.
        header_length: The value of the header ``Inference-Header-Content-Length``, if it was sent. It is the length of
            the JSON before compression.

    Raises:
        RequestError: The body is not a request of the protocol.
    """
    length = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or len(header_length) > 12 or not 0 < int(header_length) <= length:
            raise RequestError(
                f"inference header size should be in range (0, {length}), got: {shown(header_length)}"
            )
        length = int(header_length)
    if length > MOST_JSON_BYTES:
        raise RequestError(
            f"the JSON of the request has {length} bytes, and {MOST_JSON_BYTES} are allowed. Send the tensors as "
            "binary data."
        )
    try:
        message = msgspec.json.decode(body[:length], type=InferMessage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"failed to parse the request JSON buffer: {error}") from error
    return InferRequest(message, body[length:])


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"the parameter {name} is true or false, got {shown(value)}.")
    return value


def _refuse_extensions(parameters: Mapping[str, Any], owner: str) -> None:
    """Refuse what other servers can do and this one cannot."""
    if "shared_memory_region" in parameters:
        raise RequestError(
            f"{owner} names a region of shared memory, which this server does not read or write."
        )
    if parameters.get("classification"):
        raise RequestError(
            f"{owner} asks for a classification. A detector gives scores and verdicts, no classes."
        )


def _elements(tensor: InputMessage, part: memoryview | None) -> NDArray[np.uint8] | list[bytes]:
    """Return the elements of a tensor, after a check of their number."""
    name = shown(tensor.name)
    if not 1 <= len(tensor.shape) <= _MOST_SIDES or not all(
        0 <= side < _LARGEST_SIDE for side in tensor.shape
    ):
        raise RequestError(f"the input {name} has the shape {shown(tensor.shape)}, which is not allowed.")
    count = math.prod(tensor.shape)
    if tensor.datatype == "UINT8":
        if part is None:
            return _numbers(tensor, count)
        if len(part) != count:
            raise RequestError(
                f"the input {name} has {len(part)} bytes, and the shape {tensor.shape} of UINT8 needs {count}."
            )
        return np.frombuffer(part, np.uint8).reshape(tensor.shape)
    if tensor.datatype == "BYTES":
        texts = _texts(tensor) if part is None else list(_byte_strings(part, name))
        if len(texts) != count:
            raise RequestError(
                f"the input {name} has {len(texts)} elements, and the shape {tensor.shape} needs {count}."
            )
        return texts
    raise RequestError(
        f"the input {name} has the datatype {shown(tensor.datatype)}. This server takes UINT8 for images and BYTES "
        "for names."
    )


def _decoded(tensor: InputMessage) -> list[Any]:
    if not bytes(tensor.data):
        raise RequestError(f"the input {shown(tensor.name)} has neither data nor binary_data_size.")
    try:
        found = msgspec.json.decode(tensor.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"failed to parse the request JSON buffer: {error}") from error
    if not isinstance(found, list):
        raise RequestError(f"the data of the input {shown(tensor.name)} is no list.")
    return found


def _numbers(tensor: InputMessage, count: int) -> NDArray[np.uint8]:
    """Return the numbers of a list, which may be flat or have the nesting of the shape."""
    wrong = f"the data of the input {shown(tensor.name)} must be {count} whole numbers from 0 to 255"
    found = _decoded(tensor)
    try:
        numbers = np.asarray(found)
    except ValueError as error:
        raise RequestError(f"{wrong}; its lists have different lengths.") from error
    if numbers.size == 0:
        numbers = numbers.astype(np.uint8)
    if numbers.dtype.kind not in "iu" or (numbers.size and (numbers.min() < 0 or numbers.max() > 255)):
        raise RequestError(f"{wrong}.")
    if numbers.size != count or numbers.shape not in ((count,), tuple(tensor.shape)):
        raise RequestError(
            f"{wrong}, flat or in the shape {tensor.shape}; it has the shape {list(numbers.shape)}."
        )
    return numbers.astype(np.uint8).reshape(tensor.shape)


def _texts(tensor: InputMessage) -> list[bytes]:
    found = _decoded(tensor)
    if not all(isinstance(one, str) for one in found):
        raise RequestError(f"the data of the input {shown(tensor.name)} must be a list of texts.")
    return [one.encode() for one in found]


def _byte_strings(part: memoryview, name: str) -> Iterator[bytes]:
    """Give the elements of a tensor of BYTES: 4 bytes of length, little-endian, before each element."""
    at = 0
    while at < len(part):
        if len(part) - at < 4:
            raise RequestError(f"the input {name} ends within the length of an element.")
        (size,) = struct.unpack_from("<I", part, at)
        at += 4
        if size > len(part) - at:
            raise RequestError(f"the input {name} ends within an element of {size} bytes.")
        yield bytes(part[at : at + size])
        at += size


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP answer.

    Attributes:
        parts: The body in pieces.
        headers: The headers, without the length.
        status: The HTTP status.
    """

    parts: tuple[bytes | memoryview, ...] = ()
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    status: int = 200

    @property
    def size(self) -> int:
        """The number of bytes of the body."""
        return sum(len(part) for part in self.parts)


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Make an answer of JSON."""
    return Answer(
        parts=(msgspec.json.encode(content),),
        headers={"Content-Type": "application/json", **(headers or {})},
        status=status,
    )


def error_answer(error: RequestError, extra: Mapping[str, Any] | None = None) -> Answer:
    """Make the answer to a request that is refused."""
    return json_answer({"error": error.text, **(extra or {})}, error.status, error.headers)


def infer_answer(
    head: Mapping[str, Any],
    outputs: Iterable[tuple[str, NDArray[np.float32] | Sequence[str], Sequence[int]]],
    binary: Mapping[str, bool],
) -> Answer:
    """Make the answer to an inference request.

    A number that is not finite is ``null`` in JSON.

    Args:
        head: The model's name and version, and the request's id.
        outputs: The name, the elements and the shape of each output. Texts have the datatype BYTES.
        binary: By name, True for an output that is sent as binary data.
    """
    described: list[dict[str, Any]] = []
    parts: list[bytes | memoryview] = []
    for name, values, shape in outputs:
        is_text = not isinstance(values, np.ndarray)
        entry: dict[str, Any] = {
            "name": name,
            "datatype": "BYTES" if is_text else "FP32",
            "shape": list(shape),
        }
        if binary[name]:
            part = (
                b"".join(struct.pack("<I", len(one)) + one for one in (text.encode() for text in values))
                if not isinstance(values, np.ndarray)
                else np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8).data
            )
            entry["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            entry["data"] = list(values) if not isinstance(values, np.ndarray) else values.ravel().tolist()
        described.append(entry)
    encoded = msgspec.json.encode({**head, "outputs": described})
    if not parts:
        return Answer(parts=(encoded,), headers={"Content-Type": "application/json"})
    return Answer(
        parts=(encoded, *parts),
        headers={
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(encoded)),
        },
    )
