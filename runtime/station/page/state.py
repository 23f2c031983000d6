"""Describe what the live page shows at a moment, for the page itself and for its script."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from flowedge.runtime.station.live import Live, PartState, Seen
from flowedge.runtime.station.page.layout import ago, number
from flowedge.runtime.station.record import Record
from flowedge.text import printable

_MOST_NOTES: Final = 6
_LONGEST_NOTE: Final = 300
WORDS: Final = {"ok": "OK", "nok": "NOK", "old": "WAITING", "none": "WAITING", "stopped": "STOPPED"}


class LiveState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the live page.

    Attributes:
        look: The look of the verdict: ``ok`` or ``nok`` for a part that was just judged, ``old`` for a verdict of a
            while ago, ``none`` before the first, and ``stopped`` where the station can judge nothing.
        word: The one word that can be read from afar.
        title: The part, or the state in words.
        reason: The reason of the verdict or of the state.
        number: The number of the record, 0 before the first.
        picture: True where the record has a picture to draw.
        width: The width of the frame in pixels, 0 without a picture.
        height: The height of the frame in pixels, 0 without a picture.
        facts: Names and values of the record.
        age: The time since the verdict in words.
        notes: The further states that a person should look at, such as a sink that is down.
    """

    look: Literal["ok", "nok", "old", "none", "stopped"]
    word: str
    title: str
    reason: str
    number: int = 0
    picture: bool = False
    width: int = 0
    height: int = 0
    facts: tuple[tuple[str, str], ...] = ()
    age: str = ""
    notes: tuple[str, ...] = ()


def state_of(live: Live, seen: Seen | None, stale_after_s: float) -> LiveState:
    """Return the state of the live page.

    Args:
        live: The states of the parts and the clock.
        seen: The record that is shown.
        stale_after_s: The seconds after which a verdict counts as old.
    """
    failing = [one for one in live.parts if one.state != "ok"]
    problems = [_told(one) for one in failing if one.state == "down" and one.is_needed]
    others = [_told(one) for one in failing if not (one.state == "down" and one.is_needed)]
    notes = tuple(others[:_MOST_NOTES])
    if seen is None:
        if problems:
            return LiveState(
                look="stopped",
                word=WORDS["stopped"],
                title="Nothing is judged",
                reason="; ".join(problems),
                notes=notes,
            )
        return LiveState(
            look="none",
            word=WORDS["none"],
            title="No part was judged since the start",
            reason="",
            notes=notes,
        )
    record, age_s = seen.record, live.age_s(seen)
    size = (0, 0) if seen.result is None else seen.result.frame_size
    common: dict[str, Any] = {
        "number": record.number,
        "picture": seen.result is not None,
        "height": size[0],
        "width": size[1],
        "facts": _facts(record),
        "age": ago(age_s),
        "notes": notes,
    }
    last = f"Last part: {WORDS[record.signal]}, {ago(age_s)} ago"
    if problems:
        return LiveState(
            look="stopped", word=WORDS["stopped"], title=last, reason="; ".join(problems), **common
        )
    if age_s > stale_after_s:
        return LiveState(
            look="old", word=WORDS["old"], title=last, reason=f"{part_of(record)}: {record.reason}", **common
        )
    return LiveState(
        look=record.signal, word=WORDS[record.signal], title=part_of(record), reason=record.reason, **common
    )


def _told(part: PartState) -> str:
    verb = "is down" if part.state == "down" else "needs a look"
    return printable(f"{part.name} {verb}{': ' if part.text else ''}{part.text}"[:_LONGEST_NOTE])


def part_of(record: Record) -> str:
    """Return the name of a record's part, or else that of its file, or else its number."""
    return f"Part {record.part}" if record.part else file_of(record) or f"Record {record.number}"


def file_of(record: Record) -> str:
    """Return the name of the file that a record's frame was read from, without its folder. A camera has none."""
    return record.source_id.rsplit("/", 1)[-1] if record.source_key else ""


def quantity_of(record: Record) -> tuple[str, float | None, float | None]:
    """Return the name of the quantity that decides on a record, its value and its limit."""
    if record.log_nfa_limit is not None:
        return "log NFA", record.log_nfa, record.log_nfa_limit
    return "score", record.score, record.threshold


def _facts(record: Record) -> tuple[tuple[str, str], ...]:
    name, value, limit = quantity_of(record)
    facts = [
        (name, number(value)),
        ("limit" if name == "log NFA" else "threshold", number(limit)),
        ("regions", str(len(record.regions) + record.regions_left_out)),
        ("severity", record.severity or ""),
        ("product", record.product),
        ("source", record.source),
        ("record", str(record.number)),
        ("judged in", f"{record.stages_ms['total']:.0f} ms" if "total" in record.stages_ms else ""),
        ("engine", f"{record.engine} {record.precision}".strip()),
    ]
    return tuple((one, text) for one, text in facts if text)
