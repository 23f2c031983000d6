"""Read one HTTP request within its limits, and send the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs

from flowedge.runtime.serving.messages import Answer
from flowedge.runtime.serving.refusal import RequestError, too_many
from flowedge.runtime.serving.settings import LimitSettings
from flowedge.runtime.serving.traces import NO_SPAN, Span
from flowedge.text import shown

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_PIECE: Final = 1 << 20
_DISCARD_S: Final = 1.0


class ClientGoneError(Exception):
    """The client closed its connection, so nobody reads an answer."""


class Memory:
    """The bytes of bodies and answers that the server holds at once."""

    def __init__(self, most_bytes: int) -> None:
        """Begin with nothing held."""
        self._most = most_bytes
        self.held = 0

    def hold(self, count: int) -> None:
        """Count bytes that are about to be held.

        Raises:
            RequestError: There would be too many.
        """
        if self.held + count > self._most:
            raise too_many(
                f"the server holds {self.held / 1e6:.0f} MB for other requests, and {self._most / 1e6:.0f} MB are "
                "allowed. Try again later.",
                "memory",
                1.0,
            )
        self.held += count

    def free(self, count: int) -> None:
        """Count bytes that are held no more."""
        self.held -= count


class Exchange:
    """One HTTP request, and the way to its client.

    Attributes:
        method: The method.
        path: The path, with percent-encoding resolved.
        headers: The headers, with names in lower case. Of a header that is there twice the last one counts.
        span: The trace of the request.
    """

    def __init__(
        self, scope: Mapping[str, Any], receive: Receive, send: Send, limits: LimitSettings, memory: Memory
    ) -> None:
        """Take the request of an ASGI server."""
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        self._query = bytes(scope["query_string"])
        self._abort: Callable[[], None] = scope.get("state", {}).get("abort", lambda: None)
        self._receive, self._send = receive, send
        self._limits, self._memory = limits, memory
        self._held = 0
        self._is_read = self.method != "POST"
        self.span: Span = NO_SPAN

    def query(self, *known: str) -> dict[str, str]:
        """Return the parameters of the address.

        Raises:
            RequestError: A parameter is not known, or is there twice.
        """
        try:
            found = parse_qs(
                self._query.decode("ascii"),
                keep_blank_values=True,
                strict_parsing=bool(self._query),
                max_num_fields=16,
            )
        except (ValueError, UnicodeDecodeError) as error:
            raise RequestError(f"the part of the address behind ? cannot be read: {error}.") from error
        for name, values in found.items():
            if name not in known:
                raise RequestError(
                    f"the parameter {shown(name)} is not known. Known are: {', '.join(known)}."
                )
            if len(values) > 1:
                raise RequestError(f"the parameter {name} is there {len(values)} times. Send it once.")
        return {name: values[0] for name, values in found.items()}

    def hold(self, count: int) -> None:
        """Count bytes that are held until the answer is sent.

        Raises:
            RequestError: The server holds too many.
        """
        self._memory.hold(count)
        self._held += count

    def free(self) -> None:
        """Count the bytes of this request as held no more."""
        self._memory.free(self._held)
        self._held = 0

    async def body(self) -> bytearray:
        """Read the body.

        Raises:
            RequestError: The body is too long, or did not come in time, or the server holds too many bytes.
            ClientGoneError: The client has gone.
        """
        most = int(self._limits.body_mb * 1e6)
        told = self.headers.get("content-length", "")
        if told.isdecimal() and int(told) > most:
            raise _too_long(int(told), most)
        self.hold(int(told) if told.isdecimal() else 0)
        body = bytearray()

        async def read() -> None:
            more = True
            while more:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                body.extend(message.get("body", b""))
                more = message.get("more_body", False)
                if len(body) > most:
                    raise _too_long(len(body), most)
                if not told:
                    self.hold(len(message.get("body", b"")))

        try:
            await asyncio.wait_for(read(), self._limits.body_s)
        except asyncio.TimeoutError:
            raise RequestError(
                f"the body did not come within {self._limits.body_s:g} seconds.",
                HTTPStatus.REQUEST_TIMEOUT,
                reason="slow_body",
            ) from None
        self._is_read = True
        return body

    async def gone(self) -> None:
        """Wait until the client closes its connection. The body must have been read before."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(self, answer: Answer) -> None:
        """Send the answer. A client that does not take it in time loses its connection."""
        headers = {**answer.headers, "Content-Length": str(answer.size)}
        if not self._is_read:
            await self._discard()
            headers["Connection"] = "close"
        try:
            await asyncio.wait_for(self._sent(answer, headers), self._limits.answer_s)
        except asyncio.TimeoutError:
            self._abort()

    async def _sent(self, answer: Answer, headers: Mapping[str, str]) -> None:
        await self._send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [
                    (name.lower().encode("latin-1"), value.encode("latin-1"))
                    for name, value in headers.items()
                ],
            }
        )
        for part in answer.parts:
            whole = memoryview(part)
            for at in range(0, len(whole), _PIECE):
                await self._send(
                    {"type": "http.response.body", "body": bytes(whole[at : at + _PIECE]), "more_body": True}
                )
        # The last message waits until the client has taken nearly everything before it.
        await self._send({"type": "http.response.body", "body": b""})

    async def _discard(self) -> None:
        """Read what is left of a body that nobody needs.

        A connection that is closed with unread bytes may lose the answer on its way.
        """
        if self.headers.get("expect"):
            return

        async def read() -> None:
            left = int(self._limits.body_mb * 1e6)
            while left > 0:
                message = await self._receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body"):
                    return

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(read(), _DISCARD_S)


def _too_long(count: int, most: int) -> RequestError:
    return RequestError(
        f"the body has {count} bytes, and {most} are allowed.",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        reason="too_large",
    )
