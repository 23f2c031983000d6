"""Call a function for many items on several threads, and give the results in the order of the items."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

MOST_THREADS: Final = 8
"""The largest number of images that run at a time, because each takes memory of its own."""

_MOST_BYTES: Final = 2 << 30


def in_order(
    function: Callable[[_Item], _Answer], items: Iterable[_Item], threads: int | None, *, bytes_each: int = 0
) -> Generator[_Answer, None, None]:
    """Yield the result of a function for each item, in the order of the items.

    A few results are computed ahead. No further call begins when the iterator is closed or a call raises an error.

    Args:
        function: The function, which threads may call at the same time. Its calls run in parallel where it spends its
            time outside of Python.
        items: The items, which are taken in the caller's thread.
        threads: The number of threads, or None for one for each processor core. At most `MOST_THREADS` run.
        bytes_each: The memory of one call where it is large. Fewer calls run at a time where together they would need
            more than 2 GiB.
    """
    count = min(threads or _cores(), MOST_THREADS, max(1, _MOST_BYTES // max(1, bytes_each)))
    if count == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(count, thread_name_prefix="flowedge-plan") as pool:
        begun: collections.deque[Future[_Answer]] = collections.deque()
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) > count:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
