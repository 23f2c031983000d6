"""Make parts in several processes on this machine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import msgspec

from flowedge.errors import EngineUnavailableError, FlowEdgeError
from flowedge.runtime.asked_process import AskedProcess
from flowedge.runtime.batch.chunks import Chunk
from flowedge.runtime.batch.part_maker import Job, PartDone
from flowedge.runtime.batch.worker import Answer

_WORKER = "flowedge.runtime.batch.worker"
_TRIES = 3


def parts_by_processes(job: Job, chunks: Iterator[Chunk], workers: int) -> Iterator[PartDone]:
    """Make the parts of chunks in several processes, and give the outcomes as they come.

    A process that dies, for instance for want of memory, is started again, and its chunk is tried again.

    Args:
        job: The job.
        chunks: The chunks.
        workers: The number of processes.

    Raises:
        FlowEdgeError: A part cannot be made, or a process died on the same chunk several times.
    """
    pool = _Pool(job, chunks)
    threads = [
        threading.Thread(target=pool.work, name=f"flowedge-batch-{n}", daemon=True) for n in range(workers)
    ]
    for thread in threads:
        thread.start()
    try:
        ended = 0
        while ended < workers:
            answer = pool.answers.get()
            if answer is None:
                ended += 1
            elif isinstance(answer, BaseException):
                raise answer
            else:
                yield answer
    finally:
        pool.stop()
        for thread in threads:
            thread.join()


class _Pool:
    """Processes that take chunks from one iterator, each with a thread that waits for its answers."""

    def __init__(self, job: Job, chunks: Iterator[Chunk]) -> None:
        self.answers: queue.Queue[PartDone | BaseException | None] = queue.Queue()
        self._job = msgspec.json.encode(job) + b"\n"
        self._chunks = chunks
        self._lock = threading.Lock()
        self._processes: set[AskedProcess] = set()
        self._is_stopped = False

    def work(self) -> None:
        """Let one process after the other make parts until no chunk is left. The method ends a thread."""
        process: AskedProcess | None = None
        try:
            while (chunk := self._next()) is not None:
                process = self._make(process or self._start(), chunk)
        except BaseException as error:
            self.answers.put(error)
        else:
            self.answers.put(None)
        finally:
            if process is not None:
                self._end(process)

    def stop(self) -> None:
        """End the processes at once. What they have not finished leaves no part."""
        with self._lock:
            self._is_stopped = True
            for process in self._processes:
                process.kill()

    def _next(self) -> Chunk | None:
        with self._lock:
            return None if self._is_stopped else next(self._chunks, None)

    def _make(self, process: AskedProcess, chunk: Chunk) -> AskedProcess:
        """Make one part, and return the process that goes on, which is a new one where the old one died."""
        for number in range(_TRIES):
            try:
                line = process.exchange(msgspec.json.encode(chunk) + b"\n")
            except EngineUnavailableError as error:
                self._end(process)
                if self._is_stopped or number == _TRIES - 1:
                    raise EngineUnavailableError(
                        f"a process of the job died {_TRIES} times on the same {len(chunk.files)} files, the first of "
                        f"which is {chunk.files[0].path!r}: {error}. Fewer --workers need less memory. Give the same "
                        "command again to go on."
                    ) from error
                process = self._start()
            else:
                answer = msgspec.json.decode(line, type=Answer)
                if answer.done is None:
                    raise FlowEdgeError(answer.failed)
                self.answers.put(answer.done)
                return process
        raise AssertionError("the last try returns or raises")

    def _start(self) -> AskedProcess:
        process = AskedProcess(_WORKER)
        with self._lock:
            self._processes.add(process)
            if self._is_stopped:
                process.kill()
        process.send(self._job)
        return process

    def _end(self, process: AskedProcess) -> None:
        with self._lock:
            self._processes.discard(process)
        process.close()
