"""Write the configuration of a Triton model, ``config.pbtxt``, in protobuf's text format.

Source: https://protobuf.dev/reference/protobuf/textformat-spec/ and the message ``ModelConfig`` of
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from flowedge.runtime.opening.contract import TensorSpec

MARK: Final = "# Written by flowedge triton.\n"
"""The first line of each configuration."""

_TYPES: Final = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
_ESCAPES: Final = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\t": r"\t", "\r": r"\r"}


class Word(str):
    """A word of an enumeration, which stands without quotes."""


class TritonTensor(NamedTuple):
    """One input or output of a model.

    Attributes:
        name: The name.
        type: The type in Triton's words.
        dims: The dimensions without that of the batch. A dimension that may change is -1.
        is_optional: True for an input that may be left out.
        is_number: True where the graph gives one number for each frame, without a dimension of its own.
    """

    name: str
    type: str
    dims: tuple[int, ...]
    is_optional: bool = False
    is_number: bool = False

    @property
    def message(self) -> dict[str, Any]:
        """The tensor as a message of the configuration."""
        made: dict[str, Any] = {"name": self.name, "data_type": Word(self.type), "dims": list(self.dims)}
        if self.is_number:
            made["reshape"] = {"shape": []}
        if self.is_optional:
            made["optional"] = True
        return made


def tensor_of(name: str, spec: TensorSpec) -> TritonTensor:
    """Describe an input or output of a graph, whose first dimension is that of the batch."""
    dims = tuple(-1 if size is None else size for size in spec.shape[1:])
    return TritonTensor(name, _TYPES[spec.dtype], dims or (1,), is_number=not dims)


def config_text(message: Mapping[str, Any]) -> str:
    """Return the text of a configuration.

    Args:
        message: The fields of the message. A field is a text, a `Word`, a number, a truth, a message, a list of numbers
            or a list of messages. A list of messages repeats the field.
    """
    return MARK + "".join(_lines(message, ""))


def keyed(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a map as protobuf writes it: a list of messages with a key and a value."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in message.items():
        if (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and value
            and isinstance(value[0], Mapping)
        ):
            for one in value:
                yield from _block(name, one, indent)
        elif isinstance(value, Mapping):
            yield from _block(name, value, indent)
        else:
            yield f"{indent}{name}: {_scalar(value)}\n"


def _block(name: str, message: Mapping[str, Any], indent: str) -> Iterator[str]:
    yield f"{indent}{name} {{\n"
    yield from _lines(message, indent + "  ")
    yield f"{indent}}}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(_ESCAPES.get(one, one) for one in value) + '"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence):
        return f"[{', '.join(str(one) for one in value)}]"
    return str(value)
