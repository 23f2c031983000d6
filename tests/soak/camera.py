"""Serve a video at full speed over HTTP, as a camera with Motion JPEG does, and drop out when told."""

from __future__ import annotations

import contextlib
import http.server
import io
import socket
import threading
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

_BOUNDARY = "frame"


def pictures(count: int, size: tuple[int, int]) -> list[bytes]:
    """Make JPEGs of smooth noise, each another one, with one bright spot in every second.

    Args:
        count: The number of pictures.
        size: The height and the width in pixels.
    """
    height, width = size
    made = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(70, 180, (height // 16, width // 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        if number % 2:
            picture.paste((255, 255, 255), (width // 3, height // 3, width // 2, height // 2))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        made.append(stream.getvalue())
    return made


class Camera:
    """A network camera whose clients get its pictures again and again.

    Attributes:
        sent: The number of frames that were sent since the start, to all clients together.
        connections: The number of connections since the start.
    """

    def __init__(self, frames: Sequence[bytes], *, fps: float = 0.0) -> None:
        """Prepare a camera on a free port of this machine.

        Args:
            frames: The pictures as JPEG.
            fps: The frames of a second. With 0 the client's speed is the limit.
        """
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = int(one.getsockname()[1])
        self._frames, self._fps = frames, fps
        self.sent = self.connections = 0
        self._server: http.server.ThreadingHTTPServer | None = None
        self._clients: set[socket.socket] = set()

    @property
    def address(self) -> str:
        """The address of the stream."""
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Listen for clients."""
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="camera", daemon=True).start()

    def stop(self) -> None:
        """Vanish from the network as a camera does that loses its power."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        server.server_close()
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        client = handler.connection
        # A camera has little memory: it waits for the client instead of keeping what is old.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self._clients.add(client)
        number = self.connections = self.connections + 1
        try:
            handler.send_response(200)
            handler.send_header("Content-Type", f"multipart/x-mixed-replace;boundary={_BOUNDARY}")
            handler.end_headers()
            while self._server is not None:
                frame = self._frames[(number + self.sent) % len(self._frames)]
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(frame)}\r\n\r\n"
                client.sendall(head.encode() + frame + b"\r\n")
                self.sent += 1
                if self._fps:
                    time.sleep(1 / self._fps)
        except OSError:
            pass  # The client has gone, or the camera has.
        finally:
            self._clients.discard(client)
