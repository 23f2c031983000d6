"""A station's record is safe to print, bounded, and never says ok of what nobody saw."""

from __future__ import annotations

import datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowedge.runtime.station.record import LONGEST_TEXT, Event, Record
from support.station_records import made_record


@given(
    text=st.text()
    | st.text(alphabet="\x1b[31m\n\udcff", min_size=LONGEST_TEXT - 5, max_size=2 * LONGEST_TEXT)
)
def test_a_text_from_outside_is_printable_and_short_and_survives_json(text: str) -> None:
    made = made_record(part=text, source_id=text, problem=text, reason=text)
    assert made.part is not None
    assert made.part.isprintable()
    assert len(made.part) <= LONGEST_TEXT
    assert made.source_id.isprintable()
    assert msgspec.json.decode(msgspec.json.encode(made), type=Record) == made


def test_a_good_text_stays_as_it_is() -> None:
    assert made_record(part="Gehäuse 7 / B").part == "Gehäuse 7 / B"


def test_a_frame_that_was_not_inspected_cannot_be_recorded_as_ok() -> None:
    with pytest.raises(ValueError, match="never ok"):
        made_record(verdict="not_inspected", signal="ok")


def test_an_event_has_a_time_in_utc() -> None:
    assert Event(kind="started", text="a\nb").time.utcoffset() == datetime.timedelta(0)
    assert Event(kind="started", text="a\nb").text == "a\\nb"


def test_the_data_of_an_event_is_printable_and_short() -> None:
    event = Event(kind="trigger_refused", text="", data={"part": "\x1b[31m" + "x" * 5000, "count": 3})
    assert event.data["count"] == 3
    assert event.data["part"].isprintable()
    assert len(event.data["part"]) == LONGEST_TEXT


def test_a_text_that_is_cut_shows_that_it_was() -> None:
    assert made_record(part="x" * (LONGEST_TEXT + 1)).part == "x" * (LONGEST_TEXT - 1) + "…"
    assert made_record(part="x" * LONGEST_TEXT).part == "x" * LONGEST_TEXT
