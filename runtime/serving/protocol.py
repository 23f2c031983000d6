"""Speak HTTP by uvicorn and httptools, with limits on the headers and the time of a request."""

from __future__ import annotations

from typing import Final

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flowedge.runtime.http_connections import BoundedConnection
from flowedge.runtime.serving.settings import LimitSettings

_MOST_HEADER_BYTES: Final = 64 << 10


class ServingProtocol(BoundedConnection, HttpToolsProtocol):
    """The HTTP protocol of the server. `protocol_with` makes a class with the limits of some settings."""

    _head = 0

    def data_received(self, data: bytes) -> None:
        """Close a connection whose headers do not end."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = 0
            return
        self._head += len(data)
        if self._head > _MOST_HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large", "the headers of the request are too long.")

    def on_message_begin(self) -> None:
        """Give the application the means to end a connection whose client does not read."""
        super().on_message_begin()
        self.scope.setdefault("state", {})["abort"] = self.transport.abort

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(b"400 Bad Request", msg)

    def _refuse(self, status: bytes, text: str) -> None:
        content = msgspec.json.encode({"error": text})
        self.transport.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, len(content), content)
        )
        self.close_in_time()


def protocol_with(limits: LimitSettings) -> type[ServingProtocol]:
    """Make the protocol with the limits of some settings."""

    class Limited(ServingProtocol):
        request_s = limits.header_s
        answer_s = limits.answer_s
        most_connections = limits.connections

    return Limited
