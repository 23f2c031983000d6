"""Measure the memory and the time of a piece of code, whatever library allocates."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SELF = Path("/proc/self")


@dataclass
class Cost:
    """The peak of the resident memory above its value before, and the processor time of the process."""

    megabytes: float = 0.0
    seconds: float = 0.0


@contextlib.contextmanager
def peak_memory_and_seconds() -> Iterator[Cost]:
    """Measure the code of a ``with`` block. Linux counts the peak anew after ``clear_refs``."""
    cost = Cost()
    (_SELF / "clear_refs").write_text("5")
    before, start = _resident("VmRSS"), time.process_time()
    try:
        yield cost
    finally:
        cost.seconds = time.process_time() - start
        cost.megabytes = (_resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", (_SELF / "status").read_text())
    assert found is not None, field
    return int(found[1])
