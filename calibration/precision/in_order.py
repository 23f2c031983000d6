"""Call a function for many items on several threads, as many as the cores and the memory allow."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Final, TypeVar

from flowedge.runtime import lanes
from flowedge.runtime.device.cores import usable_cores

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

_MOST_BYTES: Final = 2 << 30


def in_order(
    function: Callable[[_Item], _Answer], items: Iterable[_Item], threads: int | None, *, bytes_each: int = 0
) -> Generator[_Answer, None, None]:
    """Yield the result of a function for each item, in the order of the items, as `flowedge.runtime.lanes` does.

    Args:
        function: The function, which threads may call at the same time. Its calls run in parallel where it spends its
            time outside of Python.
        items: The items, which are taken in the caller's thread.
        threads: The number of threads, or None for one for each processor core. At most
            `flowedge.runtime.lanes.MOST_LANES` run, because each call takes memory of its own.
        bytes_each: The memory of one call where it is large. Fewer calls run at a time where together they would need
            more than 2 GiB.
    """
    count = min(threads or usable_cores(), lanes.MOST_LANES, max(1, _MOST_BYTES // max(1, bytes_each)))
    return lanes.in_order(function, items, lanes=count)
