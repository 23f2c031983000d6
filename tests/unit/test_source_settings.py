"""The page about stations has each key of a source and its triggers, and a wrong value is an error with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowedge.errors import SettingsError
from flowedge.runtime.settings import Settings, settings_from
from flowedge.runtime.sources import SOURCES
from flowedge.runtime.sources.settings import (
    AnyTrigger,
    ModbusTrigger,
    MqttTrigger,
    SourceSettings,
    TcpTrigger,
)
from flowedge.source_addresses import kind_of
from support.settings_rows import rows_of

PAGE = (Path(__file__).parents[2] / "docs" / "station.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [SourceSettings, AnyTrigger, TcpTrigger, MqttTrigger, ModbusTrigger])
def test_the_page_has_each_key_with_its_default(kind: type[Settings]) -> None:
    without = AnyTrigger if issubclass(kind, AnyTrigger) and kind is not AnyTrigger else None
    assert not set(rows_of(kind, without=without)) - set(PAGE.splitlines())


def test_the_page_has_an_address_of_each_kind_of_source() -> None:
    rows = PAGE.partition("| address | source |\n|---|---|\n")[2].partition("\n\n")[0]
    assert {kind_of(row.split("`")[1]) for row in rows.splitlines()} == set(SOURCES)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({}, "the key address is missing"),
        ({"address": ""}, "address"),
        ({"address": "x", "adress": "y"}, "unknown key adress. Did you mean address?"),
        ({"address": "x", "color": "grey"}, "Did you mean gray?"),
        ({"address": "x", "window": [9, 9]}, "window is the lower level and the higher one"),
        ({"address": "x", "password_env": "P"}, "a password needs the key username"),
        ({"address": "x", "timeout_s": -1}, "timeout_s"),
        ({"address": "x", "trigger": {"kind": "tcp", "port": 0}}, "port"),
        ({"address": "x", "trigger": {"kind": "tpc", "port": 9}}, "Did you mean tcp?"),
        (
            {"address": "x", "trigger": {"kind": "mqtt", "host": "b", "topic": "t", "ca_file": "c"}},
            "Add tls = true",
        ),
    ],
)
def test_a_wrong_value_is_an_error_with_its_reason(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_from(table, SourceSettings, name="station.toml", folder=Path("/etc"))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("table", "lies_ready"),
    [
        ({"address": "pictures"}, True),
        ({"address": "line.mp4"}, True),
        ({"address": "pictures", "watch": True}, False),
        ({"address": "pictures", "trigger": {"kind": "software"}}, False),
        ({"address": "rtsp://camera/1"}, False),
    ],
)
def test_files_lie_ready_and_cameras_and_watched_folders_do_not(
    table: dict[str, Any], lies_ready: bool
) -> None:
    assert settings_from(table, SourceSettings, name="s", folder=Path("/etc")).lies_ready == lies_ready
