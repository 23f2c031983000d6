"""What every command shares: where it writes, and how it shows that it is still at work."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, TypeAlias

import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from flowedge.errors import FlowEdgeError
from flowedge.geometry import MAX_SIDE

# No markup: the names of files and folders are printed, and they may hold brackets.
MESSAGES: Final = Console(stderr=True, highlight=False, markup=False)
WIDEST: Final = 10_000  # characters: lines are whole in a file or a pipe
RESULTS: Final = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDEST)

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
    """The result as one line of JSON on stdout."""
    typer.echo(msgspec.json.encode(result, enc_hook=str).decode())


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the house style; columns whose name starts with ``>`` are right-aligned."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(
            column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return made


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; call what it gives with how many are done, and of how many."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=MESSAGES,
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """A spinner on stderr that says which step is running."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=MESSAGES,
        transient=True,
    ) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda name: bar.update(task, description=name)


@contextlib.contextmanager
def stages() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """A bar on stderr for work of several stages: what begins the next one, and what advances it."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=MESSAGES,
        transient=True,
    ) as bar:
        task = bar.add_task("starting", total=None)
        yield (
            lambda name: bar.update(task, description=name, completed=0, total=None),
            lambda done, total: bar.update(task, completed=done, total=total),
        )


@contextlib.contextmanager
def phases(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr that names the phase; call what it gives with the phase, how many are done, and of how many."""
    with Progress(
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=MESSAGES,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total)


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
