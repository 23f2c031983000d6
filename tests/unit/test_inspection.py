"""Records of frames that come from no folder, and sinks that complete them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import numpy as np
import pytest

from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.inspection import inspect, inspect_all, inspect_images
from flowedge.runtime.pictures import PictureFolder
from flowedge.runtime.protocols import Frame
from flowedge.runtime.record import Inspection
from flowedge.runtime.result import Result
from support.opened_engine import opened
from support.tiny_bundle import IMAGE_SIZE, tiny_manifest, write_tiny_bundle

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def frame(name: str, pixels: np.ndarray | None = None, problem: str = "") -> Frame:
    pixels = np.zeros((*IMAGE_SIZE, 3), np.uint8) if pixels is None else pixels
    return Frame(pixels=pixels, id=name, time=NOW, source="camera 1", problem=problem)


@pytest.fixture
def detector(tmp_path: Path) -> Detector:
    limit = Threshold(value=1.0, method="manual")
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", thresholds=Thresholds(image=limit))
    return Detector(bundle, opened(NullEngine(tiny_manifest(), {"score": 2.0})))


def test_a_frame_of_a_camera_gets_a_record_without_a_folder(detector: Detector) -> None:
    record, result = inspect(detector, frame("part 7"))
    assert result is not None
    assert (record.image, record.verdict, record.score) == ("part 7", "anomalous", 2.0)
    assert (record.threshold, record.engine, record.engine_reason) == (1.0, "null", "named")
    assert (record.overlay, record.mask, record.problem) == (None, None, "")


def test_a_frame_that_was_not_read_keeps_its_problem(detector: Detector) -> None:
    record, result = inspect(detector, frame("part 8", problem="the camera\x07 is dark"))
    assert result is None
    assert (record.verdict, record.score, record.latency_ms) == ("not_inspected", None, None)
    assert "is dark" in record.problem
    assert record.problem.isprintable()


def test_a_frame_that_the_detector_refuses_is_not_inspected(detector: Detector) -> None:
    record, result = inspect(detector, frame("part 9", np.zeros((4, 4), np.uint8)))
    assert (result, record.verdict) == (None, "not_inspected")
    assert record.problem


class Given:
    """Yields given frames."""

    def __init__(self, *frames: Frame) -> None:
        self._frames = frames

    def frames(self) -> Iterator[Frame]:
        yield from self._frames

    def close(self) -> None:
        """Do nothing, because nothing is held."""


class Marking:
    """Notes the order of its calls as a sink, and completes the record."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name, self._calls = name, calls

    def put(self, frame: Frame, record: Inspection, result: Result | None) -> Inspection:
        self._calls.append(f"{self._name} {frame.id}")
        return msgspec.structs.replace(record, problem=record.problem + self._name)

    def close(self) -> None:
        """Do nothing, because nothing is held."""


def test_each_sink_completes_the_record_for_the_next(detector: Detector) -> None:
    calls: list[str] = []
    sinks = (Marking("a", calls), Marking("b", calls))
    records = inspect_all(detector, Given(frame("1"), frame("2", problem="dark ")), sinks)
    assert [record.problem for record in records] == ["ab", "dark ab"]
    assert calls == ["a 1", "b 1", "a 2", "b 2"]


def test_inspecting_image_files_closes_the_folder_of_pictures_in_the_end(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[PictureFolder] = []
    monkeypatch.setattr(PictureFolder, "close", lambda folder: closed.append(folder))
    records = inspect_images(detector, [tmp_path / "missing.png"], out=tmp_path / "out")
    assert next(records).verdict == "not_inspected"
    assert closed == []
    assert list(records) == []
    assert len(closed) == 1


class ByDlpack:
    """An array of another library: it offers nothing but DLPack."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: object) -> object:
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def test_an_opened_engine_takes_a_buffer_of_another_library() -> None:
    engine = opened(NullEngine(tiny_manifest(), {"score": 3.0}))
    answers = engine.infer(ByDlpack(np.zeros((2, 3, *IMAGE_SIZE), np.float32)))
    assert answers["score"].tolist() == [3.0, 3.0]
