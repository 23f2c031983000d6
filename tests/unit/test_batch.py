"""A batch gives exactly one row an image, whatever is wrong with the image and however often the job was killed."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import fsspec
import msgspec
import numpy as np
import pyarrow
import pytest
import webdataset
from pyarrow import dataset, parquet

import flowedge as package
from flowedge.errors import DataError, EngineUnavailableError, FlowEdgeError
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.asked_process import AskedProcess
from flowedge.runtime.batch import processes, reading
from flowedge.runtime.batch.chunks import Columns
from flowedge.runtime.batch.inspector import BatchInspector
from flowedge.runtime.batch.job import BatchSettings, BatchSummary, run_batch
from flowedge.runtime.batch.output import PartFolder
from flowedge.runtime.batch.part_maker import PartMaker
from flowedge.runtime.detector import Detector
from support.command_line import flowedge
from support.tiny_bundle import write_tiny_bundle

LIMIT = -0.03


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fitted = Thresholds(image=Threshold(value=LIMIT, method="manual"))
    return write_tiny_bundle(tmp_path_factory.mktemp("made") / "tiny.flowedge", thresholds=fitted).path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write seven images in two folders, of which one is a copy and one is no image."""
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for name in ("good/0.png", "good/1.png", "good/10.png", "scratch/a.png", "scratch/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), random.integers(0, 255, (20, 30, 3), np.uint8))
    shutil.copy(folder / "good/0.png", folder / "scratch/copy.png")
    (folder / "scratch/junk.png").write_bytes(b"no picture")
    return folder


def run(bundle: Path, *sources: Path | str, out: Path | str, **settings: Any) -> BatchSummary:
    given: dict[str, Any] = {"part_images": 3, "workers": 1, "batch": 2} | settings
    return run_batch([str(one) for one in sources], str(out), BatchSettings(bundle=str(bundle), **given))


def rows_of(out: Path | str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.dataset(str(out)).to_table().to_pylist()
    return sorted(rows, key=lambda row: str(row["image"]))


def images_of(out: Path | str) -> list[str]:
    return [row["image"] for row in rows_of(out)]


def test_every_image_has_one_row_with_the_answer_of_the_detector(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    summary = run(bundle, photos, out=tmp_path / "out", labels="folders")
    rows = rows_of(tmp_path / "out")
    files = sorted(photos.rglob("*.png"))
    assert [row["image"] for row in rows] == list(map(str, files))
    assert (summary.rows, summary.judged, len(list((tmp_path / "out").iterdir()))) == (7, 7, 3)
    with package.load(bundle) as detector:
        for row, file in zip(rows, files, strict=True):
            content = file.read_bytes()
            assert row["sha256"] == hashlib.sha256(content).hexdigest()
            assert row["label"] == file.parent.name
            if file.name == "junk.png":
                assert (row["verdict"], row["score"]) == ("not_inspected", None)
                assert "not a JPEG" in row["problem"]
                continue
            result = detector(file)
            assert row["score"] == pytest.approx(result.score, rel=1e-5)
            assert (row["verdict"], row["threshold"]) == (result.verdict, LIMIT)
            assert (row["height_px"], row["width_px"], row["problem"]) == (20, 30, "")
            assert len(row["regions"]) == len(result.regions)
    assert summary.verdicts == Counter(row["verdict"] for row in rows)
    assert {row["bundle_sha256"] for row in rows} == {summary.bundle_sha256}


def test_images_of_equal_content_are_judged_once(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    infer = Detector.infer

    def counted(self: Detector, image: Any) -> Any:
        seen.append(len(image))
        return infer(self, image)

    monkeypatch.setattr(Detector, "infer", counted)
    run(bundle, photos, out=tmp_path / "out.parquet", part_images=100)
    assert sum(seen) == 5
    scores = {Path(row["image"]).name: row["score"] for row in rows_of(tmp_path / "out.parquet")}
    assert scores["copy.png"] == scores["0.png"]


@pytest.mark.parametrize("out", ["out", "out.parquet"])
def test_a_job_that_is_killed_twice_goes_on_where_it_was(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    make = PartMaker.make
    made: list[str] = []

    def killed_after_one(self: PartMaker, chunk: Any) -> Any:
        if len(made) == allowed:
            raise KeyboardInterrupt
        made.append(chunk.part)
        return make(self, chunk)

    monkeypatch.setattr(PartMaker, "make", killed_after_one)
    for allowed in (1, 2):  # noqa: B007, the function above looks at it
        with pytest.raises(KeyboardInterrupt):
            run(bundle, photos, out=tmp_path / out)
    monkeypatch.setattr(PartMaker, "make", make)
    summary = run(bundle, photos, out=tmp_path / out)
    assert (summary.rows, summary.judged) == (7, 1)
    assert images_of(tmp_path / out) == sorted(map(str, photos.rglob("*.png")))
    again = run(bundle, photos, out=tmp_path / out)
    assert (again.rows, again.judged) == (7, 0)
    assert sorted(os.listdir(tmp_path)) == sorted([out, "photos"]), "no folder of parts is left"


@pytest.mark.parametrize("part_images", [3, 100])
def test_an_interrupted_file_is_the_same_as_an_uninterrupted_one(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_images: int
) -> None:
    run(bundle, photos, out=tmp_path / "whole.parquet", part_images=part_images)
    join = PartFolder.join
    monkeypatch.setattr(PartFolder, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(bundle, photos, out=tmp_path / "cut.parquet", part_images=part_images)
    assert not (tmp_path / "cut.parquet").exists()
    monkeypatch.setattr(PartFolder, "join", join)
    assert run(bundle, photos, out=tmp_path / "cut.parquet", part_images=part_images).judged == 0
    both = [
        parquet.read_table(tmp_path / name).drop_columns("latency_ms")
        for name in ("whole.parquet", "cut.parquet")
    ]
    assert both[0].equals(both[1])


@pytest.mark.parametrize("out", [pytest.param("out", marks=pytest.mark.slow), "out.parquet"])
def test_new_and_changed_images_are_judged_and_no_others(
    bundle: Path, photos: Path, tmp_path: Path, out: str
) -> None:
    run(bundle, photos, out=tmp_path / out)
    before = {row["image"]: row["score"] for row in rows_of(tmp_path / out)}
    changed, new, gone = photos / "good/1.png", photos / "good/2.png", photos / "scratch/a.png"
    shutil.copy(photos / "good/10.png", new)
    shutil.copy(photos / "good/10.png", changed)
    os.utime(changed, ns=(1, 1))
    gone.unlink()
    summary = run(bundle, photos, out=tmp_path / out)
    after = {row["image"]: row["score"] for row in rows_of(tmp_path / out)}
    assert summary.judged == 2
    assert len(rows_of(tmp_path / out)) == len(after) == 8
    assert (
        after[str(new)]
        == pytest.approx(after[str(changed)])
        == pytest.approx(before[str(photos / "good/10.png")])
    )
    assert after[str(gone)] == before[str(gone)], "what was judged stays on record"


def test_an_output_of_another_bundle_or_of_other_settings_is_refused(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    run(bundle, photos, out=out)
    before = out.read_bytes()
    other = write_tiny_bundle(tmp_path / "other.flowedge", seed=1).path
    with pytest.raises(DataError, match=r"another bundle, whose SHA-256 is [0-9a-f]{64}"):
        run(other, photos, out=out)
    with pytest.raises(DataError, match="min_region_px is 1 there and 5 now"):
        run(bundle, photos, out=out, min_region_px=5)
    assert out.read_bytes() == before
    parquet.write_table(pyarrow.table({"mine": [1]}), tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=r"a file that flowedge batch did not write, mine\.parquet"):
        run(bundle, photos, out=tmp_path / "mine.parquet")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text.txt").write_text("mine")
    with pytest.raises(DataError, match=r"did not write, text\.txt"):
        run(bundle, photos, out=tmp_path / "notes")


def test_two_jobs_do_not_write_into_one_output(bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with PartFolder(str(tmp_path / "out")).lock(), pytest.raises(DataError, match="another job writes"):
        run(bundle, photos, out=tmp_path / "out")


def test_a_part_that_was_not_made_is_no_success(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = PartFolder.put
    monkeypatch.setattr(PartFolder, "put", lambda *_: None)
    with pytest.raises(DataError, match="has no rows for 7 images"):
        run(bundle, photos, out=tmp_path / "out.parquet")
    monkeypatch.setattr(PartFolder, "put", put)
    assert run(bundle, photos, out=tmp_path / "out.parquet").rows == 7


def test_a_torn_part_is_named(bundle: Path, photos: Path, tmp_path: Path) -> None:
    run(bundle, photos, out=tmp_path / "out")
    torn = next((tmp_path / "out").iterdir())
    torn.write_bytes(torn.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{torn.name} is no whole Parquet file"):
        run(bundle, photos, out=tmp_path / "out")


def test_what_a_killed_job_was_writing_is_removed(bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".tmp-part-0.parquet-77").write_bytes(b"half")
    run(bundle, photos, out=tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


# The package leaves the shard open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_shards_are_read_as_webdataset_reads_them(bundle: Path, photos: Path, tmp_path: Path) -> None:
    shard = tmp_path / "shard.tar"
    with webdataset.TarWriter(str(shard), mtime=0) as writer:
        for number, file in enumerate(sorted(photos.rglob("*.png"))):
            sample = {"png": file.read_bytes(), "seg.png": b"a mask", "cls": file.parent.name}
            writer.write({"__key__": f"line1/{number:03}", **sample})
    run(bundle, shard, out=tmp_path / "out", columns=Columns(label="cls"))
    expected = {
        sample["__key__"]: (hashlib.sha256(sample["png"]).hexdigest(), sample["cls"].decode())
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False)
    }
    rows = rows_of(tmp_path / "out")
    assert {row["id"]: (row["sha256"], row["label"]) for row in rows} == expected
    assert rows[0]["image"] == f"{shard}#line1/000.png"
    assert {row["source"] for row in rows} == {str(shard)}
    assert run(bundle, shard, out=tmp_path / "out", columns=Columns(label="cls")).judged == 0


def test_images_with_dots_in_their_names_are_no_fields_of_a_sample(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as writer:
        for name in ("line.2026.01.png", "line.2026.02.png", "part.png", "part.mask.png"):
            writer.add(next(photos.rglob("*.png")), name)
    run(bundle, shard, out=tmp_path / "out")
    rows = [(row["image"].partition("#")[2], row["id"]) for row in rows_of(tmp_path / "out")]
    dotted = [(f"line.2026.{number}.png", f"line.2026.{number}") for number in ("01", "02")]
    assert rows == [*dotted, ("part.png", "part")]


def test_a_cut_shard_says_that_images_are_missing(bundle: Path, photos: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.tar", tmp_path / "cut.tar"
    with tarfile.open(whole, "w") as writer:
        for file in sorted(photos.rglob("*.png")):
            writer.add(file, arcname=file.name)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    run(bundle, cut, out=tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert 1 < len(rows) < 8
    assert (rows[0]["image"], rows[0]["verdict"]) == (str(cut), "not_inspected")
    assert "unexpected end of data. The images behind this place were not read" in rows[0]["problem"]


@pytest.mark.parametrize("kind", ["number", "label"])
def test_a_hostile_shard_is_a_row_that_was_not_inspected(
    bundle: Path, photos: Path, tmp_path: Path, kind: str
) -> None:
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as writer:
        writer.add(photos / "good/0.png", arcname="0.png")
        member = tarfile.TarInfo("1.png" if kind == "number" else "1.cls")
        if kind == "number":
            member.pax_headers = {"GNU.sparse.map": "many", "GNU.sparse.size": "7"}
        member.size = 100_000
        writer.addfile(member, io.BytesIO(bytes(member.size)))
    run(bundle, shard, out=tmp_path / "out", columns=Columns(label="cls"))
    rows = rows_of(tmp_path / "out")
    assert [row["image"] for row in rows] == [str(shard), f"{shard}#0.png"]
    assert (rows[0]["verdict"], rows[1]["verdict"] == "not_inspected") == ("not_inspected", False)
    assert "The images behind this place were not read" in rows[0]["problem"]


def test_tables_give_a_row_for_each_of_their_rows(bundle: Path, photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    table = pyarrow.table(
        {
            "picture": [{"bytes": file.read_bytes(), "path": file.name} for file in files] + [None],
            "serial": [*range(7), 7],
            "kind": [file.parent.name for file in files] + ["good"],
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    columns = Columns(content="picture", id="serial", label="kind")
    run(bundle, tmp_path / "t.parquet", out=tmp_path / "out", columns=columns)
    run(bundle, photos, out=tmp_path / "direct")
    rows = sorted(rows_of(tmp_path / "out"), key=lambda row: int(row["id"]))
    direct = rows_of(tmp_path / "direct")
    assert [row["sha256"] for row in rows[:7]] == [row["sha256"] for row in direct]
    assert [row["score"] for row in rows[:7]] == pytest.approx([row["score"] for row in direct], nan_ok=True)
    assert (rows[7]["label"], rows[7]["problem"]) == ("good", "the row has no content.")
    assert rows[4]["image"] == f"{tmp_path / 't.parquet'}#row=4"
    with pytest.raises(DataError, match="has no column image, but picture, serial, kind"):
        run(bundle, tmp_path / "t.parquet", out=tmp_path / "none")


@pytest.fixture
def store() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    "out", [pytest.param("memory://out", marks=pytest.mark.slow), "memory://results/out.parquet"]
)
def test_an_object_store_is_read_and_written(
    bundle: Path, photos: Path, tmp_path: Path, store: Any, out: str
) -> None:
    store.put(str(photos), "/line/photos", recursive=True)
    store.pipe_file("/line/photos/.hidden/x.png", b"")
    summary = run(bundle, "memory://line/photos", out=out)
    assert (summary.rows, summary.verdicts["not_inspected"]) == (7, 1)
    store.pipe_file("/line/photos/new.png", (photos / "good/0.png").read_bytes())
    assert run(bundle, "memory://line/photos", out=out).judged == 1
    store.get(out, str(tmp_path / Path(out).name), recursive=True)
    rows = rows_of(tmp_path / Path(out).name)
    assert len({row["image"] for row in rows}) == len(rows) == 8
    assert "memory:///line/photos/good/0.png" in {row["image"] for row in rows}
    assert run(bundle, "memory://line/photos/good/*.png", out="memory://some").rows == 3
    with pytest.raises(DataError, match="does not exist"):
        run(bundle, "memory://line/other", out="memory://some")


@pytest.mark.slow
def test_a_client_of_s3_reads_and_writes(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        options = {
            "endpoint_url": "http://{}:{}".format(*server.get_host_and_port()),
            "key": "test",
            "secret": "test1234567",
            "client_kwargs": {"region_name": "us-east-1"},
        }
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        files = fsspec.filesystem("s3")
        files.call_s3("create_bucket", Bucket="archive")
        files.put(str(photos), "archive/photos", recursive=True)
        for out in ("s3://archive/rows", "s3://archive/rows.parquet"):
            assert run(bundle, "s3://archive/photos", out=out, workers=1).judged == 7
            assert run(bundle, "s3://archive/photos", out=out).judged == 0
        files.get("archive/rows.parquet", str(tmp_path / "rows.parquet"))
        assert images_of(tmp_path / "rows.parquet")[0] == "s3://archive/photos/good/0.png"
    finally:
        server.stop()


def test_a_store_that_does_not_answer_ends_the_job_and_is_no_verdict(
    bundle: Path, photos: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(str(photos), "/line/photos", recursive=True)
    tries = []
    read = type(store).cat_file

    def unsteady(self: Any, path: str, *given: Any, **named: Any) -> bytes:
        tries.append(path)
        if len(tries) <= failures:
            raise ConnectionError("reset by peer")
        return bytes(read(self, path, *given, **named))

    monkeypatch.setattr(type(store), "cat_file", unsteady)
    monkeypatch.setattr(reading, "_FIRST_PAUSE_S", 0)
    failures = 1000
    with pytest.raises(FlowEdgeError, match=r"reset by peer.*Give the same command again"):
        run(bundle, "memory://line/photos", out="memory://out", readers=1)
    failures = len(tries) + 2
    assert run(bundle, "memory://line/photos", out="memory://out", readers=1).rows == 7


def test_several_processes_give_the_rows_of_one(bundle: Path, photos: Path, tmp_path: Path) -> None:
    run(bundle, photos, out=tmp_path / "one.parquet")
    summary = run(bundle, photos, out=tmp_path / "two.parquet", workers=2)
    assert (summary.rows, summary.workers) == (7, 2)
    both = [
        parquet.read_table(tmp_path / name).drop_columns("latency_ms")
        for name in ("one.parquet", "two.parquet")
    ]
    assert both[0].equals(both[1])


def test_a_process_that_dies_is_started_again(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mortal(AskedProcess):
        deaths = 0

        def exchange(self, *said: bytes | memoryview) -> bytes:
            if Mortal.deaths < allowed:
                Mortal.deaths += 1
                self.kill()
            return super().exchange(*said)

    monkeypatch.setattr(processes, "AskedProcess", Mortal)
    monkeypatch.setattr(processes, "_TRIES", 2)
    allowed = 1
    assert run(bundle, photos, out=tmp_path / "out", workers=2, part_images=7).rows == 7
    allowed = 1000
    with pytest.raises(EngineUnavailableError, match=r"died 2 times on the same 7 files.*Fewer --workers"):
        run(bundle, photos, out=tmp_path / "other", workers=2, part_images=7)


def test_a_bundle_that_changes_under_a_job_ends_it(bundle: Path, photos: Path, tmp_path: Path) -> None:
    from flowedge.runtime.batch.part_maker import Identity, Job

    job = Job(
        bundle=str(bundle),
        parts=str(tmp_path),
        identity=Identity(bundle_sha256="0" * 64),
        columns=Columns(),
        threads=None,
        batch=1,
        readers=1,
    )
    from flowedge.runtime.batch.chunks import ListedFile, together

    chunk = together([ListedFile(path=os.fsencode(next(photos.rglob("*.png"))), version="1")])
    with pytest.raises(FlowEdgeError, match="is not the bundle that the job began with"):
        PartMaker(msgspec.json.encode(job)).make(chunk)


def test_a_name_that_is_no_utf8_is_judged_and_escaped(bundle: Path, photos: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path / "odd") + b"/\xff\n.png"
    (tmp_path / "odd").mkdir()
    shutil.copy(os.fsencode(photos / "good/0.png"), odd)
    run(bundle, tmp_path / "odd", out=tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["image"] == f"{tmp_path}/odd/\\udcff\\n.png"
    assert row["verdict"] != "not_inspected"


def test_labels_come_from_a_table(bundle: Path, photos: Path, tmp_path: Path) -> None:
    table = photos / "labels.csv"
    table.write_text(f"image,label\ngood/0.png,good\n{photos}/scratch/a.png,scratch\n")
    run(bundle, photos, out=tmp_path / "out", labels=str(table))
    labels = {Path(row["image"]).name: row["label"] for row in rows_of(tmp_path / "out")}
    assert {name: label for name, label in labels.items() if label} == {"0.png": "good", "a.png": "scratch"}
    table.write_text("picture;kind\n")
    with pytest.raises(DataError, match="columns image and label"):
        run(bundle, photos, out=tmp_path / "other", labels=str(table))


def test_images_that_waited_when_a_call_ended_are_judged_by_the_next_call(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pyarrow.table({"image": [str(photos / f"good/{name}.png") for name in (0, 1, 10)]})
    inspector = BatchInspector(bundle, batch=2)
    infer, judge = Detector.infer, Detector.judge

    def stopped(self: Detector, *given: Any, **more: Any) -> Any:
        raise EngineUnavailableError("the device stopped")

    for name in ("infer", "judge"):
        monkeypatch.setattr(Detector, name, stopped)
        with pytest.raises(EngineUnavailableError):
            inspector(table)
        monkeypatch.setattr(Detector, name, infer if name == "infer" else judge)
    rows = inspector.rows(inspector._stored(table))
    assert next(rows)["verdict"] != "not_inspected"
    del rows  # an iterator that nobody holds is closed
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(inspector(table)), daemon=True)
    thread.start()
    thread.join(20)
    assert found, "the call waits for answers that nobody makes"
    assert len(found[0]) == 3
    inspector.close()


@pytest.mark.parametrize("cell", ["a path.png", 7, 10**15])
def test_a_cell_that_holds_no_bytes_is_a_row_that_was_not_inspected(
    bundle: Path, tmp_path: Path, cell: Any
) -> None:
    parquet.write_table(pyarrow.table({"image": [cell]}), tmp_path / "t.parquet")
    run(bundle, tmp_path / "t.parquet", out=tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert (row["verdict"], row["problem"]) == (
        "not_inspected",
        f"the row holds no bytes, but {type(cell).__name__}.",
    )
    inspector = BatchInspector(bundle)
    (judged,) = inspector(pyarrow.table({"image": ["x"], "content": [cell]})).to_pylist()
    assert judged["problem"] == row["problem"]
    inspector.close()


def test_a_file_in_a_store_is_not_written_by_halves(
    bundle: Path, photos: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", torn := _torn(parquet.ParquetFile.iter_batches))
    with pytest.raises(DataError):
        run(bundle, photos, out="memory://results/out.parquet")
    assert torn is not None
    assert not store.exists("/results/out.parquet")


def _torn(read: Any) -> Any:
    """Return a function that reads one batch of a part with all columns, and then finds it torn."""

    def iter_batches(self: Any, *given: Any, **more: Any) -> Any:
        yield from read(self, *given, **more)
        if not more:
            raise DataError("the part is torn")

    return iter_batches


def test_an_inspector_takes_tables_of_every_library_and_can_be_sent_to_a_process(
    bundle: Path, photos: Path
) -> None:
    names = [str(photos / "good/0.png"), str(photos / "scratch/junk.png"), str(photos / "missing.png")]
    contents = [Path(name).read_bytes() for name in names[:2]]
    inspector = pickle.loads(pickle.dumps(BatchInspector(bundle, image="path", content="bytes")))
    table = inspector(pyarrow.table({"path": names}))
    assert table["verdict"].to_pylist()[1:] == ["not_inspected", "not_inspected"]
    arrays = {"path": np.array(names[:2], object), "bytes": np.array(contents, object)}
    assert inspector(arrays)["score"].tolist() == table["score"].to_pylist()[:2]
    (batch,) = pyarrow.table({"path": names[:2], "bytes": contents}).to_batches()
    (judged,) = inspector.map_arrow([batch])
    assert judged.schema.names == table.schema.names
    assert judged["sha256"].to_pylist() == table["sha256"].to_pylist()[:2]
    with pytest.raises(ValueError, match=r"no column 'path'.*image=NAME"):
        inspector(pyarrow.table({"name": names}))
    inspector.close()


def test_the_command_tells_what_it_did(bundle: Path, photos: Path, tmp_path: Path) -> None:
    done = flowedge("batch", photos, "-o", tmp_path / "out", "-b", bundle, "--workers", "1", "-q")
    assert done.status == 1
    assert f"{tmp_path / 'out'}: 7 images: " in done.stdout
    assert "not inspected, the first of this run: " in done.stderr
    assert "junk.png: the image is not a JPEG" in done.stderr
    again = flowedge(
        "batch", photos, "-o", tmp_path / "out", "-b", bundle, "--workers", "1", "--fail-on", "none"
    )
    assert again.status == 0
    assert "7 files listed, 7 of them judged before" in again.stderr
    assert "judged now: 0" in again.stdout
    nothing = flowedge("batch", tmp_path / "missing", "-o", tmp_path / "none", "-b", bundle)
    assert (nothing.status, "does not exist. Name a folder" in nothing.stderr) == (2, True)
