"""A connection that makes room for others still gets its whole answer, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority
from support.waiting import wait_until

uvicorn = pytest.importorskip("uvicorn", reason="the server needs the extra serve")
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: E402

from flowedge.runtime.http_connections import BoundedConnection  # noqa: E402

LARGE = b"x" * (8 << 20)  # more than the buffers of the sockets hold


async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body = LARGE if scope["path"] == "/large" else b"small"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Served:
    """A server on a thread, with room for two connections."""

    def __init__(self, server: Any, connect: Callable[[], socket.socket], made: list[Any]) -> None:
        self.server, self.connect, self.made = server, connect, made

    def ask(self, path: str) -> socket.socket:
        connection = self.connect()
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        return connection


@contextlib.contextmanager
def served(certificate: tuple[Path, Path] | None, loop: str) -> Iterator[Served]:
    made: list[Any] = []

    class Bounded(BoundedConnection, HttpToolsProtocol):
        most_connections, request_s, answer_s = 2, 30.0, 30.0

        def connection_made(self, transport: Any) -> None:
            made.append(self)
            super().connection_made(transport)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        options = (
            {} if certificate is None else {"ssl_certfile": certificate[0], "ssl_keyfile": certificate[1]}
        )
        config = uvicorn.Config(
            answer, http=Bounded, ws="none", loop=loop, lifespan="off", log_config=None, **options
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        def connect() -> socket.socket:
            plain = socket.create_connection(listening.getsockname(), timeout=20)
            return plain if certificate is None else context.wrap_socket(plain)

        try:
            wait_until(lambda: server.started, "the server has started")
            yield Served(server, connect, made)
        finally:
            server.should_exit = server.force_exit = True
            thread.join(20)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("is_secure", [False, True])
def test_an_answer_that_a_client_takes_slowly_is_not_cut_off_by_new_connections(
    tmp_path: Path, is_secure: bool, loop: str
) -> None:
    """With TLS, a part of the answer is in a buffer that the server cannot see."""
    certificate = Authority(tmp_path).issue("localhost") if is_secure else None
    with served(certificate, loop) as small, contextlib.ExitStack() as stack:
        slow = stack.enter_context(small.connect())
        slow.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, _, body = slow.recv(1000).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        cycle = small.made[0]
        wait_until(lambda: cycle.cycle is not None and cycle.cycle.response_complete, "the answer is written")
        for _ in range(3):
            stack.enter_context(small.ask("/small"))
        taken = len(body)
        while taken < len(LARGE) and (part := slow.recv(1 << 20)):
            taken += len(part)
        assert taken == len(LARGE)


def test_too_many_closing_connections_are_ended_from_the_first_on(tmp_path: Path) -> None:
    """Clients that never take their answers hold at most twice the connections."""
    with served(Authority(tmp_path).issue("localhost"), "asyncio") as small, contextlib.ExitStack() as stack:

        def is_written(number: int) -> bool:
            known = small.made[number] if len(small.made) > number else None
            return known is not None and known.cycle is not None and bool(known.cycle.response_complete)

        for number in range(8):
            stack.enter_context(small.connect()).sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_until(partial(is_written, number), "the answer is written")
        wait_until(lambda: sum(not one._is_lost for one in small.made) <= 4, "the first ones are ended")
        assert [one._is_lost for one in small.made[:4]] == [True] * 4


def test_nothing_waits_for_a_connection_that_was_reset() -> None:
    with served(None, "asyncio") as small:
        connection = small.ask("/small")
        (known,) = small.made
        wait_until(lambda: known.timeout_keep_alive_task is not None, "the server waits for the next request")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        wait_until(lambda: known._is_lost, "the server has seen the reset")
        assert known.timeout_keep_alive_task is None
        known.close_in_time()
        assert known._timer is None
