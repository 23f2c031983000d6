"""A PLC reads what the station decided over Modbus TCP, and never reads OK of what is old or unseen."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flowedge.runtime.station.delivery import Deliveries
from flowedge.runtime.station.sinks import RecordSink, SinkError, StationLink, make_sink, probe
from flowedge.runtime.station.sinks.settings import ModbusSettings
from support.mqtt_broker import free_port
from support.station_records import MemoryJournal, made_record
from support.waiting import wait_until

pymodbus: Any = pytest.importorskip("pymodbus.client", reason="the Modbus sink needs pymodbus")
OK, NOK, VALID, READY, STALE, WAITING, NOT_INSPECTED, PART_CUT = range(8)


class Station:
    """A Modbus sink with a link that a test can change, and a PLC that polls it."""

    def __init__(self, **settings: Any) -> None:
        self.is_alive = True
        self.triggers: list[str | None] = []
        self.settings = ModbusSettings(**{"port": free_port(), "heartbeat_s": 0.1, **settings})
        self.link = StationLink(
            station="line-1", run="run-1", alive=lambda: self.is_alive, trigger=self.triggers.append
        )
        self.sink: RecordSink = make_sink(self.settings, self.link)
        self.sink.open()
        self.plc = pymodbus.ModbusTcpClient("127.0.0.1", port=self.settings.port, timeout=5, retries=0)
        # The first answer shows that the server has accepted the client.
        assert self.registers()[14] == 1

    def registers(self, address: int = 0, count: int = 40) -> list[int]:
        unit = self.settings.unit or 1
        answer = self.plc.read_holding_registers(address, count=count, device_id=unit)
        assert not answer.isError(), answer
        registers: list[int] = answer.registers
        return registers

    def bits(self) -> list[bool]:
        answer = self.plc.read_coils(0, count=8, device_id=1)
        assert not answer.isError(), answer
        bits: list[bool] = answer.bits[:8]
        return bits

    def close(self) -> None:
        self.plc.close()
        self.sink.close()


@pytest.fixture
def station() -> Iterator[Callable[..., Station]]:
    made: list[Station] = []

    def start(**settings: Any) -> Station:
        made.append(Station(**settings))
        return made[-1]

    yield start
    for one in made:
        one.close()


Start = Callable[..., Station]


def float_at(registers: list[int], address: int) -> float:
    (value,) = struct.unpack(">f", struct.pack(">2H", *registers[address : address + 2]))
    return float(value)


def test_the_registers_show_the_record(station: Start) -> None:
    one = station()
    record = made_record(
        70000, part="Gehäuse 7", score=2.5, threshold=3.25, log_nfa=-4.5, dropped_before=3, verdict="ok"
    )
    one.sink.deliver([record])
    registers = one.registers()
    assert registers[2] == (70000 - 1) % 65535 + 1
    assert registers[3] == 1
    assert (registers[4] << 16) + registers[5] == 70000
    assert [float_at(registers, address) for address in (6, 8, 10)] == [2.5, 3.25, -4.5]
    assert registers[12:15] == [0, 3, 1]
    assert struct.pack(">16H", *registers[16:32]).rstrip(b"\0").decode() == "Gehäuse 7"
    assert one.plc.read_input_registers(0, count=40, device_id=1).registers[1:15] == registers[1:15]
    assert one.plc.read_discrete_inputs(0, count=8, device_id=1).bits[:8] == one.bits()
    assert registers[1] == sum(bit << place for place, bit in enumerate(one.bits()))


def test_the_independent_program_mbpoll_reads_the_same(station: Start) -> None:
    if shutil.which("mbpoll") is None:
        pytest.skip("an independent reader needs mbpoll: apt-get install mbpoll")
    one = station()
    one.sink.deliver([made_record(5, signal="nok", verdict="anomalous")])

    def mbpoll(*options: str) -> list[int]:
        done = subprocess.run(
            [
                "mbpoll",
                "-m",
                "tcp",
                "-p",
                str(one.settings.port),
                "-0",
                "-1",
                "-a",
                "1",
                *options,
                "127.0.0.1",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("[")]

    assert mbpoll("-t", "4", "-r", "2", "-c", "4") == [5, 2, 0, 5]
    assert mbpoll("-t", "3", "-r", "2", "-c", "4") == [5, 2, 0, 5]
    assert mbpoll("-t", "0", "-r", "0", "-c", "4") == [0, 1, 1, 1]
    assert mbpoll("-t", "1", "-r", "0", "-c", "4") == [0, 1, 1, 1]


def test_before_the_first_record_neither_ok_nor_nok_is_shown(station: Start) -> None:
    one = station()
    assert one.bits() == [place == READY for place in range(8)]
    assert one.registers()[2] == 0


@pytest.mark.parametrize(
    ("fields", "bits"),
    [
        ({}, {OK, VALID, READY}),
        ({"signal": "nok", "verdict": "anomalous"}, {NOK, VALID, READY}),
        ({"signal": "nok", "verdict": "not_inspected"}, {NOK, VALID, READY, NOT_INSPECTED}),
        ({"signal": "nok", "verdict": "ok", "late": True}, {NOK, VALID, READY}),
        ({"part": "ä" * 17}, {OK, VALID, READY, PART_CUT}),
        ({"run": "an earlier run"}, {NOK, VALID, READY, STALE}),
        ({"monotonic_ns": time.monotonic_ns() - 10**12}, {NOK, VALID, READY, STALE}),
    ],
)
def test_the_coils_follow_the_signal_and_the_age(
    station: Start, fields: dict[str, Any], bits: set[int]
) -> None:
    one = station()
    one.sink.deliver([made_record(1, **fields)])
    assert {place for place, bit in enumerate(one.bits()) if bit} == bits


def test_a_verdict_that_grows_old_is_no_longer_ok(station: Start) -> None:
    one = station(stale_after_s=0.3)
    one.sink.deliver([made_record(1)])
    assert one.bits()[OK]

    def is_taken_back() -> bool:
        one.sink.beat()
        return one.bits()[:5] == [False, True, True, True, True]

    wait_until(is_taken_back, "the verdict is taken back")


def test_a_stage_that_hangs_stops_the_heartbeat_and_takes_ok_back(station: Start) -> None:
    one = station()
    one.sink.deliver([made_record(1)])
    before = one.registers()[0]
    one.sink.beat()
    assert one.registers()[0] == before + 1
    one.is_alive = False
    one.sink.beat()
    assert one.registers()[0] == before + 1
    assert one.bits()[:4] == [False, True, True, False]
    one.is_alive = True
    one.sink.beat()
    assert one.registers()[0] == before + 2
    assert one.bits()[READY]


def test_a_slow_plc_that_acknowledges_misses_no_verdict(station: Start) -> None:
    one = station(handshake=True, ack_timeout_s=20.0)
    journal = MemoryJournal()
    deliveries = Deliveries.of([one.settings], journal, one.link, journal.tell)
    one.plc.close()
    one.sink.close()  # the delivery has a server of its own
    deliveries.start()
    journal.add(*(made_record(number, signal="ok" if number % 2 else "nok") for number in range(1, 8)))
    deliveries.wake()
    wait_until(lambda: one.plc.connect(), "the PLC connects")
    seen: list[tuple[int, bool]] = []
    while len(seen) < 7:
        registers = one.registers()
        if registers[2] and (not seen or registers[2] != seen[-1][0]):
            assert registers[1] >> WAITING & 1
            seen.append((registers[2], bool(registers[1] & 1)))
            time.sleep(0.02)
        one.plc.write_register(100, registers[2], device_id=1)
    assert seen == [(number, bool(number % 2)) for number in range(1, 8)]
    assert deliveries.wait_drained(20)
    assert not one.bits()[WAITING]
    deliveries.stop()


def test_a_plc_that_does_not_acknowledge_is_told_and_the_heartbeat_goes_on(station: Start) -> None:
    one = station(handshake=True, ack_timeout_s=0.3)
    with pytest.raises(
        SinkError, match=r"has not acknowledged record 1 \(sequence 1\) within 0.3 s"
    ) as raised:
        one.sink.deliver([made_record(1), made_record(2)])
    assert raised.value.delivered == 0
    assert one.registers()[0] >= 1
    one.plc.write_register(100, 1, device_id=1)
    with pytest.raises(SinkError, match="record 2") as raised:
        one.sink.deliver([made_record(1), made_record(2)])
    assert raised.value.delivered == 1


def test_a_trigger_of_the_plc_brings_its_part_id(station: Start) -> None:
    one = station()
    part = list(struct.unpack(">4H", b"A-17\0\0\0\0"))
    one.plc.write_registers(102, part, device_id=1)
    assert one.triggers == []
    one.plc.write_register(101, 1, device_id=1)
    one.plc.write_register(101, 1, device_id=1)
    one.plc.write_registers(101, [2, 0x1B5B, 0x33FF, 0], device_id=1)
    one.plc.write_registers(101, [3, 0], device_id=1)
    assert one.triggers == ["A-17", "\\x1b[3�", None]


def test_a_plc_cannot_write_what_the_station_shows(station: Start) -> None:
    one = station()
    one.sink.deliver([made_record(1, signal="nok", verdict="anomalous")])
    refused = [
        one.plc.write_register(0, 1, device_id=1),
        one.plc.write_registers(99, [1, 1], device_id=1),
        one.plc.write_registers(117, [1, 1], device_id=1),
        one.plc.write_coil(OK, True, device_id=1),
        one.plc.write_coils(0, [True] * 8, device_id=1),
        one.plc.read_holding_registers(40, count=1, device_id=1),
        one.plc.read_holding_registers(39, count=2, device_id=1),
        one.plc.read_coils(16, count=1, device_id=1),
    ]
    assert {answer.exception_code for answer in refused} == {2}
    assert one.bits()[:2] == [False, True]


def test_an_unknown_unit_id_is_refused_and_the_default_takes_all(
    station: Start, caplog: pytest.LogCaptureFixture
) -> None:
    one = station(unit=7)
    assert one.plc.read_holding_registers(0, count=1, device_id=9).exception_code == 11
    assert not one.plc.read_holding_registers(0, count=1, device_id=7).isError()
    assert not station().plc.read_holding_registers(0, count=1, device_id=200).isError()
    assert caplog.text == ""


def raw(one: Station) -> socket.socket:
    return socket.create_connection(("127.0.0.1", one.settings.port), 5)


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\1\0\0\xff\xff\1\3",
        b"\0\1\0\0\0\2\1\3",
        b"\0\1\0\0\0\6\1\3\0\0\xff\xff",
        b"\0\1\0\0\0\6\1\x63\0\0\0\1",
        b"\0\1\0\0\0\6\1\x10\0\x64\0\5",
        bytes(range(256)) * 40,
    ],
)
def test_malformed_frames_disturb_nobody_else(
    station: Start, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    one = station(idle_s=2.0)
    one.sink.deliver([made_record(1)])
    with raw(one) as bad:
        bad.sendall(content)
        assert one.bits()[OK]
        bad.sendall(b"\0\1\0\0\0\6\1\3\0\2\0\1")
        assert one.registers()[2] == 1
    one.sink.beat()
    assert one.bits()[OK]
    assert caplog.text == ""


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(100) == b""
    except ConnectionResetError:
        return True


def test_a_client_that_says_nothing_is_disconnected(station: Start) -> None:
    one = station(idle_s=0.2)
    with raw(one) as silent:
        assert is_closed(silent)


def test_one_client_too_many_is_disconnected_and_the_others_stay(station: Start) -> None:
    one = station(connections=2)
    with raw(one), raw(one) as third:
        assert is_closed(third)
        assert one.registers()[14] == 1


def test_a_client_that_asks_too_often_is_disconnected(station: Start) -> None:
    one = station(requests_per_s=50)
    request = b"\0\1\0\0\0\6\1\3\0\0\0\1"
    with raw(one) as fast:

        def flood() -> bool:
            try:
                for _ in range(1000):
                    fast.sendall(request)
                    if fast.recv(100) == b"":
                        return True
            except ConnectionError:
                return True
            return False

        assert flood()
    assert one.plc.connect()
    assert one.registers()[14] == 1


def test_a_taken_port_is_told_and_free_again_after_a_close(station: Start) -> None:
    one = station()
    with pytest.raises(SinkError, match=rf"127\.0\.0\.1:{one.settings.port}: Address already in use"):
        probe(one.settings, one.link)
    with pytest.raises(SinkError, match="Address already in use"):
        make_sink(one.settings, one.link).open()
    one.plc.close()
    one.sink.close()
    assert "can listen" in probe(one.settings, one.link)
    one.sink.open()
    assert one.plc.connect()
    assert one.registers()[14] == 1


def test_threads_end_with_the_sink() -> None:
    before = threading.active_count()
    one = Station()
    one.close()
    wait_until(lambda: threading.active_count() <= before, "the server's thread ends")
