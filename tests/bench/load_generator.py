"""Send requests to a server on this computer, from a bounded number of threads, and note what comes back."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_GIVE_UP_S: Final = 120.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, which is sent again and again."""

    port: int
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Load:
    """The answers to a load, with their times.

    Attributes:
        statuses: The number of answers by HTTP status. A connection that failed has the status 0.
        latencies: The seconds from each request to its answer, for the status 200 alone.
        refused: The seconds from each request to its refusal, for all other answers.
        seconds: The time from the first request to the last answer.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        (self.latencies if status == 200 else self.refused).append(seconds)


class _Client:
    """A client that keeps its connection."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._connection = http.client.HTTPConnection("127.0.0.1", request.port, timeout=_GIVE_UP_S)

    def send(self) -> int:
        """Send the request, and return the status of the answer, or 0 where there is none.

        A server closes the connection after some answers. The request is then sent on a new one.
        """
        for _ in range(2):
            try:
                self._connection.request(
                    "POST", self._request.path, self._request.body, dict(self._request.headers)
                )
                answer = self._connection.getresponse()
                answer.read()
            except (ConnectionError, http.client.HTTPException):
                self._connection.close()
            except OSError:
                break
            else:
                return answer.status
        self._connection.close()
        return 0

    def close(self) -> None:
        self._connection.close()


def closed_loop(request: Request, clients: int, count: int) -> Load:
    """Let clients send a number of requests altogether, each its next one when it has its answer."""
    load, lock = Load(), threading.Lock()
    left = iter(range(count))

    def work() -> None:
        client = _Client(request)
        while True:
            with lock:
                if next(left, None) is None:
                    break
            begun = time.perf_counter()
            status = client.send()
            with lock:
                load.add(status, time.perf_counter() - begun)
        client.close()

    return _run(load, [threading.Thread(target=work) for _ in range(clients)])


def open_loop(request: Request, per_second: float, count: int, clients: int) -> Load:
    """Send requests at a pace that does not wait for answers. The latency counts from the moment of the plan.

    Args:
        request: The request.
        per_second: The pace.
        count: The number of requests.
        clients: The most requests at once. Each has a thread and a connection.
    """
    load, lock = Load(), threading.Lock()
    left = iter(range(count))
    start = time.perf_counter()

    def work() -> None:
        client = _Client(request)
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                break
            planned = start + number / per_second
            time.sleep(max(0.0, planned - time.perf_counter()))
            status = client.send()
            with lock:
                load.add(status, time.perf_counter() - planned)
        client.close()

    return _run(load, [threading.Thread(target=work) for _ in range(clients)])


def _run(load: Load, threads: list[threading.Thread]) -> Load:
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.perf_counter() - begun
    return load
