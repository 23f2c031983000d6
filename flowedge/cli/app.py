"""Run the command line: each command parses, imports what it needs, calls the Python API and prints.

The exit status is one of these:

- 0: the command is done.
- 1: the command ran and found a problem, such as an image that was not inspected or a gate that did not pass.
- 2: the command could not run.
- 3: standard output or standard error cannot be written.
- 4: an image is anomalous, where ``flowedge run --fail-on anomalous`` asked for a status.
- 141: the reader of the output has gone.
- 128 and the number of the signal that ended the command.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from typing import Any, Final

import typer

from flowedge.cli import signals
from flowedge.cli.group import CommandGroup
from flowedge.cli.streams import on_standard_streams
from flowedge.cli.verbosity import NORMAL, set_verbosity, verbosity
from flowedge.errors import FlowEdgeError, PrecisionError
from flowedge.text import printable
from flowedge.version import __version__

# The class of all errors in the use of the command line. Typer takes it from one of several packages.
_UsageError: Final[type[Exception]] = typer.BadParameter.mro()[2]

# Newer versions of Typer convert values by pydantic, which begins its messages with the class of the error.
_OF_PYDANTIC: Final = re.compile(r"^(?:Value error|Assertion failed), ")

app = typer.Typer(
    name="flowedge",
    help="Bring normalizing-flow anomaly detectors from a PyTorch checkpoint to an inspection line.",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def run() -> int:
    """Run the command line and return its exit status."""
    try:
        return on_standard_streams(_status)
    finally:
        if verbosity() > NORMAL:
            from flowedge.cli.logs import hide_log

            hide_log()


def _status() -> int:
    """Run the command that the arguments name, and catch only errors that the user can act on."""
    set_verbosity(NORMAL)
    try:
        _check_current_folder()
        try:
            ended = app(prog_name="flowedge", standalone_mode=False)
        except Exception:
            # A library that caught the exception of a signal may fail a little later, for want of what it did not do.
            signals.raise_if_ended()
            raise
        signals.raise_if_ended()
    except _UsageError as error:
        _show_usage_error(error)
        _print_error_as_json("UsageError", error.format_message(), 2)  # type: ignore[attr-defined]
        return 2
    except signals.EndedBySignal as end:
        signals.begin_to_tidy()
        _print_problem(f"flowedge: ended by {end}.")
        return 128 + end.number
    except FlowEdgeError as error:
        _print_problem(f"flowedge: {error}")
        # A failed gate is a result of work that was done. Every other error means that the work could not be done.
        status = 1 if isinstance(error, PrecisionError) else 2
        _print_error_as_json(type(error).__name__, str(error), status)
        return status
    return ended if isinstance(ended, int) else 0


def _show_usage_error(error: Any) -> None:
    """Print how the command is used and what was wrong, with the options that were perhaps meant."""
    from flowedge.cli.places import meant_by_extra  # imported here, since --help shows no error

    error.message = _OF_PYDANTIC.sub("", printable(error.message))
    if meant := getattr(error, "possibilities", None):
        closest = difflib.get_close_matches(error.option_name, meant, cutoff=0)
        error.message += f". Did you mean {' or '.join(closest)}?"
        error.possibilities = None
    elif meant := meant_by_extra(error):
        error.message += f". {meant}"
    error.show()


def _print_error_as_json(kind: str, message: str, status: int) -> None:
    """Print an error on stdout where ``--json`` is given and no result was printed, so that stdout is always JSON."""
    options = sys.argv[1:]
    if "--" in options:
        options = options[: options.index("--")]
    if "--json" in options and not getattr(sys.stdout, "last", ""):
        from flowedge.cli.output import print_json

        print_json({"error": {"kind": kind, "message": message, "status": status}})


def _print_problem(text: str) -> None:
    from flowedge.cli.output import PROBLEMS  # imported here, since --help prints none

    PROBLEMS.print(text, soft_wrap=True)


def _check_current_folder() -> None:
    """Raise a `FlowEdgeError` where the current folder was deleted, since PyTorch's libraries end the process there."""
    try:
        os.getcwd()
    except OSError as error:
        raise FlowEdgeError(
            f"the current folder does not exist any more ({error.strerror}). Change to another folder with cd."
        ) from error


__all__ = ["app", "run"]
