"""Hand work from one stage of the loop to the next through queues of a bounded length."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Generic, TypeVar

import numpy as np

from flowedge.runtime.station.work import EndOfSource, Work

_MOST_LOST: Final = 1000
_LOST: Final = "the frame was dropped, since the line was faster than the engine"

Item = TypeVar("Item")


class Queue(Generic[Item]):
    """A queue of a bounded length between two stages. A stage that waits takes no processor time.

    Attributes:
        length: The number of items from which on `put` waits.
    """

    def __init__(self, length: int) -> None:
        """Begin empty.

        Args:
            length: The number of items from which on `put` waits.
        """
        self.length = length
        self._items: deque[Item] = deque()
        self._is_closed = False
        self._putting = 0
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._freed = threading.Condition(self._lock)

    def put(self, item: Item) -> bool:
        """Add an item, after waiting for room. Return False where the queue was closed and the item not taken.

        An item that waits when the queue is closed is still taken.
        """
        with self._lock:
            if self._is_closed:
                return False
            self._putting += 1
            while len(self._items) >= self.length and not self._is_closed:
                self._freed.wait()
            self._putting -= 1
            self._items.append(item)
            self._filled.notify()
            return True

    def offer(self, item: Item, *, more: int) -> bool:
        """Add an item at once, also beyond the length. Return False where that is exceeded by ``more`` items."""
        with self._lock:
            if self._is_closed or len(self._items) >= self.length + more:
                return False
            self._items.append(item)
            self._filled.notify()
            return True

    def get(self) -> Item | None:
        """Wait for an item and take it. The value is None where the queue was closed and everything was taken."""
        with self._lock:
            while not self._items and not self._is_over:
                self._filled.wait()
            if not self._items:
                return None
            item = self._items.popleft()
            self._freed.notify()
            return item

    def get_all(self) -> list[Item]:
        """Wait for items and take all. The list is empty where the queue was closed and everything was taken."""
        with self._lock:
            while not self._items and not self._is_over:
                self._filled.wait()
            items = list(self._items)
            self._items.clear()
            self._freed.notify_all()
            return items

    def close(self) -> None:
        """Take no more items. What is in the queue can still be taken."""
        with self._lock:
            self._is_closed = True
            self._filled.notify_all()
            self._freed.notify_all()

    @property
    def _is_over(self) -> bool:
        """True where no item comes any more. The lock is held."""
        return self._is_closed and not self._putting

    def __len__(self) -> int:
        """The number of items that wait."""
        return len(self._items)


class FrameQueue(Queue[Work | EndOfSource]):
    """The queue behind the source, which drops its oldest frame where it is full.

    The next frame tells how many were dropped before it. A dropped frame of a known part stays in the queue without its
    pixels, because the machine waits for an answer on that part.

    Attributes:
        dropped: The number of frames that were dropped since the start.
    """

    def __init__(self, length: int, on_drop: Callable[[], None] = lambda: None) -> None:
        """Begin empty.

        Args:
            length: The largest number of frames with pixels.
            on_drop: A function that is called after each drop, outside of any lock.
        """
        super().__init__(length)
        self.dropped = 0
        self._lost: deque[Work] = deque()
        self._on_drop = on_drop

    def put(self, item: Work | EndOfSource) -> bool:
        """Add a frame at once, and drop the oldest one where the queue is full."""
        is_full = False
        with self._lock:
            if self._is_closed:
                return False
            self._items.append(item)
            # The mark of the end makes the queue longer by one, and no frame gives way to it.
            if is_full := isinstance(item, Work) and len(self._items) > self.length:
                self._drop()
            self._filled.notify()
        if is_full:
            self._on_drop()
        return True

    def get(self) -> Work | EndOfSource | None:
        """Wait for a frame and take it. Dropped frames of known parts come in their order."""
        with self._lock:
            while not self._items and not self._lost and not self._is_closed:
                self._filled.wait()
            # All dropped frames are older than those with pixels.
            if self._lost:
                return self._lost.popleft()
            return self._items.popleft() if self._items else None

    def _drop(self) -> None:
        oldest, following = self._items[0], self._items[1]
        assert isinstance(oldest, Work)  # no frame comes after the mark of the end
        assert isinstance(following, Work)
        self.dropped += 1
        self._items.popleft()
        if oldest.frame.part is None:
            following.dropped_before += oldest.dropped_before + 1
            return
        oldest.give_up(_LOST)
        # A view of no pixels would keep all of them.
        oldest.frame = replace(oldest.frame, pixels=np.zeros((0, 0, 3), np.uint8))
        self._lost.append(oldest)
        if len(self._lost) > _MOST_LOST:
            forgotten = self._lost.popleft()
            self._lost[0].dropped_before += forgotten.dropped_before + 1


def frame_queue(when_full: str, length: int, on_drop: Callable[[], None]) -> Queue[Work | EndOfSource]:
    """Make the queue behind the source.

    Args:
        when_full: ``drop_oldest``, or ``block`` to let the source wait.
        length: The largest number of frames that wait.
        on_drop: A function that is called after each drop.
    """
    return FrameQueue(length, on_drop) if when_full == "drop_oldest" else Queue(length)
