"""Define the parts that the stages of the loop call, and do one stage of the work on one frame."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, TypeAlias

from flowedge.errors import FlowEdgeError
from flowedge.runtime.protocols import Source
from flowedge.runtime.station.judges import Judge, Judges
from flowedge.runtime.station.record import Event, Record, Tell
from flowedge.runtime.station.work import Work
from flowedge.text import printable

_LOG: Final = logging.getLogger(__name__)

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


class EngineError(Exception):
    """The engine failed on a frame, whatever the error was.

    Attributes:
        judge: The detector whose engine failed.
        error: The error.
    """

    def __init__(self, judge: Judge, error: Exception) -> None:
        super().__init__(f"the engine {judge.detector.engine_name}: {error}")
        self.judge = judge
        self.error = error


def do_stage(parts: LoopParts, stage: str, work: Work, do: Callable[[Work], None]) -> Exception | None:
    """Do one stage of the work on a frame, and return the error where it fails. The frame is then not inspected."""
    with parts.working(stage):
        work.begin()
        try:
            do(work)
        except Exception as error:
            if not isinstance(error, (FlowEdgeError, EngineError)):
                _LOG.exception("the stage %s failed on %s", stage, printable(work.frame.id))
            work.give_up(f"{stage} failed: {error}" if not isinstance(error, FlowEdgeError) else str(error))
            return error
        finally:
            work.end(stage)
    return None


def guarded(action: Action) -> None:
    """Do something without letting its failure end the thread of the stage."""
    try:
        action()
    except Exception:
        _LOG.exception("what was to be done between two frames failed")


def record_of(parts: LoopParts, work: Work) -> Record:
    """Make the record of a frame. Where it cannot be made, the record has only the frame's name and the problem."""
    try:
        work.record = parts.record(work)
    except Exception as error:
        _LOG.exception("the record of %s cannot be made", printable(work.frame.id))
        work.make_bare(f"the record could not be made: {error}")
        work.record = parts.record(work)
    return work.record
