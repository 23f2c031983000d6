"""A station's journal loses nothing that it has acknowledged, and gives it back in order."""

from __future__ import annotations

import datetime
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import pytest

from flowedge.errors import JournalError
from flowedge.runtime.station import journal_file
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.journal_reader import JournalReader
from flowedge.runtime.station.journal_writer import JournalWriter
from flowedge.runtime.station.record import Event
from support.station_records import made_record

SMALL = 1 << 16
TAKEN = datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.timezone.utc)


def opened(folder: Path) -> Journal:
    return Journal(folder / "journal.sqlite", station="line 1", reserve_bytes=SMALL)


def test_records_come_back_as_they_were_with_numbers_and_names(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        given = [made_record(source_id=str(one), signal="nok" if one % 2 else "ok") for one in range(5)]
        taken = journal.append(given).records
        assert [one.number for one in taken] == [1, 2, 3, 4, 5]
        assert len({one.id for one in taken}) == 5
        assert journal.records() == list(taken)
        assert journal.records(after=1, limit=2) == list(taken[1:3])
        assert journal.records(before=4, limit=2, newest=True) == list(taken[1:3])
        assert journal.records(signal="nok") == [taken[1], taken[3]]
        assert journal.record(3) == taken[2]
        assert journal.record(6) is None
        assert (journal.last(), journal.last_event()) == (5, 0)


def test_numbers_and_names_go_on_after_a_restart_and_differ_between_journals(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        first = journal.append([made_record()]).records[0]
    with opened(tmp_path) as again:
        second = again.append([made_record()]).records[0]
        assert (first.number, second.number) == (1, 2)
        assert again.run != journal.run
    (tmp_path / "other").mkdir()
    with opened(tmp_path / "other") as other:
        assert other.append([made_record()]).records[0].id != first.id


def test_a_journal_restored_from_a_backup_gives_no_id_and_no_run_again(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append([made_record()])
    shutil.copytree(tmp_path, tmp_path / "backup")
    with opened(tmp_path) as journal:
        lost = journal.append(
            [made_record(source_id="lost")], [Event(kind="drift", level="info", text="lost")]
        )
    with opened(tmp_path / "backup") as restored:
        new = restored.append([made_record(source_id="new")], [Event(kind="drift", level="info", text="new")])
        assert new.records[0].number == lost.records[0].number
        assert new.records[0].id != lost.records[0].id
        assert new.events[0].id != lost.events[0].id
        assert restored.run != journal.run


def test_an_event_knows_the_newest_record_and_the_run(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(
            [made_record(), made_record()], [Event(kind="drift", level="alarm", text="the scores rise")]
        )
        (event,) = journal.events()
        assert (event.number, event.record, event.station, event.run) == (1, 2, "line 1", journal.run)
        assert journal.events(after=1) == []


def test_threads_share_commits_and_each_keeps_its_order(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:

        def write(name: str) -> None:
            for one in range(20):
                journal.append([made_record(source=name, source_id=str(one))])

        threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        written = journal.records()
    assert [one.number for one in written] == list(range(1, 81))
    for name in "abcd":
        assert [one.source_id for one in written if one.source == name] == [str(one) for one in range(20)]


def test_a_record_that_cannot_be_read_again_is_refused_and_takes_no_other_with_it(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        waiting = [
            journal.submit([made_record(source_id="a")]),
            journal.submit([made_record(stages_ms={"infer": "fast"})]),
            journal.submit([made_record(source_id="b")]),
        ]
        assert waiting[0].result().records[0].number == 1
        with pytest.raises(Exception, match="float"):
            waiting[1].result()
        assert waiting[2].result().records[0].number == 2
        assert [one.source_id for one in journal.records()] == ["a", "b"]


def test_the_clock_may_jump_and_the_order_stays(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        hours = (0, 25, -100, 1)
        times = [TAKEN + datetime.timedelta(hours=hour) for hour in hours]
        for moment in times:
            journal.append([made_record(time=moment)])
        assert [one.time for one in journal.records()] == times
        assert [one.number for one in journal.records(since=TAKEN)] == [1, 2, 4]


def test_a_station_that_starts_on_a_full_disk_gets_the_room_of_the_reserve(small_disk: Path) -> None:
    with Journal(small_disk / "journal.sqlite") as journal:
        journal.append([made_record()])
        while not (small_disk / "journal.sqlite.reserve").exists():
            time.sleep(0.01)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as opened_filler:
        fill(opened_filler)
    with Journal(small_disk / "journal.sqlite") as again:
        assert again.append([made_record()]).records[0].number == 2
        assert again.damage() == []
    with filler.open("ab", buffering=0) as opened_filler, pytest.raises(OSError, match="No space"):
        fill(opened_filler)
    with pytest.raises(JournalError, match=r"cannot be opened.*free space"):
        Journal(small_disk / "journal.sqlite")


def test_the_first_start_on_a_full_disk_is_an_error_in_words(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space"), (small_disk / "filler").open("wb", buffering=0) as filler:
        fill(filler)
    with pytest.raises(JournalError, match="free space"):
        Journal(small_disk / "journal.sqlite")


def fill(file: IO[bytes]) -> None:
    while True:
        file.write(bytes(4096))


def test_a_file_with_its_record_is_known_until_it_changes(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        assert not journal.seen("/in/a\nb.png", "9-1")
        journal.append([made_record(source_id="/in/a\nb.png", source_key="9-1"), made_record(source_id="7")])
        assert journal.seen("/in/a\nb.png", "9-1")
        assert not journal.seen("/in/a\nb.png", "9-2")
        assert not journal.seen("7", "")


def test_cursors_survive_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        assert journal.cursor("mqtt") is None
        journal.move_cursor("mqtt", 1)
        journal.move_cursor("mqtt/events", 7)
        assert journal.cursor("mqtt") == 1
    with opened(tmp_path) as again:
        assert again.cursors() == {"mqtt": 1, "mqtt/events": 7}
        assert again.cursor("mqtt/events") == 7


def test_two_stations_do_not_write_to_one_journal_and_a_reader_may_look(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append([made_record()])
        with pytest.raises(JournalError, match="in use by another station"):
            opened(tmp_path)
        with JournalReader(tmp_path / "journal.sqlite") as reader:
            assert len(reader.records()) == 1
            assert reader.damage() == []
    journal.close()  # a second time changes nothing
    with pytest.raises(JournalError, match="closed"):
        journal.append([made_record()])
    with pytest.raises(JournalError, match="closed"):
        journal.records()
    opened(tmp_path).close()


def test_a_journal_of_a_newer_version_is_refused_in_words(tmp_path: Path) -> None:
    opened(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "journal.sqlite")
    connection.execute(f"PRAGMA user_version = {journal_file.VERSION + 1}")
    connection.close()
    in_words = f"newer FlowEdge.*up to {journal_file.VERSION}"
    with pytest.raises(JournalError, match=in_words):
        opened(tmp_path)
    with pytest.raises(JournalError, match=in_words):
        JournalReader(tmp_path / "journal.sqlite")


def test_a_file_that_is_no_journal_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    with pytest.raises(JournalError, match="does not exist"):
        JournalReader(file)
    file.write_bytes(b"no database " * 100)
    with pytest.raises(JournalError, match="damaged or is no database"):
        opened(tmp_path)
    assert file.read_bytes() == b"no database " * 100
    file.unlink()
    connection = sqlite3.connect(file)
    connection.executescript("CREATE TABLE mine (x); PRAGMA user_version = 3;")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(JournalError, match="no station's journal"):
        opened(tmp_path)
    assert file.read_bytes() == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: that needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_on_a_full_disk_the_reserve_is_freed_and_nothing_acknowledged_is_lost(small_disk: Path) -> None:
    filler = small_disk / "filler"
    made_room: list[int] = []
    with Journal(small_disk / "journal.sqlite", on_full=lambda: made_room.append(1)) as journal:
        filler.write_bytes(bytes(8 << 20))
        acknowledged: list[int] = []

        def fill() -> None:
            while True:
                acknowledged.append(
                    journal.append([made_record(source_id="x" * 2000)] * 20).records[-1].number
                )

        with pytest.raises(JournalError, match=r"journal\.sqlite cannot be written: .*full.*Make room"):
            fill()
        assert made_room
        assert "full" in journal.problem
        assert [event.kind for event in journal.events()] == ["disk_low"]
        assert journal.last() == acknowledged[-1]
        with pytest.raises(JournalError):
            journal.append([made_record(source_id="x" * 2000)] * 20)
        filler.unlink()
        assert journal.append([made_record()]).records[0].number == acknowledged[-1] + 1
        assert journal.problem == ""
        assert journal.damage() == []
    with Journal(small_disk / "journal.sqlite") as again:
        assert again.last() == acknowledged[-1] + 1


def test_the_event_of_a_full_disk_is_written_later_where_its_first_transaction_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = JournalWriter._transaction
    failures = iter(["database or disk is full", "database or disk is full"])

    def transaction(writer: JournalWriter, jobs: Any, **options: Any) -> list[Any]:
        if jobs and (failure := next(failures, None)):
            raise sqlite3.OperationalError(failure)
        return begun(writer, jobs, **options)

    with opened(tmp_path) as journal:
        monkeypatch.setattr(JournalWriter, "_transaction", transaction)
        assert journal.append([made_record()]).records[0].number == 1
        journal.append([made_record()])
        assert [event.kind for event in journal.events()] == ["disk_low"]


def test_records_are_found_by_signal_verdict_and_part(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(
            [
                made_record(part="a'\" OR 1=1 --", verdict="ok", signal="ok"),
                made_record(part="b", verdict="ok", signal="nok", reason="late"),
                made_record(part="b", verdict="not_inspected", signal="nok", score=None),
                made_record(part=None, verdict="anomalous", signal="nok"),
            ]
        )

        def numbers(**wanted: Any) -> list[int]:
            return [one.number for one in journal.records(**wanted)]

        assert numbers(signal="ok") == [1]
        assert numbers(signal="nok") == [2, 3, 4]
        assert numbers(verdict="ok") == [1, 2]
        assert numbers(part="b") == [2, 3]
        assert numbers(part="a'\" OR 1=1 --") == [1]
        assert numbers(part="b", verdict="not_inspected", signal="nok", newest=True, limit=1) == [3]
        assert (journal.first(), journal.last()) == (1, 4)
        # Without the index, the newest rejected record of a long journal of good ones is found by reading all.
        plan = journal.rows(
            "EXPLAIN QUERY PLAN SELECT body FROM records WHERE number > 0 AND signal = 'nok' ORDER BY number DESC"
        )
        assert "records_nok" in str(plan)
        plan = journal.rows(
            "EXPLAIN QUERY PLAN SELECT body FROM records WHERE number > 0 AND json_extract(body, '$.part') = 'b'"
        )
        assert "records_of_parts" in str(plan)


# Three threads write, and each tells its number only when the journal has acknowledged it.
WRITER = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from flowedge.runtime.station.journal import Journal
from support.station_records import made_record

journal = Journal(Path(sys.argv[1]), reserve_bytes=1 << 16)
telling = threading.Lock()

def write(name):
    count = 0
    while True:
        (record,) = journal.append([made_record(source=name, source_id=str(count))]).records
        journal.move_cursor("sink", record.number)
        count += 1
        with telling:
            sys.stdout.write(f"{record.number} {record.id} {name} {record.source_id}\\n")
            sys.stdout.flush()

for name in "abc":
    threading.Thread(target=write, args=(name,)).start()
"""


def test_a_writer_that_is_killed_loses_nothing_that_it_was_told_is_written(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    support = str(Path(__file__).parents[1])
    told: list[list[str]] = []
    for count in (30, 57):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file), support], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            told += [writer.stdout.readline().split() for _ in range(count)]
            writer.kill()
            # What was in the pipe was acknowledged as well. The last line may be cut.
            told += [line.split() for line in writer.stdout.read().splitlines() if line.count(" ") == 3][:-1]
        with opened(tmp_path) as journal:
            assert journal.damage() == []
            records = journal.records(limit=10**6)
            assert [one.number for one in records] == list(range(1, len(records) + 1))
            assert len({one.id for one in records}) == len(records)
            written = {(str(one.number), one.id, one.source, one.source_id) for one in records}
            assert {tuple(line) for line in told} <= written
            # A cursor may be behind, which repeats a delivery, and never ahead, which would lose one.
            assert 0 <= (journal.cursor("sink") or 0) <= len(records)
            for name in "abc":
                order = [
                    int(one.source_id)
                    for one in records
                    if one.source == name and one.id in {t[1] for t in told}
                ]
                assert all(later == earlier + 1 or later == 0 for earlier, later in pairwise(order))


def test_a_journal_of_an_older_version_is_brought_up_to_date(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    with opened(tmp_path) as journal:
        journal.append([made_record(source_id="/in/a.png", source_key="1-1", part="7")])
        before = journal.records()
    connection = sqlite3.connect(file)
    connection.executescript("DROP INDEX records_of_parts; DROP TABLE kept_files; PRAGMA user_version = 1;")
    older = schema_of(connection)
    connection.close()
    # The tables that are left are those that version 1 had.
    first = sqlite3.connect(":memory:")
    first.executescript(journal_file.MIGRATIONS[0])
    assert older == schema_of(first)
    first.close()
    with JournalReader(file) as reader:  # a reader changes nothing
        assert reader.records() == before
    with opened(tmp_path) as again:
        assert again.records() == before
        assert again.seen("/in/a.png", "1-1")
        assert again.append([made_record()]).records[0].number == 2
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA user_version").fetchone() == (journal_file.VERSION,)
    connection.close()


def schema_of(connection: sqlite3.Connection) -> list[tuple[str]]:
    return connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()


def test_a_migration_that_is_cut_off_leaves_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path).close()
    broken = (*journal_file.MIGRATIONS, "CREATE TABLE new_one (x); INSERT INTO no_such_table VALUES (1);")
    monkeypatch.setattr(journal_file, "MIGRATIONS", broken)
    monkeypatch.setattr(journal_file, "VERSION", len(broken))
    with pytest.raises(JournalError, match="cannot be opened"):
        opened(tmp_path)
    monkeypatch.undo()
    with opened(tmp_path) as journal:
        assert journal.append([made_record()]).records[0].number == 1
        assert journal.rows("SELECT count(*) FROM sqlite_master WHERE name = 'new_one'") == [(0,)]


def test_a_disk_that_fails_for_a_while_is_told_and_the_journal_goes_on_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # Python would keep compiled modules that the limit cut
    with opened(tmp_path) as journal:
        journal.append([made_record()])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # every write beyond it fails
        try:
            with pytest.raises(JournalError, match=r"cannot be written: disk I/O error"):
                journal.append([made_record()])
            assert journal.problem
            assert len(journal.records()) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert journal.append([made_record()]).records[0].number == 2
        assert journal.problem == ""
        assert journal.damage() == []
