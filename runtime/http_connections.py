"""Bound the connections of an HTTP server: their number, the time of a request and the time of an answer."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, ClassVar, Final

_TURNS: Final = itertools.count()


class BoundedConnection(asyncio.Protocol):
    """A part of an HTTP protocol of uvicorn that keeps idle and slow clients from holding all connections.

    A subclass names it before the protocol. Four limits hold:

    1. A request must be whole in time, also the first one. A part of a request does not prolong the time.
    2. A connection that is being closed is aborted where its client does not take the end of the last answer in time.
    3. Where there are too many connections, the one that has waited longest for a request is closed. Its client still
       gets what was written, because a connection with TLS does not tell whether a part of an answer is left. Where too
       many connections are being closed, the one that began first is aborted.
    4. Where too many connections are busy, new ones are accepted up to twice the number, so that the application can
       refuse their requests in words. Those beyond it are closed without a word.

    Attributes:
        request_s: The time in seconds from the first byte of a request to the end of its headers.
        answer_s: The time in seconds in which a client must have taken the end of its answer.
        most_connections: The most connections at once.
    """

    request_s = 10.0
    answer_s = 30.0
    most_connections = 256
    loop: asyncio.AbstractEventLoop
    transport: Any
    cycle: Any
    connections: set[Any]
    _closing: ClassVar[dict[BoundedConnection, None]] = {}  # in order, one for each server's class
    _timer: asyncio.TimerHandle | None = None
    _turn = 0  # a number, since the clock of a loop may stand still between two connections
    _is_lost = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._closing = {}

    @property
    def is_idle(self) -> bool:
        """True where no request is being answered, and nothing is known of an answer that the client has not taken."""
        has_answered: bool = self.cycle is None or self.cycle.response_complete
        return has_answered and not self.transport.get_write_buffer_size()

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._turn = next(_TURNS)
        self._expect_request()
        self._make_room()
        if len(self.connections) > 2 * self.most_connections:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Wait no longer once a request is whole."""
        if self.transport.is_closing():
            super().data_received(data)
            return
        if self._timer is None:
            self._expect_request()
        if self.is_idle:
            self._make_room()
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()

    def on_response_complete(self) -> None:
        """Put the connection behind those that have been idle longer."""
        super().on_response_complete()  # type: ignore[misc]
        self._turn = next(_TURNS)
        if self.transport.is_closing():
            self.close_in_time()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()  # type: ignore[misc]
        self.close_in_time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._is_lost = True
        self._closing.pop(self, None)
        self._stop_timer()
        # After a reset uvicorn would wait on for the next request.
        self._unset_keepalive_if_required()  # type: ignore[attr-defined]
        super().connection_lost(exc)

    def close_in_time(self) -> None:
        """Close the connection when its client has taken what was written, or when the time for it is over."""
        if self._is_lost:
            return
        self._stop_timer()
        self._timer = self.loop.call_later(self.answer_s, self.transport.abort)
        self.transport.close()

    def _expect_request(self) -> None:
        self._timer = self.loop.call_later(self.request_s, self.close_in_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _make_room(self) -> None:
        """Close the connections that have been idle longest, until the others are few enough."""
        while len(self.connections) > self.most_connections:
            idle = [one for one in self.connections if one is not self and one.is_idle]
            if not idle:
                break
            longest = min(idle, key=lambda one: one._turn)
            # The set forgets it at once, so that requests are counted without it.
            self.connections.discard(longest)
            self._closing[longest] = None
            longest.close_in_time()
        while self._closing and len(self.connections) + len(self._closing) > 2 * self.most_connections:
            first = next(iter(self._closing))
            del self._closing[first]
            first.transport.abort()
