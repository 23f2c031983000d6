"""Run the event loop of an asynchronous server in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import socket
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from flowedge.runtime.station.sinks import SinkError

_LOG: Final = logging.getLogger(__name__)
_CALL_S: Final = 20.0
_LAST_ROUNDS: Final = 5

Made = TypeVar("Made")


class LoopThread:
    """A thread with an event loop, to which any other thread may give coroutines."""

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        # A client that sends nonsense is no news of the station.
        self._loop.set_exception_handler(
            lambda _loop, context: _LOG.debug("%s: %s", name, context.get("message"))
        )
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, Made], timeout_s: float = _CALL_S) -> Made:
        """Run a coroutine in the loop and return its result.

        Raises:
            SinkError: The loop did not end the coroutine in time.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError as error:
            future.cancel()
            raise SinkError(f"the server has not answered within {timeout_s:g} s.") from error

    def stop(self) -> None:
        """End the loop, with whatever runs in it, and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_S)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_all())
        finally:
            self._loop.close()


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    # A transport is closed by the loop some rounds after it was told to.
    for _ in range(_LAST_ROUNDS):
        await asyncio.sleep(0)


def check_address(host: str, port: int) -> None:
    """Check that a server can listen on an address, and leave it free.

    Raises:
        SinkError: The address is taken, is not one of this machine, or needs a privilege.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
            one.listen(1)
    except OSError as error:
        raise SinkError(
            f"nobody can listen on {host}:{port}: {error.strerror}. Another program or another station may use the "
            "port, and a port below 1024 needs a privilege."
        ) from error
