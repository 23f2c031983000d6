"""The command line: each command parses, imports what it needs, calls the Python API and prints.

Exit status: 0 done, 1 it ran and found a problem, 2 it could not run.
"""

from __future__ import annotations

import contextlib
import signal
import sys

import typer

from flowedge import __version__
from flowedge.cli import bench, build, cache, calibrate, demo, doctor, evaluate, export, info, run, verify
from flowedge.cli.output import MESSAGES
from flowedge.errors import FlowEdgeError, PrecisionError

app = typer.Typer(
    name="flowedge",
    help="Normalizing-flow anomaly detectors, from a PyTorch checkpoint to an inspection line.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (export, info, verify, calibrate, evaluate, run, bench, build, doctor, demo):
    app.command(command.NAME)(command.command)
app.add_typer(cache.app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def _terminated(number: int, frame: object) -> None:
    """Leave as on Ctrl-C, so that nothing half-written stays behind."""
    sys.exit(128 + number)


def main() -> None:
    """Run the command line; only errors that the user can act on are caught."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except PrecisionError as error:
        MESSAGES.print(f"flowedge: {error}", soft_wrap=True)
        sys.exit(1)
    except FlowEdgeError as error:
        MESSAGES.print(f"flowedge: {error}", soft_wrap=True)
        sys.exit(2)


__all__ = ["app", "main"]
