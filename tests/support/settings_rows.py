"""Write the keys of a table of settings as rows of a table in a page."""

from __future__ import annotations

from typing import Any

import msgspec

from flowedge.runtime.docstrings import attribute_texts
from flowedge.runtime.settings import Settings


def rows_of(kind: type[Settings], *, without: type[Settings] | None = None) -> list[str]:
    """Return a row with key, default and meaning for each key.

    Args:
        kind: The class of the settings.
        without: A base class whose keys are left out, unless the default differs.
    """
    texts = {name: text.replace("``", "`") for name, text in attribute_texts(kind).items()}
    left_out = {} if without is None else {one.name: one.default for one in msgspec.structs.fields(without)}
    return [
        f"| `{one.name}` | {_default_of(one)} | {texts[one.name]} |"
        for one in msgspec.structs.fields(kind)
        if one.name not in left_out or left_out[one.name] != one.default
    ]


def _default_of(one: msgspec.structs.FieldInfo) -> str:
    """Return the default of a key in words. An empty table or text is none."""
    if one.default_factory is not msgspec.NODEFAULT or one.default == "":
        return ""
    return _shown(one.default)


def _shown(default: Any) -> str:
    if default is msgspec.NODEFAULT:
        return "needed"
    if default is None:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, int | float) else f"`{default}`"
