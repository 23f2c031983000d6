"""Build HTML in which text is inert: every text that is not markup already is escaped."""

from __future__ import annotations

import html
from typing import Any

import msgspec

from flowedge.text import printable


class Markup(str):
    """HTML that this package has made. Every other string is text, and is escaped where it becomes a part of a page."""

    __slots__ = ()


EMPTY = Markup("")
_VOID = frozenset({"meta", "img", "input", "br", "link"})


def text_of(value: object) -> Markup:
    """Return a value as markup. Markup stays as it is.

    Control characters, marks of writing direction and bytes that are no UTF-8 are shown as escapes, since a name of a
    file may hold them.
    """
    return value if isinstance(value, Markup) else Markup(html.escape(printable(str(value))))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """Return one element.

    Args:
        tag: The name of the element.
        children: Text or markup. A value of None is left out.
        attributes: The values by name. An underscore at the end of a name is dropped, and one inside becomes a hyphen.
            True stands for an attribute without a value. The values None and False leave the attribute out.
    """
    written = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        plain = name.rstrip("_").replace("_", "-")
        written.append(plain if value is True else f'{plain}="{text_of(value)}"')
    opening = f"<{' '.join(written)}>"
    if tag in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{joined(*children)}</{tag}>")


def joined(*parts: object) -> Markup:
    """Return several texts or pieces of markup as one. A value of None is left out."""
    return Markup("".join(text_of(part) for part in parts if part is not None))


def data_block(identifier: str, value: Any) -> Markup:
    """Return a script element that holds JSON and runs nothing.

    The characters that HTML could take for the end of the element are written as JSON escapes, so no text can end it.

    Args:
        identifier: The element's ``id``.
        value: A value that msgspec can encode. The value's texts must be `printable` already.
    """
    content = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{text_of(identifier)}">{content}</script>')
