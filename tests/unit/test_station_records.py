"""The journal of a station is printed and exported whole, typed and in order, also while the station runs."""

from __future__ import annotations

import datetime
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowedge.errors import JournalError
from flowedge.runtime.station.check import check_station
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.parquet import export_parquet
from flowedge.runtime.station.record import Event, Record, RecordedRegion
from flowedge.runtime.station.settings import parse_station
from support.command_line import flowedge
from support.station_records import made_record

parquet: Any = pytest.importorskip("pyarrow.parquet", reason="the export needs pyarrow")

TAKEN = datetime.datetime(2026, 11, 30, 12, 0, 0, 123456, tzinfo=datetime.timezone.utc)
REGION = RecordedRegion(
    area_px=9,
    top=1,
    left=2,
    height_px=3,
    width_px=3,
    centroid=(2.0, 3.0),
    peak=7.5,
    length_px=3.6,
    area_mm2=2.25,
    length_mm=1.8,
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Open a journal with three records and two events, the last record of another day."""
    with Journal(tmp_path / "journal.sqlite", station="line 1", reserve_bytes=1 << 16) as made:
        made.append(
            [
                made_record(source_id="/in/a.png", time=TAKEN, stages_ms={"infer": 20.5, "decide": 0.25}),
                made_record(
                    source_id="/in/b\x1b[31m.png",
                    time=TAKEN,
                    verdict="anomalous",
                    signal="nok",
                    reason="the score is above the threshold",
                    severity="minor",
                    part="7",
                    regions=(REGION, REGION),
                ),
                made_record(source_id="/in/c.png", time=TAKEN + datetime.timedelta(days=2), score=None),
            ],
            [
                Event(kind="started", text="the station runs"),
                Event(kind="drift", level="alarm", text="scores rise"),
            ],
        )
        yield made


def lines_of(*arguments: str | Path) -> list[dict[str, Any]]:
    done = flowedge("station", "records", *arguments, "--json")
    assert done.status == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_line_of_json_for_each_record(journal: Journal) -> None:
    lines = lines_of(journal.path)
    assert [line["number"] for line in lines] == [1, 2, 3]
    assert [line["source_id"] for line in lines] == ["/in/a.png", "/in/b\\x1b[31m.png", "/in/c.png"]
    assert [msgspec.convert(line, Record) for line in lines] == journal.records()


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["--last", "2"], [2, 3]),
        (["--signal", "nok"], [2]),
        (["--part", "7"], [2]),
        (["--part", "8"], []),
        (["--since", "2026-12-01T00:00Z"], [3]),
        (["--since", "2026-11-30T12:00:00.123456+00:00", "--last", "9"], [1, 2, 3]),
        (["--since", "2026-12-01T00:00Z", "--signal", "nok"], []),
    ],
)
def test_records_are_chosen(journal: Journal, options: list[str], numbers: list[int]) -> None:
    assert [line["number"] for line in lines_of(journal.path, *options)] == numbers


def test_a_line_for_a_person_names_picture_part_reason_and_severity(journal: Journal) -> None:
    out = flowedge("station", "records", journal.path).stdout.splitlines()
    assert len(out) == 3
    assert "nok" in out[1]
    assert out[1].endswith(r"/in/b\x1b[31m.png, part 7: the score is above the threshold (minor)")


def test_events_are_printed_instead_of_records(journal: Journal) -> None:
    assert [line["kind"] for line in lines_of(journal.path, "--events", "--last", "1")] == ["drift"]
    assert "alarm" in flowedge("station", "records", journal.path, "--events").stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--signal", "bad"], "--signal is ok or nok, got 'bad'"),
        (["--since", "yesterday"], "--since takes a time such as"),
        (["--since", "2026-11-30", "--events"], "--events goes with"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_words(
    journal: Journal, options: list[str], words: str
) -> None:
    done = flowedge("station", "records", journal.path, *options)
    assert done.status == 2
    assert words in " ".join(done.stderr.split())


def test_the_stations_file_leads_to_its_journal(journal: Journal, tmp_path: Path) -> None:
    file = tmp_path / "station.toml"
    file.write_text(
        f'[station]\nname = "line"\nstate = "{journal.path.parent}"\n'
        '[inspect]\nbundle = "b.flowedge"\n[source]\naddress = "images"\n'
    )
    assert len(lines_of(file)) == 3
    file.write_text(file.read_text().replace(str(journal.path.parent), "elsewhere"))
    done = flowedge("station", "records", file)
    assert done.status == 2
    assert "does not exist" in done.stderr


def test_a_check_tells_of_a_journal_that_this_version_does_not_know(journal: Journal, tmp_path: Path) -> None:
    text = (
        f'[station]\nname = "line"\nstate = "{tmp_path}"\n[inspect]\nbundle = "b"\n[source]\naddress = "x"\n'
    )
    text += '[archive]\nfolder = "/proc/version"\n'
    settings = parse_station(text, name="station.toml", folder=tmp_path)
    found = {item.name: item for item in islice(check_station(settings, folder=tmp_path), 3)}
    assert found["[journal]"].text == f"{journal.path} has 3 records"
    assert found["[archive] folder"].state == "wrong"
    journal.close()
    connection = sqlite3.connect(journal.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    found = {item.name: item for item in islice(check_station(settings, folder=tmp_path), 3)}
    assert (found["[journal]"].state, "newer FlowEdge" in found["[journal]"].text) == ("wrong", True)


def test_follow_prints_what_comes(journal: Journal) -> None:
    command = [str(Path(sys.executable).with_name("flowedge")), "station", "records", str(journal.path)]
    with subprocess.Popen(
        [*command, "--json", "--follow", "--last", "1"], stdout=subprocess.PIPE, env=os.environ
    ) as follower:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["number"] == 3
        journal.append([made_record()])
        assert json.loads(follower.stdout.readline())["number"] == 4
        follower.terminate()


def test_parquet_has_typed_columns_and_nested_regions(journal: Journal, tmp_path: Path) -> None:
    file = tmp_path / "records.parquet"
    done = flowedge("station", "export", journal.path, "-o", file)
    assert (done.status, done.stdout) == (0, "")
    table = parquet.read_table(file)
    assert tuple(table.column_names) == Record.__struct_fields__
    assert table.schema.metadata[b"flowedge"]
    rows = table.to_pylist()
    for row, record in zip(rows, journal.records(), strict=True):
        row["stages_ms"] = dict(row["stages_ms"])
        assert msgspec.convert(row, Record) == record
    assert str(table.schema.field("time").type) == "timestamp[us, tz=UTC]"
    assert str(table.schema.field("score").type) == "double"
    assert rows[1]["regions"][0]["area_mm2"] == 2.25
    assert export_parquet(journal, file, signal="nok") == 1
    assert parquet.read_table(file).num_rows == 1
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("name", ["records.csv", "records", "-"])
def test_an_export_has_the_ending_of_its_format(journal: Journal, tmp_path: Path, name: str) -> None:
    done = flowedge("station", "export", journal.path, "-o", tmp_path / name)
    assert done.status == 2
    assert "Name a file that ends in .parquet" in " ".join(done.stderr.split())
    assert not (tmp_path / name).exists()


def test_a_parquet_file_that_cannot_be_written_leaves_the_old_one(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="folder exists"):
        export_parquet(journal, tmp_path / "no folder" / "x.parquet")
    (tmp_path / "x.parquet").mkdir()
    with pytest.raises(JournalError, match="cannot be written"):
        export_parquet(journal, tmp_path / "x.parquet")
    assert not list(tmp_path.glob(".*.partial"))
