"""The page about stations has each key of each sink, with its default and its meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowedge.runtime.settings import Settings
from flowedge.runtime.station.sinks import SINKS, StationLink
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


def test_two_sinks_of_one_broker_do_not_share_the_id_of_their_client() -> None:
    pytest.importorskip("paho.mqtt.client", reason="the package paho-mqtt is not installed")
    from flowedge.runtime.station.sinks.mqtt import MqttSink

    link = StationLink(station="line 3", run="r")
    ids = {
        MqttSink(MqttSettings(host="broker", name=name), link, password=None, context=None)._client_id
        for name in (None, "office", "plant")
    }
    assert ids == {"flowedge-line_3", "flowedge-line_3-office", "flowedge-line_3-plant"}
