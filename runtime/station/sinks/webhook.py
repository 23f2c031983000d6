"""Send records by HTTP POST, signed by the rules of Standard Webhooks.

Source: https://www.standardwebhooks.com, version 1: the headers ``webhook-id``, ``webhook-timestamp`` and
``webhook-signature``, and a secret that may begin with ``whsec_``.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hmac
import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from flowedge.errors import SettingsError
from flowedge.runtime.settings import secret_of
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.sinks import RefusedError, SinkError, StationLink
from flowedge.runtime.station.sinks.payload import payload_of
from flowedge.runtime.station.sinks.settings import WebhookSettings
from flowedge.runtime.tls import client_context, tls_words
from flowedge.text import printable
from flowedge.version import __version__

_MOST_ANSWER_BYTES: Final = 1 << 16
_LONGEST_RETRY_AFTER_S: Final = 3600
# The answers that are about the content of one message. All others are about the address, the sender or the moment.
_REFUSALS: Final = (400, 413, 415, 422)
_SECRET_PREFIX: Final = "whsec_"


class WebhookSink:
    """A server that takes each record by a POST of its own."""

    def __init__(
        self,
        settings: WebhookSettings,
        *,
        secret: bytes | None,
        token: str | None,
        context: ssl.SSLContext | None,
    ) -> None:
        """Name the address. The connection begins with the first message."""
        self._settings, self.name = settings, settings.cursor
        self._secret, self._token, self._context = secret, token, context
        parts = urlsplit(settings.url)
        self._host, self._port = parts.hostname or "", parts.port
        self._target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        self._connection: http.client.HTTPConnection | None = None

    def open(self) -> None:
        """Do nothing, since the server is asked with each message."""

    def deliver(self, records: Sequence[Record]) -> None:
        """Send each record in a message of its own."""
        for place, record in enumerate(records):
            try:
                self._send(record)
            except SinkError as error:
                error.delivered = place
                raise

    def event(self, event: Event) -> None:
        """Send an event in a message of its own."""
        self._send(event)

    def beat(self) -> None:
        """Do nothing, since each message is a sign of life."""

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def connect(self) -> http.client.HTTPConnection:
        """Connect, and check the server's certificate.

        Raises:
            SinkError: The server cannot be reached.
        """
        timeout_s = self._settings.timeout_s
        if self._context is None:
            made = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        else:
            made = http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout_s, context=self._context
            )
        try:
            made.connect()
        except (OSError, ValueError, http.client.HTTPException) as error:
            made.close()
            raise SinkError(f"{self._place()} cannot be reached: {tls_words(error)}.") from error
        return made

    def _send(self, item: Record | Event) -> None:
        body = payload_of(item)
        is_reused = self._connection is not None
        try:
            self._post(item.id, body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            # A server may close a connection that was idle, just when it is used again.
            if not is_reused or isinstance(error, TimeoutError):
                raise self._no_answer(error) from error
            try:
                self._post(item.id, body)
            except (OSError, http.client.HTTPException) as again:
                self.close()
                raise self._no_answer(again) from again

    def _post(self, message_id: str, body: bytes) -> None:
        deadline = time.monotonic() + self._settings.timeout_s
        if self._connection is None:
            self._connection = self.connect()
        connection = self._connection
        connection.response_class = functools.partial(_Answer, deadline=deadline)  # type: ignore[assignment]
        connection.sock.settimeout(self._settings.timeout_s)
        connection.request("POST", self._target, body, self._headers(message_id, body))
        answer = connection.getresponse()
        content = answer.read(_MOST_ANSWER_BYTES)
        # The rest of a longer answer would be taken for the answer to the next message.
        if answer.will_close or not answer.isclosed():
            self.close()
        self._judge(answer, content)

    def _headers(self, message_id: str, body: bytes) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"FlowEdge/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(time.time())),
        }
        if self._secret is not None:
            signed = f"{message_id}.{headers['webhook-timestamp']}.".encode() + body
            digest = base64.b64encode(hmac.digest(self._secret, signed, "sha256")).decode()
            headers["webhook-signature"] = f"v1,{digest}"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _judge(self, answer: http.client.HTTPResponse, content: bytes) -> None:
        """Raise an error where the server has not taken the message.

        Raises:
            RefusedError: The message is the reason.
            SinkError: The address, the sender or the moment is the reason.
        """
        status = answer.status
        if 200 <= status < 300:
            return
        words = f"{self._place()} answers {status} {printable(answer.reason)}".rstrip()
        if text := printable(content[:300].decode(errors="replace").strip()):
            words = f"{words}: {text[:200]}"
        if status in _REFUSALS:
            raise RefusedError(f"{words}.")
        if 300 <= status < 400:
            target = printable(answer.getheader("Location", ""))[:200]
            raise SinkError(
                f"{words}. A redirect to {target or 'elsewhere'} is not followed: correct the url."
            )
        raise SinkError(f"{words}.", retry_after_s=_retry_after(answer.getheader("Retry-After", "")))

    def _no_answer(self, error: Exception) -> SinkError:
        if isinstance(error, TimeoutError):
            return SinkError(f"{self._place()} has not answered within {self._settings.timeout_s:g} s.")
        return SinkError(f"{self._place()} has broken off: {tls_words(error)}.")

    def _place(self) -> str:
        # The path and the query of an address may hold a secret, so neither is printed.
        scheme = "http" if self._context is None else "https"
        return f"{scheme}://{self._host}{'' if self._port is None else f':{self._port}'}"


class _Answer(http.client.HTTPResponse):
    """An answer that must be complete at a deadline, however slowly its bytes come."""

    def __init__(self, sock: socket.socket, *arguments: Any, deadline: float, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.fp.close()
        self.fp = io.BufferedReader(_UntilDeadline(sock, deadline))


class _UntilDeadline(io.RawIOBase):
    """The bytes of a socket until a moment on the monotonic clock."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        return self._socket.recv_into(buffer)


def make(settings: WebhookSettings, link: StationLink) -> WebhookSink:
    """Make the sink of its settings.

    Raises:
        SettingsError: The secret, the token or the certificates cannot be read.
    """
    del link  # the records name the station
    secret = secret_of(settings.secret_env, settings.secret_file)
    token = secret_of(settings.token_env, settings.token_file)
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise SettingsError(
            f"the token of the sink {settings.cursor} has characters that no header may have."
        )
    return WebhookSink(
        settings,
        secret=None if secret is None else _key_of(secret, settings.cursor),
        token=token,
        context=client_context(settings.ca_file) if settings.url.startswith("https:") else None,
    )


def probe(settings: WebhookSettings, link: StationLink) -> str:
    """Connect to the server without sending a message."""
    sink = make(settings, link)
    with contextlib.closing(sink.connect()):
        how = ", and its certificate is accepted" if settings.url.startswith("https:") else ""
        return f"{sink._place()} can be reached{how}. No message was sent."


def _key_of(secret: str, name: str) -> bytes:
    if not secret.startswith(_SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise SettingsError(
            f"the secret of the sink {name} begins with {_SECRET_PREFIX} and is no base64 after it."
        ) from error


def _retry_after(value: str) -> float:
    """Return the seconds that a server asks to wait. A date is not read, since clocks differ."""
    return float(min(int(value), _LONGEST_RETRY_AFTER_S)) if re.fullmatch(r"\d{1,9}", value) else 0.0
