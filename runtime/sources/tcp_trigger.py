"""Take the ids of parts from TCP clients: one line of UTF-8 for each part, which is answered by one line."""

from __future__ import annotations

import selectors
import socket
import threading
from typing import Final, cast

from flowedge.errors import SourceError
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.settings import TcpTrigger, TriggerSettings
from flowedge.runtime.sources.triggers import Listener, Take

_LONGEST_LINE: Final = 1024
_LOOK_S: Final = 0.2  # the time after which the thread notices that it is to end


def listen(settings: TriggerSettings, take: Take, opening: Opening) -> Listener:
    """Listen at a port.

    Raises:
        SourceError: The port cannot be taken.
    """
    return _Lines(cast(TcpTrigger, settings), take)


class _Lines:
    """A TCP server of one thread. A taken line is answered by ``ok`` and a refused one by ``refused: REASON``."""

    def __init__(self, settings: TcpTrigger, take: Take) -> None:
        self._take = take
        self._most = settings.clients
        try:
            self._server = socket.create_server((settings.host, settings.port))
        except OSError as error:
            raise SourceError(
                f"the trigger cannot listen at {settings.host}:{settings.port}: {error.strerror}. Name another port."
            ) from error
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._begun: dict[
            socket.socket, bytes
        ] = {}  # what each client has sent of a line, the most silent one first
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="flowedge tcp trigger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(5 * _LOOK_S)

    def _serve(self) -> None:
        while not self._closed.is_set():
            for key, _ in self._selector.select(_LOOK_S):
                if key.fileobj is self._server:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._begun:
                    self._read(key.fileobj)
        for client in list(self._begun):
            self._drop(client)
        self._selector.close()
        self._server.close()

    def _accept(self) -> None:
        try:
            client, _ = self._server.accept()
        except OSError:
            # The client still waits where the process has no file descriptor left, so a pause saves the processor.
            self._closed.wait(_LOOK_S)
            return
        # A client that has lost its power never closes its connection, so that a new client takes the place of the one
        # that has been silent for the longest time.
        if len(self._begun) >= self._most:
            self._drop(next(iter(self._begun)))
        client.setblocking(False)
        self._begun[client] = b""
        self._selector.register(client, selectors.EVENT_READ)

    def _read(self, client: socket.socket) -> None:
        try:
            received = client.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._drop(client)
            return
        *lines, rest = (self._begun[client] + received).split(b"\n")
        answers = [self._take(line) for line in lines]
        is_too_long = len(rest) > _LONGEST_LINE
        if is_too_long:
            answers.append(f"a line has more than {_LONGEST_LINE} bytes")
        text = "".join(f"refused: {reason}\n" if reason else "ok\n" for reason in answers)
        try:
            is_sent = not text or client.send(text.encode()) == len(text.encode())
        except OSError:
            is_sent = False
        # A client that does not read its answers gets no more of them.
        if is_too_long or not is_sent:
            self._drop(client)
        else:
            del self._begun[client]
            self._begun[client] = rest

    def _drop(self, client: socket.socket) -> None:
        del self._begun[client]
        self._selector.unregister(client)
        client.close()
