"""Serve the page of a station from a thread of its own."""

from __future__ import annotations

import logging
import socket
import threading
import time
from types import TracebackType
from typing import Final

import uvicorn

from flowedge.errors import FlowEdgeError, SettingsError
from flowedge.runtime.http_address import check_certificate, is_local, listen, url_of
from flowedge.runtime.http_guard import allowed_names
from flowedge.runtime.settings import secret_of
from flowedge.runtime.station.journal_reader import JournalReader
from flowedge.runtime.station.live import Live
from flowedge.runtime.station.page.app import Site
from flowedge.runtime.station.page.controls import Controls
from flowedge.runtime.station.page.guard import Guard, protocol_with
from flowedge.runtime.station.page.settings import PageSettings

_LOG: Final = logging.getLogger(__name__)
_START_S: Final = 20.0
_STOP_S: Final = 5.0
_LEAST_TOKEN: Final = 12


class Page:
    """The page of a running station.

    Attributes:
        warning: The note for a person about the address of the page. The text is empty where all is well.

    Examples:
        >>> from flowedge.runtime.station.page.page import Page
        >>> with Page(settings.page, journal, live, station) as page:  # doctest: +SKIP
        ...     print(page.url)
    """

    def __init__(self, settings: PageSettings, journal: JournalReader, live: Live, station: Controls) -> None:
        """Check the settings and take the address. The page answers after `start`.

        Args:
            settings: The settings of the page.
            journal: The journal.
            live: The newest results, counters and states.
            station: The running station.

        Raises:
            FlowEdgeError: The token or the certificate cannot be read, or the address cannot be listened on.
        """
        token = _token(settings)
        self._has_tls = _check_certificate(settings)
        self.warning = _warning(settings, token, has_tls=self._has_tls)
        self._site = Site(settings, journal, live, station, token)
        self._address = settings.address
        self._socket = _listen(settings)
        config = uvicorn.Config(
            Guard(self._site.app, allowed_names(settings.address, settings.hosts)),
            http=protocol_with(settings.connections),
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=True,
            limit_concurrency=settings.connections + 1,  # uvicorn refuses the request that reaches it
            backlog=64,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=16 << 10,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="page", daemon=True)

    @property
    def port(self) -> int:
        """The port that the page listens on."""
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The address of the page for a browser on this computer, or on another one where the page listens on it."""
        return url_of(self._address, self.port, has_tls=self._has_tls)

    def start(self) -> None:
        """Start the thread, and return when the page answers.

        Raises:
            FlowEdgeError: The page does not start.
        """
        self._thread.start()
        give_up = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > give_up:
                self.stop()
                raise FlowEdgeError(f"the page does not start on {self.url}. The log has the reason.")
            time.sleep(0.005)

    def stop(self) -> None:
        """End the streams and the thread. The address is free afterwards."""
        # A stream that goes on would hold up the end of the server, so streams end first.
        self._site.stop()
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._socket.close()

    def __enter__(self) -> Page:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except Exception:
            # The line goes on without its page.
            _LOG.exception("the page has failed")


def probe_page(settings: PageSettings) -> tuple[str, str]:
    """Check that a page with these settings could be served, and return its address and what a person should know.

    Raises:
        FlowEdgeError: The token or the certificate cannot be read, or the address cannot be listened on.
    """
    token, has_tls = _token(settings), _check_certificate(settings)
    with _listen(settings) as listening:
        port = int(listening.getsockname()[1])
    return url_of(settings.address, port, has_tls=has_tls), _warning(settings, token, has_tls=has_tls)


def _token(settings: PageSettings) -> str | None:
    token = secret_of(settings.token_env, settings.token_file)
    if token is not None and len(token) < _LEAST_TOKEN:
        raise SettingsError(
            f"the token of the page has {len(token)} characters, and a token that nobody can guess has at least "
            f"{_LEAST_TOKEN}. Make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return token


def _check_certificate(settings: PageSettings) -> bool:
    return check_certificate(settings.tls_certificate, settings.tls_key, table="[page]")


def _warning(settings: PageSettings, token: str | None, *, has_tls: bool) -> str:
    """Return what a person should know about the address, or an empty text."""
    if is_local(settings.address):
        return ""
    if token is None:
        return (
            f"the page listens on {settings.address}, so every computer that reaches it sees the pictures. Nobody can "
            "change anything, since there is no token."
        )
    if not has_tls:
        return (
            f"the page listens on {settings.address} without TLS, so the token of a change crosses the network in "
            "plain text. Set tls_certificate and tls_key, or put a proxy with TLS in front of it."
        )
    return ""


def _listen(settings: PageSettings) -> socket.socket:
    return listen(settings.address, settings.port, owner="the page", table="the table [page]")
