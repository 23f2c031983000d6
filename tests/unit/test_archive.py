"""The archive keeps the pictures that its policy names, whole, under names that nobody outside can choose."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from flowedge.runtime.render import draw
from flowedge.runtime.station.archive import Archive
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.keeping_settings import ArchiveSettings
from flowedge.runtime.station.picture_store import PictureStore
from flowedge.runtime.station.record import Event, Record, Signal, picture_name, recorded_region
from support.made_result import made_result
from support.station_records import made_record

FRAME = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
RESULT = made_result(FRAME, np.zeros((40, 60)))
NAME = "0a1b2c3d"


def written(number: int, signal: Signal = "nok", *, pictured: bool = True) -> Record:
    """Make a record as the journal gives it back."""
    return made_record(
        number=number,
        id=f"{NAME}-{number}",
        signal=signal,
        picture=picture_name(NAME, number, signal) if pictured else None,
    )


def kept(archive: Archive, folder: Path) -> list[str]:
    """Return the pictures that are there when all has been written."""
    archive.close()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


def test_pictures_are_named_by_numbers_and_are_whole(tmp_path: Path) -> None:
    archive = Archive(ArchiveSettings(frame="png"), PictureStore(tmp_path, NAME))
    record = written(1234)
    archive.put(record, RESULT)
    assert kept(archive, tmp_path) == [
        f"{NAME}/0000001/0000001234-nok.frame.png",
        f"{NAME}/0000001/0000001234-nok.jpg",
    ]
    folder = tmp_path / NAME / "0000001"
    with Image.open(folder / "0000001234-nok.frame.png") as frame:
        assert np.array_equal(np.asarray(frame), FRAME)
    with Image.open(folder / "0000001234-nok.jpg") as findings:
        findings.load()
        assert findings.size == draw(RESULT).shape[1::-1]
    assert archive.find(record) == folder / "0000001234-nok.jpg"
    assert archive.find(written(1235)) is None
    assert (archive.status.written, archive.status.dropped, archive.status.problem) == (1, 0, "")
    assert archive.status.size == sum(path.stat().st_size for path in folder.iterdir())


def test_the_journal_names_a_picture_as_the_archive_does(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite", reserve_bytes=1 << 16) as journal:
        archive = Archive(ArchiveSettings(), PictureStore(tmp_path / "archive", journal.name))
        (record,) = journal.append([made_record(picture="", source_id="../../etc/passwd", part="/x")]).records
        archive.put(record, RESULT)
        archive.close()
        assert record.picture is not None
        assert archive.find(record) == tmp_path / "archive" / record.picture
        assert re.fullmatch(r"[0-9a-f]{8}/0000000/0000000001-ok\.jpg", record.picture)


class BusyStore(PictureStore):
    """A store whose size is known only once a test allows it."""

    def __init__(self, folder: Path, journal: str) -> None:
        super().__init__(folder, journal)
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    @property
    def size(self) -> int:
        self.is_asked.set()
        assert self.may_answer.wait(60)
        return super().size


def test_no_frame_waits_for_somebody_who_looks_at_a_busy_archive(tmp_path: Path) -> None:
    store = BusyStore(tmp_path, NAME)
    archive = Archive(ArchiveSettings(), store)
    looking = threading.Thread(target=lambda: archive.status)
    looking.start()
    assert store.is_asked.wait(60)
    line = threading.Thread(target=archive.put, args=(written(1, pictured=False), RESULT))
    line.start()
    line.join(5)
    has_waited = line.is_alive()
    store.may_answer.set()
    for thread in (line, looking):
        thread.join()
    archive.close()
    assert not has_waited


def test_the_status_does_not_wait_while_a_large_folder_is_counted(tmp_path: Path) -> None:
    archive = Archive(ArchiveSettings(), store := PictureStore(tmp_path, NAME))
    looking = threading.Thread(target=lambda: archive.status)
    with store._lock:
        looking.start()
        looking.join(5)
        has_waited = looking.is_alive()
    archive.close()
    assert not has_waited


def test_pictures_are_written_while_others_are_counted_and_deleted(tmp_path: Path) -> None:
    store = PictureStore(tmp_path, NAME)
    is_over = threading.Event()

    def tidy() -> None:
        while not is_over.is_set():
            store.scan()
            store.delete_up_to(10**9, "ok")

    tidying = threading.Thread(target=tidy)
    tidying.start()
    try:
        for number in range(1, 200):
            store.write(picture_name(NAME, number, "ok"), b"x")
    finally:
        is_over.set()
        tidying.join()
    store.scan()
    assert store.size == len(list(tmp_path.rglob("*.jpg")))


@pytest.mark.parametrize(
    "record_id", ["", "../../../x-1", f"{NAME}-1/../2", f"{NAME}-{'9' * 99}", "line-1/7"]
)
def test_an_id_from_elsewhere_finds_no_file(tmp_path: Path, record_id: str) -> None:
    assert PictureStore(tmp_path, NAME).find(record_id, "ok") is None


def test_all_nok_and_one_in_n_ok_are_wanted(tmp_path: Path) -> None:
    archive = Archive(ArchiveSettings(ok_one_in=3), PictureStore(tmp_path, NAME))
    assert [archive.wants("ok") for _ in range(7)] == [True, False, False, True, False, False, True]
    assert all(archive.wants("nok") for _ in range(3))
    archive.close()
    never = Archive(ArchiveSettings(ok_one_in=0, nok=False), PictureStore(tmp_path, NAME))
    assert not never.wants("ok")
    assert not never.wants("nok")
    never.close()
    off = Archive(ArchiveSettings(enabled=False), PictureStore(tmp_path, NAME))
    assert not off.wants("nok")
    off.put(written(1), RESULT)
    assert kept(off, tmp_path) == []


def test_frames_around_an_event_are_kept(tmp_path: Path) -> None:
    settings = ArchiveSettings(frames_before=2, frames_after=3, frame="none")
    archive = Archive(settings, PictureStore(tmp_path, NAME))
    for number in range(1, 21):
        archive.put(written(number, "ok", pictured=False), RESULT)
        if number == 10:
            archive.event(Event(kind="drift", level="alarm", text="the scores rise"))
        if number == 17:
            archive.event(Event(kind="started", text="no reason for pictures"))
    assert [int(name[-13:-7]) for name in kept(archive, tmp_path)] == [9, 10, 11, 12, 13]


def test_a_frame_that_its_regions_reject_is_painted_although_its_score_is_ok(tmp_path: Path) -> None:
    values = np.zeros((40, 60))
    values[10:20, 10:30] = 3
    result = made_result(FRAME, values, verdict="ok", image_threshold=9.0)
    (region,) = result.regions
    record = msgspec.structs.replace(
        written(1), verdict="ok", regions=(recorded_region(region, length_px=22.0, mm_per_px=None),)
    )
    archive = Archive(ArchiveSettings(frame="none"), PictureStore(tmp_path, NAME))
    archive.put(record, result)
    archive.put(msgspec.structs.replace(record, number=2, id=f"{NAME}-2", picture=None, signal="ok"), result)
    archive.event(Event(kind="drift", level="alarm", text=""))
    archive.close()
    red = {}
    for name in names(tmp_path):
        with Image.open(tmp_path / NAME / "0000000" / f"{name}.jpg") as picture:
            pixels = np.asarray(picture).astype(int)
        red[name[-3:]] = int(((pixels[..., 0] > 200) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)).sum())
    assert red["nok"] > red["-ok"] + 100


def test_the_archive_makes_no_map_in_a_result_of_the_line(tmp_path: Path) -> None:
    result = made_result(FRAME, np.zeros((40, 60)), verdict="ok")
    archive = Archive(ArchiveSettings(), PictureStore(tmp_path, NAME))
    archive.put(written(1, "ok"), result)
    archive.close()
    assert archive.status.written == 1
    assert not {"anomaly_map", "mask", "regions"} & set(vars(result))


def test_a_frame_that_was_not_judged_is_kept_bare(tmp_path: Path) -> None:
    archive = Archive(ArchiveSettings(), PictureStore(tmp_path, NAME))
    archive.put(written(1), None, FRAME)
    archive.put(written(2), None)
    assert kept(archive, tmp_path) == [f"{NAME}/0000000/0000000001-nok.jpg"]


class SlowStore(PictureStore):
    """A store whose disk stands still until it is let go."""

    def __init__(self, folder: Path, journal: str) -> None:
        super().__init__(folder, journal)
        self.go = threading.Event()
        self.begun = threading.Event()

    def write(self, name: str, content: bytes) -> None:
        self.begun.set()
        assert self.go.wait(20)
        super().write(name, content)


def test_a_disk_that_stands_still_never_holds_up_the_line(tmp_path: Path) -> None:
    store, told = SlowStore(tmp_path, NAME), list[Event]()
    large = made_result(np.zeros((400, 400, 3), np.uint8), np.zeros((400, 400)))
    archive = Archive(ArchiveSettings(waiting_mib=3, frame="none"), store, told.append)
    archive.put(written(1), large)
    assert store.begun.wait(20)
    for number in range(2, 8):
        archive.put(written(number), large)
    # A frame of 480 kB counts as 1.4 MB with its map, so two of them may wait.
    assert (archive.status.waiting, archive.status.dropped) == (2, 4)
    assert [event.kind for event in told] == ["picture_dropped"]
    store.go.set()
    assert len(kept(archive, tmp_path)) == 3


def filled(folder: Path, numbers: dict[Signal, range], size: int = 1000) -> PictureStore:
    store = PictureStore(folder, NAME)
    for signal, span in numbers.items():
        for number in span:
            store.write(picture_name(NAME, number, signal), bytes(size))
    return store


def names(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".jpg") for path in folder.rglob("*.jpg"))


def test_the_oldest_accepted_pictures_are_deleted_first_and_then_the_oldest_rejected(tmp_path: Path) -> None:
    store = filled(tmp_path, {"ok": range(998, 1003), "nok": range(1, 4)})
    assert store.size == 8000
    assert store.delete_oldest(2500) == 3000
    assert names(tmp_path)[3:] == ["0000001001-ok", "0000001002-ok"]
    assert store.delete_oldest(3000) == 3000
    assert names(tmp_path) == ["0000000002-nok", "0000000003-nok"]
    assert store.size == 2000
    assert store.delete_oldest(9000) == 2000
    assert (store.size, list((tmp_path / NAME).iterdir())) == (0, [])


def test_pictures_up_to_a_number_are_deleted_and_those_of_an_older_journal_are_the_oldest(
    tmp_path: Path,
) -> None:
    older = "ffffffff"  # sorts behind the present journal by its name
    PictureStore(tmp_path, older).write(picture_name(older, 5, "ok"), bytes(1000))
    store = filled(tmp_path, {"ok": range(1, 5)})
    store.scan()
    assert store.size == 5000
    store.delete_up_to(2, "ok")
    assert names(tmp_path) == ["0000000003-ok", "0000000004-ok", "0000000005-ok"]
    store.delete_up_to(9, "nok")
    store.delete_oldest(1)
    assert names(tmp_path) == ["0000000003-ok", "0000000004-ok"]


def test_pictures_make_room_only_on_the_disk_that_is_full(tmp_path: Path) -> None:
    store = filled(tmp_path, {"ok": range(1, 4)})
    archive = Archive(ArchiveSettings(), store)
    archive.make_room(Path("/proc"))
    assert len(names(tmp_path)) == 3
    archive.make_room(tmp_path)
    assert names(tmp_path) == []
    archive.close()


def test_a_scan_deletes_half_written_pictures_and_leaves_everything_else(tmp_path: Path) -> None:
    filled(tmp_path, {"nok": range(1, 3)})
    folder = tmp_path / NAME / "0000000"
    (folder / ".0000000007-nok.jpg.partial").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "mine.jpg").write_bytes(b"mine")
    (tmp_path / "other").symlink_to("/")
    again = PictureStore(tmp_path, NAME)
    again.scan()
    assert again.size == 2000
    assert again.delete_oldest(10**9) == 2000
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt"]
    assert (tmp_path / "mine.jpg").read_bytes() == b"mine"


def test_a_picture_that_cannot_be_written_leaves_nothing_and_the_next_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(ArchiveSettings(frame="none"), PictureStore(tmp_path, NAME))
    calls: list[int] = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    archive.put(written(1), RESULT)
    archive.put(written(2), RESULT)
    assert kept(archive, tmp_path) == [f"{NAME}/0000000/0000000002-nok.jpg"]
    assert (archive.status.written, archive.status.dropped) == (1, 1)


def test_a_full_disk_is_told_although_pictures_were_dropped_for_haste_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = SlowStore(tmp_path, NAME), list[Event]()
    large = made_result(np.zeros((400, 400, 3), np.uint8), np.zeros((400, 400)))
    archive = Archive(ArchiveSettings(waiting_mib=3, min_free_gib=1, frame="none"), store, told.append)
    archive.put(written(1), large)
    assert store.begun.wait(20)
    for number in range(2, 8):
        archive.put(written(number), large)
    monkeypatch.setattr(PictureStore, "free", property(lambda self: 1 << 20))
    store.go.set()
    archive.close()
    assert [event.kind for event in told] == ["picture_dropped", "disk_low"]


def test_the_size_and_the_free_space_of_the_disk_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, {"ok": range(1, 11)}, size=200_000)
    free = {"now": 10 << 30}
    monkeypatch.setattr(PictureStore, "free", property(lambda self: free["now"]))
    told: list[Event] = []
    archive = Archive(ArchiveSettings(max_gib=0.001, min_free_gib=1, frame="none"), store, told.append)
    archive.put(written(50), RESULT)
    archive.close()
    assert "0000000050-nok" in names(tmp_path)
    assert store.size - (tmp_path / NAME / "0000000" / "0000000050-nok.jpg").stat().st_size <= 0.001 * 2**30
    free["now"] = 1 << 20
    full = Archive(ArchiveSettings(min_free_gib=1), store, told.append)
    full.put(written(51), RESULT)
    full.close()
    assert names(tmp_path) == []
    assert [event.kind for event in told] == ["disk_low"]
    assert "less than 1 GiB free" in full.status.problem
