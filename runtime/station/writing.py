"""Write what was decided to the journal, and hand it over to what follows a record."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

import msgspec

from flowedge.runtime.station.hand_over import Queue
from flowedge.runtime.station.record import Event
from flowedge.runtime.station.stages import LoopParts, Written, record_of
from flowedge.runtime.station.work import EndOfSource, Work

_LOG: Final = logging.getLogger(__name__)
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0

_BAD_RECORD: Final = (ValueError, TypeError, msgspec.MsgspecError)
"""The errors of a record that no journal would take. Every other error is one of the journal or the disk."""


class WriteStage:
    """The last stage, which commits all that waits together and hands it over only after the commit.

    Attributes:
        has_ended: True when the source has ended and all of its frames are written.
        problem: The reason why nothing can be written. The text is empty while all is well.
        unwritten: The number of frames whose records were given up.
    """

    def __init__(self, parts: LoopParts, waiting: Queue[Work | EndOfSource | Event]) -> None:
        """Take the parts of the loop and the queue before the stage."""
        self._parts = parts
        self._waiting = waiting
        self._gives_up = threading.Event()
        self.has_ended = False
        self.problem = ""
        self.unwritten = 0

    def give_up(self) -> None:
        """Stop trying to write what the journal does not take."""
        self._gives_up.set()

    def run(self) -> None:
        """Write until the queue is closed and everything is written."""
        while items := self._waiting.get_all():
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
                    records = [
                        self._parts.stamp(work.record or record_of(self._parts, work)) for work in works
                    ]
                    written = self._parts.append(records, events)
            except _BAD_RECORD as error:
                _LOG.exception("a record or an event cannot be stored")
                return self._append_singly(works, events, error)
            except Exception as error:
                if not self.problem:
                    _LOG.exception("the journal takes no records")
                self.problem = str(error) or type(error).__name__
            else:
                self.problem = ""
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
