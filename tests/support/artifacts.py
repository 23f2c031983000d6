"""Make a costly file once for all processes of a test run."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that one process of the run fills while the others wait for it.

    Args:
        factory: pytest's factory of temporary folders.
        name: The folder's name, unique in the run.
        make: Fills the empty folder that it is given. Where it raises, the next caller tries again.
    """
    base = factory.getbasetemp()
    # Every worker of pytest-xdist has a folder of its own below the folder of the run.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / f"once-{name}"
    complete = shared / f"once-{name}.complete"
    with (shared / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what an attempt that raised left
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder
