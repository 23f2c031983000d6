"""Read a checkpoint in a child process with little memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
from pathlib import Path

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints import budget, read_checkpoint

GIGABYTE = 1 << 30


def read_within_limits(path: str, limits: dict[str, int], results: multiprocessing.Queue[str]) -> None:
    """Read a checkpoint with one gigabyte more than this process has, and put the error's text into the queue.

    Args:
        path: The checkpoint.
        limits: Other values of constants of ``budget``, by name.
        results: Receives the text of the error, or an empty text where there is none.
    """
    for name, value in limits.items():
        assert hasattr(budget, name)
        setattr(budget, name, value)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTE, used + GIGABYTE))
    try:
        read_checkpoint(Path(path))
    except CheckpointError as error:
        results.put(str(error))
    except BaseException as error:  # the parent asserts that there is none
        results.put(f"{type(error).__name__}: {error!s:.200}")
    else:
        results.put("")
