"""``flowedge station`` sets up, checks, runs and asks an inspection station."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from flowedge.cli.group import new_group
from flowedge.cli.output import MESSAGES, PROBLEMS, RESULTS, Json, print_json, table
from flowedge.cli.signals import call_on_signals

if TYPE_CHECKING:
    from flowedge.runtime.station.record import Event

NAME = "station"

app = new_group(NAME, help="Run an inspection station: from a camera to a verdict, a journal and a PLC.")

StationFile: TypeAlias = Annotated[
    Path, typer.Argument(metavar="FILE", help="The station's file.", show_default=False)
]


@app.command("run")
def run(
    file: StationFile,
    until_end: Annotated[
        bool,
        typer.Option(
            "--until-end", help="End when the source has ended and every record is delivered, with status 0."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Run a station until it is stopped by SIGTERM or Ctrl-C.

    What was captured is then judged, written and delivered first. A picture that has its record is not judged again.
    """
    from flowedge.runtime.station.settings import read_station
    from flowedge.runtime.station.station import Station

    settings = read_station(file)
    with (
        Station(
            settings, folder=file.absolute().parent, until_end=until_end, on_event=_print_event
        ) as station,
        call_on_signals(station.stop),
    ):
        is_done = station.run()
    status = station.final
    if json:
        print_json(status)
    else:
        _print_status(status)
    if not is_done:
        raise typer.Exit(1)


@app.command("status")
def status(file: StationFile, json: Json = False) -> None:
    """Ask a running station what it does. The exit status is 1 where none runs."""
    from flowedge.runtime.station.settings import read_station
    from flowedge.runtime.station.status import NoStationError, ask_station

    settings = read_station(file)
    try:
        told = ask_station(settings.station.state)
    except NoStationError as error:
        if json:
            print_json({"station": settings.station.name, "running": False})
        else:
            PROBLEMS.print(f"flowedge: {error}", soft_wrap=True)
        raise typer.Exit(1) from error
    if json:
        print_json(told | {"running": True})
    else:
        _print_status(told)


def _print_event(event: Event) -> None:
    (MESSAGES if event.level == "info" else PROBLEMS).print(f"{event.level}: {event.text}", soft_wrap=True)


def _print_status(told: dict[str, Any]) -> None:
    """Print what a station does as a table of two columns."""
    records = told["records"]
    rows = table("", "")
    rows.show_header = False
    engine = told["engine"]
    rows.add_row("station", told["station"])
    rows.add_row("up", f"{told['uptime_s']:.0f} s")
    rows.add_row("source", _with_problem(told["source"]["address"], told["source"]["problem"]))
    rows.add_row("engine", _with_problem(f"{engine['name']} ({engine['precision']})", engine["problem"]))
    rows.add_row(
        "records",
        f"{records['all']}: {records['ok']} ok, {records['nok']} nok, {records['not_inspected']} not inspected, "
        f"{records['late']} late",
    )
    rows.add_row("dropped", str(told["dropped"]))
    rows.add_row("per second", f"{told['per_second']:.1f}")
    for name, times in told["stages_ms"].items():
        rows.add_row(f"{name}, ms", f"{times['p50']:.1f} (p99 {times['p99']:.1f})")
    rows.add_row("journal", _with_problem(f"{records['last']} records", told["journal"]["problem"]))
    for sink in told["sinks"]:
        text = f"{sink['delivered']} delivered, {sink['backlog']} waiting"
        rows.add_row(f"sink {sink['name']}", _with_problem(text, sink["problem"]))
    RESULTS.print(rows)


def _with_problem(text: str, problem: str) -> str:
    return f"{text}: {problem}" if problem else text
