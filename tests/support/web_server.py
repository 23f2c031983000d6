"""Serve a folder over HTTP with the faults of a bad network: cut answers, no ranges, redirects, wrong answers."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class WebServer:
    """A server that runs, and what it is to do.

    Attributes:
        folder: The folder that is served.
        url: The address.
        requests: Every request that came: method, path and headers.
        cuts: For a path, the number of bytes after which each next answer is cut off.
        has_ranges: False ignores the header ``Range``.
        answers: For a path, a function that gives status, headers and body in place of a file.
    """

    folder: Path
    url: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    has_ranges: bool = True
    answers: dict[str, Callable[[dict[str, str]], tuple[int, dict[str, str], bytes]]] = field(
        default_factory=dict
    )

    @property
    def paths(self) -> list[str]:
        """The paths of the requests."""
        return [path for _, path, _ in self.requests]


@contextmanager
def serving(folder: Path, certificate: tuple[Path, Path] | None = None) -> Iterator[WebServer]:
    """Run a server on 127.0.0.1, with TLS where a certificate and its key are given."""
    server = WebServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.requests.append((self.command, self.path, headers))
            self.close_connection = True
            if path in server.answers:
                status, extra, body = server.answers[path](headers)
            elif (file := server.folder / path.lstrip("/")).is_file():
                status, extra, body = 200, {}, file.read_bytes()
                begin = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
                if begin and server.has_ranges:
                    start = int(begin[1])
                    extra = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
                    status, body = 206, body[start:]
            else:
                status, extra, body = 404, {}, b"nothing"
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | extra).items():
                self.send_header(name, value)
            self.end_headers()
            cuts = server.cuts.get(path, [])
            if self.command == "GET":
                self.wfile.write(body[: cuts.pop(0)] if cuts else body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            web.socket = context.wrap_socket(web.socket, server_side=True)
        web.daemon_threads = True
        server.url = f"http{'s' if certificate else ''}://127.0.0.1:{web.server_port}"
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            web.shutdown()
            thread.join()
