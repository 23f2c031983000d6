"""A sink gets every record in order, at least once, and a sink that is down holds up nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowedge.runtime.station.delivery import Deliveries, Delivery
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.sinks import RefusedError, SinkError, StationLink
from flowedge.runtime.station.sinks.settings import JsonLinesSettings
from support.station_records import MemoryJournal, made_record
from support.waiting import wait_until

LINK = StationLink(station="line-1", run="run-1")


class Receiver:
    """A sink whose receiver can be down, refuse records, or hang."""

    def __init__(self) -> None:
        self.name = "receiver"
        self.got: list[int] = []
        self.events: list[str] = []
        self.beats = 0
        self.refused: set[int] = set()
        self.is_down = False
        self.fails_at: int | None = None
        self.hangs: threading.Event | None = None
        self.closed = 0

    def open(self) -> None:
        if self.is_down:
            raise SinkError("nobody is there.")

    def deliver(self, records: Sequence[Record]) -> None:
        if self.hangs is not None:
            self.hangs.wait(20)
        for place, record in enumerate(records):
            if record.number in self.refused:
                raise RefusedError("a field is wrong.", delivered=place)
            if record.number == self.fails_at:
                self.fails_at = None
                raise SinkError("the connection is lost.", delivered=place)
            self.got.append(record.number)

    def event(self, event: Event) -> None:
        self.events.append(event.kind)

    def beat(self) -> None:
        self.beats += 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


Started = Callable[..., Delivery]


@pytest.fixture
def started(journal: MemoryJournal) -> Iterator[Started]:
    """Start a delivery that pauses for milliseconds only, and stop it at the end."""
    running: list[Delivery] = []

    def start(receiver: Receiver, **fields: Any) -> Delivery:
        defaults = {"path": Path("-"), "name": receiver.name, "heartbeat_s": 0.1, "events": True}
        made = JsonLinesSettings(**{**defaults, **fields})
        one = Delivery(receiver, made, journal, LINK, journal.tell, pause=lambda _longest: 0.01)
        running.append(one)
        one.start()
        return one

    yield start
    for one in running:
        one.stop(time.monotonic())


def test_records_are_delivered_in_order_and_the_cursor_follows(
    journal: MemoryJournal, started: Started
) -> None:
    receiver = Receiver()
    delivery = started(receiver)
    for number in range(1, 251):
        journal.add(made_record(number))
    delivery.wake()
    wait_until(delivery.is_drained, "all records are delivered")
    assert receiver.got == list(range(1, 251))
    wait_until(lambda: journal.cursors["receiver"] == 250, "the cursor is stored")


def test_a_sink_that_is_down_gets_its_backlog_in_order_and_says_so(
    journal: MemoryJournal, started: Started
) -> None:
    receiver = Receiver()
    receiver.is_down = True
    delivery = started(receiver)
    journal.add(*(made_record(number) for number in range(1, 6)))
    wait_until(lambda: "sink_down" in journal.kinds(), "the sink is reported as down")
    assert delivery.status.backlog == 5
    assert delivery.status.problem == "nobody is there."
    receiver.is_down = False
    wait_until(lambda: "sink_back" in journal.kinds(), "the sink is reported as back")
    wait_until(delivery.is_drained, "the backlog is delivered")
    assert receiver.got == [1, 2, 3, 4, 5]
    assert journal.kinds() == ["sink_down", "sink_back"]
    assert delivery.status.problem == ""


def test_a_batch_that_breaks_off_goes_on_where_the_receiver_is(
    journal: MemoryJournal, started: Started
) -> None:
    receiver = Receiver()
    receiver.fails_at = 3
    journal.add(*(made_record(number) for number in range(1, 6)))
    delivery = started(receiver, begin="oldest")
    wait_until(delivery.is_drained, "all records are delivered")
    assert receiver.got == [1, 2, 3, 4, 5]


def test_a_delivery_that_starts_again_repeats_what_its_cursor_does_not_count(journal: MemoryJournal) -> None:
    journal.add(*(made_record(number) for number in range(1, 6)))
    journal.move_cursor("receiver", 3)
    receiver = Receiver()
    delivery = Delivery(
        receiver, JsonLinesSettings(path=Path("-"), name="receiver"), journal, LINK, journal.tell
    )
    delivery.start()
    wait_until(delivery.is_drained, "the rest is delivered")
    delivery.stop(time.monotonic() + 5)
    assert receiver.got == [4, 5]
    assert journal.cursors["receiver"] == 5
    assert receiver.closed


def test_the_real_journal_keeps_the_place_over_a_restart(tmp_path: Path) -> None:
    settings = JsonLinesSettings(path=tmp_path / "records.jsonl", events=True)
    for run in (1, 2):
        with Journal(tmp_path / "journal.sqlite", station="line-1") as journal:
            deliveries = Deliveries.of([settings], journal, LINK, lambda event: None)
            deliveries.start()
            journal.append([made_record() for _ in range(150)], [Event(kind="drift", text=f"run {run}")])
            deliveries.wake()
            assert deliveries.wait_drained(20)
            deliveries.stop()
            assert deliveries.status[0].delivered == 150 * run
    lines = [json.loads(line) for line in settings.path.read_text(encoding="utf-8").splitlines()]
    assert [line["number"] for line in lines if "kind" not in line] == list(range(1, 301))
    assert [line["text"] for line in lines if "kind" in line] == ["run 1", "run 2"]
    assert len({line["id"] for line in lines}) == 302


def test_a_refused_record_is_skipped_loudly_and_the_next_one_follows(
    journal: MemoryJournal, started: Started
) -> None:
    receiver = Receiver()
    receiver.refused = {2}
    delivery = started(receiver)
    journal.add(*(made_record(number) for number in range(1, 4)))
    delivery.wake()
    wait_until(delivery.is_drained, "the other records are delivered")
    assert receiver.got == [1, 3]
    assert journal.kinds() == ["sink_refused"]
    assert "record 2 (id line-1/2): a field is wrong." in journal.told[0].text
    assert delivery.status.refused == 1


def test_a_receiver_that_refuses_everything_is_down_and_loses_three_records_at_most(
    journal: MemoryJournal, started: Started
) -> None:
    receiver = Receiver()
    receiver.refused = set(range(1, 11))
    delivery = started(receiver)
    journal.add(*(made_record(number) for number in range(1, 11)))
    wait_until(lambda: "sink_down" in journal.kinds(), "the sink is reported as down")
    receiver.refused = set()
    wait_until(delivery.is_drained, "the rest is delivered")
    assert receiver.got == [4, 5, 6, 7, 8, 9, 10]
    assert journal.kinds().count("sink_refused") == 3


def test_a_sink_that_hangs_holds_up_no_other(journal: MemoryJournal, started: Started) -> None:
    hanging, well = Receiver(), Receiver()
    hanging.name, hanging.hangs = "hanging", threading.Event()
    both = Deliveries([started(hanging), started(well)])
    journal.add(made_record(1), made_record(2))
    both.wake()
    wait_until(lambda: well.got == [1, 2], "the other sink gets its records")
    assert not both.is_drained()
    assert not both.wait_drained(0.01)
    hanging.hangs.set()
    assert both.wait_drained(20)
    assert [one.name for one in both.status] == ["hanging", "receiver"]


def test_a_stop_delivers_the_rest_first(journal: MemoryJournal, started: Started) -> None:
    receiver = Receiver()
    delivery = started(receiver, heartbeat_s=60.0)
    wait_until(lambda: receiver.beats, "the sink is open")
    journal.add(*(made_record(number) for number in range(1, 301)))
    delivery.stop(time.monotonic() + 20)
    assert receiver.got == list(range(1, 301))
    assert journal.cursors["receiver"] == 300


def test_a_stop_ends_the_thread_also_where_the_journal_fails(
    journal: MemoryJournal, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> int:
        raise OSError("the disk is gone")

    receiver = Receiver()
    delivery = started(receiver)
    monkeypatch.setattr(journal, "last", broken)
    delivery.stop(time.monotonic() + 5)
    wait_until(lambda: receiver.closed == 1, "the sink is closed")


def test_a_stop_does_not_wait_for_a_sink_that_is_down(journal: MemoryJournal, started: Started) -> None:
    receiver = Receiver()
    receiver.is_down = True
    journal.add(made_record(1))
    delivery = started(receiver, begin="oldest", retry_max_s=3600.0)
    wait_until(lambda: journal.kinds() == ["sink_down"], "the sink is reported as down")
    delivery.stop(time.monotonic() + 3600)
    assert journal.cursors["receiver"] == 0


def test_a_new_sink_begins_with_the_next_record_or_with_the_oldest(
    journal: MemoryJournal, started: Started
) -> None:
    journal.add(made_record(1), made_record(2))
    late, early = Receiver(), Receiver()
    late.name, early.name = "late", "early"
    deliveries = Deliveries([started(late), started(early, begin="oldest")])
    journal.add(made_record(3))
    deliveries.wake()
    assert deliveries.wait_drained(20)
    assert (late.got, early.got) == ([3], [1, 2, 3])


def test_a_new_sink_that_dies_before_its_first_record_misses_none(journal: MemoryJournal) -> None:
    settings = JsonLinesSettings(path=Path("-"), name="receiver")
    Delivery(Receiver(), settings, journal, LINK, journal.tell)
    journal.add(made_record(1))
    receiver = Receiver()
    delivery = Delivery(receiver, settings, journal, LINK, journal.tell)
    delivery.start()
    wait_until(delivery.is_drained, "the record is delivered")
    delivery.stop(time.monotonic() + 5)
    assert receiver.got == [1]


def test_events_are_delivered_where_the_settings_ask_for_them(
    journal: MemoryJournal, started: Started
) -> None:
    with_events, without = Receiver(), Receiver()
    with_events.name, without.name = "with", "without"
    started(with_events)
    started(without, events=False)
    journal.tell(Event(kind="drift", text="the scores rise"))
    wait_until(lambda: with_events.events == ["drift"], "the event is delivered")
    assert without.events == []


def test_a_failure_that_the_next_attempt_repairs_is_no_event(
    journal: MemoryJournal, started: Started
) -> None:
    receiver = Receiver()
    receiver.fails_at = 2
    delivery = started(receiver)
    journal.add(*(made_record(number) for number in range(1, 4)))
    wait_until(delivery.is_drained, "all records are delivered")
    assert receiver.got == [1, 2, 3]
    assert journal.kinds() == []


def test_a_receiver_of_records_alone_gets_no_events_about_its_refusals(
    journal: MemoryJournal, started: Started
) -> None:
    class Refusing(Receiver):
        def event(self, event: Event) -> None:
            super().event(event)
            raise RefusedError("no event, please.")

    refusing, other = Refusing(), Receiver()
    other.name = "other"
    started(refusing)
    started(other)
    journal.tell(Event(kind="drift", text="the scores rise"))
    wait_until(lambda: other.events == ["drift", "sink_refused"], "the other sink gets both events")
    journal.tell(Event(kind="drift", text="the scores rise"))
    wait_until(lambda: other.events.count("drift") == 2, "the second event is delivered")
    wait_until(lambda: refusing.events.count("drift") == 2, "the refusal repeats")
    assert "sink_refused" not in refusing.events


def test_two_receivers_of_records_alone_do_not_feed_each_other_by_their_refusals(
    journal: MemoryJournal, started: Started
) -> None:
    class Records(Receiver):
        def event(self, event: Event) -> None:
            super().event(event)
            raise RefusedError("no event, please.")

    receivers = Records(), Records()
    receivers[1].name = "other"
    journal.tell(Event(kind="drift", text="a trial"))
    deliveries = [started(one, begin="oldest") for one in receivers]
    # Each tells once that it refuses the event, and both refuse what the other one tells.
    wait_until(lambda: sum(one.status.refused for one in deliveries) >= 4, "all events are refused")
    time.sleep(0.3)
    assert sum(one.status.refused for one in deliveries) == 4
    assert sorted(journal.kinds()) == ["drift", "sink_refused", "sink_refused"]


def test_the_heart_beats_while_the_receiver_acknowledges_nothing(
    journal: MemoryJournal, started: Started
) -> None:
    receiver = Receiver()
    receiver.is_down = True
    started(receiver)
    wait_until(lambda: receiver.beats >= 3, "the sink shows signs of life")


def test_a_fault_in_a_sink_is_a_sink_that_is_down(journal: MemoryJournal, started: Started) -> None:
    class Faulty(Receiver):
        def beat(self) -> None:
            self.beats += 1
            if self.beats < 6:
                raise ZeroDivisionError("a fault\x1b[31m")

    delivery = started(Faulty())
    wait_until(lambda: journal.kinds() == ["sink_down", "sink_back"], "the delivery goes on")
    assert "ZeroDivisionError: a fault\\x1b[31m" in journal.told[0].text
    assert delivery.status.problem == ""
