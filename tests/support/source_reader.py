"""Read a source in a thread, as the station does, and hand its frames and events to a test."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType

from flowedge.runtime.protocols import Frame, Source
from flowedge.runtime.sources import SourceEvent
from flowedge.runtime.sources.events import Tell

MOST_S = 20.0
"""The seconds after which a test gives up."""


class SourceReader:
    """A source whose frames and events wait in queues. The source is closed at the end of the block."""

    def __init__(self, open_it: Callable[[Tell], Source]) -> None:
        self._events: queue.Queue[SourceEvent] = queue.Queue()
        self._frames: queue.Queue[Frame] = queue.Queue()
        self.source = open_it(self._events.put)
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        for frame in self.source.frames():
            self._frames.put(frame)

    def next(self) -> Frame:
        return self._frames.get(timeout=MOST_S)

    def event(self) -> SourceEvent:
        return self._events.get(timeout=MOST_S)

    def forget(self) -> None:
        """Drop the frames that came so far."""
        while not self.is_quiet(0):
            pass

    def is_quiet(self, seconds: float = 0.3) -> bool:
        """Return True where no frame comes for a time."""
        try:
            self._frames.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def close(self) -> None:
        """Close the source, which ends an iteration that waits."""
        self.source.close()
        self._thread.join(MOST_S)
        assert not self._thread.is_alive()

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
