"""Write a new settings file, in which each key has its description from the class that checks it."""

from __future__ import annotations

import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from flowedge.runtime.docstrings import attribute_texts, description_of
from flowedge.runtime.settings import Settings
from flowedge.runtime.station.settings import StationSettings

MARK: Final = "# The settings of a FlowEdge inspection station."
"""The first line of a file that was written here."""

_WIDTH: Final = 100
_HEAD: Final = """
# A key right behind "#" has its default, or no value. An unknown key is an error. Paths are relative
# to the folder of this file. Passwords and tokens are never in it: keys that end in _env name an
# environment variable, and keys that end in _file name a file.
#
#   flowedge station check FILE     opens everything that is named here, and tells what is wrong
#   flowedge station run FILE       runs the station
"""


def station_file(given: Mapping[str, Mapping[str, Any]], sinks: list[Mapping[str, Any]]) -> str:
    """Return the text of a station's file that has every key, each with its description.

    Args:
        given: The values by table and key. A key that is not given stands right behind ``#`` with its default.
        sinks: The values of the sinks. A kind of sink that is not among them stands behind ``#``.
    """
    lines = [MARK, *_HEAD.strip("\n").splitlines()]
    for field in msgspec.structs.fields(StationSettings):
        kinds = _tables_in(field.type)
        if _is_list(field.type):
            for kind in kinds:
                tag = kind.__struct_config__.tag
                found = [one for one in sinks if field.encode_name == "sinks" and one["kind"] == tag]
                tables: list[Mapping[str, Any] | None] = [*found] or [None]
                for values in tables:
                    lines += _table(f"[[{field.encode_name}]]", field.encode_name, kind, values)
        else:
            # A table that may be missing stands behind "#".
            absent: dict[str, Any] | None = None if field.default is None else {}
            values = given.get(field.encode_name, absent)
            lines += _table(f"[{field.encode_name}]", field.encode_name, kinds[0], values)
    return "\n".join(lines) + "\n"


def _table(heading: str, name: str, kind: type[Settings], values: Mapping[str, Any] | None) -> Iterator[str]:
    """Give the lines of a table. Without values the whole table stands behind ``#``."""
    texts = attribute_texts(kind)
    yield ""
    yield from _comment(description_of(kind))
    yield heading if values is not None else f"#{heading}"
    tag = kind.__struct_config__.tag
    if isinstance(tag, str):
        yield f"kind = {_toml(tag)}" if values is not None else f"#kind = {_toml(tag)}"
    inner = []
    for field in msgspec.structs.fields(kind):
        tables = _tables_in(field.type)
        if tables:
            inner += [(field, table) for table in tables]
            continue
        yield from _comment(texts.get(field.name, ""))
        if values is not None and field.encode_name in values:
            yield f"{field.encode_name} = {_toml(values[field.encode_name])}"
        else:
            default = _default(field)
            yield f"#{field.encode_name} = {'' if default is None else _toml(default)}".rstrip()
    for field, table in inner:
        path = f"{name}.{field.encode_name}"
        heading = f"[[{path}]]" if _is_list(field.type) else f"[{path}]"
        given = (values or {}).get(field.encode_name)
        if given is None and values is not None and isinstance(field.default, Settings):
            given = {}
        yield from _table(heading, path, table, given)


def _comment(text: str) -> list[str]:
    words = " ".join(text.replace("``", "").split())
    return [f"# {line}" for line in textwrap.wrap(words, _WIDTH)]


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return None if field.default is msgspec.NODEFAULT else field.default


def _tables_in(annotation: Any) -> list[type[Settings]]:
    """Return the classes of the tables that a key of this type holds. The list is empty for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [table for part in _parts(annotation) for table in _tables_in(part)]


def _parts(annotation: Any) -> tuple[Any, ...]:
    parts = typing.get_args(annotation)
    return parts[:1] if typing.get_origin(annotation) is typing.Annotated else parts


def _is_list(annotation: Any) -> bool:
    if typing.get_origin(annotation) in (tuple, list):
        return True
    is_outer = typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType)
    return is_outer and any(_is_list(part) for part in _parts(annotation))


def _toml(value: Any) -> str:
    """Return a value in TOML."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str() | Path():
            # JSON's escapes are those of TOML, apart from DEL, which TOML wants escaped as well.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case Mapping():
            return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    return "[" + ", ".join(map(_toml, value)) + "]"
