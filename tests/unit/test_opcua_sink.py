"""OPC UA clients see each result, by variables and by an event, and change nothing but the acknowledgement."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from flowedge.errors import SettingsError
from flowedge.runtime.settings import settings_from
from flowedge.runtime.station.sinks import RecordSink, SinkError, StationLink, make_sink, probe
from flowedge.runtime.station.sinks.settings import OpcUaSettings
from support.mqtt_broker import free_port
from support.station_records import made_record
from support.waiting import wait_until

asyncua: Any = pytest.importorskip("asyncua", reason="the OPC UA sink needs asyncua")
ua: Any = asyncua.ua
Made = TypeVar("Made")


class Station:
    """An OPC UA sink with a link that a test can change, and clients of it."""

    def __init__(self, **settings: Any) -> None:
        self.is_alive = True
        self.triggers: list[str | None] = []
        self.settings = OpcUaSettings(**{"port": free_port(), "heartbeat_s": 0.1, **settings})
        self.link = StationLink(
            station="line 1", run="run-1", alive=lambda: self.is_alive, trigger=self.triggers.append
        )
        self.sink: RecordSink = make_sink(self.settings, self.link)
        self.sink.open()
        self.number = 0

    def deliver(self, **fields: Any) -> int:
        self.number += 1
        self.sink.deliver([made_record(self.number, **fields)])
        return self.number

    @property
    def url(self) -> str:
        return f"opc.tcp://127.0.0.1:{self.settings.port}/flowedge/"

    def ask(self, question: Callable[[Any, int], Awaitable[Made]]) -> Made:
        """Connect a client, and call a function with it and the index of the station's namespace."""

        async def connected() -> Made:
            async with asyncua.Client(self.url, timeout=10) as client:
                return await question(client, await client.get_namespace_index("urn:flowedge:station"))

        return asyncio.run(connected())

    def values(self, *names: str) -> list[Any]:
        async def read(client: Any, index: int) -> list[Any]:
            nodes = [client.get_node(ua.NodeId(name, index)) for name in names]
            values: list[Any] = await client.read_values(nodes)
            return values

        return self.ask(read)


@pytest.fixture(scope="module")
def station() -> Iterator[Station]:
    one = Station(connections=3)
    yield one
    one.sink.close()


def test_the_variables_show_the_record(station: Station) -> None:
    number = station.deliver(part="Gehäuse", score=2.5, log_nfa=-4.5, product="bottle", bundle_sha256="ab")
    names = ["RecordNumber", "ResultId", "PartId", "ProductId", "InternalRecipeId", "Signal", "Verdict"]
    assert station.values(*names) == [number, f"line-1/{number}", "Gehäuse", "bottle", "ab", "ok", "ok"]
    score, threshold, log_nfa, is_ok, state = station.values(
        "Score", "Threshold", "LogNfa", "IsOk", "ResultState"
    )
    assert (score, log_nfa, is_ok, state) == (2.5, -4.5, True, 1)
    assert math.isnan(threshold)
    (content, created) = station.values("ResultContent", "CreationTime")
    assert json.loads(content)["part"] == "Gehäuse"
    assert created.isoformat() == "2026-11-30T12:00:00+00:00"


def test_a_client_finds_the_nodes_by_their_names(station: Station) -> None:
    station.deliver()

    async def browse(client: Any, index: int) -> Any:
        path = ["VisionSystem", "ResultManagement", "Results", "Result", "RecordNumber"]
        node = await client.nodes.objects.get_child([f"{index}:{name}" for name in path])
        return await node.read_value()

    assert station.ask(browse) == station.number


def test_a_subscribed_client_gets_each_result_once_and_in_order(station: Station) -> None:
    async def subscribe(client: Any, index: int) -> list[tuple[Any, ...]]:
        events: list[tuple[Any, ...]] = []

        class Handler:
            def event_notification(self, event: Any) -> None:
                events.append((event.RecordNumber, event.ResultId, event.IsOk, event.PartId))

        subscription = await client.create_subscription(50, Handler())
        system = client.get_node(ua.NodeId("VisionSystem", index))
        types = client.get_node(ua.ObjectIds.BaseEventType)
        kind = await types.get_child([f"{index}:ResultReadyEventType"])
        assert kind.nodeid == ua.NodeId("ResultReadyEventType", index)
        await subscription.subscribe_events(system, kind, queuesize=100)
        deliver = [
            lambda n=n: station.deliver(part=f"p{n}", signal="ok" if n % 2 else "nok") for n in range(10)
        ]
        for one in deliver:
            await asyncio.get_running_loop().run_in_executor(None, one)
        until = time.monotonic() + 20
        while len(events) < 10 and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return events

    first = station.number + 1
    assert station.ask(subscribe) == [
        (first + n, f"line-1/{first + n}", bool(n % 2), f"p{n}") for n in range(10)
    ]


@pytest.mark.parametrize(
    ("fields", "is_ok", "is_stale", "state"),
    [
        ({"signal": "nok", "verdict": "anomalous"}, False, False, 1),
        ({"signal": "nok", "verdict": "not_inspected", "score": None}, False, False, 4),
        ({"run": "an earlier run"}, False, True, 1),
        ({"monotonic_ns": 1}, False, True, 1),
    ],
)
def test_is_ok_follows_the_signal_and_the_age(
    station: Station, fields: dict[str, Any], is_ok: bool, is_stale: bool, state: int
) -> None:
    station.deliver(**fields)
    assert station.values("IsOk", "IsStale", "ResultState") == [is_ok, is_stale, state]


def test_a_stage_that_hangs_stops_the_heartbeat_and_takes_ok_back(station: Station) -> None:
    station.deliver()
    station.sink.beat()
    heartbeat, is_ok, state = station.values("Heartbeat", "IsOk", "CurrentState")
    assert (is_ok, state.Text) == (True, "Operational")
    station.is_alive = False
    station.sink.beat()
    try:
        same, is_ok, state = station.values("Heartbeat", "IsOk", "CurrentState")
        assert (same, is_ok, state.Text) == (heartbeat, False, "Error")
    finally:
        station.is_alive = True
    station.sink.beat()
    assert station.values("Heartbeat") == [heartbeat + 1]


def test_a_client_cannot_write_results_nor_make_nodes_not_even_as_admin(station: Station) -> None:
    number = station.deliver(signal="nok", verdict="anomalous")

    async def attack(client: Any, index: int) -> list[str]:
        refused = []
        for attempt in (
            client.get_node(ua.NodeId("IsOk", index)).write_value(True),
            client.get_node(ua.NodeId("RecordNumber", index)).write_value(
                ua.Variant(1, ua.VariantType.UInt32)
            ),
            client.nodes.objects.add_variable(index, "mine", 1),
            client.get_node(ua.NodeId("VisionSystem", index)).delete(),
        ):
            with pytest.raises(ua.UaStatusCodeError) as raised:
                await attempt
            refused.append(type(raised.value).__name__)
        return refused

    assert set(station.ask(attack)) == {"BadUserAccessDenied"}

    async def as_admin() -> None:
        client = asyncua.Client(station.url, timeout=5)
        client.set_user("admin")
        client.set_password("admin")
        await client.connect()

    with pytest.raises(ua.UaError):
        asyncio.run(as_admin())
    assert station.values("IsOk", "RecordNumber") == [False, number]


def test_a_trigger_brings_its_part_id(station: Station) -> None:
    async def trigger(client: Any, index: int) -> None:
        system = client.get_node(ua.NodeId("VisionSystem", index))
        for part in ("A-17", "", "\x1b[31m"):
            await system.call_method(ua.NodeId("Trigger", index), part)

    station.ask(trigger)
    assert station.triggers == ["A-17", None, "\\x1b[31m"]


def test_clients_that_are_too_many_or_send_nonsense_disturb_nobody(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    number = station.deliver()
    address = ("127.0.0.1", station.settings.port)
    with socket.create_connection(address, 5) as one, socket.create_connection(address, 5) as two:
        one.sendall(b"GET / HTTP/1.1\r\n\r\n" * 50)
        two.sendall(b"HELF\xff\xff\xff\xff" + bytes(100))
        assert station.values("RecordNumber") == [number]
    with (
        socket.create_connection(address, 5),
        socket.create_connection(address, 5),
        socket.create_connection(address, 5),
        socket.create_connection(address, 5) as fourth,
    ):
        assert fourth.recv(10) == b""
    wait_until(lambda: can_connect(station), "the others are gone")
    assert station.deliver() == number + 1
    assert caplog.text == ""


def can_connect(station: Station) -> bool:
    try:
        return bool(station.values("RecordNumber"))
    except (OSError, asyncio.TimeoutError, ua.UaError):
        return False


def test_a_taken_port_is_told(station: Station) -> None:
    with pytest.raises(SinkError, match=rf"127\.0\.0\.1:{station.settings.port}: Address already in use"):
        probe(station.settings, station.link)


def test_the_independent_client_of_node_reads_the_result(station: Station, tmp_path: Path) -> None:
    folder = Path(os.environ.get("NODE_PATH", "/usr/local/lib/node_modules")) / "node-opcua-client"
    node = shutil.which("node")
    if node is None or not folder.is_dir():
        pytest.skip("an independent client needs: npm install -g node-opcua-client")
    number = station.deliver()
    program = """
const {OPCUAClient, AttributeIds} = require(process.argv[2]);
(async () => {
  const client = OPCUAClient.create({endpointMustExist: false});
  await client.connect(process.argv[1]);
  const session = await client.createSession();
  const index = (await session.readNamespaceArray()).indexOf("urn:flowedge:station");
  const read = await session.read({nodeId: `ns=${index};s=RecordNumber`, attributeId: AttributeIds.Value});
  console.log("RecordNumber=" + read.value.value);
  await session.close(); await client.disconnect();
})();
"""
    done = subprocess.run(
        [node, "-e", program, station.url, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin"},
    )
    assert f"RecordNumber={number}" in done.stdout.split()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("opcua")
    certificate, key = folder / "station.pem", folder / "key.pem"
    subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "30",
                "-subj",
                "/CN=station",
            ],
            *["-addext", "subjectAltName=URI:urn:plant:station,DNS:localhost,IP:127.0.0.1"],
            *["-addext", "keyUsage=digitalSignature,nonRepudiation,keyEncipherment,dataEncipherment"],
            *["-addext", "extendedKeyUsage=serverAuth,clientAuth"],
            *["-keyout", str(key), "-out", str(certificate)],
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_a_client_signs_in_encrypted_and_acknowledges_each_result(
    certificates: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256

    certificate, key = certificates
    monkeypatch.setenv("OPCUA_PASSWORD", "secret")
    one = Station(
        certificate=certificate,
        private_key=key,
        username="plc",
        password_env="OPCUA_PASSWORD",
        handshake=True,
        ack_timeout_s=20.0,
    )

    async def client_of(password: str, *, encrypts: bool = True) -> Any:
        client = asyncua.Client(one.url, timeout=5)
        client.application_uri = "urn:plant:station"
        client.set_user("plc")
        client.set_password(password)
        if encrypts:
            await client.set_security(
                SecurityPolicyBasic256Sha256,
                certificate=str(certificate),
                private_key=str(key),
                server_certificate=str(certificate),
                mode=ua.MessageSecurityMode.SignAndEncrypt,
            )
        await client.connect()
        return client

    async def run() -> list[int]:
        with pytest.raises(ua.UaError):
            await client_of("wrong")
        with pytest.raises(ua.UaError):
            await client_of("secret", encrypts=False)
        client = await client_of("secret")
        index = await client.get_namespace_index("urn:flowedge:station")
        number = client.get_node(ua.NodeId("RecordNumber", index))
        acknowledged = client.get_node(ua.NodeId("AcknowledgedNumber", index))
        with pytest.raises(ua.UaStatusCodeError, match="BadTypeMismatch"):
            await acknowledged.write_value("x" * 1000)
        await acknowledged.write_value(ua.Variant(99, ua.VariantType.UInt32))
        seen: list[int] = []
        until = time.monotonic() + 20
        while len(seen) < 5 and time.monotonic() < until:
            value = await number.read_value()
            if value and (not seen or value != seen[-1]):
                seen.append(value)
                await asyncio.sleep(0.02)
                await acknowledged.write_value(ua.Variant(value, ua.VariantType.UInt32))
        await client.disconnect()
        return seen

    delivered = threading.Thread(
        target=lambda: one.sink.deliver([made_record(number) for number in range(1, 6)])
    )
    delivered.start()
    try:
        assert asyncio.run(run()) == [1, 2, 3, 4, 5]
        delivered.join(20)
        assert not delivered.is_alive()
    finally:
        one.sink.close()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"username": "a"}, "username needs a password|username needs certificate"),
        ({"username": "a", "password_env": "P"}, "username needs certificate"),
        ({"certificate": "a.crt"}, "certificate needs private_key"),
        ({"port": 0}, ">= 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    table: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_from({"kind": "opcua", **table}, OpcUaSettings, name="station.toml", folder=tmp_path)


def test_a_certificate_without_an_application_uri_is_refused(tmp_path: Path) -> None:
    from support.certificates import Authority

    certificate, key = Authority(tmp_path).issue("server")
    link = StationLink(station="line-1", run="r")
    with pytest.raises(SettingsError, match="application URI"):
        make_sink(OpcUaSettings(certificate=certificate, private_key=key), link)
    with pytest.raises(SettingsError, match="No such file"):
        make_sink(OpcUaSettings(certificate=tmp_path / "none", private_key=key), link)
