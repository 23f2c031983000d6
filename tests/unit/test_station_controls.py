"""A person changes the limit and the area of a station that runs, and the bundle stays as it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flowedge.bundle import Bundle
from flowedge.errors import FlowEdgeError
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.area.settings import AreaSettings
from flowedge.runtime.station.fitting import Fitting
from flowedge.runtime.station.judges import Judge, Judges
from flowedge.runtime.station.overrides import Overrides
from flowedge.runtime.station.record import Event
from flowedge.runtime.station.settings import ProductSettings
from flowedge.runtime.station.station_controls import StationControls
from support.station_parts import ScriptedEngine, frame, judge_on
from support.tiny_bundle import write_tiny_bundle

CORNERS = ((0.0, 0.0), (20.0, 0.0), (20.0, 16.0), (0.0, 16.0))


class _Running:
    """The detectors of a station on an engine that always answers with the score 1, and its controls."""

    def __init__(self, bundle: Bundle, state: Path, area: AreaSettings) -> None:
        self.fitting = Fitting(area, Overrides(state))
        self.events: list[tuple[str, dict[str, object]]] = []
        self.judges = Judges([ProductSettings(name="", bundle=bundle.path)], ["null"], self._open, self._tell)
        self._bundle = bundle
        self.judges.open()
        self.controls = StationControls(
            "line-3", self.judges, self.fitting, self._tell, between_frames=self._soon
        )

    def _open(self, products: Sequence[ProductSettings], engine: str | None) -> dict[str, Judge]:
        return {"": self.fitting(judge_on(self._bundle, ScriptedEngine(self._bundle, score=1.0)))}

    def _tell(self, event: Event) -> None:
        self.events.append((event.kind, event.data))

    def _soon(self, action: Callable[[], object]) -> bool:
        """Run an action in another thread after a moment, as a loop that is busy with a frame does."""
        threading.Timer(0.05, action).start()
        return True

    def verdict(self) -> str:
        (judge,) = self.judges.judges
        return judge.detector(frame(1).pixels).verdict


@pytest.fixture
def running(tmp_path: Path) -> _Running:
    limit = Threshold(value=2.0, method="manual")
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", thresholds=Thresholds(image=limit, pixel=limit))
    return _Running(bundle, tmp_path, AreaSettings())


def test_a_changed_limit_decides_from_the_next_frame_on_and_after_a_restart(
    running: _Running, tmp_path: Path
) -> None:
    assert running.verdict() == "ok"
    before = (tmp_path / "tiny.flowedge/manifest.json").read_bytes()
    version = running.controls.change_threshold(0.5, who="ann", why="too many misses")
    assert running.verdict() == "anomalous"
    (limit,) = running.controls.limits
    assert (limit.value, limit.bundle_value, limit.version) == (0.5, 2.0, version)
    assert running.events == [
        (
            "threshold_changed",
            {"value": 0.5, "product": "", "who": "ann", "why": "too many misses", "change": 1},
        )
    ]
    assert (tmp_path / "tiny.flowedge/manifest.json").read_bytes() == before
    again = _Running(running._bundle, tmp_path, AreaSettings())
    assert again.verdict() == "anomalous"
    assert again.judges.judges[0].threshold_version == version
    assert again.controls.change_threshold(None, who="ann", why="back") > version
    assert again.verdict() == "ok"
    assert [change.why for change in again.controls.changes] == ["too many misses", "back"]


def test_a_limit_that_cannot_be_is_refused_and_changes_nothing(running: _Running) -> None:
    change = running.controls.change_threshold
    with pytest.raises(FlowEdgeError, match="threshold of the score"):
        change(-1.0, is_log_nfa=True, who="ann", why="x")
    with pytest.raises(FlowEdgeError, match="no product"):
        change(0.5, product="bottle", who="ann", why="x")
    with pytest.raises(FlowEdgeError, match="finite"):
        change(float("nan"), who="ann", why="x")
    with pytest.raises(FlowEdgeError, match="who"):
        change(0.5, who="", why="x")
    assert running.verdict() == "ok"
    assert not running.events
    assert not running.controls.changes


def test_a_changed_area_is_that_of_the_next_frame(running: _Running, tmp_path: Path) -> None:
    running.controls.change_area((CORNERS,), (), frame_size=(20, 30), who="ann", why="the clamp moved")
    (judge,) = running.judges.judges
    result = judge.detector(frame(1).pixels)
    assert bool((result.anomaly_map != result.anomaly_map)[:, 25:].all())  # NaN outside
    assert running.controls.area.inspect == (CORNERS,)
    assert running.controls.area.version == 1
    assert _Running(running._bundle, tmp_path, AreaSettings()).controls.area.inspect == (CORNERS,)


def test_an_area_that_cannot_be_is_refused_and_changes_nothing(running: _Running) -> None:
    outside = (((40.0, 0.0), (50.0, 0.0), (50.0, 10.0)),)
    with pytest.raises(FlowEdgeError):
        running.controls.change_area(outside, (), frame_size=(20, 30), who="ann", why="x")
    assert running.controls.area.inspect == ()
    assert running.verdict() == "ok"


def test_a_mask_is_not_changed_by_the_page(tmp_path: Path, running: _Running) -> None:
    running.fitting.area = AreaSettings(mask=tmp_path / "mask.png")
    with pytest.raises(FlowEdgeError, match="as a picture"):
        running.controls.change_area((CORNERS,), (), frame_size=(20, 30), who="ann", why="x")


def test_a_region_that_is_cleared_lets_frames_of_each_size_in(running: _Running) -> None:
    controls = running.controls
    controls.change_area((CORNERS,), (), frame_size=(480, 640), who="ann", why="the wrong camera")
    with pytest.raises(FlowEdgeError, match="480x640"):
        running.verdict()
    controls.change_area((), (), frame_size=(480, 640), who="ann", why="cleared")
    assert running.verdict() == "ok"
    assert controls.area.frame_size is None


def test_a_reason_that_all_engines_share_is_told_once(tmp_path: Path) -> None:
    def fail(products: Sequence[ProductSettings], engine: str | None) -> dict[str, Judge]:
        raise FlowEdgeError("b is no bundle." if products[0].name == "shared" else f"no {engine}.")

    def reason(name: str) -> str:
        products = [ProductSettings(name=name, bundle=tmp_path)]
        with pytest.raises(FlowEdgeError) as error:
            Judges(products, ["openvino", "tensorrt"], fail, lambda event: None).open()
        return str(error.value)

    assert reason("shared") == "b is no bundle."
    assert reason("own") == "openvino: no openvino. tensorrt: no tensorrt."
