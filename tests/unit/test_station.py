"""A whole station of small parts: a folder of pictures becomes records in the journal and lines in a file."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowedge.errors import JournalError, SettingsError
from flowedge.runtime.station import journal_file
from flowedge.runtime.station.delivery import Deliveries
from flowedge.runtime.station.journal import Appended
from flowedge.runtime.station.journal_reader import JournalReader
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.settings import parse_station, read_station
from flowedge.runtime.station.sinks import StationLink
from flowedge.runtime.station.stages import Written
from flowedge.runtime.station.station import Station
from flowedge.runtime.station.status import SOCKET, NoStationError, StatusServer, ask_station
from support.command_line import flowedge
from support.station_files import lines_of, running, write_photos, write_station


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "station-cache"))


def wait_for_line(process: subprocess.Popen[str], part: str) -> str:
    """Wait until a process prints a line on standard error that has a text in it."""
    assert process.stderr is not None
    for line in process.stderr:
        if part in line:
            return line
    raise AssertionError(f"the process ended without {part}")


def test_a_folder_becomes_records_and_lines_and_no_picture_is_judged_twice(tmp_path: Path) -> None:
    file = write_station(tmp_path)
    done = flowedge("station", "run", file, "--until-end", "--json")
    assert done.status == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["records"]["all"] == 8
    assert told["sinks"][0]["backlog"] == 0
    lines = lines_of(tmp_path / "verdicts.jsonl")
    assert [line["source_id"] for line in lines] == [str(tmp_path / f"photos/{n:04d}.png") for n in range(8)]
    assert {line["verdict"] for line in lines} <= {"ok", "anomalous"}
    with JournalReader(tmp_path / "state" / journal_file.NAME) as journal:
        assert [record.id for record in journal.records()] == [line["id"] for line in lines]
        assert [event.kind for event in journal.events()] == ["self_test_passed", "started", "stopped"]

    write_photos(tmp_path / "photos", 1, first=8)
    again = flowedge("station", "run", file, "--until-end", "--json")
    assert again.status == 0, again.stderr
    assert json.loads(again.stdout)["records"]["all"] == 1
    lines = lines_of(tmp_path / "verdicts.jsonl")
    assert len(lines) == len({line["id"] for line in lines}) == 9
    assert len({line["run"] for line in lines}) == 2


def test_verdicts_go_to_the_standard_output_of_the_command(tmp_path: Path) -> None:
    more = '[[sinks]]\nkind = "jsonl"\nname = "screen"\npath = "-"\nbegin = "oldest"\n'
    file = write_station(tmp_path, photos=2, tables=more)
    with running(file, "--until-end", "--json") as process:
        out, _ = process.communicate(timeout=60)
    *lines, _ = map(json.loads, out.splitlines())
    assert lines == lines_of(tmp_path / "verdicts.jsonl")


def test_a_station_that_was_killed_goes_on_and_loses_no_verdict(tmp_path: Path) -> None:
    file = write_station(tmp_path, photos=300)
    with running(file, "--until-end") as process:
        wait_for_line(process, "has started")
        while not (tmp_path / "verdicts.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait()
    delivered = len(lines_of(tmp_path / "verdicts.jsonl"))
    assert delivered < 300
    done = flowedge("station", "run", file, "--until-end")
    assert done.status == 0, done.stderr
    lines = lines_of(tmp_path / "verdicts.jsonl")
    names = {line["id"]: line["source_id"] for line in lines}  # a repeat has the id of its first delivery
    assert sorted(names.values()) == [str(tmp_path / f"photos/{n:04d}.png") for n in range(300)]
    numbers = sorted({line["number"] for line in lines})
    assert numbers == list(range(1, 301))


def test_no_thread_ends_where_events_cannot_be_shown(tmp_path: Path) -> None:
    def broken(event: Event) -> None:
        raise BrokenPipeError

    file = write_station(tmp_path, photos=3)
    with Station(read_station(file), folder=tmp_path, until_end=True, on_event=broken) as station:
        station.tell(Event(kind="drift", level="warning", text="a trial"))
        assert station.run()
    assert sum("source_id" in line for line in lines_of(tmp_path / "verdicts.jsonl")) == 3
    with JournalReader(tmp_path / "state" / journal_file.NAME) as journal:
        assert {event.kind for event in journal.events()} == {
            "self_test_passed",
            "drift",
            "started",
            "stopped",
        }


def test_a_disk_that_is_full_at_the_end_does_not_keep_records_from_their_sinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_station(tmp_path, photos=3)
    with Station(read_station(file), folder=tmp_path, until_end=True) as station:
        append = station.journal.append

        def full(records: Sequence[Record] = (), events: Sequence[Event] = ()) -> Appended:
            if any(event.kind == "stopped" for event in events):
                raise JournalError("the disk is full")
            return append(records, events)

        monkeypatch.setattr(station.journal, "append", full)
        assert station.run()
        assert station.final["sinks"][0]["backlog"] == 0


def test_what_fails_after_a_record_takes_no_picture_from_the_records_of_the_same_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_station(tmp_path, photos=4, tables="[archive]\nok_one_in = 1\n")

    def broken(*_: object) -> list[Event]:
        raise KeyError("bug")

    with Station(read_station(file), folder=tmp_path, until_end=True) as station:
        monkeypatch.setattr(station._calls.watch, "seen", broken)
        publish = station._calls.publish
        together: list[Written] = []
        # The records are published as if one commit had held all of them.
        station._running_loop._parts = replace(station._running_loop._parts, publish=together.extend)
        assert station.run()
        publish(together)
        assert station.live.counts.total == 4
    assert len(list((tmp_path / "state" / "archive").rglob("*-*k.jpg"))) == 4


def test_sigterm_drains_and_ends_with_status_0(tmp_path: Path) -> None:
    file = write_station(tmp_path)
    with running(file) as process:
        wait_for_line(process, "has started")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with JournalReader(tmp_path / "state" / journal_file.NAME) as journal:
        records = journal.records()
        assert [event.kind for event in journal.events()][-1] == "stopped"
    assert [line["number"] for line in lines_of(tmp_path / "verdicts.jsonl")] == [
        one.number for one in records
    ]


def test_a_second_station_on_the_same_folder_is_refused_and_status_asks_the_first(tmp_path: Path) -> None:
    file = write_station(tmp_path, photos=2)
    settings = read_station(file)
    with Station(settings, folder=tmp_path) as station:
        done = flowedge("station", "run", file, "--until-end")
        assert done.status == 2
        assert "in use by" in done.stderr
        told = flowedge("station", "status", file, "--json")
        assert told.status == 0
        assert json.loads(told.stdout)["station"] == "line-3"
        assert json.loads(told.stdout)["running"] is True
        shown = flowedge("station", "status", file)
        assert "line-3" in shown.stdout
        ended = threading.Timer(0.2, station.stop)
        ended.start()
        assert station.run()
    none = flowedge("station", "status", file)
    assert none.status == 1
    assert "no station runs on" in none.stderr
    assert json.loads(flowedge("station", "status", file, "--json").stdout)["running"] is False


def test_a_socket_that_a_killed_station_left_is_no_station(tmp_path: Path) -> None:
    deep = tmp_path / ("long-name-" * 15)  # longer than the path of a socket may be
    deep.mkdir()
    server = StatusServer(deep, lambda: {"up": True})
    assert ask_station(deep) == {"up": True}
    assert (deep / SOCKET).stat().st_mode & 0o077 == 0
    os.link(deep / SOCKET, deep / "left")
    server.close()
    os.rename(deep / "left", deep / SOCKET)
    with pytest.raises(NoStationError):
        ask_station(deep)
    StatusServer(deep, lambda: {"up": True}).close()


def test_the_status_is_told_also_after_the_process_had_no_file_descriptor_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, fails = socket.socket.accept, [True]

    def failing(listening: socket.socket) -> object:
        if fails:
            fails.clear()
            raise OSError(errno.EMFILE, "too many open files")
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", failing)
    server = StatusServer(tmp_path, lambda: {"up": True})
    assert ask_station(tmp_path) == {"up": True}
    assert not fails
    server.close()


def test_what_cannot_be_read_is_recorded_as_not_inspected(tmp_path: Path) -> None:
    file = write_station(tmp_path, photos=1)
    (tmp_path / "photos" / "cut.png").write_bytes((tmp_path / "photos/0000.png").read_bytes()[:200])
    assert flowedge("station", "run", file, "--until-end").status == 0
    cut = lines_of(tmp_path / "verdicts.jsonl")[1]
    assert (cut["verdict"], cut["signal"]) == ("not_inspected", "nok")
    assert "damaged" in cut["problem"]


def test_an_engine_that_cannot_open_at_the_start_ends_the_command(tmp_path: Path) -> None:
    file = write_station(tmp_path, engines=["openvino:NPU"])
    done = flowedge("station", "run", file, "--until-end")
    assert done.status == 2
    assert "openvino:NPU" in done.stderr
    assert not (tmp_path / "state" / SOCKET).exists()


def test_the_next_engine_is_taken_at_the_start_where_the_first_cannot_open(tmp_path: Path) -> None:
    file = write_station(tmp_path, photos=1, engines=["openvino:NPU", "onnxruntime-cpu"])
    assert flowedge("station", "run", file, "--until-end").status == 0
    assert lines_of(tmp_path / "verdicts.jsonl")[0]["engine"] == "onnxruntime-cpu"
    with JournalReader(tmp_path / "state" / journal_file.NAME) as journal:
        (told,) = [event for event in journal.events() if event.kind == "engine_replaced"]
    assert (told.level, told.data) == ("alarm", {"engine": "onnxruntime-cpu", "before": "openvino:NPU"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[station]\nname = "../x"\nstate = "s"\n[source]\naddress = "p"', "[station] name: "),
        (
            '[station]\nname = "x"\nstate = "s"\n[source]\naddress = "p"',
            "Name the bundle by [inspect] bundle",
        ),
        (
            '[station]\nname = "x"\nstate = "s"\n[source]\naddress = "p"\n[inspect]\nbundle = "b"\nwhen_ful = 3',
            "[inspect]: unknown key when_ful. Did you mean when_full?",
        ),
        (
            '[station]\nname = "x"\nstate = "s"\n[source]\naddress = "p"\n[inspect]\nbundle = "b"\nqueue = 0',
            "[inspect] queue: expected int >= 1, got 0.",
        ),
        (
            '[station]\nname = "x"\nstate = "s"\n[source]\naddress = "p"\n[inspect]\nbundle = "b"\n'
            '[[sinks]]\nkind = "jsonl"\npath = "a"\n[[sinks]]\nkind = "jsonl"\npath = "b"',
            "Two tables [[sinks]] have the same name",
        ),
        (
            '[station]\nname = "x"\nstate = "s"\n[source]\naddress = "p"\n[inspect]\nbundle = "b"\n'
            '[[sinks]]\nkind = "jsonl"\npath = "a"\n[[sinks]]\nkind = "jsonl"\nname = "b"\npath = "a"',
            "Two tables [[sinks]] write to the same path",
        ),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_station(text, name="station.toml", folder=Path("/"))
    assert said in str(caught.value)


@pytest.mark.parametrize("trigger", ["", '[source.trigger]\nkind = "software"\n'])
def test_controllers_can_trigger_only_a_source_that_has_a_trigger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trigger: str
) -> None:
    links: list[StationLink] = []
    of = Deliveries.of

    def listening(settings: Any, journal: Any, link: StationLink, tell: Any) -> Deliveries:
        links.append(link)
        return of(settings, journal, link, tell)

    monkeypatch.setattr(Deliveries, "of", listening)
    file = write_station(tmp_path, photos=1)
    file.write_text(file.read_text().replace("[[sinks]]", f"{trigger}[[sinks]]"))
    with Station(read_station(file), folder=tmp_path, until_end=True):
        assert (links[0].trigger is not None) == bool(trigger)


def test_the_status_names_a_lost_camera_once(tmp_path: Path) -> None:
    file = write_station(tmp_path, photos=1)
    with Station(read_station(file), folder=tmp_path, until_end=True) as station:
        told = station.status()
    lost = "rtsp://cam/x is lost: Connection refused"
    told["source"] = {"address": "rtsp://cam/x", "problem": lost}
    server = StatusServer(tmp_path / "state", lambda: told)
    printed = flowedge("station", "status", file).stdout
    server.close()
    assert [line.split(None, 1)[1].strip() for line in printed.splitlines() if "cam/x" in line] == [lost]
