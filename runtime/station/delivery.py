"""Deliver what the journal holds to each sink, in order, at least once.

Each sink has a thread and a cursor. The thread reads the records after the cursor, hands them to the sink, and moves
the cursor afterwards. A sink that is down keeps its backlog in the journal and holds up nothing else. A process that
dies between the delivery and the move of the cursor delivers again, and the receiver drops the repeats by the id.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from flowedge.runtime.station.record import Event, Level, Record, Tell
from flowedge.runtime.station.sinks import RecordSink, RefusedError, SinkError, StationLink, make_sink
from flowedge.runtime.station.sinks.settings import AnySink, SinkSettings
from flowedge.text import printable

_BATCH: Final = 100
_FIRST_PAUSE_S: Final = 0.25
_FAILURES_THAT_TELL: Final = 2
_REFUSED_IN_A_ROW: Final = 3


class Outbox(Protocol):
    """The part of the journal that a delivery reads. `flowedge.runtime.station.journal.Journal` has it."""

    def records(self, after: int = 0, *, limit: int = ...) -> Sequence[Record]:
        """Give the records whose number is larger, in their order."""
        ...

    def events(self, after: int = 0, *, limit: int = ...) -> Sequence[Event]:
        """Give the events whose number is larger, in their order."""
        ...

    def last(self) -> int:
        """Give the number of the newest record, or 0."""
        ...

    def last_event(self) -> int:
        """Give the number of the newest event, or 0."""
        ...

    def cursor(self, sink: str) -> int | None:
        """Give the number of the last record that a sink has. The number is None for a sink that never was here."""
        ...

    def move_cursor(self, sink: str, number: int) -> None:
        """Note the number of the last record that a sink has. The note is on disk with the next records, or soon."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryStatus:
    """The state of one sink.

    Attributes:
        name: The sink's name.
        kind: The kind of the sink.
        delivered: The number of the last record that the receiver has, or 0.
        backlog: The count of records that wait for the receiver.
        problem: The reason why the receiver cannot be reached. The text is empty where it can.
        refused: The count of records that the receiver refused in this run.
    """

    name: str
    kind: str
    delivered: int
    backlog: int
    problem: str
    refused: int


class Delivery:
    """The thread that delivers to one sink."""

    def __init__(
        self,
        sink: RecordSink,
        settings: AnySink,
        journal: Outbox,
        link: StationLink,
        tell: Tell,
        *,
        pause: Callable[[float], float] = lambda longest: random.uniform(longest / 2, longest),
    ) -> None:
        """Find the sink's place in the journal. The thread begins with `start`.

        Args:
            sink: The sink.
            settings: The sink's settings.
            journal: The journal, which any thread may read.
            link: The facts of the station.
            tell: A function that journals an event.
            pause: A function that gives the pause in seconds before a new attempt, from the longest one.
        """
        self._sink, self._settings, self._journal = sink, settings, journal
        self._link, self._tell, self._pause = link, tell, pause
        begin_now = settings.begin == "now"
        self._records = _Place(journal, sink.name, journal.last() if begin_now else 0)
        self._events = _Place(journal, f"{sink.name}/events", journal.last_event() if begin_now else 0)
        self._wake, self._stop = threading.Event(), threading.Event()
        self._problem, self._failures, self._refused, self._refused_in_a_row = "", 0, 0, 0
        self._beat_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Tell the thread that the journal has grown. The call returns at once."""
        self._wake.set()

    def is_drained(self) -> bool:
        """Return True where the receiver has every record that is in the journal now."""
        return self._records.number >= self._journal.last()

    def stop(self, deadline: float) -> None:
        """Deliver what is left, as long as the receiver is there, and end the thread.

        Args:
            deadline: The moment on the monotonic clock, in seconds, at which the rest stays in the journal.
        """
        with contextlib.suppress(
            Exception
        ):  # The journal may be what fails, and the thread ends all the same.
            while self._is_delivering() and time.monotonic() < deadline:
                self._wake.set()
                time.sleep(0.02)
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            # A sink that still waits for its receiver is left alone: what it was given stays in the journal.
            self._thread.join(max(deadline - time.monotonic(), 1.0))

    def _is_delivering(self) -> bool:
        """Return True where something is left, and the receiver is there to get it."""
        if not self._thread.is_alive() or self._problem:
            return False
        has_events = self._settings.events and self._events.number < self._journal.last_event()
        return has_events or not self.is_drained()

    @property
    def status(self) -> DeliveryStatus:
        """The state of the sink."""
        return DeliveryStatus(
            name=self._sink.name,
            kind=self._settings.kind,
            delivered=self._records.number,
            backlog=max(self._journal.last() - self._records.number, 0),
            problem=self._problem,
            refused=self._refused,
        )

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                is_idle = self._step()
            except Exception as error:  # A thread that dies would lose its receiver for good.
                self._failed(error)
            else:
                self._worked()
                if is_idle:
                    self._wake.wait(self._settings.heartbeat_s)
        with contextlib.suppress(Exception):
            self._sink.close()

    def _step(self) -> bool:
        """Deliver one batch of records and of events. Return True where nothing waits."""
        self._sink.open()
        if time.monotonic() - self._beat_at >= self._settings.heartbeat_s:
            self._sink.beat()
            self._beat_at = time.monotonic()
        if records := self._journal.records(self._records.number, limit=_BATCH):
            self._deliver(records)
        events = self._journal.events(self._events.number, limit=_BATCH) if self._settings.events else ()
        for event in events:
            # A sink that fails often would feed itself by the events about its failures.
            if event.data.get("sink") != self._sink.name:
                try:
                    self._sink.event(event)
                except RefusedError as error:
                    self._refused += 1
                    # Two sinks that refuse events would feed each other by the events about their refusals.
                    if "sink" not in event.data:
                        self._tell_refusal(f"event {event.number}", error, event.number)
            self._events.move(event.number)
        return not records and not events

    def _deliver(self, records: Sequence[Record]) -> None:
        try:
            self._sink.deliver(records)
        except SinkError as error:
            if error.delivered:
                self._records.move(records[error.delivered - 1].number)
                self._refused_in_a_row = 0
            if not isinstance(error, RefusedError):
                raise
            # A receiver that refuses one record after the other is out of order, and skipping would lose them all.
            if self._refused_in_a_row >= _REFUSED_IN_A_ROW:
                raise
            refused = records[error.delivered]
            self._refused_in_a_row += 1
            self._refused += 1
            self._tell_refusal(f"record {refused.number} (id {refused.id})", error, refused.number)
            self._records.move(refused.number)
        else:
            self._refused_in_a_row = 0
            self._records.move(records[-1].number)

    def _tell_refusal(self, what: str, error: RefusedError, number: int) -> None:
        self._report(
            "sink_refused",
            "alarm",
            f"The sink {self._sink.name} refuses {what}: {error} The journal keeps it.",
            number=number,
        )

    def _failed(self, error: Exception) -> None:
        problem = str(error) if isinstance(error, SinkError) else f"{type(error).__name__}: {error}"
        problem = printable(problem)[:500]
        self._problem = problem
        longest = min(_FIRST_PAUSE_S * 2.0 ** min(self._failures, 20), self._settings.retry_max_s)
        self._failures += 1
        # One failure that the next attempt repairs is no news, and a receiver that often fails once is not down.
        if self._failures == _FAILURES_THAT_TELL:
            with contextlib.suppress(Exception):  # The journal may be what fails.
                self._report("sink_down", "alarm", f"The sink {self._sink.name} is down: {problem}")
        pause = max(self._pause(longest), getattr(error, "retry_after_s", 0.0))
        until = time.monotonic() + pause
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            self._stop.wait(min(left, self._settings.heartbeat_s))
            # A receiver that acknowledges nothing may still watch the heartbeat.
            with contextlib.suppress(Exception):
                self._sink.beat()
                self._beat_at = time.monotonic()

    def _worked(self) -> None:
        was_down, self._failures, self._problem = self._failures >= _FAILURES_THAT_TELL, 0, ""
        if was_down:
            self._report("sink_back", "info", f"The sink {self._sink.name} is back.")

    def _report(self, kind: str, level: Level, text: str, **data: object) -> None:
        self._tell(
            Event(
                station=self._link.station,
                run=self._link.run,
                kind=kind,
                level=level,
                text=text,
                data={"sink": self._sink.name, **data},
            )
        )


class Deliveries:
    """The deliveries to all sinks of a station."""

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self._deliveries = tuple(deliveries)

    @classmethod
    def of(cls, sinks: Sequence[SinkSettings], journal: Outbox, link: StationLink, tell: Tell) -> Deliveries:
        """Make the sinks of a station's file and their deliveries, and connect none of them yet.

        Args:
            sinks: The settings of the sinks, whose names differ.
            journal: The journal.
            link: The facts of the station.
            tell: A function that journals an event.

        Raises:
            MissingPackageError: The package of a sink's protocol is not installed.
            SettingsError: A secret that the settings name is not there.
        """
        return cls([Delivery(make_sink(one, link), one, journal, link, tell) for one in sinks])

    def start(self) -> None:
        """Start a thread for each sink."""
        for one in self._deliveries:
            one.start()

    def wake(self) -> None:
        """Tell all threads that the journal has grown. The call returns at once."""
        for one in self._deliveries:
            one.wake()

    def is_drained(self) -> bool:
        """Return True where every receiver has every record that is in the journal now."""
        return all(one.is_drained() for one in self._deliveries)

    def wait_drained(self, timeout_s: float) -> bool:
        """Wait until every receiver has every record, at most for a time in seconds, and return True where all have."""
        until = time.monotonic() + timeout_s
        while not self.is_drained():
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        return True

    def stop(self, drain_s: float = 5.0) -> None:
        """Deliver what is left to the receivers that are there, for at most a time in seconds, and end the threads."""
        deadline = time.monotonic() + drain_s
        stopping = [threading.Thread(target=one.stop, args=(deadline,)) for one in self._deliveries]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()

    @property
    def status(self) -> tuple[DeliveryStatus, ...]:
        """The state of each sink."""
        return tuple(one.status for one in self._deliveries)


class _Place:
    """Keep the number up to which a sink has records or events, here and in the journal."""

    def __init__(self, journal: Outbox, name: str, first: int) -> None:
        self._journal, self._name = journal, name
        stored = journal.cursor(name)
        # The first place of a new sink is stored at once, so that a crash does not move it to a later record.
        self.move(first if stored is None else stored)

    def move(self, number: int) -> None:
        self.number = number
        self._journal.move_cursor(self._name, number)
