"""Text that comes from outside, made fit for a terminal and for JSON."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape the bytes that are no UTF-8 and the control characters of a text, so that any terminal can show it."""
    valid = text.encode("utf-8", "backslashreplace").decode()
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in valid)
