"""Records reach a real broker, and none is lost where the broker dies, hangs or refuses."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowedge.errors import FlowEdgeError, SettingsError
from flowedge.runtime.settings import settings_from
from flowedge.runtime.station.delivery import Deliveries
from flowedge.runtime.station.journal_reader import JournalReader
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.sinks import RecordSink, RefusedError, SinkError, StationLink, make_sink, probe
from flowedge.runtime.station.sinks.settings import MqttSettings
from flowedge.runtime.tls import tls_words
from support.certificates import Authority
from support.mqtt_broker import PASSWORD, USER, Broker, Subscriber
from support.station_records import MemoryJournal, made_record
from support.waiting import wait_until

paho = pytest.importorskip("paho.mqtt.client", reason="the MQTT sink needs paho-mqtt")
LINK = StationLink(station="line-1", run="run-1")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    one = Broker(tmp_path_factory.mktemp("broker"))
    yield one
    one.kill()


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", PASSWORD)


def settings_for(broker: Broker, **fields: Any) -> MqttSettings:
    return MqttSettings(
        **{
            "host": "localhost",
            "port": broker.port,
            "username": USER,
            "password_env": "BROKER_PASSWORD",
            "heartbeat_s": 0.1,
            "timeout_s": 5.0,
            **fields,
        }
    )


@pytest.fixture
def subscriber(broker: Broker) -> Iterator[Subscriber]:
    one = Subscriber(broker, "flowedge/line-1/#")
    yield one
    one.close()


def numbers(subscriber: Subscriber) -> list[int]:
    return [json.loads(payload)["number"] for payload in subscriber.payloads("flowedge/line-1/record")]


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("tls", [False, True])
def test_records_events_state_and_heartbeat_arrive(
    broker: Broker, subscriber: Subscriber, version: str, tls: bool
) -> None:
    port = broker.tls_port if tls else broker.port
    tls_settings = {"tls": True, "ca_file": broker.authority.file} if tls else {}
    sink = make_sink(settings_for(broker, version=version, port=port, **tls_settings), LINK)
    sink.open()
    sink.deliver([made_record(number) for number in range(1, 51)])
    sink.event(Event(kind="drift", text="the scores rise"))
    sink.beat()
    sink.close()
    prefix = "flowedge/line-1"
    # The retained state of an earlier test may come first.
    wait_until(
        lambda: subscriber.payloads(f"{prefix}/state")[-2:] == [b"online", b"offline"], "the goodbye arrives"
    )
    assert numbers(subscriber) == list(range(1, 51))
    assert json.loads(subscriber.payloads(f"{prefix}/record")[0])["signal"] == "ok"
    assert json.loads(subscriber.payloads(f"{prefix}/event")[0])["kind"] == "drift"
    assert subscriber.payloads(f"{prefix}/heartbeat")[-1] == b"1"


def test_a_broker_that_is_killed_and_restarted_gets_every_record_in_order(
    broker: Broker, subscriber: Subscriber
) -> None:
    journal = MemoryJournal()
    deliveries = Deliveries.of([settings_for(broker, retry_max_s=0.3)], journal, LINK, journal.tell)
    deliveries.start()
    journal.add(*(made_record(number) for number in range(1, 31)))
    deliveries.wake()
    wait_until(lambda: len(numbers(subscriber)) == 30, "the first records arrive")
    broker.kill()
    journal.add(*(made_record(number) for number in range(31, 61)))
    deliveries.wake()
    wait_until(lambda: "sink_down" in journal.kinds(), "the sink is reported as down")
    assert deliveries.status[0].backlog == 30
    broker.start()
    wait_until(lambda: deliveries.is_drained(), "the backlog is delivered")
    deliveries.stop()
    assert journal.kinds() == ["sink_down", "sink_back"]
    assert journal.cursors["mqtt"] == 60
    # A subscriber that comes back after the station misses some, since the broker has lost its session.
    assert numbers(subscriber) == sorted(set(numbers(subscriber)))


def test_a_broker_that_hangs_is_noticed_and_gets_the_rest_later(
    broker: Broker, subscriber: Subscriber
) -> None:
    journal = MemoryJournal()
    settings = settings_for(broker, timeout_s=0.5, retry_max_s=0.3)
    deliveries = Deliveries.of([settings], journal, LINK, journal.tell)
    deliveries.start()
    journal.add(made_record(1))
    wait_until(lambda: numbers(subscriber) == [1], "the first record arrives")
    broker.send_signal(signal.SIGSTOP)
    try:
        journal.add(made_record(2), made_record(3))
        deliveries.wake()
        wait_until(lambda: "sink_down" in journal.kinds(), "the sink is reported as down")
    finally:
        broker.send_signal(signal.SIGCONT)
    wait_until(deliveries.is_drained, "the backlog is delivered")
    deliveries.stop()
    wait_until(lambda: 3 in numbers(subscriber), "the last record arrives")
    # What the broker had read before it hung is repeated, in order.
    seen = numbers(subscriber)
    assert sorted(set(seen)) == [1, 2, 3]
    assert list(dict.fromkeys(seen)) == [1, 2, 3]


def test_a_station_that_is_killed_leaves_its_last_will(broker: Broker, subscriber: Subscriber) -> None:
    program = (
        "import time\n"
        "from flowedge.runtime.station.sinks import StationLink, make_sink\n"
        "from flowedge.runtime.station.sinks.settings import MqttSettings\n"
        f"settings = MqttSettings(host='localhost', port={broker.port}, username={USER!r},"
        " password_env='BROKER_PASSWORD')\n"
        "make_sink(settings, StationLink(station='line-1', run='r')).open()\n"
        "time.sleep(60)\n"
    )
    station = subprocess.Popen([sys.executable, "-c", program], env=dict(os.environ))
    try:
        wait_until(
            lambda: subscriber.payloads("flowedge/line-1/state")[-1:] == [b"online"], "the station is online"
        )
    finally:
        station.kill()
        station.wait()
    wait_until(
        lambda: subscriber.payloads("flowedge/line-1/state")[-1:] == [b"offline"], "the will is published"
    )
    late = Subscriber(broker, "flowedge/line-1/state")
    wait_until(lambda: late.messages, "the state is retained")
    late.close()
    assert late.messages == [("flowedge/line-1/state", b"offline", True)]


STATION = """
import sys, time
from pathlib import Path
from flowedge.runtime.station.delivery import Deliveries
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.sinks import StationLink
from flowedge.runtime.station.sinks.settings import MqttSettings
from support.station_records import made_record

path, port, wanted = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with Journal(path, station="line-1") as journal:
    settings = MqttSettings(port=port, username="st", password_env="BROKER_PASSWORD")
    link = StationLink(station="line-1", run=journal.run)
    deliveries = Deliveries.of([settings], journal, link, lambda event: None)
    deliveries.start()
    while journal.last() < wanted:
        journal.append([made_record()])
        deliveries.wake()
        print(journal.last(), flush=True)
        time.sleep(0.002)
    assert deliveries.wait_drained(20)
    deliveries.stop()
"""


def test_a_station_that_is_killed_again_and_again_delivers_every_record(
    broker: Broker, subscriber: Subscriber, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", STATION, str(tmp_path / "journal.sqlite"), str(broker.port), "200"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    # The first kill comes at once, when a new sink's place in the journal may not be on disk yet.
    for kill_at in (1, 60, 130, None):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as station:
            assert station.stdout is not None
            for line in station.stdout:
                if kill_at is not None and int(line) >= kill_at:
                    station.kill()
        assert station.returncode == (0 if kill_at is None else -signal.SIGKILL)
    with JournalReader(tmp_path / "journal.sqlite") as journal:
        kept = {record.id: record for record in journal.records()}
    assert len(kept) >= 200
    wait_until(lambda: len(kept) in numbers(subscriber), "the last record arrives")
    got = [
        msgspec.json.decode(payload, type=Record) for payload in subscriber.payloads("flowedge/line-1/record")
    ]
    assert all(record == kept[record.id] for record in got)
    once = list({record.id: record for record in got}.values())
    assert [record.number for record in once] == list(range(1, len(kept) + 1))


def test_a_stage_that_hangs_stops_the_heartbeat_and_changes_the_state(
    broker: Broker, subscriber: Subscriber
) -> None:
    is_alive = True
    sink = make_sink(settings_for(broker), StationLink(station="line-1", run="r", alive=lambda: is_alive))
    sink.open()
    sink.beat()
    is_alive = False
    sink.beat()
    sink.beat()
    is_alive = True
    sink.beat()
    sink.close()
    wait_until(
        lambda: (
            subscriber.payloads("flowedge/line-1/state")[-4:]
            == [b"online", b"stalled", b"online", b"offline"]
        ),
        "the states arrive",
    )
    assert subscriber.payloads("flowedge/line-1/heartbeat") == [b"1", b"2"]


def test_a_wrong_password_and_an_unknown_authority_are_told(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SinkError, match=r"cannot be reached: its certificate is not accepted: "):
        probe(settings_for(broker, tls=True, port=broker.tls_port), LINK)
    other = Authority(tmp_path, "another authority")
    with pytest.raises(SinkError, match=r"cannot be reached: its certificate is not accepted: "):
        probe(settings_for(broker, tls=True, port=broker.tls_port, ca_file=other.file), LINK)
    monkeypatch.setenv("BROKER_PASSWORD", "wrong")
    with pytest.raises(SinkError, match=r"localhost:\d+ refuses the station: Not authorized"):
        probe(settings_for(broker), LINK)


def test_words_of_a_failed_connection_are_a_clause_without_a_full_stop() -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_message = "Hostname mismatch, certificate is not valid for 'localhost'."
    assert tls_words(error).endswith(
        "is not accepted: Hostname mismatch, certificate is not valid for 'localhost'"
    )


def test_a_probe_says_what_it_reached_and_leaves_a_running_station_alone(
    broker: Broker, subscriber: Subscriber
) -> None:
    sink = make_sink(settings_for(broker), LINK)
    sink.open()
    wait_until(lambda: subscriber.payloads("flowedge/line-1/state"), "the station is online")
    before = len(subscriber.payloads("flowedge/line-1/state"))
    assert "takes the station without encryption, by MQTT 5" in probe(settings_for(broker), LINK)
    sink.deliver([made_record(1)])
    sink.close()
    wait_until(lambda: numbers(subscriber) == [1], "the record arrives")
    assert subscriber.payloads("flowedge/line-1/state")[before:] in ([], [b"offline"])


def test_nobody_at_the_port_is_told() -> None:
    settings = MqttSettings(host="127.0.0.1", port=9, timeout_s=1.0)
    with pytest.raises(SinkError, match=r"the broker 127\.0\.0\.1:9 cannot be reached: Connection refused\."):
        probe(settings, LINK)


def test_connections_that_are_lost_again_and_again_leave_nothing_behind(broker: Broker) -> None:
    def left() -> tuple[int, int, int]:
        gc.collect()
        clients = sum(type(one) is paho.Client for one in gc.get_objects())
        return threading.active_count(), len(os.listdir("/proc/self/fd")), clients

    sink = opened(broker)
    before = left()
    for number in range(1, 31):
        connection = sink._client.socket()  # type: ignore[attr-defined]
        connection.shutdown(socket.SHUT_RDWR)
        with pytest.raises(SinkError):
            sink.deliver([made_record(number)])
        sink.open()
    # Threads end a moment after they are asked to, and those of other tests may end meanwhile.
    wait_until(lambda: all(now <= then for now, then in zip(left(), before, strict=True)), "nothing is left")
    sink.close()


def opened(broker: Broker, **fields: Any) -> RecordSink:
    sink = make_sink(settings_for(broker, **fields), LINK)
    sink.open()
    return sink


def test_a_forbidden_topic_and_a_message_that_is_too_large_are_told(broker: Broker) -> None:
    with pytest.raises(SinkError, match="refuses messages: Not authorized"):
        opened(broker, topic="forbidden/here")
    sink = opened(broker)
    large = made_record(2, source_id="x" * 24000)
    with pytest.raises(RefusedError, match="takes 20000") as raised:
        sink.deliver([made_record(1), large, made_record(3)])
    assert raised.value.delivered == 1
    sink.deliver([made_record(3)])
    sink.close()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"password_env": "A"}, "a password needs username"),
        ({"tls": False, "ca_file": "a.crt"}, "ca_file or cert_file needs tls = true"),
        ({"tls": True, "cert_file": "a.crt"}, "cert_file needs key_file"),
        ({"password_env": "A", "password_file": "b"}, "only one of password_env and password_file"),
        ({"topic": "a/#"}, "without the wildcards"),
        ({"usernam": "a"}, "unknown key usernam. Did you mean username?"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    table: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_from({"kind": "mqtt", **table}, MqttSettings, name="station.toml", folder=tmp_path)


def test_a_name_of_a_station_makes_no_levels_and_no_wildcards_of_a_topic(broker: Broker) -> None:
    everything = Subscriber(broker, "flowedge/+/state")
    sink = make_sink(settings_for(broker), StationLink(station="hall/2 #+\n", run="r"))
    sink.open()
    sink.close()
    wait_until(
        lambda: everything.payloads("flowedge/hall_2____/state")[-1:] == [b"offline"], "the states arrive"
    )
    everything.close()


def test_a_secret_that_is_missing_is_told_before_the_start(broker: Broker) -> None:
    with pytest.raises(FlowEdgeError, match="the environment variable NO_SUCH is not set"):
        make_sink(settings_for(broker, password_env="NO_SUCH"), LINK)


def test_a_silent_server_is_no_broker() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        settings = MqttSettings(port=server.getsockname()[1], host="127.0.0.1", timeout_s=0.3)
        begun = time.monotonic()
        with pytest.raises(SinkError, match="gives no answer"):
            probe(settings, LINK)
        assert time.monotonic() - begun < 10
