"""Run the command line in this process, and keep its output and exit status."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import typer.main

from flowedge.cli import main

# Typer builds its commands anew for every call, which takes longer than most commands: tests build them once.
_get_command = functools.cache(typer.main.get_command)


@dataclass(frozen=True, slots=True)
class Finished:
    """The exit status and the output of a command."""

    status: int
    stdout: str
    stderr: str


def flowedge(*arguments: str | Path, cwd: Path | None = None) -> Finished:
    """Run ``flowedge ARGUMENTS`` as the installed command does. An exception that would be a traceback is raised."""
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    arguments_seen = mock.patch.object(sys, "argv", ["flowedge", *map(str, arguments)])
    built_once = mock.patch.object(typer.main, "get_command", _get_command)
    status = 0
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    }
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), arguments_seen, built_once:
        try:
            os.chdir(cwd or before)
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            os.chdir(before)
            for number, handler in handlers.items():
                with contextlib.suppress(ValueError):  # not in the main thread
                    signal.signal(number, handler)
    return Finished(status, out.getvalue(), err.getvalue())
