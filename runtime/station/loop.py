"""Move frames from the source through the stages of a station to the journal, each stage in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import Final

from flowedge.errors import FlowEdgeError
from flowedge.runtime.station.hand_over import Queue, frame_queue
from flowedge.runtime.station.inferring import InferStage
from flowedge.runtime.station.record import Event
from flowedge.runtime.station.settings import InspectSettings
from flowedge.runtime.station.stages import Action, LoopParts, do_stage, record_of
from flowedge.runtime.station.throttle import Throttle
from flowedge.runtime.station.work import EndOfSource, Work
from flowedge.runtime.station.writing import WriteStage

_LOG: Final = logging.getLogger(__name__)

_BETWEEN_STAGES: Final = 2
_TO_WRITE: Final = 64
_FEWEST_TO_WRITE: Final = 4
_BYTES_TO_WRITE: Final = 256 << 20
_MOST_EVENTS: Final = 1000
_DROP_EVENT_S: Final = 60.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_LAST_FRAMES_S: Final = 2.0


class Loop:
    """The stages capture, prepare, infer, decide and write, with a bounded queue behind each.

    A stage that waits takes no processor time. A frame that a stage cannot handle goes on as one that was not
    inspected, so each captured frame gets exactly one record.

    Attributes:
        source_problem: The reason why the source failed. The text is empty while it works.
    """

    def __init__(self, parts: LoopParts, settings: InspectSettings, *, retries_source: bool = True) -> None:
        """Prepare the stages.

        Args:
            parts: The parts that the stages call.
            settings: The length of the first queue, and the policy where it is full.
            retries_source: False ends the loop where the source fails, instead of trying again after a pause.
        """
        self._parts = parts
        self._retries_source = retries_source
        self._captured: Queue[Work | EndOfSource] = frame_queue(
            settings.when_full, settings.queue, self._tell_drops
        )
        self._prepared: Queue[Work | EndOfSource | Action] = Queue(_BETWEEN_STAGES)
        self._inferred: Queue[Work | EndOfSource] = Queue(_BETWEEN_STAGES)
        self._to_write: Queue[Work | EndOfSource | Event] = Queue(_TO_WRITE)
        self._infer = InferStage(parts, self._prepared, self._inferred)
        self._write = WriteStage(parts, self._to_write)
        self._may_tell_drops = Throttle(_DROP_EVENT_S)
        self._stop = threading.Event()
        self.source_problem = ""
        stages = {
            "capture": self._capture,
            "prepare": self._prepare,
            "infer": self._infer.run,
            "decide": self._decide,
            "write": self._write.run,
        }
        self._threads = [
            threading.Thread(target=run, name=f"station-{name}", daemon=True) for name, run in stages.items()
        ]

    @property
    def has_ended(self) -> bool:
        """True when the source has ended and all of its frames are written."""
        return self._write.has_ended

    @property
    def write_problem(self) -> str:
        """The reason why nothing can be written. The text is empty while all is well."""
        return self._write.problem

    @property
    def unwritten(self) -> int:
        """The number of frames whose records were given up."""
        return self._write.unwritten

    @property
    def queues(self) -> dict[str, int]:
        """The number of frames that wait before each stage."""
        return {
            "prepare": len(self._captured),
            "infer": len(self._prepared),
            "decide": len(self._inferred),
            "write": len(self._to_write),
        }

    @property
    def dropped(self) -> int:
        """The number of frames that the loop dropped since the start."""
        return getattr(self._captured, "dropped", 0)

    def start(self) -> None:
        """Start the stages."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take no more frames. The frames that were taken are judged and written."""
        self._stop.set()
        with suppress(Exception):  # a source that cannot be closed ends with the process
            self._parts.source.close()
        # What the source still gives, such as the parts that wait for their frames, gets its records. A source that
        # hangs is not waited for.
        if self._threads[0].ident is not None:
            self._threads[0].join(_LAST_FRAMES_S)
        self._captured.close()

    def give_up(self) -> None:
        """Stop trying to write what the journal does not take."""
        self._write.give_up()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until everything is written. Return False where the time was too short."""
        writer = self._threads[-1]
        writer.join(timeout_s)
        return not writer.is_alive()

    def put_event(self, event: Event) -> None:
        """Put an event into the journal with the next records. Any thread may call this, and none waits in it."""
        if not self._to_write.offer(event, more=_MOST_EVENTS):
            _LOG.warning("an event is not in the journal, which takes no more: %s", event.text)

    def between_frames(self, action: Action) -> bool:
        """Let the thread of the engine do something between two frames. Return False where too much waits for it."""
        return self._infer.between_frames(action)

    def _tell_drops(self) -> None:
        if self._may_tell_drops():
            self._parts.tell(
                Event(
                    kind="dropped",
                    level="warning",
                    text=f"the line is faster than the engine: {self.dropped} frames were dropped since the start",
                    data={"dropped": self.dropped},
                )
            )

    def _capture(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                for frame in self._parts.source.frames():
                    begun = frame.monotonic_ns or time.monotonic_ns()
                    work = Work(frame=frame, begun_ns=begun, dropped_before=frame.dropped_before)
                    work.stages_ms["capture"] = max(0.0, (time.monotonic_ns() - begun) / 1e6)
                    if frame.problem:
                        work.give_up(frame.problem)
                    if not self._captured.put(work):
                        return
                    pause, self.source_problem = _FIRST_PAUSE_S, ""
                break  # the source has ended
            except Exception as error:
                self._note_source_failure(error)
            if not self._retries_source or self._stop.wait(pause):
                break
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        # The stages go on without a source: events are written, and the thread of the engine does what it is asked to.
        self._captured.put(EndOfSource())

    def _note_source_failure(self, error: Exception) -> None:
        if self._stop.is_set():
            return
        if not isinstance(error, FlowEdgeError):
            _LOG.exception("the source failed", exc_info=error)
        self.source_problem = str(error) or type(error).__name__
        self._parts.tell(
            Event(kind="source_failed", level="alarm", text=f"the source failed: {self.source_problem}")
        )

    def _prepare(self) -> None:
        while (work := self._captured.get()) is not None:
            if isinstance(work, Work):
                do_stage(self._parts, "prepare", work, self._prepare_one)
            self._prepared.put(work)
        self._prepared.close()

    def _prepare_one(self, work: Work) -> None:
        if work.problem:
            return
        judge, problem = self._parts.judges.judge_of(work.frame.part)
        if judge is None:
            work.give_up(problem)
            return
        work.judge = judge
        work.pixels, work.image = judge.prepare(work.frame.pixels)
        if problem := self._parts.check(work):
            work.give_up(problem)

    def _decide(self) -> None:
        while (work := self._inferred.get()) is not None:
            if isinstance(work, Work):
                if work.answer is not None:
                    work.answer.result()
                    work.answer = None
                do_stage(self._parts, "decide", work, _judge)
                record_of(self._parts, work)
                self._to_write.length = _number_that_may_wait(work)
            self._to_write.put(work)
        self._to_write.close()


def _number_that_may_wait(work: Work) -> int:
    """Return how many frames of this size may wait for the journal, which may be without a disk for hours."""
    # Besides its pixels, a frame may have a map of float32.
    size = 3 * work.frame.pixels.nbytes
    return min(max(_BYTES_TO_WRITE // max(size, 1), _FEWEST_TO_WRITE), _TO_WRITE)


def _judge(work: Work) -> None:
    if work.problem or work.judge is None:
        return
    stages = work.stages_ms
    work.result, *_ = work.judge.detector.judge(
        work.pixels,
        work.outputs,
        preprocess_ms=stages.get("prepare", 0.0),
        infer_ms=stages.get("infer", 0.0),
    )
    work.outputs = {}
