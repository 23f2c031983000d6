"""Run the engine on prepared frames, as many at once as it has lanes, and replace an engine that fails."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial

from flowedge.errors import EngineWrongError
from flowedge.runtime.lanes import Lanes
from flowedge.runtime.station.hand_over import Queue
from flowedge.runtime.station.stages import Action, EngineError, LoopParts, do_stage, guarded
from flowedge.runtime.station.work import EndOfSource, Work

_MORE_ACTIONS = 16


class InferStage:
    """The stage of the engine. One thread chooses the detector of each frame, and the lanes run the engine.

    A frame goes on at once, and has its answer when `Work.answer` is done. So the frames keep their order.
    """

    def __init__(
        self,
        parts: LoopParts,
        prepared: Queue[Work | EndOfSource | Action],
        inferred: Queue[Work | EndOfSource],
    ) -> None:
        """Take the parts of the loop and the queues before and behind the stage."""
        self._parts = parts
        self._prepared, self._inferred = prepared, inferred
        self._lanes = Lanes(1)
        self._running: list[Future[Exception | None]] = []

    def between_frames(self, action: Action) -> bool:
        """Let the thread of the engine do something between two frames. Return False where too much waits for it."""
        return self._prepared.offer(action, more=_MORE_ACTIONS)

    def run(self) -> None:
        """Infer until the queue is closed and everything has its answer."""
        while (item := self._prepared.get()) is not None:
            self._settle()
            if isinstance(item, Work):
                self._start(item)
            elif isinstance(item, EndOfSource):
                self._inferred.put(item)
            else:
                with self._parts.working("between frames"):
                    guarded(item)
        self._settle(most=0)
        self._inferred.close()
        self._lanes.close()

    def _start(self, work: Work) -> None:
        """Choose the detector of a frame, and let a lane run its engine."""
        judges = self._parts.judges
        judge = None if work.judge is None else judges.current(work.judge)
        count = self._lanes.count if judge is None else judge.lanes
        # One frame more than there are lanes waits, so that no lane has to wait for this thread.
        self._settle(most=count if count > 1 else 0)
        # An engine is opened outside of the stage's mark, since it may take longer than any frame.
        guarded(judges.refresh)
        error = do_stage(self._parts, "infer", work, self._choose)
        if error is None and not work.problem and work.judge is not None:
            self._run_on(count, work)
        # The machine is told about this frame before another engine opens, which may take minutes.
        self._inferred.put(work)
        if isinstance(error, EngineError):
            guarded(partial(judges.failed, error.error))

    def _choose(self, work: Work) -> None:
        if work.problem or work.judge is None:
            return
        judge = self._parts.judges.current(work.judge)
        if judge is None:
            work.judge = None  # the record names the engine that computed, and none did
            work.give_up(f"no engine computes: {self._parts.judges.problem}")
            return
        if judge is not work.judge:
            # What one detector has prepared is not for another one.
            work.judge = judge
            work.pixels, work.image = judge.prepare(work.frame.pixels)
        try:
            problem = self._parts.test(judge)
        except EngineWrongError as error:
            raise EngineError(judge, error) from error
        if problem:
            work.give_up(problem)

    def _run_on(self, lanes: int, work: Work) -> None:
        if lanes != self._lanes.count:
            self._lanes.close()
            self._lanes = Lanes(lanes)
        self._inferred.length = max(self._inferred.length, lanes)
        work.answer = self._lanes.submit(partial(do_stage, self._parts, "infer", work, _compute))
        work.answer.add_done_callback(self._wake_on_failure)
        self._running.append(work.answer)

    def _wake_on_failure(self, answer: Future[Exception | None]) -> None:
        if answer.result() is not None:
            self.between_frames(lambda: None)

    def _settle(self, most: int | None = None) -> None:
        """Take note of the answers that are there, and wait until at most so many inferences are still running."""
        if most is not None:
            # Any lane may be free first. The frames keep their order, since they went on when they began.
            while len(busy := [answer for answer in self._running if not answer.done()]) > most:
                wait(busy, return_when=FIRST_COMPLETED)
        for answer in [one for one in self._running if one.done()]:
            self._running.remove(answer)
            error = answer.result()
            if error is None:
                self._parts.judges.worked()
            # Where several frames fail with one engine, it is replaced once.
            elif isinstance(error, EngineError) and self._parts.judges.current(error.judge) is error.judge:
                guarded(partial(self._parts.judges.failed, error.error))


def _compute(work: Work) -> None:
    judge = work.judge
    assert judge is not None
    try:
        work.outputs = judge.detector.infer(work.image)
    except Exception as error:
        raise EngineError(judge, error) from error
    work.image = None
