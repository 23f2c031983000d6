"""A file of JSON lines has every record as one whole line, whatever happens to the process, the disk or the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowedge.runtime.settings import settings_from
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.sinks import RecordSink, SinkError, StationLink, make_sink, probe
from flowedge.runtime.station.sinks.payload import schema_text
from flowedge.runtime.station.sinks.settings import JsonLinesSettings
from support.station_records import made_record

LINK = StationLink(station="line-1", run="run-1")


def output_of(program: str) -> str:
    """Run a program of Python that may import what supports the tests, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    return done.stdout


def sink_of(path: Path, **settings: Any) -> RecordSink:
    sink = make_sink(JsonLinesSettings(path=path, **settings), LINK)
    sink.open()
    return sink


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["number"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_is_the_record(tmp_path: Path) -> None:
    record = made_record(7, part="Gehäuse\n7", score=float("nan"))
    sink = sink_of(tmp_path / "records.jsonl")
    sink.deliver([record])
    sink.event(Event(kind="drift", text="the scores rise"))
    sink.close()
    first, second = (tmp_path / "records.jsonl").read_bytes().splitlines()
    assert msgspec.json.decode(first, type=Record).part == "Gehäuse\\n7"
    assert json.loads(first)["score"] is None
    assert json.loads(second)["kind"] == "drift"


def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    sink = sink_of(path)
    sink.deliver([made_record(1)])
    sink.close()
    with path.open("ab") as file:
        file.write(b'{"number":2,"id":"li')
    sink = sink_of(path)
    sink.deliver([made_record(2)])
    sink.close()
    assert numbers(path) == [1, 2]


def test_a_foreign_last_line_without_an_end_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a note", encoding="utf-8")
    sink = sink_of(path)
    sink.deliver([made_record(1)])
    sink.close()
    note, line = path.read_text(encoding="utf-8").splitlines()
    assert (note, json.loads(line)["number"]) == ("a note", 1)


def test_a_full_file_is_renamed_and_the_oldest_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    sink = sink_of(path, rotate_mib=0.001, keep=2)
    for number in range(1, 13):
        sink.deliver([made_record(number)])
    sink.close()
    files = sorted(tmp_path.glob("records-*.jsonl"))
    assert len(files) == 2
    kept = [number for file in files for number in numbers(file)]
    kept += numbers(path) if path.exists() else []
    assert kept == list(range(kept[0], 13))
    assert all(int(file.stem.removeprefix("records-")) == numbers(file)[-1] for file in files)


def test_a_journal_that_began_anew_overwrites_no_full_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    sink = sink_of(path, rotate_mib=0.0001)
    sink.deliver([made_record(1)])
    sink.deliver([made_record(1)])
    sink.close()
    assert len(list(tmp_path.glob("records-*.jsonl"))) == 2


def test_a_file_that_another_program_moves_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    sink = sink_of(path)
    sink.deliver([made_record(1)])
    path.rename(tmp_path / "moved.jsonl")
    sink.deliver([made_record(2)])
    sink.close()
    assert (numbers(tmp_path / "moved.jsonl"), numbers(path)) == ([1], [2])


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    line = len(msgspec.json.encode(made_record(1))) + 1
    # The limit on the size of files stands for the full disk, in a process of its own.
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from support.station_records import made_record\n"
        "from flowedge.runtime.station.sinks import SinkError\n"
        "from flowedge.runtime.station.sinks.jsonl import JsonLinesSink\n"
        "from flowedge.runtime.station.sinks.settings import JsonLinesSettings\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "sys.dont_write_bytecode = True\n"  # Python would keep compiled modules that the limit cut
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({line} * 5 // 2, resource.RLIM_INFINITY))\n"
        f"sink = JsonLinesSink(JsonLinesSettings(path=Path({str(path)!r})))\n"
        "try:\n"
        "    sink.deliver([made_record(n) for n in (1, 2, 3, 4)])\n"
        "except SinkError as error:\n"
        "    print(error)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "sink.deliver([made_record(n) for n in (1, 2, 3, 4)])\n"
    )
    assert "File too large" in output_of(program)
    assert numbers(path) == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["folder", "link", "fifo", "missing folder"])
def test_what_is_no_regular_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "records.jsonl"
    match kind:
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "fifo":
            os.mkfifo(path)
        case _:
            path = tmp_path / "missing" / "records.jsonl"
    with pytest.raises(SinkError, match=r"records\.jsonl cannot be written: "):
        probe(JsonLinesSettings(path=path), LINK)
    assert not (tmp_path / "elsewhere").exists()


def test_a_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    assert probe(JsonLinesSettings(path=path), LINK) == f"{path} can be written."
    assert not path.exists()


def test_the_standard_output_is_a_file_named_by_a_dash(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from support.station_records import made_record\n"
        "from flowedge.runtime.settings import settings_from\n"
        "from flowedge.runtime.station.sinks.jsonl import JsonLinesSink\n"
        "from flowedge.runtime.station.sinks.settings import JsonLinesSettings\n"
        "settings = settings_from({'kind': 'jsonl', 'path': '-'}, JsonLinesSettings, name='', folder=Path('/x'))\n"
        "JsonLinesSink(settings).deliver([made_record(1), made_record(2)])\n"
    )
    assert [json.loads(line)["number"] for line in output_of(program).splitlines()] == [1, 2]


def test_a_relative_path_is_beside_the_settings_file(tmp_path: Path) -> None:
    settings = settings_from(
        {"kind": "jsonl", "path": "out/r.jsonl"}, JsonLinesSettings, name="", folder=tmp_path
    )
    assert settings.path == tmp_path / "out" / "r.jsonl"


def test_the_schema_in_the_documentation_is_that_of_the_payload() -> None:
    file = Path(__file__).parents[2] / "docs" / "station.schema.json"
    assert file.read_text(encoding="utf-8") == schema_text(), "write it by: make schema"


def test_what_a_sink_sends_fits_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="checking the schema needs jsonschema")
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for item in (made_record(1), Event(kind="drift", text="the scores rise")):
        validator.validate(json.loads(msgspec.json.encode(item)))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"number": 1})
