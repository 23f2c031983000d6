"""Find the records that a page lists, a slice at a time."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import urlencode

from flowedge.runtime.record import Verdict
from flowedge.runtime.station.journal_reader import JournalReader
from flowedge.runtime.station.record import Record, Signal

SLICE: Final = 50
"""The number of records on one page of the list."""

_SEARCHED: Final = 200_000
"""The number of records that one request searches, so that no filter reads a journal of millions at once."""

LARGEST_NUMBER: Final = (1 << 63) - 1


class Filter(NamedTuple):
    """The records that a person wants to see.

    Attributes:
        signal: Only records with this signal.
        verdict: Only records with this verdict.
        part: Only records of this part.
    """

    signal: Signal | None = None
    verdict: Verdict | None = None
    part: str | None = None

    @property
    def is_open(self) -> bool:
        """True where every record fits."""
        return not any(self)

    def query(self, **more: object) -> str:
        """Return the filter as the query of an address, with further parameters."""
        wanted = {"signal": self.signal, "verdict": self.verdict, "part": self.part} | more
        return urlencode({name: value for name, value in wanted.items() if value})


class Found(NamedTuple):
    """A slice of the list.

    Attributes:
        records: The records, the newest first.
        older: The number before which the next older slice begins, 0 where there is none.
        newer: The number after which the next newer slice begins, 0 where there is none.
        searched_to: The oldest number that was searched, where that is not the beginning of the journal.
    """

    records: list[Record]
    older: int = 0
    newer: int = 0
    searched_to: int = 0


def find(journal: JournalReader, wanted: Filter, *, before: int = 0, after: int = 0) -> Found:
    """Return a slice of the records that fit a filter.

    Args:
        journal: The journal.
        wanted: The filter.
        before: Only records with a smaller number, the newest of them. With 0 the newest of all.
        after: Only records with a larger number, the oldest of them, where ``before`` is 0.
    """
    last, first = journal.last(), journal.first()
    if after and not before:
        top = min(last, after + _SEARCHED) + 1
        records = journal.records(
            after, SLICE, before=top, signal=wanted.signal, verdict=wanted.verdict, part=wanted.part
        )
        records.reverse()
        low = after
    else:
        top = min(before, last + 1) if before else last + 1
        low = max(first - 1, top - 1 - _SEARCHED, 0)
        records = journal.records(
            low,
            SLICE,
            before=top,
            signal=wanted.signal,
            verdict=wanted.verdict,
            part=wanted.part,
            newest=True,
        )
        records.reverse()
    is_full = len(records) == SLICE
    oldest = records[-1].number if is_full or (records and after) else low + 1
    newest = records[0].number if records else top - 1
    return Found(
        records,
        older=oldest if oldest > first > 0 else 0,
        newer=newest if 0 < newest < last else 0,
        searched_to=low + 1 if not is_full and low + 1 > first > 0 and not after else 0,
    )
