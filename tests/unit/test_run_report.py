"""The page of a run: every image is in it, an interruption is named in it, and its size has a bound."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowedge
from flowedge.errors import FlowEdgeError
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.detector import Detector
from flowedge.runtime.inspection import inspect
from flowedge.runtime.protocols import Frame
from flowedge.runtime.report import run_report
from flowedge.runtime.report.run_report import RunReport
from support.tiny_bundle import write_tiny_bundle


@pytest.fixture
def detector(tmp_path: Path) -> Iterator[Detector]:
    limit = Threshold(value=1.0, method="quantile", parameter=0.99, images=20)
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", thresholds=Thresholds(image=limit, pixel=limit))
    with flowedge.load(bundle.path) as opened:
        yield opened


def frames(count: int) -> Iterator[Frame]:
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
        problem = "it is cut off" if number % 10 == 9 else ""
        yield Frame(
            pixels=np.zeros((0, 0, 3), np.uint8) if problem else pixels,
            id=f"line/<b>{number}</b>.png",
            time=datetime.now(timezone.utc),
            source="line",
            problem=problem,
        )


def filled(report: RunReport, detector: Detector, count: int) -> list[str]:
    verdicts: list[str] = []
    for frame in frames(count):
        record, result = inspect(detector, frame)
        assert report.put(frame, record, result) == record
        verdicts.append(record.verdict)
    report.close()
    return verdicts


def rows_of(page: str) -> Any:
    return json.loads(
        re.findall(r'<script type="application/json" id="rows">(.*?)</script>', page, re.DOTALL)[0]
    )


def test_every_image_is_a_row_with_its_verdict_its_reason_and_its_pictures(
    tmp_path: Path, detector: Detector
) -> None:
    file = tmp_path / "run.html"
    verdicts = filled(RunReport(file, detector, source="line", images=20), detector, 20)
    page = file.read_text(encoding="utf-8")
    content = rows_of(page)
    names = [one["name"] for one in content["columns"]]
    rows = [dict(zip(names, row, strict=True)) for row in content["rows"]]
    assert sorted(row["number"] for row in rows) == list(range(1, 21))
    for row in rows:
        assert row["verdict"] == verdicts[row["number"] - 1]
        assert row["image"] == f"<b>{row['number'] - 1}</b>.png"
    unseen = [row for row in rows if row["verdict"] == "not_inspected"]
    assert len(unseen) == 2
    assert all("it is cut off" in row["reason"] for row in unseen)
    assert len(content["pictures"]) == 18
    assert "<b>0</b>.png" not in page
    assert "not complete" not in page
    assert "0.99" in page
    assert str(detector.bundle.path) in page


def test_the_most_suspicious_images_come_first_and_a_bound_is_named(
    tmp_path: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_report, "MOST_ROWS", 8)
    monkeypatch.setattr(run_report, "MOST_PICTURES", 3)
    file = tmp_path / "run.html"
    filled(RunReport(file, detector, source="line"), detector, 30)
    page = file.read_text(encoding="utf-8")
    content = rows_of(page)
    assert len(content["rows"]) == 8
    assert len(content["pictures"]) == 3
    assert "8 most suspicious of 30 images" in page
    assert "Pictures are kept of the 3" in page


def test_a_run_that_ended_early_says_so(tmp_path: Path, detector: Detector) -> None:
    filled(RunReport(tmp_path / "run.html", detector, source="line", images=40), detector, 7)
    assert "the run ended after 7 of 40 images" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_a_run_without_any_image_is_a_page(tmp_path: Path, detector: Detector) -> None:
    filled(RunReport(tmp_path / "run.html", detector, source="line"), detector, 0)
    assert "<svg viewBox" not in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_a_page_that_could_not_be_written_is_refused_before_the_first_image(
    tmp_path: Path, detector: Detector
) -> None:
    with pytest.raises(FlowEdgeError, match="no is not a folder"):
        RunReport(tmp_path / "no" / "run.html", detector, source="line")
    with pytest.raises(FlowEdgeError, match=r"is a folder\. Name a file"):
        RunReport(tmp_path, detector, source="line")
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(FlowEdgeError, match=r"mine\.html"):
        RunReport(tmp_path / "mine.html", detector, source="line")
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
