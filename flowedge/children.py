"""Start processes that run no code from the current folder, which may hold files of anybody."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Final

# In these lists an empty or relative entry means the current folder. OpenCV's import appends an empty one to the first.
_SEARCHED: Final = ("LD_LIBRARY_PATH", "PATH", "PYTHONPATH")


def python_command(module: str) -> list[str]:
    """Return the command that runs ``main`` of a module of FlowEdge in a fresh interpreter.

    The interpreter is isolated from the environment and the user's folders. The interpreter finds packages where this
    process finds them, except in the current folder, and FlowEdge itself where this process has it.
    """
    # The old sys.path goes first: until then, only modules that are built in or frozen are imported.
    code = f"import sys; sys.path[:] = {import_folders()!r}; from {module} import main; main()"
    return [sys.executable, "-I", "-c", code]


def import_folders() -> list[str]:
    """Return ``sys.path`` without the current folder, which an empty entry of ``PYTHONPATH`` puts there.

    A current folder that is the standard library's or a folder of installed packages stays.
    """
    # The entries of PYTHONPATH come before the standard library, those of installed packages behind it.
    library = os.path.dirname(os.__file__)
    named = sys.path.index(library) if library in sys.path else len(sys.path)
    found = [
        entry
        for place, entry in enumerate(sys.path)
        if os.path.isabs(entry) and not (place < named and _is_current_folder(entry))
    ]
    own = str(Path(__file__).resolve().parents[1])
    return found if own in found else [*found, own]  # last: its folder may hold much besides


def clean_environment() -> dict[str, str]:
    """Return this process's environment without the entries that let programs be searched in the current folder."""
    environment = dict(os.environ)
    for name in _SEARCHED:
        if name in environment:
            environment[name] = os.pathsep.join(filter(os.path.isabs, environment[name].split(os.pathsep)))
    return {name: value for name, value in environment.items() if value or name not in _SEARCHED}


def find_program(name: str) -> str | None:
    """Return the path of a program from ``PATH``, or None where it is not installed."""
    return shutil.which(name, path=clean_environment().get("PATH", os.defpath))


def _is_current_folder(entry: str) -> bool:
    with contextlib.suppress(OSError):  # an entry need not exist
        return os.path.samefile(entry, os.curdir)
    return False
