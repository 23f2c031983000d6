"""Make text that comes from outside fit for a terminal and for JSON."""

from __future__ import annotations

import reprlib
from typing import Any


def printable(text: str) -> str:
    """Escape the bytes that are no UTF-8 and the control characters of a text, so that any terminal can show it."""
    if text.isprintable():  # a text with bytes that are no UTF-8 is not
        return text
    valid = text.encode("utf-8", "backslashreplace").decode()
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in valid)


def images_words(count: int, kind: str = "") -> str:
    """Count images in words, such as ``"1 image"`` and ``"12 good images"``.

    Args:
        count: The number of images.
        kind: A word before ``image`` with a space behind it, such as ``"good "``.
    """
    return f"{count} {kind}{'image' if count == 1 else 'images'}"


class _ShortRepr(reprlib.Repr):
    """Python's short form, with two levels of nesting in place of six and tensors by their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = self.maxlong = 80

    def repr_Tensor(self, value: Any, _level: int) -> str:  # noqa: N802, the name is that of the type
        return f"<a tensor of shape {tuple(value.shape)}>"

    def repr_Name(self, value: object, _level: int) -> str:  # noqa: N802, the name is that of the type
        return str(value)


def shown(value: object) -> str:
    """Describe a value of a file in one line of some hundred characters, however large and nested it is."""
    return printable(_SHORT.repr(value))


_SHORT = _ShortRepr()
