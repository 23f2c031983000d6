"""Gather requests into batches, and refuse those that could not be answered in time.

Threads of a model take frames from a queue that is bounded twice: by the number of frames, and by the time that they
would wait. So a server that gets more than it can compute answers what it can, and its latency stays bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import FlowEdgeError, ImageError
from flowedge.runtime.result import Result
from flowedge.runtime.serving.counting import ModelCounts
from flowedge.runtime.serving.loaded import LoadedModel
from flowedge.runtime.serving.refusal import RequestError, too_many
from flowedge.runtime.serving.settings import BatchSettings, LimitSettings

_LOG: Final = logging.getLogger(__name__)
_OF_THE_NEWEST: Final = 0.2

Made = TypeVar("Made")


class Job(Generic[Made]):
    """The frames of one request, from its admission to its answer.

    Attributes:
        count: The number of frames.
        products: The product of each frame. For a bundle each is None.
        load: Gives the frames. A thread of the model calls it, so a picture is decoded only where there is time for it.
        finish: Makes the answer of the results, in a thread of the model.
        deadline: The time of `time.monotonic` by which the answer must be there.
        answer: The future of the answer, which belongs to the loop of the server.
        entered: The time of the admission.
        queue_s: The time in the queue in seconds.
        infer_s: The time of the engine for the whole batch in seconds.
        batch: The number of frames of the batch.
    """

    def __init__(
        self,
        products: Sequence[str | None],
        load: Callable[[], list[NDArray[np.uint8]]],
        finish: Callable[[list[Result]], Made],
        deadline: float,
    ) -> None:
        """Describe the work. `Batcher.submit` admits it."""
        self.count = len(products)
        self.products = tuple(products)
        self.load, self.finish = load, finish
        self.deadline = deadline
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Made] = self.loop.create_future()
        self.entered = time.monotonic()
        self.queue_s = self.infer_s = 0.0
        self.batch = 0

    def give(self, made: Made) -> None:
        """Give the answer, from any thread."""
        self._call(self.answer.set_result, made)

    def fail(self, error: RequestError) -> None:
        """Give an error in place of the answer, from any thread."""
        self._call(self.answer.set_exception, error)

    def _call(self, what: Callable[[Any], object], given: object) -> None:
        def in_loop() -> None:
            if not self.answer.done():  # nobody waits any more where it is
                what(given)

        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self.loop.call_soon_threadsafe(in_loop)


class Batcher:
    """The queue and the threads of one model.

    Attributes:
        counts: The counts of the model.
        model: The model.
    """

    def __init__(
        self, model: LoadedModel, batch: BatchSettings, limits: LimitSettings, counts: ModelCounts
    ) -> None:
        """Start the threads.

        Args:
            model: The model, which the batcher closes at its end.
            batch: The settings of batches.
            limits: The limits.
            counts: The counts of the model, which outlive it when it is loaded again.
        """
        self.model, self.counts = model, counts
        self._largest = model.batch_of(batch.largest)[1]
        self._delay_s = batch.delay_ms / 1000
        self._most_waiting = limits.queue
        self._waiting: deque[Job[Any]] = deque()
        self._frames_waiting = self._frames_running = 0
        self._changed = threading.Condition()
        self._gathering = threading.Lock()
        self._s_per_frame = 0.0
        self._is_closing = False
        self._runs: dict[int, float] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"serve-{number}", daemon=True)
            for number in range(batch.workers or model.lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def frames_waiting(self) -> int:
        """The number of frames in the queue."""
        return self._frames_waiting

    @property
    def longest_run_s(self) -> float:
        """The time in seconds since the begin of the oldest run that has not ended, 0 without one."""
        started = list(self._runs.values())
        return time.monotonic() - min(started) if started else 0.0

    @property
    def expected_wait_s(self) -> float:
        """The time in seconds that a new frame would wait, by the speed of the last runs."""
        return (self._frames_waiting + self._frames_running) * self._s_per_frame

    def submit(self, job: Job[Any]) -> None:
        """Admit a request to the queue, or refuse it at once.

        Raises:
            RequestError: The queue is full, the request could not be answered by its deadline, or the model is being
                unloaded.
        """
        with self._changed:
            wait_s = self.expected_wait_s
            if self._is_closing:
                raise RequestError(
                    "this model is being unloaded.",
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    reason="unloading",
                    retry_after_s=1,
                )
            if job.count > self._most_waiting:
                raise RequestError(
                    f"the request has {job.count} frames, and the queue has room for {self._most_waiting}. Send fewer "
                    "frames at once."
                )
            if self._frames_waiting + job.count > self._most_waiting:
                raise too_many(
                    f"the queue is full: {self._frames_waiting} frames wait, and it has room for "
                    f"{self._most_waiting}. Try again later, or more slowly.",
                    "queue_full",
                    wait_s,
                )
            left_s = job.deadline - time.monotonic()
            if self._frames_waiting and wait_s > left_s:
                raise too_many(
                    f"the request would wait {wait_s:.2f} s for the frames before it, and must be answered within "
                    f"{max(left_s, 0):.2f} s. Try again later, or more slowly.",
                    "too_late",
                    wait_s,
                )
            self._waiting.append(job)
            self._frames_waiting += job.count
            self._changed.notify_all()

    def withdraw(self, job: Job[Any]) -> None:
        """Take a job out of the queue, if no thread has it yet."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._frames_waiting -= job.count

    def close(self) -> None:
        """Answer what is in the queue, end the threads and free the model. This waits for the last run."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self.model.close()

    def _work(self) -> None:
        while jobs := self._gathered():
            number, frames = threading.get_ident(), sum(job.count for job in jobs)
            taken = self._runs[number]
            try:
                for job in jobs:
                    job.queue_s = taken - job.entered
                    self.counts.taken(job.queue_s)
                self._judge(jobs)
            except Exception:
                # A thread that ends would leave its model without answers, so nothing may end it.
                _LOG.exception("a batch of %d frames has failed", frames)
                for job in jobs:
                    job.fail(_failure())
            finally:
                with self._changed:
                    del self._runs[number]
                    self._frames_running -= frames
                    per_frame = (time.monotonic() - taken) / frames / len(self._threads)
                    before = self._s_per_frame or per_frame
                    self._s_per_frame = before + _OF_THE_NEWEST * (per_frame - before)

    def _gathered(self) -> list[Job[Any]]:
        """Wait for a batch and take it from the queue. The list is empty when the model is closed."""
        # One thread gathers at a time, so that two threads do not share out what could be one batch.
        with self._gathering, self._changed:
            while True:
                self._drop_late()
                if not self._waiting:
                    if self._is_closing:
                        return []
                    self._changed.wait()
                    continue
                left_s = self._waiting[0].entered + self._delay_s - time.monotonic()
                if self._frames_waiting >= self._largest or self._is_closing or left_s <= 0:
                    return self._taken()
                self._changed.wait(left_s)

    def _taken(self) -> list[Job[Any]]:
        """Take as many jobs as fit one batch. A job that is larger than a batch is taken alone."""
        # Threads that are free share the frames, so that no core rests while another has a long batch.
        free = len(self._threads) - len(self._runs)
        most = min(self._largest, -(-self._frames_waiting // free))
        jobs: list[Job[Any]] = []
        frames = 0
        while self._waiting and (not jobs or frames + self._waiting[0].count <= most):
            job = self._waiting.popleft()
            jobs.append(job)
            frames += job.count
        self._frames_waiting -= frames
        self._frames_running += frames
        self._runs[threading.get_ident()] = time.monotonic()
        return jobs

    def _drop_late(self) -> None:
        """Drop the jobs whose senders have their error already, since their deadline is over."""
        now = time.monotonic()
        late = [job for job in self._waiting if job.deadline <= now]
        for job in late:
            self._waiting.remove(job)
            self._frames_waiting -= job.count
            job.fail(late_error())

    def _judge(self, jobs: Sequence[Job[Any]]) -> None:
        begun = time.monotonic()
        loaded: list[tuple[Job[Any], list[NDArray[np.uint8]]]] = []
        for job in jobs:
            try:
                loaded.append((job, job.load()))
            except (RequestError, ImageError) as error:
                job.fail(_explained(error))
        if loaded:
            self._judge_loaded(loaded, time.monotonic() - begun)

    def _judge_loaded(
        self, loaded: Sequence[tuple[Job[Any], list[NDArray[np.uint8]]]], load_s: float
    ) -> None:
        frames = [frame for _, some in loaded for frame in some]
        products = [product for job, _ in loaded for product in job.products]
        results: list[Result] = []
        try:
            for at in range(0, len(frames), self._largest):
                part = slice(at, at + self._largest)
                results += self.model.judge(frames[part], products[part])
        except Exception as error:
            if len(loaded) > 1:
                # One frame that fails takes no other request with it.
                for one in loaded:
                    self._judge_loaded([one], 0.0)
                return
            if not isinstance(error, FlowEdgeError):
                _LOG.exception("a request has failed")
            loaded[0][0].fail(_explained(error))
            return
        seconds = [
            sum(getattr(result.timings, name) for result in results) / 1000
            for name in ("preprocess_ms", "infer_ms", "decide_ms")
        ]
        self.counts.run(len(frames), load_s + seconds[0], seconds[1], seconds[2])
        at = 0
        for job, _ in loaded:
            job.infer_s, job.batch = seconds[1], len(frames)
            found = results[at : at + job.count]
            at += job.count
            for product, result in zip(job.products, found, strict=True):
                self.counts.judged(product, result.verdict)
            try:
                job.give(job.finish(found))
            except RequestError as error:
                job.fail(error)
            except Exception:
                _LOG.exception("an answer could not be made")
                job.fail(_failure())


def late_error() -> RequestError:
    """Make the error of a request whose deadline is over."""
    return RequestError(
        "the request was not computed by its deadline. Try again later, or allow it more time.",
        HTTPStatus.GATEWAY_TIMEOUT,
        reason="late",
        retry_after_s=1,
    )


def _failure() -> RequestError:
    return RequestError(
        "the request has failed inside the server, whose log has the reason. The part was not inspected.",
        HTTPStatus.INTERNAL_SERVER_ERROR,
        reason="failed",
    )


def _explained(error: Exception) -> RequestError:
    """Return the error for the sender of a request that failed."""
    match error:
        case RequestError():
            return error
        case ImageError():
            return RequestError(str(error), HTTPStatus.UNPROCESSABLE_ENTITY, reason="bad_image")
        case FlowEdgeError():
            return RequestError(
                f"the engine has failed: {error}", HTTPStatus.SERVICE_UNAVAILABLE, reason="engine"
            )
    return _failure()
