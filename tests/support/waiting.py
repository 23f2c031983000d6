"""Wait for what another thread or process does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str = "", timeout_s: float = 60.0) -> None:
    """Wait until a condition holds, and fail with a message where it does not in time."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.005)


def rest_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a process still prints on standard output and on standard error until it ends.

    ``Popen.communicate`` reads past Python's buffers, and loses what an earlier ``readline`` has left there.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    rest = process.stdout.read(), process.stderr.read()
    process.wait(timeout=60)
    return rest
