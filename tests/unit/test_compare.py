"""A comparison of two results agrees with SciPy and scikit-learn, and names what a person must look at."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from scipy import stats  # type: ignore[import-untyped]
from sklearn.metrics import roc_auc_score

from flowedge.errors import DataError
from flowedge.runtime.batch.pairing import Pairing
from flowedge.runtime.batch.rows import ROWS
from flowedge.runtime.batch.what_changed import QUANTILES, Comparison, compare
from support.command_line import flowedge

LIMIT = 1.0


def write_result(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as a batch does. A row has at least an image and a score, and its verdict follows from the score."""
    whole = [
        {
            "sha256": f"{row['image']} hashed",
            "threshold": LIMIT,
            "precision": "fp32",
            "bundle_sha256": file.stem,
        }
        | {"verdict": verdict_of(row["score"])}
        | row
        for row in rows
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(whole, schema=ROWS), file)
    return file


def verdict_of(score: float | None) -> str:
    return "not_inspected" if score is None else "anomalous" if score > LIMIT else "ok"


def compared(old: Path | str, new: Path | str, **given: Any) -> Comparison:
    with Pairing(str(old), str(new), **given) as pairing:
        return compare(pairing)


def test_the_numbers_are_those_of_scipy_and_scikit_learn(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    bad = random.random(300) < 0.3
    old = np.round(random.normal(0.7, 0.4, 300) + 0.5 * bad, 1)  # with many ties
    new = np.round(old + random.normal(0, 0.3, 300), 1)
    names = [f"{number:03}.png" for number in range(300)]
    labels = ["scratch" if one else "good" for one in bad]
    files = [
        write_result(
            tmp_path / f"{side}.parquet",
            [
                {"image": name, "score": float(score), "label": label}
                for name, score, label in zip(names, scores, labels, strict=True)
            ],
        )
        for side, scores in (("old", old), ("new", new[::-1][::-1]))
    ]
    one = compared(*files)
    assert one.pearson == pytest.approx(stats.pearsonr(old, new)[0])
    assert one.spearman == pytest.approx(stats.spearmanr(old, new)[0])
    assert one.old.auroc == pytest.approx(roc_auc_score(bad, old))
    assert one.new.auroc == pytest.approx(roc_auc_score(bad, new))
    assert one.difference_quantiles == pytest.approx(np.quantile(new - old, QUANTILES))
    assert one.to_anomalous == np.sum((old <= LIMIT) & (new > LIMIT))
    assert one.to_ok == np.sum((old > LIMIT) & (new <= LIMIT))
    assert one.wrong_flips == np.sum((old > LIMIT) != (new > LIMIT), where=(new > LIMIT) != bad)
    assert one.right_flips == np.sum((old > LIMIT) != (new > LIMIT), where=(new > LIMIT) == bad)
    assert one.new.detection_rate == pytest.approx(np.mean(new[bad] > LIMIT))
    assert one.old.false_alarm_rate == pytest.approx(np.mean(old[~bad] > LIMIT))
    assert sum(one.verdicts.values()) == one.images == one.scored == one.labelled == 300


def test_images_of_one_side_and_images_that_were_not_inspected_are_counted_apart(tmp_path: Path) -> None:
    old = write_result(
        tmp_path / "old.parquet",
        [
            {"image": name, "score": score}
            for name, score in (("a", 0.5), ("b", 2.0), ("c", None), ("gone", 0.1))
        ],
    )
    new = write_result(
        tmp_path / "new.parquet",
        [
            {"image": name, "score": score}
            for name, score in (("a", 3.0), ("b", None), ("c", 0.1), ("come", 0.1))
        ],
    )
    one = compared(old, new)
    assert (one.images, one.only_old, one.only_new, one.flips, one.scored) == (3, 1, 1, 1, 1)
    assert one.verdicts == {"anomalous, not_inspected": 1, "not_inspected, ok": 1, "ok, anomalous": 1}
    assert (one.pearson, one.spearman, one.old.auroc, one.wrong_flips) == (None, None, None, None)
    assert [(flip.image, flip.margin) for flip in one.worst] == [("a", 2.0)]


def test_copies_count_once_by_hash_and_each_by_name(tmp_path: Path) -> None:
    rows = [{"image": name, "score": 0.5, "sha256": "the same"} for name in ("a", "copy")]
    old, new = (write_result(tmp_path / f"{side}.parquet", rows) for side in ("old", "new"))
    assert (compared(old, new).by, compared(old, new).images) == ("sha256", 1)
    assert compared(old, new, by="image").images == 2


def test_the_worst_flips_come_first_and_wrong_ones_before_them(tmp_path: Path) -> None:
    names = ("near", "far", "wrong")
    labels = ("good", "good", "scratch")
    old = write_result(
        tmp_path / "old.parquet",
        [
            {"image": name, "score": score, "label": label}
            for name, score, label in zip(names, (1.1, 5.0, 1.2), labels, strict=True)
        ],
    )
    new = write_result(tmp_path / "new.parquet", [{"image": name, "score": 0.5} for name in names])
    assert [flip.image for flip in compared(old, new).worst] == ["wrong", "far", "near"]


def write_journal(file: Path, frames: list[tuple[str, str, float]]) -> Path:
    """Write the columns that matter of ``flowedge station export``, with its types."""
    few = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    parquet.write_table(
        pyarrow.table(
            {
                "number": pyarrow.array(range(1, len(frames) + 1), pyarrow.int64()),
                "source_id": [name for name, _, _ in frames],
                "picture": [picture or None for _, picture, _ in frames],
                "part": pyarrow.array([None] * len(frames), pyarrow.string()),
                "verdict": pyarrow.array([verdict_of(score) for *_, score in frames], few),
                "threshold": [LIMIT] * len(frames),
                "score": [score for *_, score in frames],
            }
        ),
        file,
    )
    return file


def test_a_journal_is_compared_with_a_batch_both_ways(tmp_path: Path) -> None:
    journal = write_journal(
        tmp_path / "journal.parquet",
        [("/line/1.png", "", 0.5), ("/line/2.png", "", 0.5), ("/line/1.png", "", 2.0)],
    )
    batch = write_result(
        tmp_path / "new.parquet", [{"image": f"/line/{number}.png", "score": 0.5} for number in (1, 2)]
    )
    one = compared(journal, batch)
    assert (one.by, one.images, one.to_ok, one.old.kind) == ("image", 2, 1, "journal"), (
        "the last record counts"
    )
    assert (compared(batch, journal).to_anomalous, compared(journal, journal).flips) == (1, 0)


def test_the_pictures_of_an_archive_are_paired_with_their_records(tmp_path: Path) -> None:
    picture = "a1b2/0000001/0000001234-nok.jpg"
    journal = write_journal(tmp_path / "journal.parquet", [("camera frame 1234", picture, 2.0)])
    batch = write_result(tmp_path / "new.parquet", [{"image": f"/var/archive/{picture}", "score": 0.5}])
    one = compared(journal, batch)
    assert (one.by, one.to_ok) == ("picture", 1)


def test_folders_of_parts_are_compared_and_labels_come_from_a_table(tmp_path: Path) -> None:
    for side, shift in (("old", 0.0), ("new[1]'s", 0.7)):
        for part in (0, 1):
            rows = [{"image": f"{tmp_path}/{part}{n}.png", "score": n / 2 + shift} for n in range(4)]
            write_result(tmp_path / side / f"part-{part}.parquet", rows)
        (tmp_path / side / ".tmp-part-9.parquet-1").write_bytes(b"half")
    (tmp_path / "labels.csv").write_text("image,label\n00.png,good\n01.png,scratch\n")
    one = compared(tmp_path / "old", tmp_path / "new[1]'s", labels=tmp_path / "labels.csv")
    assert (one.images, one.labelled, one.to_anomalous, one.right_flips) == (8, 2, 4, 1)
    assert compared(tmp_path / "old", f"{tmp_path}/new*/*.parquet").images == 8


def test_results_in_an_object_store_are_compared(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for place, score in (("/compared/old/part-0.parquet", 0.5), ("/compared/new.parquet", 2.0)):
        result = write_result(tmp_path / "result.parquet", [{"image": "a", "score": score}])
        store.pipe_file(place, result.read_bytes())
    one = compared("memory://compared/old", "memory://compared/new.parquet")
    assert (one.images, one.to_anomalous) == (1, 1)


def test_what_cannot_be_compared_is_refused_in_words(tmp_path: Path) -> None:
    rows = [{"image": "a", "score": 0.5}]
    result = write_result(tmp_path / "old.parquet", rows)
    parquet.write_table(pyarrow.table({"mine": [1]}), tmp_path / "mine.parquet")
    (tmp_path / "torn.parquet").write_bytes(result.read_bytes()[:-10])
    (tmp_path / "empty").mkdir()
    other = write_result(tmp_path / "other.parquet", [{"image": "b", "score": 0.5}])
    for file, words in (
        ("mine.parquet", "is no result of flowedge batch and no journal"),
        ("torn.parquet", "cannot be read"),
        ("missing.parquet", "does not exist"),
        ("empty", "holds no Parquet files"),
        ("*.pq", "matches nothing"),
        (other.name, "no image of .* is in"),
    ):
        with pytest.raises(DataError, match=words):
            compared(result, tmp_path / file)
    with pytest.raises(DataError, match="cannot be paired by part"):
        compared(result, result, by="part")


def test_the_command_prints_writes_a_page_and_fails_on_flips(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "<b>"):
        assert cv2.imwrite(str(photos / f"{name}.png"), np.zeros((20, 30, 3), np.uint8))
    names = [str(photos / "a.png"), str(photos / "<b>.png"), str(photos / "gone.png")]
    old = write_result(tmp_path / "old.parquet", [{"image": name, "score": 0.5} for name in names])
    new = write_result(tmp_path / "new.parquet", [{"image": name, "score": 2.0} for name in names])
    page = tmp_path / "page.html"
    done = flowedge("compare", old, new, "--html", page, "--fail-on-flips", "2")
    assert (done.status, "3 images flipped, more than the 2" in done.stderr) == (1, True)
    assert "flips: 3 (3 to anomalous, 0 to ok)" in done.stdout
    text = page.read_text()
    assert len(re.findall("data:image/jpeg", text)) == 2
    assert "Pictures that could not be read: 1." in text
    assert "<b>.png" not in text
    told = flowedge("compare", old, new, "--json", "--fail-on-flips", "3")
    assert (told.status, json.loads(told.stdout)["flips"]) == (0, 3)
    assert flowedge("compare", old, tmp_path / "none.parquet").status == 2


def test_pictures_of_shards_and_tables_are_found_by_their_names(tmp_path: Path) -> None:
    import tarfile

    from flowedge.errors import ImageError
    from flowedge.runtime.batch.reading import read_stored_image

    contents = [bytes([number]) * 9 for number in range(5)]
    parquet.write_table(
        pyarrow.table({"key": range(5), "image": contents}), tmp_path / "t.parquet", row_group_size=2
    )
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        for number, content in enumerate(contents):
            file = tmp_path / f"{number}.png"
            file.write_bytes(content)
            shard.add(file, arcname=file.name)
    for number, content in enumerate(contents):
        assert read_stored_image(f"{tmp_path}/t.parquet#row={number}") == content
        assert read_stored_image(f"{tmp_path}/s.tar#{number}.png") == content
    shutil.copy(tmp_path / "1.png", tmp_path / "a#1.png")
    assert read_stored_image(f"{tmp_path}/a#1.png") == contents[1]
    for missing in ("t.parquet#row=5", "s.tar#9.png"):
        with pytest.raises(ImageError, match="has no"):
            read_stored_image(os.path.join(tmp_path, missing))
