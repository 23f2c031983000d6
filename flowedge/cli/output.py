"""Write results and messages of commands, and declare the options that several commands have."""

from __future__ import annotations

import codecs
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from flowedge.cli import completion
from flowedge.cli.verbosity import is_quiet
from flowedge.errors import FlowEdgeError
from flowedge.manifest_bounds import MAX_SIDE
from flowedge.text import printable

if TYPE_CHECKING:
    from rich.table import Table

WIDEST: Final = 10_000  # characters: lines are whole in a file or a pipe


class EscapingConsole(Console):
    """A console that shows control characters escaped, since it prints names and notes of untrusted files.

    A line break within one string is escaped as well, so text of a file cannot look like a line of FlowEdge.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        """Write to the standard stream that is set at the time of each print.

        Args:
            stderr: Write to standard error, else to standard output.
            width: The number of characters in a line, by default that of the terminal.
        """
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text with what is not printable escaped, in the given style."""
        return super().render_str(printable(text), **options)


class _NoteConsole(EscapingConsole):
    """A console on standard error that prints nothing where ``--quiet`` is given."""

    @property
    def quiet(self) -> bool:
        """True while nothing is to be printed."""
        return is_quiet()

    @quiet.setter
    def quiet(self, value: bool) -> None:
        """Ignore the value, since the option alone decides."""


MESSAGES: Final = _NoteConsole(stderr=True)
"""Notes and progress, which ``--quiet`` leaves out."""

PROBLEMS: Final = EscapingConsole(stderr=True)
"""Errors, and what was not inspected or not written. Nothing leaves these lines out."""

RESULTS: Final = EscapingConsole(width=None if sys.stdout is not None and sys.stdout.isatty() else WIDEST)

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Force: TypeAlias = Annotated[
    bool,
    typer.Option("--force", help="Replace what FlowEdge wrote at the same place before, and nothing else."),
]
EngineName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--engine",
        autocompletion=completion.engines,
        help="The engine that computes. flowedge doctor lists the engines. An engine on NVIDIA GPUs may be followed "
        "by the number of a GPU, such as tensorrt:1.",
    ),
]
PrecisionOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--precision",
        autocompletion=completion.precisions_and_auto,
        help="The precision of the graph to run. With auto, the fastest one on this machine is measured once.",
    ),
]
OnePrecision: TypeAlias = Annotated[
    str,
    typer.Option(
        "--precision",
        autocompletion=completion.precisions,
        help="The precision of the graph. flowedge info lists those of a bundle.",
    ),
]
StationFile: TypeAlias = Annotated[
    Path, typer.Argument(metavar="FILE", help="The station's file.", show_default=False)
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option("--threads", min=1, help="The number of CPU threads of one inference.")
]

Build: TypeAlias = Annotated[
    bool,
    typer.Option("--build", help="Compile the engine first where the cache has none. This may take minutes."),
]


def print_json(result: Any) -> None:
    """Print a result as one line of JSON on stdout, and write characters that are not printable as JSON escapes."""
    try:
        line = msgspec.json.encode(result, enc_hook=str).decode()
    except UnicodeEncodeError:  # a file's name that is not UTF-8
        line = msgspec.json.encode(_without_surrogates(msgspec.to_builtins(result, enc_hook=str))).decode()
    _print_line(line)


def print_json_bytes(encoded: bytes) -> None:
    """Print a result that is JSON already, as one line."""
    _print_line(msgspec.json.format(encoded, indent=-1).decode())


def _print_line(line: str) -> None:
    # Characters that a terminal could act on, or that the stream cannot encode, become JSON escapes.
    is_unicode = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    if not line.isprintable() or not (is_unicode or line.isascii()):
        line = "".join(
            one if one.isprintable() and (is_unicode or one.isascii()) else _json_escape(one) for one in line
        )
    sys.stdout.write(line + "\n")  # one write, so that an interruption leaves no half of a line
    sys.stdout.flush()


def _json_escape(character: str) -> str:
    r"""Return a character as JSON's ``\uXXXX``. A character beyond 16 bits becomes two of them."""
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
    """Make an empty table in the style of all commands. A column whose name starts with ``>`` is right-aligned."""
    from rich.table import Table  # imported here, since --help prints no table

    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(
            column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return made


def size_from(option: str, text: str) -> tuple[int, int]:
    """Read a size in pixels from a word such as ``1080x1920``, and return ``(height, width)``.

    Raises:
        FlowEdgeError: The word is not two whole numbers from 1 to 16384 with an x between.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= min(size) <= max(size) <= MAX_SIDE:
        raise FlowEdgeError(
            f"{option} takes HEIGHTxWIDTH in pixels, such as 1080x1920, each 1 to {MAX_SIDE}; got {text!r}."
        )
    return size


def number(value: float | None, digits: int = 4) -> str:
    """Return a metric as text for a table. A metric that is None becomes a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def listed(value: object) -> str:
    """Return a value as text for a table, with commas between the parts of a sequence."""
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
