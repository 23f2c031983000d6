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
from typing import Any, Final, Generic, NamedTuple, TypeVar

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
        load: Gives a frame by its number. A thread of the model calls it, so a picture is decoded only where there is
            time for it.
        deadline: The time of `time.monotonic` by which the answer must be there.
        answer: The future of the answer, which belongs to the loop of the server.
        entered: The time of the admission.
        queue_s: The time in seconds from the admission until a thread took the first frame.
        is_over: True once the answer or an error was given, or nobody waits any more.
    """

    def __init__(
        self,
        products: Sequence[str | None],
        load: Callable[[int], NDArray[np.uint8]],
        finish: Callable[[list[Result]], Made],
        deadline: float,
    ) -> None:
        """Describe the work. `Batcher.submit` admits it.

        Args:
            products: The product of each frame. For a bundle each is None.
            load: Gives a frame by its number.
            finish: Makes the answer of the results, in a thread of the model.
            deadline: The time of `time.monotonic` by which the answer must be there.
        """
        self.count = len(products)
        self.products = tuple(products)
        self.load, self._finish = load, finish
        self.deadline = deadline
        self.answer: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        self.entered = time.monotonic()
        self.queue_s = 0.0
        self.is_over = False
        self._results: dict[int, Result] = {}
        self._lock = threading.Lock()

    def add(self, number: int, result: Result) -> None:
        """Take the result of a frame, and give the answer with the last one. Any thread may call this."""
        with self._lock:
            self._results[number] = result
            is_whole = len(self._results) == self.count
        if not is_whole or self.is_over:
            return
        try:
            made = self._finish([self._results[one] for one in range(self.count)])
        except RequestError as error:
            self.fail(error)
        except Exception:
            _LOG.exception("an answer could not be made")
            self.fail(failure())
        else:
            self._call(self.answer.set_result, made)

    def fail(self, error: RequestError) -> None:
        """Give an error in place of the answer. Any thread may call this."""
        self._call(self.answer.set_exception, error)

    def _call(self, what: Callable[[Any], object], given: object) -> None:
        self.is_over = True

        def in_loop() -> None:
            if not self.answer.done():  # nobody waits any more where it is
                what(given)

        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self.answer.get_loop().call_soon_threadsafe(in_loop)


class _Frame(NamedTuple):
    """One frame of a job, by its number."""

    job: Job[Any]
    number: int


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
        self._waiting: deque[_Frame] = deque()
        self._frames_running = 0
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
        return len(self._waiting)

    @property
    def longest_run_s(self) -> float:
        """The time in seconds since the begin of the oldest run that has not ended, 0 without one."""
        started = list(self._runs.values())
        return time.monotonic() - min(started) if started else 0.0

    @property
    def expected_wait_s(self) -> float:
        """The time in seconds that a new frame would wait, by the speed of the last runs."""
        return (len(self._waiting) + self._frames_running) * self._s_per_frame

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
            waiting = len(self._waiting)
            if waiting + job.count > self._most_waiting:
                raise too_many(
                    f"the queue is full: {waiting} frames wait, and it has room for "
                    f"{self._most_waiting}. Try again later, or more slowly.",
                    "queue_full",
                    wait_s,
                )
            left_s = job.deadline - time.monotonic()
            own_s = self._s_per_frame * len(self._threads)
            if waiting and wait_s + own_s > left_s:
                raise too_many(
                    f"the request would wait {wait_s:.2f} s for the frames before it, and must be answered within "
                    f"{max(left_s, 0):.2f} s. Try again later, or more slowly.",
                    "too_late",
                    wait_s,
                )
            self._waiting.extend(_Frame(job, number) for number in range(job.count))
            self._changed.notify_all()

    def withdraw(self, job: Job[Any]) -> None:
        """Take the frames of a job out of the queue, since nobody waits for its answer any more."""
        with self._changed:
            job.is_over = True
            self._drop()

    def close(self) -> None:
        """Answer what is in the queue, end the threads and free the model. This waits for the last run."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self.model.close()

    def _work(self) -> None:
        while batch := self._gathered():
            number = threading.get_ident()
            taken = self._runs[number]
            try:
                self._judge(batch)
            except Exception:
                # A thread that ends would leave its model without answers, so nothing may end it.
                _LOG.exception("a batch of %d frames has failed", len(batch))
                for frame in batch:
                    frame.job.fail(failure())
            finally:
                with self._changed:
                    del self._runs[number]
                    self._frames_running -= len(batch)
                    per_frame = (time.monotonic() - taken) / len(batch) / len(self._threads)
                    before = self._s_per_frame or per_frame
                    self._s_per_frame = before + _OF_THE_NEWEST * (per_frame - before)

    def _gathered(self) -> list[_Frame]:
        """Wait for a batch and take it from the queue. The list is empty when the model is closed."""
        # One thread gathers at a time, so that two threads do not share out what could be one batch.
        with self._gathering, self._changed:
            while True:
                self._drop()
                if not self._waiting:
                    if self._is_closing:
                        return []
                    self._changed.wait()
                    continue
                left_s = self._waiting[0].job.entered + self._delay_s - time.monotonic()
                if len(self._waiting) >= self._largest or self._is_closing or left_s <= 0:
                    return self._taken()
                self._changed.wait(left_s)

    def _taken(self) -> list[_Frame]:
        """Take a batch from the queue."""
        # Threads that are free share the frames, so that no core rests while another has a long batch.
        free = len(self._threads) - len(self._runs)
        count = min(self._largest, -(-len(self._waiting) // free))
        batch = [self._waiting.popleft() for _ in range(count)]
        now = time.monotonic()
        self._runs[threading.get_ident()] = now
        self._frames_running += count
        for job, number in batch:
            if number == 0:
                job.queue_s = now - job.entered
                self.counts.taken(job.queue_s)
        return batch

    def _drop(self) -> None:
        """Drop the frames of jobs that are over, and of those whose deadline is."""
        now = time.monotonic()
        for job in {frame.job for frame in self._waiting if frame.job.deadline <= now}:
            job.fail(late_error())
        if any(frame.job.is_over for frame in self._waiting):
            self._waiting = deque(frame for frame in self._waiting if not frame.job.is_over)

    def _judge(self, batch: Sequence[_Frame]) -> None:
        begun = time.monotonic()
        loaded: list[tuple[_Frame, NDArray[np.uint8]]] = []
        for frame in batch:
            try:
                loaded.append((frame, frame.job.load(frame.number)))
            except (RequestError, ImageError) as error:
                frame.job.fail(_explained(error))
        if loaded:
            self._judge_loaded(loaded, time.monotonic() - begun)

    def _judge_loaded(self, loaded: Sequence[tuple[_Frame, NDArray[np.uint8]]], load_s: float) -> None:
        products = [frame.job.products[frame.number] for frame, _ in loaded]
        try:
            results = self.model.judge([pixels for _, pixels in loaded], products)
        except Exception as error:
            if len(loaded) > 1:
                # One frame that fails takes no other request with it.
                for one in loaded:
                    self._judge_loaded([one], 0.0)
                return
            if not isinstance(error, FlowEdgeError):
                _LOG.exception("a request has failed")
            loaded[0][0].job.fail(_explained(error))
            return
        input_s, infer_s, output_s = (
            sum(getattr(result.timings, name) for result in results) / 1000
            for name in ("preprocess_ms", "infer_ms", "decide_ms")
        )
        self.counts.run(len(results), load_s + input_s, infer_s, output_s)
        for (frame, _), product, result in zip(loaded, products, results, strict=True):
            self.counts.judged(product, result.verdict)
            frame.job.add(frame.number, result)


def late_error() -> RequestError:
    """Make the error of a request whose deadline is over."""
    return RequestError(
        "the request was not computed by its deadline. Try again later, or allow it more time.",
        HTTPStatus.GATEWAY_TIMEOUT,
        reason="late",
        retry_after_s=1,
    )


def failure() -> RequestError:
    """Make the error of a request that failed for a reason which its sender cannot change."""
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
    return failure()
