"""The page about stations has each key of each sink, with its default and its meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowedge.runtime.settings import Settings
from flowedge.runtime.station.sinks import SINKS
from flowedge.runtime.station.sinks.settings import (
    AnySink,
    JsonLinesSettings,
    ModbusSettings,
    MqttSettings,
    OpcUaSettings,
    WebhookSettings,
)
from support.settings_rows import rows_of

KINDS = (JsonLinesSettings, MqttSettings, ModbusSettings, OpcUaSettings, WebhookSettings)
PAGE = Path(__file__).parents[2] / "docs" / "station.md"


@pytest.mark.parametrize("kind", [AnySink, *KINDS])
def test_the_page_has_each_key_with_its_default(kind: type[Settings]) -> None:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    missing = set(rows_of(kind, without=None if kind is AnySink else AnySink)) - set(page)
    assert not missing


def test_each_kind_has_settings_and_a_module() -> None:
    assert [kind.kind for kind in KINDS] == list(SINKS)
