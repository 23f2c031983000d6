"""Frozen, stale, dark and saturated frames are not inspected, and an engine that answers differently judges nothing."""

from __future__ import annotations

import datetime
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import flowedge
from flowedge.errors import EngineUnavailableError
from flowedge.runtime.detector import Detector
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.protocols import Frame
from flowedge.runtime.station.judges import Judge
from flowedge.runtime.station.record import Event
from flowedge.runtime.station.settings import ProductSettings
from flowedge.runtime.station.stage_calls import StageCalls
from flowedge.runtime.station.watch import Watch, WatchSettings
from support.station_parts import FrameList, Notes, frame, loop_of
from support.tiny_bundle import write_tiny_bundle
from support.waiting import wait_until

Pixels = NDArray[Any]


def _pixels(seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(20, 200, (300, 400, 3), np.uint8)


def _frame(pixels: Pixels, *, source: str = "camera", **facts: Any) -> Frame:
    now = datetime.datetime.now(datetime.timezone.utc)
    return Frame(pixels=pixels, id="1", time=now, source=source, **facts)


def _watch(tmp_path: Path, **settings: Any) -> tuple[Watch, Detector]:
    write_tiny_bundle(tmp_path / "a.flowedge")
    detector = flowedge.load(tmp_path / "a.flowedge")
    return Watch(WatchSettings(**settings), tmp_path, {"": detector.bundle}), detector


def _check(watch: Watch, pixels: Pixels, **facts: Any) -> str:
    return watch.check(_frame(pixels, **facts), pixels)


def test_the_second_of_two_equal_frames_is_not_inspected(tmp_path: Path) -> None:
    watch, _ = _watch(tmp_path)
    assert not _check(watch, _pixels())
    assert _check(watch, _pixels()) == "the camera shows the same pixels for the 2nd time in a row"
    assert "3rd time" in _check(watch, _pixels())
    assert not _check(watch, _pixels(1))


def test_one_changed_pixel_anywhere_makes_a_new_frame(tmp_path: Path) -> None:
    watch, _ = _watch(tmp_path)
    large = np.zeros((1000, 1000, 3), np.uint8) + 50
    assert not _check(watch, large)
    changed = large.copy()
    changed[501, 503, 1] += 1  # which the sample of every third row does not have
    assert not _check(watch, changed)


def test_equal_frames_of_two_cameras_are_no_repetition(tmp_path: Path) -> None:
    watch, _ = _watch(tmp_path)
    assert not _check(watch, _pixels(), source="left")
    assert not _check(watch, _pixels(), source="right")


def test_the_last_frames_of_few_sources_are_kept(tmp_path: Path) -> None:
    watch, _ = _watch(tmp_path)
    pixels = _pixels()
    # A watched tree of folders may get a new folder every hour, and each of them is a source.
    for number in range(20):
        assert not _check(watch, pixels, source=f"folder {number}")
        assert bool(_check(watch, pixels, source="camera")) == (number > 0)
    assert len(watch._gate._last) == 8


@pytest.mark.parametrize(("allowed", "refused"), [(0, 0), (3, 3), (5, 1)])
def test_the_number_of_equal_frames_is_a_setting(tmp_path: Path, allowed: int, refused: int) -> None:
    watch, _ = _watch(tmp_path, frozen_frames=allowed)
    assert sum(_check(watch, _pixels()) != "" for _ in range(5)) == refused


def test_a_frame_that_waited_too_long_is_not_inspected(tmp_path: Path) -> None:
    watch, _ = _watch(tmp_path, stale_s=600)
    old = time.monotonic_ns() - 3_600_000_000_000
    assert "s old, and stale_s allows 600 s" in _check(watch, _pixels(0), monotonic_ns=old)
    assert not _check(watch, _pixels(1), monotonic_ns=time.monotonic_ns())
    assert not _check(watch, _pixels(2))  # nobody knows when the frame was taken
    assert not _check(watch, _pixels(3), monotonic_ns=old, version="12-34")  # a file


@pytest.mark.parametrize(("level", "word"), [(2, "too dark"), (254, "saturated")])
def test_a_black_or_white_frame_is_not_inspected_by_a_bundle_without_ranges(
    tmp_path: Path, level: int, word: str
) -> None:
    watch, _ = _watch(tmp_path)
    assert word in _check(watch, np.full((300, 400, 3), level, np.uint8))


def test_no_frame_is_inspected_before_the_engine_is_tested(tmp_path: Path) -> None:
    watch, detector = _watch(tmp_path)
    assert watch.problem()
    assert watch.due(detector)
    (event,) = watch.test(detector)
    assert (event.kind, event.level, event.data["whole"]) == ("self_test_passed", "info", True)
    assert not watch.problem()
    assert not watch.due(detector)


class _Broken:
    """Computes as an engine does, until it is told to add something to every level."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.added = 0.0
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def infer(self, *inputs: Any) -> dict[str, Any]:
        self.calls += 1
        return {name: one + np.float32(self.added) for name, one in self._engine.infer(*inputs).items()}


def _with_broken_engine(detector: Detector) -> tuple[Detector, _Broken]:
    broken = _Broken(detector.engine.engine)
    opened: Opened = replace(detector.engine, engine=broken)
    return Detector(detector.bundle, opened), broken


def test_a_different_answer_stops_verdicts_until_another_engine_answers_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, right = _watch(tmp_path, self_test_hours=1)
    detector, engine = _with_broken_engine(right)
    watch.test(detector)
    assert not watch.problem()
    assert not watch.due(detector)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3601)
    engine.added, engine.calls = 0.01, 0
    events: list[Event] = []
    while watch.due(detector) and not events:
        before = engine.calls
        events += watch.test(detector)
        assert engine.calls == before + 1  # no frame of the line waits for more than one inference
    assert [(event.kind, event.level) for event in events] == [("self_test_failed", "alarm")]
    assert watch.problem().startswith("the engine failed its self-test")
    assert not watch.due(detector)  # again in a minute
    assert watch.due(right)  # at once
    (event,) = watch.test(right)
    assert event.kind == "self_test_passed"
    assert event.data["stopped_before"]
    assert not watch.problem()


def test_an_engine_that_failed_is_tested_again_and_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, right = _watch(tmp_path)
    detector, engine = _with_broken_engine(right)
    engine.added = np.nan
    assert watch.test(detector)[0].kind == "self_test_failed"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    engine.added = 0.0
    while watch.due(detector):
        watch.test(detector)
    assert not watch.problem()


def test_an_engine_that_cannot_run_judges_nothing(tmp_path: Path) -> None:
    watch, right = _watch(tmp_path)
    detector, engine = _with_broken_engine(right)

    def stopped(*inputs: Any) -> Any:
        raise EngineUnavailableError("the device was unplugged")

    engine.infer = stopped  # type: ignore[method-assign]
    (event,) = watch.test(detector)
    assert event.kind == "self_test_failed"
    assert "unplugged" in watch.problem()


def test_a_station_replaces_an_engine_that_fails_its_self_test_and_nothing_is_inspected_meanwhile(
    tmp_path: Path,
) -> None:
    watch, right = _watch(tmp_path)
    # An engine that fails is closed, so each detector has its own.
    wrong = [_with_broken_engine(flowedge.load(tmp_path / "a.flowedge")) for _ in range(2)]
    for _, engine in wrong:
        engine.added = 0.01
    detectors = [*(detector for detector, _ in wrong), right]
    opened: list[str | None] = []

    def open_judge(product: ProductSettings, name: str | None) -> Judge:
        opened.append(name)
        detector = detectors[len(opened) - 1]
        return Judge(
            product="",
            base=detector,
            detector=detector,
            bundle_sha256="0" * 64,
            engine_version="0",
            threshold_version=0,
        )

    notes = Notes()
    unused: Any = None
    calls = StageCalls(
        watch=watch,
        journal=unused,
        archive=unused,
        live=unused,
        deliveries=unused,
        shadow=None,
        tell=notes.events.append,
        may_replace=lambda: True,
    )
    frames = FrameList([frame(number) for number in range(5)])
    loop = loop_of(frames, open_judge, notes, test=calls.test)
    loop.start()
    wait_until(lambda: loop.has_ended)
    loop.stop()
    assert loop.join(30)
    assert opened == ["first", "first", "second"]
    assert [record.verdict for record in notes.records[:2]] == ["not_inspected"] * 2
    assert all(record.verdict != "not_inspected" for record in notes.records[2:])
    assert "failed its self-test" in notes.records[0].problem
    assert [kind for kind in notes.kinds if kind.startswith("self_test")] == [
        "self_test_failed",
        "self_test_failed",
        "self_test_passed",
    ]
