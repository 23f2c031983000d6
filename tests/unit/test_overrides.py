"""The changes that people make on a station outlive a restart, and a damaged file is never taken for no change."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from flowedge.errors import FlowEdgeError, SettingsError
from flowedge.runtime.station.overrides import FILE, Overrides, Polygons

BUNDLE = "ab" * 32
FRAME = (480, 640)
SQUARE: Polygons = (((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)),)


def test_a_change_outlives_a_restart_and_the_older_ones_are_the_history(tmp_path: Path) -> None:
    overrides = Overrides(tmp_path)
    assert overrides.threshold(BUNDLE) is None
    assert overrides.area() is None
    first = overrides.change_threshold(1.5, bundle_sha256=BUNDLE, who="Ada", why="too many  false\nalarms")
    overrides.change_area(SQUARE, (), frame_size=FRAME, who="Bo", why="the camera moved")
    second = overrides.change_threshold(1.75, bundle_sha256=BUNDLE, who="Ada", why="still too many")
    again = Overrides(tmp_path)
    assert again.changes == overrides.changes
    assert [one.version for one in again.changes] == [1, 2, 3]
    assert again.threshold(BUNDLE) == second
    assert first.why == "too many false alarms"
    area = again.area()
    assert area is not None
    assert area.inspect == SQUARE


def test_a_limit_belongs_to_its_product_and_to_the_scores_of_its_bundle(tmp_path: Path) -> None:
    overrides = Overrides(tmp_path)
    overrides.change_threshold(1.5, bundle_sha256=BUNDLE, product="cap", who="Ada", why="a trial")
    assert overrides.threshold(BUNDLE) is None
    assert overrides.threshold("cd" * 32, "cap") is None
    assert overrides.threshold(BUNDLE, "cap") is not None
    overrides.change_threshold(None, bundle_sha256=BUNDLE, product="cap", who="Ada", why="back")
    assert overrides.threshold(BUNDLE, "cap") is None
    assert len(overrides.changes) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_limit_is_a_finite_number(tmp_path: Path, value: float) -> None:
    with pytest.raises(SettingsError, match="finite"):
        Overrides(tmp_path).change_threshold(value, bundle_sha256=BUNDLE, who="Ada", why="a trial")
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("polygons", "words"),
    [
        ((((0.0, 0.0), (1.0, 1.0)),), "3 to 1000 corners"),
        ((((0.0, 0.0), (5.0, 5.0), (9.0, 9.0)),), "no area"),
        ((((0.0, -1.0), (5.0, 5.0), (9.0, 0.0)),), "row -1"),
        ((((0.0, math.nan), (5.0, 5.0), (9.0, 0.0)),), "nan"),
        (SQUARE * 101, "at most 100"),
    ],
)
def test_a_polygon_that_no_frame_can_hold_is_refused(tmp_path: Path, polygons: Polygons, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Overrides(tmp_path).change_area(polygons, (), frame_size=FRAME, who="Ada", why="a trial")


@pytest.mark.parametrize(("who", "why"), [("", "x"), ("x", " \n"), ("x", "y" * 501)])
def test_a_change_has_a_name_and_a_reason(tmp_path: Path, who: str, why: str) -> None:
    with pytest.raises(SettingsError, match="1 to 500 characters"):
        Overrides(tmp_path).change_area(SQUARE, (), frame_size=FRAME, who=who, why=why)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[1", '{"schema": 1, "changes": [{"kind": "other"}]}', '{"schema": 2, "changes": []}'],
)
def test_a_damaged_file_is_an_error_and_not_no_change(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(FlowEdgeError, match=FILE):
        Overrides(tmp_path)


def test_a_change_that_cannot_be_stored_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = Overrides(tmp_path)
    overrides.change_area(SQUARE, (), frame_size=FRAME, who="Ada", why="a trial")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("flowedge.runtime.station.overrides.write_whole_file", full)
    with pytest.raises(FlowEdgeError, match="Nothing was changed"):
        overrides.change_threshold(1.0, bundle_sha256=BUNDLE, who="Ada", why="a trial")
    assert overrides.threshold(BUNDLE) is None
    assert Overrides(tmp_path).changes == overrides.changes


def test_a_long_history_keeps_what_is_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowedge.runtime.station.overrides._MOST_CHANGES", 5)
    overrides = Overrides(tmp_path)
    overrides.change_area(SQUARE, (), frame_size=FRAME, who="Ada", why="the only one")
    for value in range(10):
        overrides.change_threshold(value, bundle_sha256=BUNDLE, who="Ada", why="a trial")
    again = Overrides(tmp_path)
    assert len(again.changes) == 5
    assert again.area() is not None
    limit = again.threshold(BUNDLE)
    assert limit is not None
    assert (limit.value, limit.version) == (9, 11)
    assert json.loads((tmp_path / FILE).read_text())["schema"] == 1
