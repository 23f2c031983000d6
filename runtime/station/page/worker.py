"""Do the page's work beside the line: in one thread, and for at most a quarter of the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from starlette.exceptions import HTTPException

_REST: Final = 3.0
_LONGEST_REST_S: Final = 0.5

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


class Worker:
    """A thread that rests after each piece of work, three times as long as the work took.

    So many browsers that ask for many pictures make each other wait, and never the line.
    """

    def __init__(self, name: str) -> None:
        """Name the thread, which starts with the first piece of work."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._free_at = 0.0
        self._is_closed = False

    async def run(
        self, work: Callable[Given, Returned], /, *given: Given.args, **named: Given.kwargs
    ) -> Returned:
        """Do a piece of work in the thread, and return what it returns.

        Raises:
            HTTPException: The page was closed before the work began.
        """

        def rested() -> Returned:
            time.sleep(max(0.0, self._free_at - time.monotonic()))
            begun = time.monotonic()
            try:
                return work(*given, **named)
            finally:
                ended = time.monotonic()
                self._free_at = ended + min(_REST * (ended - begun), _LONGEST_REST_S)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, rested)
        except (asyncio.CancelledError, RuntimeError):
            if not self._is_closed:
                raise
            raise HTTPException(503, "The station stops.") from None

    def close(self) -> None:
        """Drop the work that has not begun, and end the thread after the piece that has."""
        self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
