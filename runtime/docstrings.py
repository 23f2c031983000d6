"""Read the description of a class, and those of its attributes, from the docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap


def description_of(kind: type) -> str:
    """Return what the docstring of a class says before its sections. The text is empty without a docstring."""
    return _parts_of(kind)[0]


def attribute_texts(kind: type) -> dict[str, str]:
    """Return the text of each attribute by name, from the docstrings of a class and of its bases."""
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        for found in re.finditer(r"(?ms)^(\w+): (.*?)(?=^\w+: |\Z)", _parts_of(one)[1]):
            texts[found[1]] = " ".join(found[2].split())
    return texts


def _parts_of(kind: type) -> tuple[str, str]:
    """Return the beginning of a docstring, and its section about attributes without indentation."""
    head, _, rest = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
    return head.strip(), textwrap.dedent(rest.split("\n\n")[0])
