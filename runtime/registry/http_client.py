"""Speak HTTP with a server that is not trusted: every answer has a limit, and a cut download goes on where it was.

The standard library's ``urllib.request`` does the work, with the proxies that the environment names. Redirects are
followed here, since a password must not follow them to another server.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import logging
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from flowedge.errors import RegistryError
from flowedge.runtime.tls import client_context, tls_words
from flowedge.text import printable
from flowedge.version import __version__

_LOG: Final = logging.getLogger(__name__)
_CHUNK_BYTES: Final = 1 << 18
_TIMEOUT_S: Final = 30.0
_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MOST_TRIES: Final = 5
_MOST_CONNECTIONS: Final = 200
_SLOW_AFTER_S: Final = 60.0
_SLOWEST_BYTES_PER_S: Final = 1024
_MOST_ERROR_BYTES: Final = 1 << 16

BROKEN: Final = (OSError, http.client.HTTPException, ValueError)
"""The errors by which a connection or an answer can break."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The way to a server.

    Attributes:
        ca_file: The certificates to trust in place of the system's.
        plain_http: True allows http without TLS to any server. Without it only this machine is spoken with so.
        pause_s: The seconds before the second try of a broken download. Each further pause is twice as long.
    """

    ca_file: Path | None = None
    plain_http: bool = False
    pause_s: float = 0.5


@dataclass(slots=True)
class HttpClient:
    """A client of one or several servers.

    Attributes:
        connection: The way to the servers.
        authorization: The header ``Authorization`` for a server, by scheme and host.
    """

    connection: Connection
    authorization: dict[str, str] = field(default_factory=dict)
    _openers: dict[bool, urllib.request.OpenerDirector] = field(default_factory=dict)

    def check(self, url: str) -> None:
        """Refuse an address that is neither https nor, where that is allowed, http.

        Raises:
            RegistryError: The address is refused.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise RegistryError(
                f"{printable(_bare(url))}: no password belongs into an address. Log in with docker login, or set "
                "FLOWEDGE_REGISTRY_USER and FLOWEDGE_REGISTRY_PASSWORD."
            )
        if parts.scheme == "https" and parts.hostname:
            return
        if parts.scheme == "http" and parts.hostname:
            if self.connection.plain_http or is_this_machine(parts.hostname):
                return
            raise RegistryError(
                f"{printable(url)} is not encrypted, and only servers on this machine are spoken with so. Use https, "
                "or allow it with --plain-http."
            )
        raise RegistryError(f"{printable(url)} is no address of http or https.")

    @contextmanager
    def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: BinaryIO | bytes | None = None,
        *,
        size: int | None = None,
    ) -> Iterator[Any]:
        """Send a request, follow the redirects of a GET or HEAD, and give the answer of whatever status.

        Args:
            method: The method.
            url: The address.
            headers: More headers.
            body: The body to send.
            size: The number of bytes of a body that is a file.

        Raises:
            RegistryError: The address or a redirect is refused.
            OSError: The connection breaks.
            http.client.HTTPException: The answer is no HTTP.
        """
        headers = dict(headers or {})
        for _ in range(_MOST_REDIRECTS + 1):
            self.check(url)
            answer = self._send(method, url, dict(headers), body, size)
            if answer.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                with closing(answer):
                    yield answer
                return
            answer.close()
            target = urllib.parse.urljoin(url, answer.headers.get("Location", ""))
            if url.startswith("https:") and not target.startswith("https:"):
                raise RegistryError(
                    f"{printable(_bare(url))} leads to {printable(_bare(target))}, which is not encrypted."
                )
            if origin_of(target) != origin_of(url):
                headers.pop("Authorization", None)
            url = target
        raise RegistryError(
            f"{printable(_bare(url))} leads on and on: more than {_MOST_REDIRECTS} redirects."
        )

    def read(self, url: str, most_bytes: int, headers: Mapping[str, str] | None = None) -> bytes | None:
        """Return the content of a small file, or None where the server has none (404).

        Raises:
            RegistryError: The server does not answer or refuses, or the content is too long.
        """
        content, _ = self.read_with_headers(url, most_bytes, headers)
        return content

    def read_with_headers(
        self, url: str, most_bytes: int, headers: Mapping[str, str] | None = None
    ) -> tuple[bytes | None, Mapping[str, str]]:
        """Return the content of a small file as `read` does, and the headers of the answer."""
        problem = ""
        for attempt in range(_MOST_TRIES):
            try:
                with self.open("GET", url, headers) as answer:
                    if answer.status == 404:
                        return None, answer.headers
                    check_status(answer, url)
                    content = read_limited(answer, most_bytes, url)
                    length = answer.headers.get("Content-Length", "")
                    if not length.isdecimal() or int(length) == len(content):
                        return content, answer.headers
                    problem = f"{len(content)} of {length} bytes came"
            except BROKEN as error:
                if attempt == _MOST_TRIES - 1 or is_final(error):
                    raise unreachable(url, error) from error
                problem = tls_words(error)
            _LOG.info("%s: %s; trying again", _bare(url), problem)
            time.sleep(self.connection.pause_s * 2**attempt)
        raise RegistryError(f"{printable(_bare(url))} cannot be read: {problem}. Try again.")

    def download(self, url: str, size: int, sha256: str, to: BinaryIO) -> None:
        """Download a file whose size and hash are known. A cut download goes on where it was.

        Args:
            url: The address.
            size: The number of bytes.
            sha256: The SHA-256 in hexadecimal digits.
            to: The empty file to write to.

        Raises:
            RegistryError: The server does not answer, refuses, is too slow, or sends something else.
        """
        begun = time.monotonic()
        digest = hashlib.sha256()
        done = tries = connections = 0
        problem = ""
        while done < size or connections == 0:
            if tries == _MOST_TRIES or connections == _MOST_CONNECTIONS:
                raise RegistryError(
                    f"{printable(_bare(url))} was cut off: {done} of {size} bytes came, and {tries} tries brought no "
                    f"more ({printable(problem) or 'the connection ended'}). Try again."
                )
            if tries:
                time.sleep(self.connection.pause_s * 2 ** (tries - 1))
            connections += 1
            before = done
            try:
                with self.open("GET", url, {"Range": f"bytes={done}-"} if done else {}) as answer:
                    check_status(answer, url)
                    if done and not _goes_on(answer, done):  # a server without ranges sends all of it again
                        to.seek(0)
                        to.truncate()
                        done, digest = 0, hashlib.sha256()
                    length = str(answer.headers.get("Content-Length", ""))
                    if length.isdecimal() and done + int(length) != size:
                        raise RegistryError(
                            f"{printable(_bare(url))} has {done + int(length)} bytes, and {size} are listed for it. Do "
                            "not use it, and have it pushed again."
                        )
                    while chunk := answer.read1(_CHUNK_BYTES):
                        done += len(chunk)
                        if done > size:
                            raise RegistryError(
                                f"{printable(_bare(url))} has more bytes than the {size} that are listed for it. Do "
                                "not use it, and have it pushed again."
                            )
                        digest.update(chunk)
                        _write(to, chunk)
                        _check_speed(url, done, time.monotonic() - begun)
            except BROKEN as error:
                if is_final(error) and not done:
                    raise unreachable(url, error) from error
                problem = tls_words(error)
            tries = 0 if done > before else tries + 1
            if done < size:
                _LOG.info("%s: %d of %d bytes came; going on", _bare(url), done, size)
        if digest.hexdigest() != sha256:
            raise RegistryError(
                f"{printable(_bare(url))} is not the file that was pushed: its SHA-256 is {digest.hexdigest()}, and "
                f"{sha256} is listed. Do not use it, and have it pushed again."
            )

    def _send(
        self, method: str, url: str, headers: dict[str, str], body: BinaryIO | bytes | None, size: int | None
    ) -> Any:
        # What is for this machine goes to no proxy, which would be another machine.
        is_here = is_this_machine(urllib.parse.urlsplit(url).hostname or "")
        if is_here not in self._openers:
            self._openers[is_here] = _opener(client_context(self.connection.ca_file), proxied=not is_here)
        headers.setdefault("User-Agent", f"flowedge/{__version__}")
        if (known := self.authorization.get(origin_of(url))) is not None:
            headers.setdefault("Authorization", known)
        if body is not None:
            headers.setdefault("Content-Type", "application/octet-stream")
            headers["Content-Length"] = str(len(body) if isinstance(body, bytes) else size)
        request = urllib.request.Request(url, data=body, headers=headers, method=method)
        _LOG.debug("%s %s", method, _bare(url))
        return self._openers[is_here].open(request, timeout=_TIMEOUT_S)


def origin_of(url: str) -> str:
    """Return the scheme and the host of an address, which a password belongs to."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def is_this_machine(host: str) -> bool:
    """Return True for a name or an address of this machine's own loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_status(answer: Any, url: str) -> None:
    """Raise a `RegistryError` where an answer is no success. The message holds what the server says."""
    if 200 <= answer.status < 300:
        return
    said = printable(answer.read1(_MOST_ERROR_BYTES)[:300].decode("utf-8", "replace").strip())
    advice = {
        400: "Check the address, and name the server's certificates with --ca where it speaks TLS.",
        401: "Log in with docker login, or set FLOWEDGE_REGISTRY_USER and FLOWEDGE_REGISTRY_PASSWORD.",
        403: "This account may not do it.",
        404: "Nothing has this name.",
        429: "Too many requests: wait, and try again.",
    }.get(answer.status, "Try again.")
    raise RegistryError(
        f"{printable(_bare(url))} answers {answer.status} {printable(answer.reason or '')}"
        f"{f' ({said})' if said else ''}. {advice}"
    )


def is_final(error: Exception) -> bool:
    """Return True for an error that another try would meet again, such as a certificate that is not accepted."""
    reason = getattr(error, "reason", None)
    return any(
        isinstance(one, (ssl.SSLCertVerificationError, ConnectionRefusedError)) for one in (error, reason)
    )


def unreachable(url: str, error: Exception) -> RegistryError:
    """Return the error of a server that does not answer."""
    cause = getattr(error, "reason", None)
    words = tls_words(cause if isinstance(cause, Exception) else error)
    return RegistryError(
        f"{printable(_bare(url))} cannot be reached: {printable(words)}. Check the address and the network."
    )


def _opener(context: ssl.SSLContext, *, proxied: bool) -> urllib.request.OpenerDirector:
    """Make an opener that knows http and https, and gives an answer of whatever status."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(None if proxied else {}),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
    ):
        opener.add_handler(handler)
    return opener


def read_limited(answer: Any, most_bytes: int, url: str) -> bytes:
    """Return the body of an answer.

    Raises:
        RegistryError: The body is too long, or comes too slowly.
    """
    begun = time.monotonic()
    content = bytearray()
    # A read of all bytes would wait for as long as a server sends one byte now and then.
    while piece := answer.read1(_CHUNK_BYTES):
        content += piece
        if len(content) > most_bytes:
            raise RegistryError(
                f"{printable(_bare(url))} has more than {most_bytes} bytes, the most that is read of it."
            )
        _check_speed(url, len(content), time.monotonic() - begun)
    return bytes(content)


def _goes_on(answer: Any, done: int) -> bool:
    """Return True where an answer begins at the byte that was asked for, and False where it begins at the first."""
    if answer.status != 206:
        return False
    begins = str(answer.headers.get("Content-Range", ""))
    if not begins.startswith(f"bytes {done}-"):
        raise http.client.HTTPException(f"bytes from {done} were asked for, and the answer is {begins!r}")
    return True


def _write(to: BinaryIO, chunk: bytes) -> None:
    """Write a piece of a download. A full disk is no broken connection."""
    try:
        to.write(chunk)
    except OSError as error:
        raise RegistryError(
            f"the download cannot be written: {error.strerror}. Make room, and try again."
        ) from error


def _check_speed(url: str, done: int, seconds: float) -> None:
    if seconds > _SLOW_AFTER_S and done / seconds < _SLOWEST_BYTES_PER_S:
        raise RegistryError(
            f"{printable(_bare(url))} is too slow: {done} bytes came in {seconds:.0f} s. Try again on another network."
        )


def _bare(url: str) -> str:
    """Return an address without its query, which may hold a signature of a store, and without a password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
