"""Move frames from the source through the stages of a station to the journal, each stage in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import msgspec

from flowedge.errors import EngineWrongError, FlowEdgeError
from flowedge.runtime.protocols import Source
from flowedge.runtime.station.hand_over import Queue, frame_queue
from flowedge.runtime.station.judges import Judge, Judges
from flowedge.runtime.station.record import Event, Record, Tell
from flowedge.runtime.station.settings import InspectSettings
from flowedge.runtime.station.throttle import Throttle
from flowedge.runtime.station.work import EndOfSource, Work
from flowedge.text import printable

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

_BAD_RECORD: Final = (ValueError, TypeError, msgspec.MsgspecError)
"""The errors of a record that no journal would take. Every other error is one of the journal or the disk."""

Action: TypeAlias = Callable[[], object]
Written: TypeAlias = tuple[Record, Work]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopParts:
    """The parts that the loop calls, each from one thread.

    Attributes:
        source: The source of the frames.
        judges: The detectors.
        check: Returns the reason why a prepared frame must not be judged, or an empty text. The stage ``prepare`` calls
            it.
        record: Makes the record of a frame. The stage ``decide`` calls it.
        stamp: Returns a record as it is committed, which may be late by then. The stage ``write`` calls it.
        append: Commits records and events to the journal, and returns the records with their numbers. The stage
            ``write`` calls it.
        publish: Hands over records that were committed, with their work, and does not wait. The stage ``write`` calls
            it.
        test: Tests the engine where this is due, and returns the reason why it must judge nothing, or an empty text.
            Raises an `EngineWrongError` where the engine is to be replaced. The stage ``infer`` calls it.
        tell: Takes events. Any stage calls it.
        working: Marks that a stage is busy with one piece of work.
        on_end: Called when the source has ended and all of its frames are written.
    """

    source: Source
    judges: Judges
    check: Callable[[Work], str]
    record: Callable[[Work], Record]
    stamp: Callable[[Record], Record]
    append: Callable[[Sequence[Record], Sequence[Event]], Sequence[Record]]
    publish: Callable[[Sequence[Written]], None]
    test: Callable[[Judge], str]
    tell: Tell
    working: Callable[[str], AbstractContextManager[None]]
    on_end: Callable[[], None] = lambda: None


class Loop:
    """The stages capture, prepare, infer, decide and write, with a bounded queue behind each.

    A stage that waits takes no processor time. A frame that a stage cannot handle goes on as one that was not
    inspected, so each captured frame gets exactly one record.

    Attributes:
        has_ended: True when the source has ended and all of its frames are written.
        source_problem: The reason why the source failed. The text is empty while it works.
        write_problem: The reason why nothing can be written. The text is empty while all is well.
        unwritten: The number of frames whose records were given up.
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
        self._may_tell_drops = Throttle(_DROP_EVENT_S)
        self._stop = threading.Event()
        self._gives_up = threading.Event()
        self.has_ended = False
        self.source_problem = ""
        self.write_problem = ""
        self.unwritten = 0
        self._threads = [
            threading.Thread(target=run, name=f"station-{run.__name__.strip('_')}", daemon=True)
            for run in (self._capture, self._prepare, self._infer, self._decide, self._write)
        ]

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
        self._gives_up.set()

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
        return self._prepared.offer(action, more=16)

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
                self._do("prepare", work, self._prepare_one)
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

    def _infer(self) -> None:
        while (item := self._prepared.get()) is not None:
            if isinstance(item, EndOfSource):
                self._inferred.put(item)
                continue
            if not isinstance(item, Work):
                with self._parts.working("between frames"):
                    _guarded(item)
                continue
            # An engine is opened outside of the stage's mark, since it may take longer than any frame.
            _guarded(self._parts.judges.refresh)
            error = self._do("infer", item, self._infer_one)
            # The machine is told about this frame before another engine opens, which may take minutes.
            self._inferred.put(item)
            if isinstance(error, _EngineError):
                _guarded(partial(self._parts.judges.failed, error.error))
        self._inferred.close()

    def _infer_one(self, work: Work) -> None:
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
            raise _EngineError(judge, error) from error
        if problem:
            work.give_up(problem)
            return
        try:
            work.outputs = judge.detector.infer(work.image)
        except Exception as error:
            raise _EngineError(judge, error) from error
        work.image = None
        self._parts.judges.worked()

    def _decide(self) -> None:
        while (work := self._inferred.get()) is not None:
            if isinstance(work, Work):
                self._do("decide", work, _judge)
                self._record(work)
                self._to_write.length = _number_that_may_wait(work)
            self._to_write.put(work)
        self._to_write.close()

    def _do(self, stage: str, work: Work, do: Callable[[Work], None]) -> Exception | None:
        """Do one stage of the work. A frame for which it fails is not inspected."""
        with self._parts.working(stage):
            work.begin()
            try:
                do(work)
            except Exception as error:
                if not isinstance(error, (FlowEdgeError, _EngineError)):
                    _LOG.exception("the stage %s failed on %s", stage, printable(work.frame.id))
                work.give_up(
                    f"{stage} failed: {error}" if not isinstance(error, FlowEdgeError) else str(error)
                )
                return error
            finally:
                work.end(stage)
        return None

    def _write(self) -> None:
        while items := self._to_write.get_all():
            works = [item for item in items if isinstance(item, Work)]
            events = [item for item in items if isinstance(item, Event)]
            written = self._append(works, events) if works or events else []
            with self._parts.working("write"):
                try:
                    self._parts.publish(written)
                except Exception:
                    _LOG.exception("what follows a record failed")
            if any(isinstance(item, EndOfSource) for item in items):
                self.has_ended = True
                self._parts.on_end()

    def _append(self, works: Sequence[Work], events: Sequence[Event]) -> list[Written]:
        """Commit records and events, and try again until the journal takes them."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                # The pause before the next try is outside of the mark: a full disk is no reason to start again.
                with self._parts.working("write"):
                    records = [self._parts.stamp(work.record or self._record(work)) for work in works]
                    written = self._parts.append(records, events)
            except _BAD_RECORD as error:
                _LOG.exception("a record or an event cannot be stored")
                return self._append_singly(works, events, error)
            except Exception as error:
                if not self.write_problem:
                    _LOG.exception("the journal takes no records")
                self.write_problem = str(error) or type(error).__name__
            else:
                self.write_problem = ""
                return list(zip(written, works, strict=True))
            if self._gives_up.wait(pause):
                self.unwritten += len(works)
                return []
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _append_singly(
        self, works: Sequence[Work], events: Sequence[Event], error: Exception
    ) -> list[Written]:
        """Commit records and events one by one, since one of them cannot be stored as it is."""
        if len(works) + len(events) > 1:
            each: list[tuple[list[Work], list[Event]]] = [([], [event]) for event in events]
            each += [([work], []) for work in works]
            return [written for one in each for written in self._append(*one)]
        for work in works:
            if work.is_bare:
                self.unwritten += 1
                return []
            work.make_bare(f"the record could not be stored: {error}")
        return self._append(works, ())

    def _record(self, work: Work) -> Record:
        try:
            work.record = self._parts.record(work)
        except Exception as error:
            _LOG.exception("the record of %s cannot be made", printable(work.frame.id))
            work.make_bare(f"the record could not be made: {error}")
            work.record = self._parts.record(work)
        return work.record


class _EngineError(Exception):
    """The engine failed on a frame, whatever the error was."""

    def __init__(self, judge: Judge, error: Exception) -> None:
        super().__init__(f"the engine {judge.detector.engine_name}: {error}")
        self.error = error


def _guarded(action: Action) -> None:
    """Do something without letting its failure end the thread of the engine."""
    try:
        action()
    except Exception:
        _LOG.exception("what was to be done between two frames failed")


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
