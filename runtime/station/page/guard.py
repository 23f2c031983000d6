"""Check each request before any part of the page sees it, and give each answer its security headers.

The limits that hold here: the methods, the name of the host against DNS rebinding, the length of the address and of the
body, the time in which a request must have come, and the sender of a change against forged requests of other sites.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from flowedge.runtime.http_connections import BoundedConnection
from flowedge.runtime.http_guard import is_same_origin, knows_host

POLICY: Final = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
MOST_BODY_BYTES: Final = 256 << 10
_MOST_ADDRESS_BYTES: Final = 2048
_REQUEST_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 30.0

_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """An ASGI application around another one, which passes on only requests that are within the limits."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        """Wrap an application.

        Args:
            app: The application.
            names: The names of hosts, see `flowedge.runtime.http_guard.allowed_names`.
        """
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            # A client that does not read its answer must not hold a connection for ever.
            await asyncio.wait_for(send(message), _ANSWER_SECONDS)

        refused = self._refusal(scope)
        if refused is None and scope["method"] == "POST":
            try:
                receive = await _whole_body(receive)
            except ValueError:
                refused = 413, f"The body may have {MOST_BODY_BYTES} bytes."
            except asyncio.TimeoutError:
                refused = 408, f"The body must come within {_REQUEST_SECONDS:g} seconds."
        if refused is None:
            with contextlib.suppress(asyncio.TimeoutError):
                await self._app(scope, receive, send_safely)
        else:
            status, text = refused
            response = PlainTextResponse(f"{text}\n", status, headers={"connection": "close"})
            await response(scope, receive, send_safely)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the reason of a refusal, or None for a request within the limits."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not knows_host(host, self._names):
            return 421, (
                "This name of the station is not known to it. Use its numeric address, or add the name to hosts in the "
                "table [page] of the station's file."
            )
        if len(scope.get("raw_path", b"")) + len(scope["query_string"]) > _MOST_ADDRESS_BYTES:
            return 414, f"The address may have {_MOST_ADDRESS_BYTES} bytes."
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "Only GET, HEAD and POST are answered."
        if scope["method"] == "POST" and not is_same_origin(headers, host):
            return 403, "A change must come from a page of this station, or from a program."
        return None


async def _whole_body(receive: Receive) -> Receive:
    """Read a body at once, and return a function that gives it again.

    Raises:
        ValueError: The body is too long.
        TimeoutError: The body did not come in time.
    """
    body = bytearray()

    async def read() -> None:
        more = True
        while more:
            message = await receive()
            body.extend(message.get("body", b""))
            more = message.get("more_body", False)
            if len(body) > MOST_BODY_BYTES:
                raise ValueError("the body is too long")

    await asyncio.wait_for(read(), _REQUEST_SECONDS)
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return again


class PageProtocol(BoundedConnection, H11Protocol):
    """The HTTP protocol of the page. `protocol_with` makes a class with a limit of connections."""

    request_s = _REQUEST_SECONDS
    answer_s = _ANSWER_SECONDS


def protocol_with(connections: int) -> type[PageProtocol]:
    """Make the protocol with a limit of connections."""

    class Limited(PageProtocol):
        most_connections = connections

    return Limited
