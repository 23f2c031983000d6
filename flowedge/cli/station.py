"""``flowedge station`` sets up, checks, runs and asks an inspection station."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowedge.cli.group import new_group
from flowedge.cli.output import MESSAGES, PROBLEMS, RESULTS, Force, Json, StationFile, print_json, table
from flowedge.cli.signals import call_on_signals
from flowedge.cli.station_drift import drift
from flowedge.cli.station_records import export, records
from flowedge.cli.station_shadow import shadow
from flowedge.errors import FlowEdgeError
from flowedge.targets import check_file_target

if TYPE_CHECKING:
    from flowedge.runtime.station.record import Event

NAME = "station"

app = new_group(NAME, help="Run an inspection station: from a camera to a verdict, a journal and a PLC.")


@app.command("init")
def init(
    bundle: Annotated[Path, typer.Argument(help="The bundle, or one product of a pack.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The file to write.")] = Path(
        "station.toml"
    ),
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="SOURCE",
            help="The source of the frames: a folder, a pattern, a video or the address of a camera.",
            show_default="the folder incoming beside the file, which is watched",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="The name of the station in records.", show_default="that of the bundle"),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the file of a new station, which has every setting with its description and runs as it is."""
    from flowedge.cli.places import check_bundle
    from flowedge.files import write_whole_file
    from flowedge.runtime.station.settings import parse_station
    from flowedge.runtime.station.template import MARK, station_file
    from flowedge.source_addresses import kind_of, without_password

    check_bundle(bundle)
    check_file_target(out, force=force, mark=MARK.encode())
    folder = out.absolute().parent
    given: dict[str, dict[str, Any]] = {
        "station": {"name": name or _name_from(bundle), "state": "state"},
        "inspect": {"bundle": _seen_from(folder, bundle)},
        "source": {"address": "incoming", "watch": True},
    }
    if source is None:
        (folder / "incoming").mkdir(exist_ok=True)
    elif kind_of(source) in ("images", "video"):
        given["source"] = {"address": _seen_from(folder, Path(source))}
    else:
        if without_password(source) != source:
            raise FlowEdgeError(
                "an address with a password does not belong into a file. Leave the user and the password out, and "
                "name them in the file as username and password_env."
            )
        given["source"] = {"address": source}
        # A camera does not wait, and its newest frame is worth more than its oldest.
        given["inspect"]["when_full"] = "drop_oldest"
    text = station_file(given, [{"kind": "jsonl", "path": "verdicts.jsonl"}])
    try:
        parse_station(text, name=str(out), folder=folder)
        write_whole_file(out, text.encode())
    except OSError as error:
        raise FlowEdgeError(f"{out} cannot be written: {error.strerror}. Name another file.") from error
    if json:
        print_json(
            {"file": str(out), "source": given["source"]["address"], "bundle": given["inspect"]["bundle"]}
        )
    MESSAGES.print(f"wrote {out}. Check it with: flowedge station check {out}", soft_wrap=True)


@app.command("check")
def check(file: StationFile, json: Json = False) -> None:
    """Open everything that a station's file names, and tell what is wrong with each, without starting.

    The exit status is 1 where something is wrong.
    """
    from flowedge.runtime.station.check import check_station
    from flowedge.runtime.station.settings import read_station

    settings = read_station(file)
    items = []
    for item in check_station(settings, folder=file.absolute().parent):
        items.append(item)
        if not json:
            RESULTS.print(f"{item.state:8}{item.name}: {item.text}", soft_wrap=True)
    if json:
        print_json({"file": str(file), "items": items})
    if any(item.state == "wrong" for item in items):
        raise typer.Exit(1)


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
    from flowedge.runtime.device.heap import share_one_heap

    share_one_heap()  # before the imports below, which start threads
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


app.command("records")(records)
app.command("shadow")(shadow)
app.command("drift")(drift)
app.command("export")(export)


def _name_from(bundle: Path) -> str:
    """Make a station's name of a bundle's."""
    return re.sub(r"[^A-Za-z0-9._-]+|^[._-]+", "-", bundle.absolute().stem).strip("-._")[:64] or "station"


def _seen_from(folder: Path, path: Path) -> str:
    """Return a path as a file in a folder names it: an absolute one stays, another one is relative to the folder."""
    return str(path) if path.is_absolute() else os.path.relpath(path.absolute(), folder)


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
    for product, watched in told["watch"].items():
        rows.add_row(f"watch {product}".strip(), _watch_words(watched))
    if (rollout := told.get("rollout")) is not None:
        version = "not read yet" if rollout["version"] is None else f"version {rollout['version']}"
        rows.add_row("rollout", _with_problem(f"{rollout['file']}, {version}", rollout["problem"]))
    if told["shadow"] is not None:
        one = told["shadow"]
        text = f"{one['state']}, {one['frames']} of {one['of']} frames, {one['flipped']} flipped"
        rows.add_row("shadow", _with_problem(text, one["problem"]))
    rows.add_row("journal", _with_problem(f"{records['last']} records", told["journal"]["problem"]))
    for sink in told["sinks"]:
        text = f"{sink['delivered']} delivered, {sink['backlog']} waiting"
        rows.add_row(f"sink {sink['name']}", _with_problem(text, sink["problem"]))
    RESULTS.print(rows)


def _watch_words(watched: dict[str, Any]) -> str:
    """Say whether the engine is right, and what has drifted."""
    drift = watched["drift"]
    if watched["self_test"] or drift is None:
        return watched["self_test"] or "the engine is right"
    if drift["phase"] == "learning":
        return f"the engine is right, {drift['learned']} of {drift['learn']} frames are learned"
    drifted = [one["quantity"] for one in drift["quantities"] if one["drifted"]]
    return (
        f"the engine is right, drift of {', '.join(drifted)}" if drifted else "the engine is right, no drift"
    )


def _with_problem(text: str, problem: str) -> str:
    if problem.startswith(text):  # the problem of a lost camera begins with its address
        return problem
    return f"{text}: {problem}" if problem else text
