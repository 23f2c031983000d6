"""Check the sender of an HTTP request, and limit the time that a connection may take for one."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit


def allowed_names(address: str, hosts: Iterable[str]) -> frozenset[str]:
    """Return the names of hosts under which a server may be reached, in lower case.

    Args:
        address: The address that the server listens on.
        hosts: The names of the settings.
    """
    own = {"localhost", socket.gethostname(), address, *hosts}
    return frozenset(name.lower().rstrip(".") for name in own)


def knows_host(host: str, names: frozenset[str]) -> bool:
    """Return True where the value of a Host header is a numeric address or one of the allowed names.

    A check of the name protects against DNS rebinding. Numeric addresses are always allowed, since a name that is bound
    anew cannot become one.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if "@" in host or "/" in host or "\\" in host:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower().rstrip(".") in names
    return True


def is_same_origin(headers: Mapping[str, str], host: str) -> bool:
    """Return True unless the browser tells that a page of another origin sends this request."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == host


class Timely(asyncio.Protocol):
    """A part of an HTTP protocol of uvicorn that ends each connection whose next request does not come in time.

    Without it a client that connects and sends nothing, or one byte of a header a minute, would hold a connection for
    ever. A subclass names it before the protocol.

    Attributes:
        request_s: The time in seconds from the first byte of a request to the end of its headers.
    """

    request_s = 10.0
    loop: asyncio.AbstractEventLoop
    transport: Any
    cycle: Any
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        """Wait no longer once a request is whole. A part of a request does not prolong the time."""
        if self._deadline is None:
            self._begin()
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._end()
        super().connection_lost(exc)

    def _begin(self) -> None:
        self._deadline = self.loop.call_later(self.request_s, self._too_late)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        self.transport.close()
