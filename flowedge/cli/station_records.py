"""``flowedge station records`` prints a station's journal, and ``flowedge station export`` writes it as a table."""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias, cast

import typer
from rich.text import Text

from flowedge.cli.output import MESSAGES, RESULTS, Json, StationFile, number, print_json
from flowedge.clock import utc_moment
from flowedge.errors import FlowEdgeError

if TYPE_CHECKING:
    from flowedge.runtime.station.journal_reader import JournalReader
    from flowedge.runtime.station.record import Event, Record

_AT_ONCE: Final = 1000
_FOLLOW_S: Final = 0.3
_UNITS_S: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}

SignalOption: TypeAlias = Annotated[
    str | None, typer.Option("--signal", help="Only records with this signal: ok or nok.")
]
Since: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Only frames taken since a time such as 2026-11-30 or 2026-11-30T06:00, or within a span such as 90min, "
        "8h or 2d until now.",
    ),
]


def records(
    file: StationFile,
    json: Json = False,
    last: Annotated[
        int | None, typer.Option("--last", min=1, metavar="N", help="Only the newest N.", show_default=False)
    ] = None,
    since: Since = None,
    signal: SignalOption = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="ID", help="Only records of one part.", show_default=False)
    ] = None,
    events: Annotated[
        bool, typer.Option("--events", help="Print the events of the station instead of its records.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print further records as they come, until Ctrl-C.")
    ] = False,
) -> None:
    """Print the journal of a station, a line for each record, the oldest first.

    FILE is the station's file, or the journal itself (journal.sqlite). The station may run meanwhile.
    """
    choice = _signal(signal)
    moment = _moment(since)
    if events and (choice or moment or part is not None):
        raise FlowEdgeError(
            "--events goes with --last and --follow, and not with --signal, --since or --part."
        )
    with open_journal(file) as journal:
        if events:
            for event in _events(journal, last, follow=follow):
                print_json(event) if json else _print_event(event)
            return
        for record in _records(journal, last, choice, moment, part, follow=follow):
            print_json(record) if json else _print_record(record)


def export(
    file: StationFile,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PARQUET", help="The Parquet file.", show_default=False)
    ],
    since: Since = None,
    signal: SignalOption = None,
    json: Json = False,
) -> None:
    """Write the journal of a station into a Parquet file, a row for each record, with typed columns.

    FILE is the station's file, or the journal itself (journal.sqlite). The station may run meanwhile.
    """
    choice = _signal(signal)
    moment = _moment(since)
    # Another ending would promise another format, such as CSV.
    if out.suffix.lower() not in (".parquet", ".pq"):
        raise FlowEdgeError(
            f"{out} is no name of a Parquet file, the only format of the export. Name a file that ends in .parquet. "
            "Lines of JSON come from: flowedge station records FILE --json"
        )
    with open_journal(file) as journal:
        from flowedge.runtime.station.parquet import export_parquet

        count = export_parquet(journal, out, signal=choice, since=moment)
    if json:
        print_json({"file": str(out), "records": count})
    else:
        MESSAGES.print(f"{out}: {count} records", soft_wrap=True)


def open_journal(file: Path) -> JournalReader:
    """Open the journal of a station for reading.

    Args:
        file: The station's file, or the journal itself.

    Raises:
        FlowEdgeError: The file or the journal cannot be read.
    """
    from flowedge.runtime.station.journal_file import NAME
    from flowedge.runtime.station.journal_reader import JournalReader

    if file.suffix == Path(NAME).suffix:
        return JournalReader(file)
    from flowedge.runtime.station.settings import read_station

    return JournalReader(read_station(file).station.state / NAME)


def _records(
    journal: JournalReader,
    last: int | None,
    signal: Literal["ok", "nok"] | None,
    since: datetime.datetime | None,
    part: str | None,
    *,
    follow: bool,
) -> Iterator[Record]:
    """Give the records that are there, and with ``follow`` those that come."""
    after = 0
    if last is not None:
        newest = journal.records(limit=last, signal=signal, since=since, part=part, newest=True)
        yield from newest
        after = newest[-1].number if newest else journal.last()
    while True:
        while found := journal.records(after, _AT_ONCE, signal=signal, since=since, part=part):
            yield from found
            after = found[-1].number
        if not follow:
            return
        time.sleep(_FOLLOW_S)


def _events(journal: JournalReader, last: int | None, *, follow: bool) -> Iterator[Event]:
    after = 0
    if last is not None:
        newest = journal.events(limit=last, newest=True)
        yield from newest
        after = newest[-1].number if newest else 0
    while True:
        while found := journal.events(after, _AT_ONCE):
            yield from found
            after = found[-1].number
        if not follow:
            return
        time.sleep(_FOLLOW_S)


def _print_record(record: Record) -> None:
    names = [record.source_id, *([] if record.part is None else [f"part {record.part}"]), record.product]
    what = ", ".join(filter(None, names))
    severity = f" ({record.severity})" if record.severity else ""
    row = Text(
        f"{record.number:>8}  {_local(record.time)}  {record.signal:<4}{number(record.score):>10}  "
        f"{what}: {record.reason}{severity}"
    )
    begin = 8 + 2 + len(_local(record.time)) + 2
    row.stylize("green" if record.signal == "ok" else "bold red", begin, begin + len(record.signal))
    RESULTS.print(row, soft_wrap=True)


def _print_event(event: Event) -> None:
    row = f"{event.number:>8}  {_local(event.time)}  {event.level:<8}{event.kind}: {event.text}"
    RESULTS.print(row, soft_wrap=True)


def _local(moment: datetime.datetime) -> str:
    with contextlib.suppress(OverflowError, OSError):  # of the first and the last day that a date can have
        moment = moment.astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _signal(text: str | None) -> Literal["ok", "nok"] | None:
    if text not in (None, "ok", "nok"):
        raise FlowEdgeError(f"--signal is ok or nok, got {text!r}.")
    return cast('Literal["ok", "nok"] | None', text)


def _moment(text: str | None) -> datetime.datetime | None:
    """Read a time or a span until now. A time without a zone is local.

    Raises:
        FlowEdgeError: The text is neither.
    """
    if text is None:
        return None
    try:
        if span := re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|d|w)", text):
            ago = datetime.timedelta(seconds=float(span[1]) * _UNITS_S[span[2]])
            return utc_moment() - ago
        moment = datetime.datetime.fromisoformat(re.sub(r"Z\Z", "+00:00", text))
        return moment.astimezone(datetime.timezone.utc)
    except (ValueError, OverflowError) as error:
        raise FlowEdgeError(
            f"--since takes a time such as 2026-11-30T06:00, or a span such as 90min, 8h or 2d, got {text!r}."
        ) from error
