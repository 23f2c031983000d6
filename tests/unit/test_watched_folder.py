"""A watched folder gives each picture once, when it is complete, and goes on where the folder is made again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flowedge.errors import SourceError
from flowedge.runtime.sources import SourceSettings, open_source
from flowedge.runtime.sources.settings import SoftwareTrigger
from flowedge.runtime.sources.triggers import Triggered
from support.picture_files import encoded, photograph
from support.source_reader import SourceReader

pytest.importorskip("watchdog", reason="the package watchdog is not installed")
PNG = encoded(photograph(), "PNG")


def read(
    folder: Path, *, watch: bool = True, judged: frozenset[tuple[str, str]] = frozenset()
) -> SourceReader:
    settings = SourceSettings(address=str(folder), watch=watch)
    return SourceReader(lambda tell: open_source(settings, tell=tell, seen=lambda *key: key in judged))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "in"
    place.mkdir()
    return place


@pytest.fixture
def watched(folder: Path) -> Iterator[SourceReader]:
    with read(folder) as source:
        yield source


def test_pictures_that_are_there_come_first_in_the_order_of_their_last_change(folder: Path) -> None:
    changed = {"part10.png": 7, "part2.png": 7, "a.png": 9, "z.png": 1, ".hidden.png": 0, "notes.txt": 0}
    for name, seconds in (changed | {"old.overlay.png": 0}).items():
        (folder / name).write_bytes(PNG)
        os.utime(folder / name, (seconds, seconds))
    with read(folder) as source:
        # The names decide between two pictures of the same moment, and their numbers count as numbers.
        order = ["z.png", "part2.png", "part10.png", "a.png"]
        assert [Path(source.next().id).name for _ in range(4)] == order
        assert source.is_quiet()


def test_pictures_that_come_while_the_line_is_busy_keep_their_order_and_their_times(folder: Path) -> None:
    source = open_source(SourceSettings(address=str(folder), watch=True), tell=lambda event: None)
    frames = source.frames()
    (folder / "first.png").write_bytes(PNG)
    assert Path(next(frames).id).name == "first.png"
    came = {}
    for name in ("z.png", "m.png", "a.png"):  # Nobody takes a frame meanwhile.
        (folder / name).write_bytes(PNG)
        came[name] = time.monotonic()
        time.sleep(0.4)
    taken = [next(frames) for _ in came]
    assert [Path(frame.id).name for frame in taken] == list(came)
    gaps = np.diff([frame.monotonic_ns / 1e9 for frame in taken])
    assert gaps == pytest.approx(np.diff(list(came.values())), abs=0.35)
    source.close()


def test_a_cut_picture_keeps_its_place_where_a_trigger_names_the_parts(folder: Path) -> None:
    settings = SourceSettings(address=str(folder), watch=True, trigger=SoftwareTrigger(wait_s=20))
    with SourceReader(lambda tell: open_source(settings, tell=tell)) as source:
        assert isinstance(source.source, Triggered)
        for part, name, data in (("1", "z.png", PNG[: len(PNG) // 2]), ("2", "a.png", PNG)):
            assert not source.source.trigger(part)
            (folder / name).write_bytes(data)
        frames = [source.next() for _ in range(2)]
    assert [(frame.part, Path(frame.id).name) for frame in frames] == [("1", "z.png"), ("2", "a.png")]
    assert [bool(frame.problem) for frame in frames] == [True, False]


def test_a_file_that_is_written_slowly_comes_once_and_whole(folder: Path, watched: SourceReader) -> None:
    with open(folder / "slow.png", "wb", buffering=0) as file:
        for part in np.array_split(np.frombuffer(PNG, np.uint8), 4):
            assert watched.is_quiet(0.3)
            file.write(part.tobytes())
    frame = watched.next()
    assert (frame.id, frame.problem, frame.pixels.shape) == (str(folder / "slow.png"), "", (97, 131, 3))
    assert frame.monotonic_ns > 0
    assert watched.is_quiet()


def test_a_file_that_is_renamed_comes_under_its_last_name(folder: Path, watched: SourceReader) -> None:
    (folder / "a.part").write_bytes(PNG)
    (folder / "a.part").rename(folder / "a.png")
    (folder.parent / "outside.png").write_bytes(PNG)
    (folder.parent / "outside.png").rename(folder / "b.png")
    assert {watched.next().id, watched.next().id} == {str(folder / "a.png"), str(folder / "b.png")}
    assert watched.is_quiet()


def test_a_picture_that_is_written_again_comes_again(folder: Path, watched: SourceReader) -> None:
    (folder / "a.png").write_bytes(PNG)
    first = watched.next()
    (folder / "a.png").write_bytes(encoded(photograph(50, 60), "PNG"))
    second = watched.next()
    assert (first.id, second.pixels.shape) == (second.id, (50, 60, 3))
    assert first.version != second.version


def test_a_file_that_stays_cut_comes_with_its_problem(folder: Path, watched: SourceReader) -> None:
    (folder / "cut.png").write_bytes(PNG[: len(PNG) // 2])
    frame = watched.next()
    assert "is damaged" in frame.problem
    assert frame.pixels.size == 0


def test_a_folder_that_is_deleted_and_made_again_is_noticed(folder: Path, watched: SourceReader) -> None:
    (folder / "a.png").write_bytes(PNG)
    watched.next()
    shutil.rmtree(folder)
    lost = watched.event()
    folder.mkdir()
    back = watched.event()
    assert (lost.kind, back.kind) == ("source_lost", "source_back")
    (folder / "b.png").write_bytes(PNG)
    assert watched.next().id == str(folder / "b.png")
    (folder / "sub").mkdir()
    (folder / "sub" / "c.png").write_bytes(PNG)
    assert watched.next().id == str(folder / "sub" / "c.png")


def test_a_picture_that_has_its_record_is_left_out(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(PNG)
    state = os.stat(folder / "a.png")
    judged = frozenset({(str(folder / "a.png"), f"{state.st_size}-{state.st_mtime_ns}")})
    for watch in (True, False):
        with read(folder, watch=watch, judged=judged) as source:
            assert source.next().id == str(folder / "b.png")
            assert source.is_quiet()


def test_many_files_at_once_come_once_each(folder: Path, watched: SourceReader) -> None:
    small = encoded(photograph(8, 8), "PNG")
    for number in range(300):
        (folder / f"{number}.png").write_bytes(small)
    assert len({watched.next().id for _ in range(300)}) == 300
    assert watched.is_quiet()


def test_closing_ends_an_iteration_that_waits(watched: SourceReader) -> None:
    time.sleep(0.1)
    watched.close()


def test_a_folder_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_source(SourceSettings(address=str(tmp_path / "none"), watch=True))
