"""Work on several items at once, in threads, and give the answers in the order of the items.

Several inferences on one core each take less processor time than one inference after the other on all cores. Threads of
one inference wait for each other after every layer, and a thread that gives its core to other work lets all of them
wait. So where many frames lie ready, each core takes a frame of its own.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Final, TypeVar

from flowedge.runtime.device.cores import fast_cores
from flowedge.runtime.opening.engine_contract import Opened

MOST_LANES: Final = 8
"""The most items that are worked on at once. More lanes would read more weights at once than the caches hold."""

_MOST_BYTES: Final = 256 << 20  # of the items that are worked on at once; a larger item is worked on alone

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def threads_for_many(threads: int | None = None) -> int:
    """Return the number of CPU threads of one inference for a caller with many frames.

    Args:
        threads: The number that a user wants. Without a number, the threads are as few as `MOST_LANES` lanes need to
            use all cores.
    """
    return threads or -(-fast_cores() // MOST_LANES)


def lanes_beside(threads: int) -> int:
    """Return the number of inferences of so many threads that run at once on the cores of this process."""
    return max(1, min(MOST_LANES, fast_cores() // threads))


def inferences_at_once(engine: Opened) -> int:
    """Return the number of inferences that an engine runs at once.

    An engine on the CPU that chooses its own number of threads fills all cores with one inference. On another device
    the inferences take turns, except where the engine copies one frame while it computes another.
    """
    if engine.spec.device != "cpu":
        return int(getattr(engine.engine, "in_flight", 1))
    return 1 if engine.threads is None else lanes_beside(engine.threads)


def lanes_of(engine: Opened) -> int:
    """Return the number of frames that are to be read, prepared and inspected at once.

    Beside an engine that is not on the CPU, each core reads and prepares a frame, two at the least.
    """
    if engine.spec.device == "cpu":
        return inferences_at_once(engine)
    return max(2, min(MOST_LANES, fast_cores()))


def readers_beside(engine: Opened) -> int:
    """Return the number of threads that read and decode files for an engine.

    An engine on the CPU needs the cores itself, and one file is read while others are inspected.
    """
    return 1 if engine.spec.device == "cpu" else lanes_of(engine)


class Lanes:
    """Threads that each do one piece of work at a time. They end with the process, also where a work hangs."""

    def __init__(self, count: int) -> None:
        """Start the threads.

        Args:
            count: The number of works at once.
        """
        self.count = count
        self._works: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        for number in range(count):
            threading.Thread(target=self._run, name=f"lane-{number}", daemon=True).start()

    def submit(self, do: Callable[[], Answer]) -> Future[Answer]:
        """Queue a piece of work, and return its answer to come."""
        answer: Future[Answer] = Future()
        self._works.put(partial(_do, do, answer))
        return answer

    def close(self) -> None:
        """Let the threads end after what is queued."""
        for _ in range(self.count):
            self._works.put(None)

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            work()
            del work  # which may hold the engine that nobody else holds


def in_order(
    do: Callable[[Item], Answer],
    items: Iterable[Item],
    *,
    lanes: int,
    size: Callable[[Item], int] = lambda item: 0,
) -> Generator[Answer, None, None]:
    """Give the answer to each item in the order of the items, and work on the next few items meanwhile.

    Args:
        do: A function that threads may call at once.
        items: The items, which are taken in the caller's thread, at most two more than there are lanes.
        lanes: The number of threads. With 1, everything is done in the caller's thread.
        size: Returns the bytes of an item, so that few large ones are held at once.

    Raises:
        Exception: The error of an item is raised at its place, and an error of ``items`` after the answers before it.
    """
    if lanes == 1:
        yield from map(do, items)
        return
    pool, waiting = Lanes(lanes), deque[Future[Answer]]()
    sizes: deque[int] = deque()
    iterator = iter(items)
    try:
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                break
            except Exception as error:  # the items before it have their answers first
                waiting.append(Future())
                waiting[-1].set_exception(error)
                break
            sizes.append(size(item))
            # While the caller uses an answer, one more item than there are threads keeps all of them at work.
            while waiting and (len(waiting) > lanes or sum(sizes) > _MOST_BYTES):
                answer = waiting[0].result()
                sizes.popleft()
                waiting.popleft()
                yield answer
            waiting.append(pool.submit(partial(do, item)))
        # A work stays in the row until it has its answer, so that an interrupted wait does not leave it behind.
        while waiting:
            answer = waiting[0].result()
            waiting.popleft()
            yield answer
    finally:
        pool.close()
        # The caller may close the detector next, so nothing may still be at work with it.
        for one in waiting:
            if not one.cancel():
                one.exception()


def _do(do: Callable[[], Answer], answer: Future[Answer]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(do())
    except BaseException as error:
        answer.set_exception(error)
