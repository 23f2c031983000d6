"""Let the stages of the loop call the watch, the journal, the archive, the shadow and the sinks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from flowedge.errors import EngineWrongError
from flowedge.runtime.station.archive import Archive
from flowedge.runtime.station.delivery import Deliveries
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.judges import Judge
from flowedge.runtime.station.live import Live
from flowedge.runtime.station.record import Event, Record, Tell
from flowedge.runtime.station.stages import Written
from flowedge.runtime.station.throttle import Throttle
from flowedge.runtime.station.watch import Watch
from flowedge.runtime.station.watch.shadow import Shadow
from flowedge.runtime.station.work import Work

_LOG: Final = logging.getLogger(__name__)
_REPLACED_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCalls:
    """The calls from the stages of the loop into the other parts of a station.

    Attributes:
        watch: The checks of frames, engine and drift.
        journal: The journal.
        archive: The pictures.
        live: The newest results for the page.
        deliveries: The sinks.
        shadow: The second bundle, if there is one.
        tell: Takes the events.
        may_replace: Returns True where a wrong engine is to be replaced, so that engines are not opened all the time.
    """

    watch: Watch
    journal: Journal
    archive: Archive
    live: Live
    deliveries: Deliveries
    shadow: Shadow | None
    tell: Tell
    may_replace: Callable[[], bool] = field(default_factory=lambda: Throttle(_REPLACED_S))

    def check(self, work: Work) -> str:
        """Return the reason why a prepared frame must not be judged, or an empty text."""
        assert work.judge is not None
        return self.watch.check(work.frame, work.pixels[0], product=work.judge.product)

    def test(self, judge: Judge) -> str:
        """Do the next part of the engine's self-test where one is due, and return why nothing may be inspected.

        Raises:
            EngineWrongError: The engine has failed its test, and is to be replaced.
        """
        self.test_between_frames(judge)
        problem = self.watch.problem(product=judge.product)
        if problem and self.may_replace():
            raise EngineWrongError(problem)
        return problem

    def test_between_frames(self, judge: Judge) -> None:
        """Do the next part of the engine's self-test where one is due."""
        if self.watch.due(judge.detector, product=judge.product):
            for event in self.watch.test(judge.detector, product=judge.product):
                self.tell(event)

    def append(self, records: Sequence[Record], events: Sequence[Event]) -> Sequence[Record]:
        """Commit records and events, and return the records with their numbers."""
        # The signal is final only now, and the journal gives the name of the picture with the number.
        chosen = [
            msgspec.structs.replace(record, picture="") if self.archive.wants(record.signal) else record
            for record in records
        ]
        return self.journal.append(chosen, events).records

    def publish(self, written: Sequence[Written]) -> None:
        """Hand over records that were committed, the sinks first, since a machine waits for them."""
        self.deliveries.wake()
        for record, work in written:
            try:
                self._publish(record, work)
            except Exception:  # the records that were committed with this one are still shown and kept
                _LOG.exception("what follows record %d failed", record.number)

    def _publish(self, record: Record, work: Work) -> None:
        pixels = work.pixels[0] if work.pixels else None
        self.live.publish(record, work.result)
        self.archive.put(record, work.result, pixels)
        if self.shadow is not None:
            self.shadow.offer(record, work.frame.pixels, work.result)
        for event in self.watch.seen(record, pixels, work.result):
            self.tell(event)
