"""Take frames from a camera for as long as the source is open: notice that the camera is lost, and connect again.

Three threads share the work. One reads a connection and blocks inside of a library. One watches the time since the last
frame, which no library does soon enough, and starts the next connection. The caller's thread takes the frames.
"""

from __future__ import annotations

import collections
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from numpy.typing import NDArray

from flowedge.errors import FlowEdgeError
from flowedge.runtime.protocols import Frame
from flowedge.runtime.sources.events import SourceEvent
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.settings import Channels

_KEPT: Final = 4  # frames that wait for the caller; a further one takes the place of the oldest
_MOST_STUCK: Final = 3  # connections that hang inside of a library at once; no more are opened beside them
_CONNECT_S: Final = 10.0
_END_S: Final = 1.0  # the time that closing waits for a thread that reads


class Grab:
    """A frame as a connection gives it, before its pixels are made.

    Attributes:
        pixels: Gives the array and its channels, or raises `ImageError`. The caller's thread calls it.
        lost: The number of frames that were lost before this one.
        monotonic_ns: The time of capture.
    """

    __slots__ = ("lost", "monotonic_ns", "pixels")

    def __init__(self, pixels: Callable[[], tuple[NDArray[Any], Channels]], lost: int = 0) -> None:
        self.pixels = pixels
        self.lost = lost
        self.monotonic_ns = time.monotonic_ns()


class Connection(Protocol):
    """One connection to a camera, used by one thread."""

    def grabs(self) -> Iterator[Grab | None]:
        """Give frames until the camera is lost, by an end or by an error.

        The value None tells that no frame has come yet. A connection that can wait for a short time gives it, so that
        it is closed soon where the source is.
        """
        ...

    def close(self) -> None:
        """Free the camera."""
        ...


@runtime_checkable
class Fires(Protocol):
    """A source or a connection whose camera has a software trigger."""

    def fire(self) -> None:
        """Let the camera take one frame."""
        ...


Connect: TypeAlias = Callable[[], Connection]
"""A function that connects to a camera, or raises an error that says why it cannot."""

Explain: TypeAlias = Callable[[Exception], str]
"""A function that says in words, without a password, why a connection ended."""


@dataclass(eq=False, slots=True)
class _Reading:
    """The state of one connection.

    Attributes:
        last: The time of the monotonic clock at which the last frame came, or the connection began.
        frames: The number of frames that came.
        ended: The reason why the connection ended, once it has.
        is_over: True once nobody waits for this connection any more.
    """

    thread: threading.Thread | None = None
    connection: Connection | None = None
    last: float = field(default_factory=time.monotonic)
    frames: int = 0
    ended: str = ""
    is_over: bool = False


def connect_limit(timeout_s: float) -> float:
    """Return the time until the first frame of a connection, in seconds, which a camera may take longer for.

    A camera sends nothing that can be decoded before its next key frame. The value 0 stands for no limit.
    """
    return max(timeout_s, _CONNECT_S) if timeout_s else 0.0


class LiveSource:
    """A camera as a source of frames that does not end.

    Where the caller is slower than the camera, the oldest frames are dropped and counted. Where the camera is lost, the
    source tells an event and connects again, with pauses that double up to a limit and vary at random, so that many
    stations do not knock at once.
    """

    def __init__(self, opening: Opening, connect: Connect, explain: Explain = str) -> None:
        """Prepare to connect, which begins with the first iteration.

        Args:
            opening: The values that the source is opened with.
            connect: Connects to the camera.
            explain: Says why a connection ended.
        """
        self._opening = opening
        self._connect = connect
        self._explain = explain
        self._change = threading.Condition()
        self._waiting: collections.deque[Grab] = collections.deque()
        self._reading = _Reading()
        self._stuck: list[threading.Thread] = []
        self._closed = False
        self._is_lost = False
        self._watchdog: threading.Thread | None = None

    def frames(self) -> Iterator[Frame]:
        """Give the frames as they come, until the source is closed."""
        if self._watchdog is None and not self._closed:
            self._watchdog = threading.Thread(target=self._watch, name="flowedge source", daemon=True)
            self._watchdog.start()
        number = 0
        while True:
            with self._change:
                while not self._waiting and not self._closed:
                    self._change.wait()
                if self._closed:
                    return
                grab = self._waiting.popleft()
            number += 1
            yield self._opening.frame(
                f"{self._opening.name}#{number}",
                grab.pixels,
                monotonic_ns=grab.monotonic_ns,
                dropped_before=grab.lost,
            )

    def close(self) -> None:
        """End the iteration at once, and the connection as soon as its library returns."""
        with self._change:
            self._closed = True
            self._reading.is_over = True
            self._waiting.clear()
            self._change.notify_all()
        for thread in (self._watchdog, self._reading.thread):
            if thread is not None and thread is not threading.current_thread():
                thread.join(_END_S)

    def fire(self) -> None:
        """Fire the software trigger of the camera, where it is connected and has one."""
        connection = self._reading.connection
        if isinstance(connection, Fires):
            connection.fire()

    def _watch(self) -> None:
        """Open one connection after the other."""
        settings = self._opening.settings
        pause = settings.reconnect_s
        while not self._closed:
            reading = self._begin()
            reason = self._wait_for_end(reading)
            if self._closed:
                return
            if not self._is_lost:
                self._is_lost = True
                self._opening.tell(
                    SourceEvent(kind="source_lost", text=f"{self._opening.name} is lost: {reason}")
                )
            if reading.frames:
                pause = settings.reconnect_s
            with self._change:
                self._change.wait_for(lambda: self._closed, pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, settings.reconnect_max_s)
            self._wait_for_stuck()

    def _begin(self) -> _Reading:
        reading = _Reading()
        reading.thread = threading.Thread(
            target=self._read, args=(reading,), name="flowedge camera", daemon=True
        )
        with self._change:
            self._reading = reading
        reading.thread.start()
        return reading

    def _wait_for_end(self, reading: _Reading) -> str:
        """Wait until a connection has ended or gives no more frames, and return the reason."""
        wanted = self._opening.settings.timeout_s
        with self._change:
            while not (self._closed or reading.ended):
                timeout = wanted if reading.frames else connect_limit(wanted)
                left = reading.last + timeout - time.monotonic() if timeout else None
                if left is not None and left <= 0:
                    reading.is_over = True
                    assert reading.thread is not None
                    self._stuck.append(reading.thread)
                    return f"no frame came for {timeout:g} s"
                self._change.wait(left)
            return reading.ended

    def _wait_for_stuck(self) -> None:
        """Wait for connections that hang inside of a library. Most end by a time limit of their own."""
        most = time.monotonic() + self._opening.settings.timeout_s
        while not self._closed:
            self._stuck = [thread for thread in self._stuck if thread.is_alive()]
            if not self._stuck or (len(self._stuck) < _MOST_STUCK and time.monotonic() >= most):
                return
            with self._change:
                self._change.wait_for(lambda: self._closed, 0.1)

    def _read(self, reading: _Reading) -> None:
        """Read one connection until it ends or is given up."""
        ended = "the camera ended the stream"
        connection: Connection | None = None
        try:
            connection = reading.connection = self._connect()
            for grab in connection.grabs():
                if not self._take(reading, grab):
                    break
        except FlowEdgeError as error:
            ended = str(error)
        except Exception as error:
            ended = self._explain(error)
        finally:
            reading.connection = None
            if connection is not None:
                try:
                    connection.close()
                except Exception as error:
                    ended = ended or self._explain(error)
            with self._change:
                reading.ended = ended
                self._change.notify_all()

    def _take(self, reading: _Reading, grab: Grab | None) -> bool:
        """Hand a frame over, and return False where nobody waits for this connection any more."""
        with self._change:
            if reading.is_over or self._closed:
                return False
            if grab is None:
                return True
            reading.last = time.monotonic()
            reading.frames += 1
            is_back, self._is_lost = self._is_lost, False
            self._waiting.append(grab)
            if len(self._waiting) > _KEPT:
                oldest = self._waiting.popleft()
                self._waiting[0].lost += oldest.lost + 1
            self._change.notify_all()
        if is_back:
            self._opening.tell(SourceEvent(kind="source_back", text=f"{self._opening.name} is back"))
        return True
