"""Answer over a Unix socket what a running station does, and ask a running station."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from flowedge.errors import FlowEdgeError

SOCKET: Final = "status.sock"
"""The name of the socket in the state folder."""

_LOG: Final = logging.getLogger(__name__)
_SECONDS: Final = 5.0
_RETRY_S: Final = 0.1
_MOST_BYTES: Final = 1 << 20


class NoStationError(FlowEdgeError):
    """No station runs on a state folder."""


class StatusServer:
    """Answers each client with one JSON object, one client after the other, and reads nothing from them."""

    def __init__(self, folder: Path, answer: Callable[[], dict[str, Any]]) -> None:
        """Listen in a folder.

        Args:
            folder: The state folder. Only the owner of the process may connect.
            answer: Returns what clients are told. The server's thread calls it.

        Raises:
            FlowEdgeError: The socket cannot be made.
        """
        self._folder = folder
        self._answer = answer
        self._is_closed = False
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with _short_path(folder) as path:
                # A station that was killed leaves its socket. The journal's lock tells that none runs.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                self._listening.bind(path)
                os.chmod(path, 0o600)
        except OSError as error:
            self._listening.close()
            raise FlowEdgeError(
                f"{folder / SOCKET} cannot be made: {error.strerror}. Choose a state folder on a local disk that this "
                "user may write to."
            ) from error
        self._listening.listen(8)
        self._thread = threading.Thread(target=self._serve, name="station-status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more, and remove the socket."""
        self._is_closed = True
        # A thread that waits in accept wakes up by shutdown, and not by close.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(_SECONDS)
        self._listening.close()
        with contextlib.suppress(OSError):
            os.unlink(self._folder / SOCKET)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                if self._is_closed:
                    return
                time.sleep(_RETRY_S)  # the process may have no file descriptor left at the moment
                continue
            with client, contextlib.suppress(OSError):
                client.settimeout(_SECONDS)
                try:
                    client.sendall(msgspec.json.encode(self._answer(), enc_hook=str))
                except Exception:
                    _LOG.exception("the status cannot be told")


def ask_station(folder: Path) -> dict[str, Any]:
    """Ask the station that runs on a state folder what it does.

    Raises:
        NoStationError: No station runs there.
        FlowEdgeError: The station does not answer, or this user may not ask it.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
            asking.settimeout(_SECONDS)
            with _short_path(folder) as path:
                asking.connect(path)
            answer = b"".join(iter(lambda: asking.recv(1 << 16), b""))
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise NoStationError(
            f"no station runs on {folder}. Start one with: flowedge station run FILE"
        ) from error
    except PermissionError as error:
        raise FlowEdgeError(
            f"the station on {folder} answers only the user that runs it. Ask it as that user, for instance with "
            "sudo -u."
        ) from error
    except OSError as error:
        raise FlowEdgeError(f"the station on {folder} does not answer: {error}. Look at its log.") from error
    try:
        decoded: dict[str, Any] = msgspec.json.decode(answer, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise FlowEdgeError(f"the station on {folder} did not finish its answer. Ask again.") from error
    return decoded


@contextlib.contextmanager
def _short_path(folder: Path) -> Iterator[str]:
    """Give a path of the socket that is short enough for the kernel, which takes 107 bytes."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
