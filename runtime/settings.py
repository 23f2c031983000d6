"""Define the base of the tables of a settings file, and read such a file into them.

A settings file is TOML, written by a person for one place. Each of its tables is a subclass of `Settings`. Each key is
an attribute with a type, limits (``msgspec.Meta``) and a default. An attribute of the type `Path` is taken relative to
the folder of the file.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from flowedge.errors import SettingsError
from flowedge.files import read_at_most
from flowedge.text import printable, shown
from flowedge.toml_text import toml_table

_MOST_BYTES: Final = 1 << 20
_MOST_SECRET_BYTES: Final = 1 << 16
_PLACE: Final = re.compile(r"(?s)(.*?)(?: - at `(?:key in )?\$(.*)`)?")
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of one table of a settings file. An unknown key in the table is an error.

    A subclass repeats ``frozen=True, kw_only=True``, since type checkers and msgspec do not inherit these two. The
    first sentence of each attribute's text in the docstring is the comment of the key in a new file.
    """


Read = TypeVar("Read", bound=Settings)


def read_settings(file: str | os.PathLike[str], kind: type[Read]) -> Read:
    """Read a settings file.

    Args:
        file: The TOML file, of at most 1 MiB.
        kind: The class of the whole file, whose attributes are the tables.

    Raises:
        SettingsError: The file cannot be read, is no TOML, or has a key or a value that is not allowed. The message
            names the file, the table, the key, the value, what is allowed and the nearest known key.
    """
    path = Path(file)
    content = read_at_most(
        path,
        _MOST_BYTES,
        kind="a settings file",
        advice="Check the path and the permissions.",
        error=SettingsError,
    )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 at byte {error.start}. Save the file as UTF-8.") from error
    return parse_settings(text, kind, name=str(path), folder=path.absolute().parent)


def parse_settings(text: str, kind: type[Read], *, name: str, folder: Path) -> Read:
    """Read settings from the text of a settings file.

    Args:
        text: The text.
        kind: The class of the whole file.
        name: The name of the file for messages.
        folder: The folder that attributes of the type `Path` are relative to.

    Raises:
        SettingsError: The text is no TOML, or has a key or a value that is not allowed.
    """
    try:
        table = toml_table(text)
    except RecursionError as error:
        raise SettingsError(f"{name} has too many tables or lists in one another.") from error
    except ValueError as error:  # of every reader of TOML
        raise SettingsError(f"{name} is no TOML: {printable(str(error))}.") from error
    return settings_from(table, kind, name=name, folder=folder)


def settings_from(table: Mapping[str, Any], kind: type[Read], *, name: str, folder: Path) -> Read:
    """Check the values of a table and make settings of them.

    Args:
        table: The values as a reader of TOML gives them.
        kind: The class of the settings.
        name: The name of the file for messages.
        folder: The folder that attributes of the type `Path` are relative to.

    Raises:
        SettingsError: A key or a value is not allowed.
    """

    def path_from(wanted: type, value: Any) -> Any:
        if wanted is not Path:
            raise NotImplementedError
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError("Expected the path of a file or folder")
        return folder / value

    try:
        return msgspec.convert(table, kind, dec_hook=path_from)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{printable(name)}: {_explained(str(error), table, kind)}") from error


def checked(settings: Read) -> Read:
    """Check settings that a program has made by the types and limits of a settings file.

    Args:
        settings: The settings. Calling their class checks nothing.

    Returns:
        Equal settings, in which a path that was given as text is a `Path`.

    Raises:
        SettingsError: A value is not allowed.
    """
    table = msgspec.to_builtins(settings, enc_hook=_plain)
    return settings_from(table, type(settings), name=type(settings).__name__, folder=Path())


def secret_of(env: str | None, file: Path | None) -> str | None:
    """Read a secret, such as a password or a token, from an environment variable or from the first line of a file.

    Args:
        env: The name of the variable, the value of a key that ends in ``_env``.
        file: The file, the value of a key that ends in ``_file``.

    Returns:
        The secret. The value is None where neither is named.

    Raises:
        SettingsError: A variable and a file are named, the variable is not set, the file cannot be read or has more
            than 64 KiB, or the secret is empty.
    """
    secrets = secrets_of(env, file)
    return secrets[0] if secrets else None


def secrets_of(env: str | None, file: Path | None) -> list[str]:
    """Read the secrets of which each is enough, such as the keys of a server: a variable's value, or a file's lines.

    Args:
        env: The name of the variable, the value of a key that ends in ``_env``.
        file: The file, the value of a key that ends in ``_file``. Its first line must not be empty.

    Returns:
        The value, or all lines of the file. The list is empty where neither is named.

    Raises:
        SettingsError: The errors are those of ``secret_of``.
    """
    if env is not None and file is not None:
        raise SettingsError(
            f"a secret is named twice, by the variable {printable(env)} and by the file {file}. Keep one of the two."
        )
    if env is not None:
        secret = os.environ.get(env, "")
        if not secret:
            raise SettingsError(
                f"the environment variable {printable(env)} is not set or is empty. Set it to the secret, or name "
                "another variable."
            )
        return [secret]
    if file is None:
        return []
    advice = "Check the path and the permissions."
    content = read_at_most(
        file, _MOST_SECRET_BYTES, kind="a file of secrets", advice=advice, error=SettingsError
    )
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not UTF-8, so it holds no secret that can be sent.") from error
    if not lines or not lines[0]:
        raise SettingsError(f"the first line of {file} is empty. Write the secret into it.")
    return lines


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a sentence with the known word that is nearest to an unknown one, or with all known words."""
    words = sorted(known)
    if close := difflib.get_close_matches(word, words, n=1):
        return f"Did you mean {close[0]}?"
    return f"Known are: {', '.join(words)}." if words else "No key is known there."


def _plain(value: Any) -> Any:
    """Return a path as text, an array of NumPy as a list, and any other value as the name of its type."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # Arrays and numbers of NumPy give plain lists and numbers.
    return value.tolist() if hasattr(value, "tolist") else f"a {type(value).__name__}"


def _explained(message: str, table: Mapping[str, Any], kind: type[Settings]) -> str:
    """Make a sentence of msgspec's message, with the place in the words of TOML, the value and the nearest key."""
    found = _PLACE.fullmatch(message)
    assert found is not None  # every text matches
    problem, place = found[1], found[2] or ""
    steps = [name or int(number) for name, number in _STEP.findall(place) if number != "..."]
    value, known, allowed = _at(steps, table, msgspec.inspect.type_info(kind))
    where = _toml_place(steps)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL):
        return f"{where}unknown key {printable(unknown[1])}. {nearest(unknown[1], known)}"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", problem, re.DOTALL):
        return f"{where}the key {missing[1]} is missing."
    if not problem.startswith(("Expected", "Invalid", "Object")):  # one of our own checks of a whole table
        return f"{where}{printable(problem)}."
    if allowed and "matching regex" in problem:
        return f"{where}expected {allowed}, got {shown(value)}."
    problem = re.sub(r", got `.*`$| '.*'$", "", problem, flags=re.DOTALL).replace("`", "")
    text = f"{where}{printable(problem[:1].lower() + problem[1:])}, got {shown(value)}."
    return f"{text} {nearest(value, known)}" if isinstance(value, str) and known else text


def _toml_place(steps: list[str | int]) -> str:
    """Return the place of a value, such as ``[sinks] number 2, port: ``."""
    if not steps:
        return ""
    words = [f"[{printable(str(steps[0]))}]"]
    words += [f"number {step + 1}" if isinstance(step, int) else printable(step) for step in steps[1:]]
    return f"{words[0]} {', '.join(words[1:])}: " if len(words) > 1 else f"{words[0]}: "


def _at(
    steps: Iterable[str | int], table: Mapping[str, Any], info: msgspec.inspect.Type
) -> tuple[Any, set[str], str]:
    """Find the value at a place, the keys or words that are known there, and the description of the text there."""
    value: Any = table
    for step in steps:
        inner = next(_inside(info, value, step), None)
        try:
            value = value[step]
        except (LookupError, TypeError):
            value = None
        info = msgspec.inspect.AnyType() if inner is None else inner
    return value, {word for one in _alternatives(info, value) for word in _words(one)}, _allowed(info)


def _allowed(info: msgspec.inspect.Type) -> str:
    """Return the words by which a type describes the text that it allows, since nobody reads its pattern."""
    match info:
        case msgspec.inspect.Metadata(extra={"allowed": str(words)}):
            return words
        case msgspec.inspect.UnionType(types=types):
            return next(filter(None, map(_allowed, types)), "")
    return ""


def _inside(info: msgspec.inspect.Type, value: Any, step: str | int) -> Iterator[msgspec.inspect.Type]:
    """Give the types that the value at one step inside of a value may have."""
    for one in _alternatives(info, value):
        match one:
            case msgspec.inspect.StructType(tag_field=str(field)) if step == field:
                yield msgspec.inspect.LiteralType(tuple(_tags(info)))
            case msgspec.inspect.StructType(fields=fields):
                yield from (field.type for field in fields if field.encode_name == step)
            case msgspec.inspect.ListType(item_type=inner) | msgspec.inspect.VarTupleType(item_type=inner):
                yield inner
            case msgspec.inspect.DictType(value_type=inner):
                yield inner


def _alternatives(info: msgspec.inspect.Type, value: Any) -> list[msgspec.inspect.Type]:
    """Return the parts of a union. Of tables with a tag only the one that the value's tag names is returned."""
    match info:
        case msgspec.inspect.Metadata(type=inner):
            return _alternatives(inner, value)
        case msgspec.inspect.UnionType(types=types):
            parts = [part for one in types for part in _alternatives(one, value)]
            tagged: list[msgspec.inspect.Type] = [
                part
                for part in parts
                if isinstance(part, msgspec.inspect.StructType)
                and part.tag_field is not None
                and isinstance(value, dict)
                and value.get(part.tag_field) == part.tag
            ]
            return tagged or parts
    return [info]


def _tags(info: msgspec.inspect.Type) -> Iterator[str]:
    for one in _alternatives(info, None):
        if isinstance(one, msgspec.inspect.StructType) and isinstance(one.tag, str):
            yield one.tag


def _words(info: msgspec.inspect.Type) -> Iterator[str]:
    match info:
        case msgspec.inspect.StructType(fields=fields, tag_field=tag_field):
            yield from (field.encode_name for field in fields)
            if tag_field is not None:
                yield tag_field
        case msgspec.inspect.LiteralType(values=values):
            yield from (value for value in values if isinstance(value, str))
