"""Make a costly file once for all processes of a test run, or once for all runs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


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
    return _filled(shared / f"once-{name}", make)


def kept(name: str, sources: Iterable[bytes], make: Callable[[Path], None]) -> Path:
    """Return a folder that is filled once and kept for later runs until one of its sources changes.

    The folders lie in ``FLOWEDGE_TEST_CACHE``, or else in the repository's ``.pytest_cache/flowedge``. Folders of
    earlier sources are removed.

    Args:
        name: The folder's name, unique in the repository.
        sources: All that decides the content: scripts, names of packages with their versions.
        make: Fills the empty folder that it is given. Where it raises, the next caller tries again.
    """
    cache = Path(os.environ.get("FLOWEDGE_TEST_CACHE") or REPOSITORY / ".pytest_cache" / "flowedge")
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]

    def make_in_place_of_others(folder: Path) -> None:
        for other in cache.glob(f"{name}-*"):
            if other.is_dir() and other != folder:
                shutil.rmtree(other)
                other.with_name(f"{other.name}.complete").unlink(missing_ok=True)
        make(folder)

    return _filled(cache / f"{name}-{digest}", make_in_place_of_others)


def _filled(folder: Path, make: Callable[[Path], None]) -> Path:
    complete = folder.with_name(f"{folder.name}.complete")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what an attempt that raised left
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder
