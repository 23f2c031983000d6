"""The page of an evaluation has the evaluation's numbers, the worst images first, and bounds that it names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowedge
from flowedge.calibration import evaluation_report
from flowedge.calibration.auroc_interval import auroc_interval
from flowedge.calibration.dataset import read_dataset
from flowedge.calibration.evaluation import evaluate
from flowedge.calibration.evaluation_curves import curves_section
from flowedge.calibration.evaluation_report import EvaluationReport
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.calibration.evaluation_trust import trust_sentences
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.detector import Detector
from support.small_dataset import write_dataset
from support.tiny_bundle import write_tiny_bundle


@pytest.fixture
def detector(tmp_path: Path) -> Iterator[Detector]:
    limit = Threshold(value=2.0, method="quantile", parameter=0.99, images=20)
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", thresholds=Thresholds(image=limit, pixel=limit))
    with flowedge.load(bundle.path) as opened:
        yield opened


def page_of(detector: Detector, folder: Path) -> tuple[Evaluation, str]:
    write_dataset(folder / "data")
    (folder / "data" / "test" / "good" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = read_dataset(folder / "data")
    report = EvaluationReport(folder / "page.html", detector, dataset)
    found = evaluate(detector, dataset, thresholds=detector.thresholds, observer=report)
    report.write(found, links=[("Beside <b>", "other.html")])
    return found, (folder / "page.html").read_text(encoding="utf-8")


def images_of(page: str) -> tuple[list[dict[str, Any]], dict[str, list[str | None]]]:
    content = json.loads(
        re.findall(r'<script type="application/json" id="rows">(.*?)</script>', page, re.DOTALL)[0]
    )
    names = [one["name"] for one in content["columns"]]
    return [dict(zip(names, row, strict=True)) for row in content["rows"]], content["pictures"]


def test_the_page_has_the_numbers_of_the_evaluation(tmp_path: Path, detector: Detector) -> None:
    found, page = page_of(detector, tmp_path)
    assert found.image_auroc is not None
    assert f"<b>{found.image_auroc:.3f}</b><span>image AUROC</span>" in page
    rows, pictures = images_of(page)
    assert len(rows) == 5
    for row in rows:
        if row["score"] is None:
            assert (row["verdict"], row["class"]) == ("not inspected", "good")
            assert "broken.png" in row["reason"]
            continue
        is_called, is_defect = row["score"] > 2.0, row["class"] == "square"
        assert (row["verdict"] == "right") == (is_called == is_defect)
        assert row["above threshold"] == pytest.approx(row["score"] - 2.0, abs=1e-6)
    for place, row in enumerate(rows):
        if row["class"] == "square":
            assert pictures[str(place)][3] is not None  # the ground truth
    assert 'href="other.html">Beside &lt;b&gt;' in page
    assert str(detector.bundle.path) in page


def test_rows_and_pictures_are_those_of_the_worst_images_where_there_are_too_many(
    tmp_path: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_report, "MOST_ROWS", 1)
    monkeypatch.setattr(evaluation_report, "MOST_PICTURES", 1)
    _, page = page_of(detector, tmp_path)
    rows, pictures = images_of(page)
    assert sorted(row["class"] for row in rows if row["score"] is not None) == ["good", "square"]
    assert len(pictures) == 2
    assert "The table has the 1 worst images of each kind" in page
    with flowedge.load(detector.bundle.path) as again:
        every = evaluate_scores(again, tmp_path / "data")
    shown = {row["class"]: row["score"] for row in rows if row["score"] is not None}
    assert shown["good"] == pytest.approx(max(every["good"]), abs=1e-5)
    assert shown["square"] == pytest.approx(min(every["square"]), abs=1e-5)


def evaluate_scores(detector: Detector, root: Path) -> dict[str, list[float]]:
    from flowedge.runtime.frames.images import read_image

    scores: dict[str, list[float]] = {}
    for sample in read_dataset(root).samples:
        if sample.path.name != "broken.png":
            scores.setdefault(sample.label, []).append(detector(read_image(sample.path)).score)
    return scores


def test_the_interval_of_an_auroc_is_that_of_all_pairs_counted_directly() -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.normal(0, 1, 40).round(1), rng.normal(1, 1, 25).round(1)
    wins = (bad[:, None] > good) + 0.5 * (bad[:, None] == good)
    area = wins.mean()
    variance = wins.mean(1).var(ddof=1) / 25 + wins.mean(0).var(ddof=1) / 40
    reach = 1.959964 * math.sqrt(variance) / (area * (1 - area))
    expected = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + sign * reach))) for sign in (-1, 1)]
    assert auroc_interval(good, bad) == pytest.approx(expected, abs=1e-6)


def test_an_auroc_of_separated_or_too_few_images_has_no_interval() -> None:
    assert auroc_interval([1, 2, 3], [4, 5, 6]) is None
    assert auroc_interval([1], [0, 2]) is None
    assert auroc_interval([], []) is None


def test_no_false_alarm_in_few_images_is_said_to_prove_little(tmp_path: Path, detector: Detector) -> None:
    found, _ = page_of(detector, tmp_path)
    from msgspec.structs import replace

    sentences = " ".join(
        trust_sentences(replace(found, false_alarm_rate=0.0, good_images=100), [1, 2], [3, 4])
    )
    assert "No false alarm in 100 images does not mean none: up to 3.6% are possible." in sentences
    assert "square (2)" in sentences
    assert "1 image was not inspected" in sentences


def test_rates_without_a_threshold_in_the_bundle_are_said_to_be_those_of_the_best_f1(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bare.flowedge", thresholds=Thresholds())
    with flowedge.load(bundle.path) as bare:
        found, page = page_of(bare, tmp_path)
    assert not found.is_decided
    assert "<span>detected at the best F1</span>" in page
    assert "The bundle has no image threshold. The rates are those of the best F1" in page


def test_a_threshold_that_the_best_f1_of_other_images_gave_is_not_said_to_be_of_this_dataset(
    tmp_path: Path,
) -> None:
    limit = Threshold(value=2.0, method="f1", images=1)
    bundle = write_tiny_bundle(tmp_path / "f1.flowedge", thresholds=Thresholds(image=limit))
    with flowedge.load(bundle.path) as detector:
        found, page = page_of(detector, tmp_path)
    assert found.is_decided
    assert "this very dataset, so" not in page
    assert "The image threshold was fitted on 1 image, with and without defects." in page


def test_the_words_below_the_curves_name_only_what_is_drawn() -> None:
    circle, area = "The circle is the threshold", "AUPRO is the filled area"
    overlap = (np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    for bad, drawn, seen in (
        ([], None, (False, False)),
        ([2.0, 3.0], None, (True, False)),
        ([2.0, 3.0], overlap, (True, True)),
    ):
        page = str(curves_section([1.0, 1.5], bad, 1.7, drawn, "score"))
        assert (circle in page, area in page) == seen
