"""Write results and messages of commands, and declare the options that several commands have."""

from __future__ import annotations

import codecs
import re
import sys
from typing import Annotated, Any, Final, TypeAlias

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowedge.errors import FlowEdgeError
from flowedge.manifest_bounds import MAX_SIDE
from flowedge.text import printable

WIDEST: Final = 10_000  # characters: lines are whole in a file or a pipe


class EscapingConsole(Console):
    """A console that shows control characters escaped, since names and notes of files are printed.

    A line break within one string is escaped as well: what a file says cannot look like a line of ours.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        """Write to a standard stream, whichever it is at the time.

        Args:
            stderr: Write to standard error, else to standard output.
            width: Characters of a line; None takes the terminal's.
        """
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text with what is not printable escaped, in the given style."""
        return super().render_str(printable(text), **options)


MESSAGES: Final = EscapingConsole(stderr=True)
RESULTS: Final = EscapingConsole(width=None if sys.stdout is not None and sys.stdout.isatty() else WIDEST)

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
EngineName: TypeAlias = Annotated[
    str | None, typer.Option("--engine", help="Which engine computes; see flowedge doctor.")
]
PrecisionOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--precision", help="Which graph of the bundle runs; auto measures once which is fastest here."
    ),
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads of one inference.")
]

Build: TypeAlias = Annotated[
    bool, typer.Option("--build", help="Compile the engine first where the cache has none; may take minutes.")
]


def print_json(result: Any) -> None:
    """Print a result as one line of JSON on stdout, with all that is not printable in JSON's own escapes."""
    try:
        line = msgspec.json.encode(result, enc_hook=str).decode()
    except UnicodeEncodeError:  # a file's name that is not UTF-8
        line = msgspec.json.encode(_without_surrogates(msgspec.to_builtins(result, enc_hook=str))).decode()
    is_unicode = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    line = "".join(
        one if one.isprintable() and (is_unicode or one.isascii()) else _json_escape(one) for one in line
    )
    sys.stdout.write(line + "\n")  # in one piece, whatever interrupts
    sys.stdout.flush()


def _json_escape(character: str) -> str:
    r"""Return a character as JSON's ``\uXXXX``, twice for one beyond 16 bits."""
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))


def _without_surrogates(value: Any) -> Any:
    """Return JSON's values with the bytes of names that are not UTF-8 shown escaped."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_without_surrogates(name): _without_surrogates(one) for name, one in value.items()}
        case list() | tuple():
            return [_without_surrogates(one) for one in value]
    return value


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the house style; columns whose name starts with ``>`` are right-aligned."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(
            column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return made


def size_from(option: str, text: str) -> tuple[int, int]:
    """``(height, width)`` in pixels of a word such as ``1080x1920``.

    Raises:
        FlowEdgeError: It is not two whole numbers from 1 to 16384 with an x between.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= min(size) <= max(size) <= MAX_SIDE:
        raise FlowEdgeError(
            f"{option} takes HEIGHTxWIDTH in pixels, such as 1080x1920, each 1 to {MAX_SIDE}; got {text!r}."
        )
    return size


def number(value: float | None, digits: int = 4) -> str:
    """A metric for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def listed(value: object) -> str:
    """Write a value into a cell of a table, the parts of a sequence separated by commas."""
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
