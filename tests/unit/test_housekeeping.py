"""Old records and pictures are removed by the station's own time, and never a record that a sink still needs."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowedge.runtime.station import journal as journal_module
from flowedge.runtime.station.archive import Archive
from flowedge.runtime.station.housekeeping import Housekeeper
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.keeping_settings import ArchiveSettings, JournalSettings
from flowedge.runtime.station.picture_store import PictureStore
from flowedge.runtime.station.record import Event, Signal, picture_name
from flowedge.runtime.station.sinks.settings import JsonLinesSettings
from support.station_records import made_record

DAY_S = 86400.0
SINKS = (
    JsonLinesSettings(name="a", path=Path("a.jsonl"), events=True),
    JsonLinesSettings(name="b", path=Path("b.jsonl"), events=False),
)


class Clock:
    """The monotonic clock of the journal, which a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(journal_module, "time", made)
    return made


class Place:
    """A journal with an archive and a housekeeper that only a test starts."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.told: list[Event] = []
        self.journal = Journal(folder / "journal.sqlite", reserve_bytes=1 << 16)
        self.store = PictureStore(folder / "archive", self.journal.name)
        self.archive = Archive(ArchiveSettings(keep_ok_days=2, keep_nok_days=4), self.store)
        self.keeper = Housekeeper(
            self.journal,
            JournalSettings(**{"keep_days": 10, **limits}),
            SINKS,
            self.archive,
            self.told.append,
        )

    def add(self, count: int, **fields: Any) -> None:
        for record in self.journal.append([made_record(**fields)] * count).records:
            self.store.write(picture_name(self.journal.name, record.number, record.signal), bytes(10))

    def delivered(self, a: int, b: int) -> None:
        self.journal.move_cursor("a", a)
        self.journal.move_cursor("b", b)

    def pictures(self) -> list[int]:
        return sorted(int(path.name[:10]) for path in self.store.folder.rglob("*.jpg"))

    def close(self) -> None:
        self.archive.close()
        self.journal.close()


@pytest.fixture
def place(tmp_path: Path, clock: Clock) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def numbers(journal: Journal) -> list[int]:
    return [record.number for record in journal.records()]


def test_records_are_removed_by_their_age_in_operation(place: Place, clock: Clock) -> None:
    for _ in range(5):
        place.add(2)
        clock.now += 4 * DAY_S
    place.delivered(10, 10)
    place.keeper.clean()
    assert numbers(place.journal) == [7, 8, 9, 10]  # of 8 and 4 days; the others are 12 days old and more
    clock.now += 100 * DAY_S
    place.keeper.clean()
    assert numbers(place.journal) == [10]  # the newest one stays
    assert place.journal.append([made_record()]).records[0].number == 11


def test_what_a_sink_has_not_got_stays_and_an_event_tells_so(place: Place, clock: Clock) -> None:
    place.add(10)
    place.journal.append(events=[Event(kind="started", text="x")] * 3)
    place.delivered(10, 4)
    clock.now += 100 * DAY_S
    place.keeper.clean()
    assert numbers(place.journal) == [5, 6, 7, 8, 9, 10]
    assert place.pictures() == []  # pictures go by their own age
    assert [event.kind for event in place.told] == ["backlog_kept"]
    assert len(place.journal.events()) == 3  # sink a has no event yet
    place.journal.move_cursor("a/events", 2)
    place.delivered(10, 10)
    place.keeper.clean()
    assert numbers(place.journal) == [10]
    assert [event.number for event in place.journal.events()] == [3]


def test_a_sink_that_never_delivered_keeps_everything(place: Place, clock: Clock) -> None:
    place.add(5)
    place.journal.move_cursor("a", 5)
    clock.now += 100 * DAY_S
    place.keeper.clean()
    assert numbers(place.journal) == [1, 2, 3, 4, 5]


def test_pictures_go_by_their_own_ages_and_before_their_records(place: Place, clock: Clock) -> None:
    place.add(2)
    place.add(2, signal="nok", verdict="anomalous")
    clock.now += 3 * DAY_S
    place.add(2)
    place.keeper.clean()
    assert place.pictures() == [3, 4, 5, 6]
    assert len(numbers(place.journal)) == 6
    clock.now += 3 * DAY_S
    place.keeper.clean()
    assert place.pictures() == []


def test_no_picture_is_left_where_deleting_the_records_fails(
    place: Place, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.add(5)
    place.delivered(5, 5)
    clock.now += 11 * DAY_S
    order: list[str] = []
    real = place.store.delete_up_to

    def deleted(number: int, signal: Signal) -> int:
        order.append(f"pictures up to {number}, {len(numbers(place.journal))} records")
        return real(number, signal)

    monkeypatch.setattr(place.store, "delete_up_to", deleted)
    place.keeper.clean()
    assert order[-1] == "pictures up to 4, 5 records"
    assert numbers(place.journal) == [5]


def test_the_size_of_the_journal_is_limited(tmp_path: Path, clock: Clock) -> None:
    place = Place(tmp_path, max_gib=0.01)
    big: dict[str, Any] = {"reason": "x" * 900, "source_id": "y" * 4000, "problem": "z" * 900}
    place.journal.append([made_record(**big)] * 2500)
    used = place.journal.used_bytes
    assert used > 0.01 * 2**30
    place.delivered(2500, 2500)
    place.keeper.clean()
    place.keeper.clean()
    assert place.journal.used_bytes <= 0.0105 * 2**30
    assert numbers(place.journal)[-1] == 2500
    assert place.journal.damage() == []
    place.close()


def test_a_file_that_still_lies_there_is_known_after_its_record_is_gone(
    place: Place, clock: Clock, tmp_path: Path
) -> None:
    here, gone = tmp_path / "here.png", tmp_path / "gone.png"
    here.write_bytes(b"1")
    for file in (here, gone):
        place.journal.append([made_record(source_id=str(file), source_key="1-1")])
    place.journal.append([made_record()])
    place.delivered(3, 3)
    clock.now += 11 * DAY_S
    place.keeper.clean()
    assert numbers(place.journal) == [3]
    assert place.journal.seen(str(here), "1-1")
    assert not place.journal.seen(str(here), "2-2")
    assert not place.journal.seen(str(gone), "1-1")
    here.unlink()
    Housekeeper(place.journal, JournalSettings(), SINKS, place.archive).clean()
    assert not place.journal.seen(str(here), "1-1")


def test_a_wall_clock_that_jumps_removes_nothing(place: Place) -> None:
    place.add(3, time=datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc))
    place.add(3, time=datetime.datetime(2999, 1, 1, tzinfo=datetime.timezone.utc))
    place.delivered(6, 6)
    place.keeper.clean()
    assert numbers(place.journal) == [1, 2, 3, 4, 5, 6]


STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 5), st.integers(0, 3)),
    st.tuples(st.just("days"), st.integers(1, 6), st.integers(0, 0)),
    st.tuples(st.just("deliver"), st.integers(0, 40), st.integers(0, 40)),
    st.tuples(st.just("clean"), st.just(0), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
)


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(STEP, min_size=4, max_size=20))
def test_no_undelivered_record_is_ever_removed_and_what_is_kept_has_no_gap(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "time", SimpleNamespace(monotonic=clock.monotonic))
        folder = tmp_path_factory.mktemp("place")
        place = Place(folder)
        added, cursors = 0, {"a": 0, "b": 0}
        for what, one, other in steps:
            match what:
                case "add":
                    place.add(one)
                    added += one
                case "days":
                    clock.now += one * DAY_S
                case "deliver":
                    cursors = {
                        name: max(cursors[name], min(wanted, added))
                        for name, wanted in {"a": one, "b": other}.items()
                    }
                    place.delivered(cursors["a"], cursors["b"])
                case "clean":
                    place.keeper.clean()
                case "restart":
                    place.close()
                    place = Place(folder)
            left = numbers(place.journal)
            assert left == list(range(added - len(left) + 1, added + 1))
            assert set(range(min(cursors.values()) + 1, added + 1)) <= set(left)
            assert place.journal.cursor("a") in (cursors["a"], None)
        place.close()
