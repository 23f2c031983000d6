"""The page about stations has each key of the tables watch and shadow, and a wrong value is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowedge.errors import SettingsError
from flowedge.runtime.settings import Settings, settings_from
from flowedge.runtime.station.watch.settings import ShadowSettings, WatchSettings
from support.settings_rows import rows_of

PAGE = (Path(__file__).parents[2] / "docs" / "station.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [WatchSettings, ShadowSettings])
def test_the_page_has_each_key_with_its_default(kind: type[Settings]) -> None:
    assert not set(rows_of(kind)) - set(PAGE.splitlines())


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"frozen_frame": 2}, "unknown key frozen_frame. Did you mean frozen_frames?"),
        ({"learn": 5}, "learn: expected int >= 50, got 5"),
        ({"reference": "lines"}, "Did you mean line?"),
        ({"self_test_hours": -1}, "expected float >= 0.0, got -1"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_reason(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError) as error:
        settings_from(table, WatchSettings, name="station.toml", folder=Path())
    assert problem in str(error.value).replace("[", "").replace("]", "")
