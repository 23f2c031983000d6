"""A message that names a part is paired with the next frame, and no part is without a frame."""

from __future__ import annotations

import errno
import queue
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from flowedge.errors import SettingsError, SourceError
from flowedge.runtime.protocols import Frame
from flowedge.runtime.sources import SourceEvent, SourceSettings, open_source
from flowedge.runtime.sources.events import Tell, ignore
from flowedge.runtime.sources.live import Grab, LiveSource
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.settings import (
    ModbusTrigger,
    MqttTrigger,
    SoftwareTrigger,
    TcpTrigger,
    TriggerSettings,
)
from flowedge.runtime.sources.triggers import Triggered
from support.mqtt_broker import PASSWORD, USER, Broker, free_port
from support.source_reader import MOST_S, SourceReader
from support.waiting import wait_until


class Shutter:
    """A source that takes a frame when the test asks for one."""

    def __init__(self) -> None:
        self._frames: queue.Queue[Frame | None] = queue.Queue()
        self.fired = 0

    def take(self, name: str, *, lost: int = 0) -> None:
        self._frames.put(
            Frame(
                pixels=np.zeros((2, 2, 3), np.uint8),
                id=name,
                time=datetime.now(timezone.utc),
                source="shutter",
                monotonic_ns=time.monotonic_ns(),
                dropped_before=lost,
            )
        )

    def frames(self) -> Iterator[Frame]:
        while (frame := self._frames.get(timeout=MOST_S)) is not None:
            yield frame

    def fire(self) -> None:
        self.fired += 1
        self.take(f"fired {self.fired}")

    def close(self) -> None:
        self._frames.put(None)


@pytest.fixture
def shutter() -> Shutter:
    return Shutter()


def triggered(shutter: Shutter, trigger: TriggerSettings, tell: Tell = ignore) -> Triggered:
    settings = SourceSettings(address="cam", trigger=trigger)
    return Triggered(shutter, Opening(settings=settings, name="cam", tell=tell), trigger)


def test_messages_are_paired_with_the_frames_after_them_in_order(shutter: Shutter) -> None:
    source = triggered(shutter, SoftwareTrigger(wait_s=20))
    shutter.take("before")
    assert [source.trigger("A"), source.trigger(b"B \n")] == ["", ""]
    for name in ("1", "2", "3"):
        shutter.take(name)
    shutter.close()
    assert [(frame.id, frame.part) for frame in source.frames()] == [
        ("before", None),
        ("1", "A"),
        ("2", "B"),
        ("3", None),
    ]
    source.close()


def test_frames_without_a_part_are_left_out_where_asked_and_their_losses_stay(shutter: Shutter) -> None:
    source = triggered(shutter, SoftwareTrigger(wait_s=20, untriggered="skip"))
    for name in ("1", "2"):
        shutter.take(name, lost=2)
    source.trigger("A")
    shutter.take("3", lost=1)
    shutter.close()
    assert [(frame.id, frame.part, frame.dropped_before) for frame in source.frames()] == [("3", "A", 5)]
    source.close()


def test_a_part_whose_frame_does_not_come_gets_a_frame_with_a_problem(shutter: Shutter) -> None:
    source = triggered(shutter, SoftwareTrigger(wait_s=0.05))
    frames = source.frames()
    source.trigger("A")
    late = next(frames)
    assert (late.part, late.id, late.pixels.size) == ("A", "cam#trigger-1", 0)
    assert late.problem.endswith("the frame of part A, which is missing: none came within 0.05 s")
    shutter.take("1")
    assert next(frames).part is None
    source.trigger("B")
    shutter.close()
    assert [frame.problem.rpartition(": ")[2] for frame in frames] == ["the source has ended"]
    source.close()


def test_no_part_gets_the_picture_of_another_one_where_frames_were_lost(shutter: Shutter) -> None:
    source = triggered(shutter, SoftwareTrigger(wait_s=20))
    frames = source.frames()
    for part in ("A", "B"):
        source.trigger(part)
    shutter.take("of B", lost=1)  # the frame of part A was lost on its way
    lost = [next(frames), next(frames)]
    assert [frame.part for frame in lost] == ["A", "B"]
    assert all("frames were lost" in frame.problem for frame in lost)
    found = next(frames)
    assert (found.id, found.part, found.dropped_before) == ("of B", None, 1)
    source.trigger("C")
    shutter.take("of C", lost=1)  # only one part can be in the picture
    assert next(frames).part == "C"
    source.close()


def test_each_part_that_was_taken_has_its_frame_also_where_the_inspection_stops(shutter: Shutter) -> None:
    source = triggered(shutter, SoftwareTrigger(wait_s=20))
    frames = source.frames()
    source.trigger("A")
    shutter.take("1")
    assert next(frames).part == "A"
    source.trigger("B")
    shutter.take("2")
    wait_until(lambda: source._ready)
    source.trigger("C")
    source.close()
    assert source.trigger("D") == "the inspection stops"
    found = list(frames)
    assert [(frame.part, bool(frame.problem)) for frame in found] == [("B", False), ("C", True)]
    assert found[1].problem.endswith("which is missing: the inspection stops")


def test_messages_that_are_too_many_too_long_or_unprintable_are_refused(shutter: Shutter) -> None:
    events: list[SourceEvent] = []
    source = triggered(shutter, SoftwareTrigger(queue=2, per_second=3), events.append)
    assert "has more than 100 characters" in source.trigger("x" * 101)
    assert "has more than 100 characters" in source.trigger(b"x" * 100_000)
    assert "is empty" in source.trigger("  ")
    for bad in (b"\xff\xfe", "a\nb", "a\x1b[31m"):
        assert "cannot be printed" in source.trigger(bad)
    assert [source.trigger("<b>A</b>"), source.trigger("ä" * 100)] == ["", ""]
    assert source.trigger("C") == "2 parts already wait for their frames"
    for name in ("1", "2"):
        shutter.take(name)
    frames = source.frames()
    assert [next(frames).part, next(frames).part] == ["<b>A</b>", "ä" * 100]
    assert source.trigger("D") == ""
    assert source.trigger("E") == "more than 3 messages came in a second"
    # Many refusals are one event, since anybody may send messages.
    assert [(event.kind, event.data["refused"]) for event in events] == [("trigger_refused", 1)]
    source.close()


def test_a_part_is_before_the_camera_some_time_after_its_message(shutter: Shutter) -> None:
    source = triggered(shutter, SoftwareTrigger(delay_s=0.1, wait_s=20))
    source.trigger("A")
    shutter.take("too early")
    time.sleep(0.1)
    shutter.take("its own")
    frames = source.frames()
    assert [(frame.id, frame.part) for frame in (next(frames), next(frames))] == [
        ("too early", None),
        ("its own", "A"),
    ]
    source.close()


class Belt:
    """A connection to a camera that gives a frame when the test moves the belt."""

    def __init__(self) -> None:
        self._frames: queue.Queue[int] = queue.Queue()
        self._given = threading.Semaphore(0)

    def move(self, number: int) -> None:
        """Let the camera take a frame of grey level ``number``, and return when the source has it."""
        self._frames.put(number)
        assert self._given.acquire(timeout=MOST_S)

    def grabs(self) -> Iterator[Grab | None]:
        while True:
            try:
                number = self._frames.get(timeout=0.02)
            except queue.Empty:
                yield None
                continue
            pixels = np.full((2, 2), number, np.uint8)
            yield Grab(lambda pixels=pixels: (pixels, "gray"))  # type: ignore[misc]
            self._given.release()

    def close(self) -> None:
        """Do nothing."""


def test_a_busy_inspection_never_gets_the_picture_of_another_part() -> None:
    belt = Belt()
    trigger = SoftwareTrigger(wait_s=60, queue=3)
    settings = SourceSettings(address="cam", trigger=trigger)
    opening = Opening(settings=settings, name="cam")
    source = Triggered(LiveSource(opening, lambda: belt), opening, trigger)
    frames = source.frames()
    source.trigger("0")
    threading.Thread(target=belt.move, args=(0,)).start()
    assert next(frames).part == "0"
    # Nobody takes a frame for a while: ten parts pass, with three frames of the empty belt after each.
    for number in range(1, 11):
        assert source.trigger(str(number)) == ""
        for place in range(4):
            belt.move(number if place == 0 else 200)
            time.sleep(0.005)
    taken = [next(frames) for _ in range(14)]
    parts = [frame for frame in taken if frame.part is not None]
    assert [frame.part for frame in parts] == [str(number) for number in range(1, 11)]
    for frame in parts:
        assert (
            "was dropped" in frame.problem if frame.problem else (frame.pixels == int(frame.part or "")).all()
        )
    assert 0 < sum(not frame.problem for frame in parts) <= 7
    # A view of no pixels would keep all of them.
    assert all(frame.pixels.base is None for frame in parts if frame.problem)
    assert sum(frame.dropped_before for frame in taken) == 30 - 4
    source.close()


def test_a_message_fires_the_camera_where_asked(shutter: Shutter) -> None:
    source = triggered(shutter, SoftwareTrigger(fires=True))
    source.trigger("A")
    frame = next(source.frames())
    assert (frame.id, frame.part) == ("fired 1", "A")
    source.close()


def test_a_camera_that_cannot_be_fired_ends_no_listener_and_its_part_has_a_record(
    shutter: Shutter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("the camera was unplugged")

    settings = TcpTrigger(port=free_port(), fires=True, wait_s=0.2)
    source = triggered(shutter, settings)
    frames = source.frames()
    with (
        socket.create_connection(("127.0.0.1", settings.port), MOST_S) as client,
        client.makefile("rb") as answers,
    ):
        monkeypatch.setattr(shutter, "fire", broken)
        client.sendall(b"A\n")
        assert answers.readline() == b"ok\n"
        lost = next(frames)
        assert (lost.part, "none came within 0.2 s" in lost.problem) == ("A", True)
        monkeypatch.undo()
        client.sendall(b"B\n")
        assert answers.readline() == b"ok\n"
        assert (next(frames).part, shutter.fired) == ("B", 1)
    source.close()


def test_a_source_that_has_failed_is_iterated_again_with_its_parts(
    shutter: Shutter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[Frame]:
        raise SourceError("the share is gone")

    source = triggered(shutter, SoftwareTrigger(wait_s=20))
    monkeypatch.setattr(shutter, "frames", broken)
    source.trigger("A")
    failing = source.frames()
    assert next(failing).problem.endswith("the frame of part A, which is missing: the source has ended")
    with pytest.raises(SourceError, match="the share is gone"):
        next(failing)
    monkeypatch.undo()
    source.trigger("B")
    again = source.frames()
    for name in ("1", "2"):
        shutter.take(name)
        frame = next(again)
        assert (frame.id, frame.part) == (name, "B" if name == "1" else None)
    source.close()


def test_lines_over_tcp_name_parts_and_are_answered(shutter: Shutter) -> None:
    settings = TcpTrigger(port=free_port(), clients=1)
    source = triggered(shutter, settings)
    with (
        socket.create_connection(("127.0.0.1", settings.port), MOST_S) as client,
        client.makefile("rwb") as lines,
    ):
        lines.write(b"A-17\n\nB-18\r\n")
        lines.flush()
        assert [lines.readline() for _ in range(3)] == [
            b"ok\n",
            b"refused: the id of a part is empty\n",
            b"ok\n",
        ]
        shutter.take("1")
        shutter.take("2")
        frames = source.frames()
        assert [next(frames).part, next(frames).part] == ["A-17", "B-18"]
        lines.write(b"C-19\n")
        lines.flush()
        assert lines.readline() == b"ok\n"
        # The client is silent from now on, perhaps without power, and the next one takes its place.
        with socket.create_connection(("127.0.0.1", settings.port), MOST_S) as second:
            second.sendall(b"D-20\n")
            assert second.recv(10) == b"ok\n"
            assert lines.readline() == b""
            second.sendall(b"x" * 2000)
            assert second.makefile("rb").read() == b"refused: a line has more than 1024 bytes\n"
    with pytest.raises(SourceError, match=f"cannot listen at 127.0.0.1:{settings.port}"):
        triggered(shutter, settings)
    source.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", settings.port), 1)


def test_a_client_that_cannot_be_taken_for_lack_of_file_descriptors_costs_no_processor(
    shutter: Shutter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def full(server: socket.socket) -> object:
        tried.append(time.monotonic())
        raise OSError(errno.EMFILE, "too many open files")

    settings = TcpTrigger(port=free_port())
    source = triggered(shutter, settings)
    monkeypatch.setattr(socket.socket, "accept", full)
    with socket.create_connection(("127.0.0.1", settings.port), MOST_S) as client:
        time.sleep(0.5)
        monkeypatch.undo()
        client.sendall(b"A\n")
        assert client.recv(10) == b"ok\n"
    assert 1 <= len(tried) < 10
    source.close()


def test_registers_that_a_modbus_client_writes_name_parts(shutter: Shutter) -> None:
    pytest.importorskip("pymodbus", reason="the package pymodbus is not installed")
    if shutil.which("mbpoll") is None:
        pytest.skip("the Modbus client mbpoll is not installed: apt-get install mbpoll")
    settings = ModbusTrigger(port=free_port())
    source = triggered(shutter, settings)

    def write(register: int, *values: int) -> None:
        command = ["mbpoll", "-m", "tcp", "-p", str(settings.port), "-a", "1", "-0", "-1", "-t", "4"]
        words = [str(value) for value in values]
        subprocess.run([*command, "-r", str(register), "127.0.0.1", *words], check=True, capture_output=True)

    def letters(text: str) -> list[int]:
        content = text.encode()
        content += b"\0" * (100 - len(content))
        return [int.from_bytes(content[place : place + 2], "big") for place in range(0, 100, 2)]

    write(0, 1, *letters("Teil-Ä7"))
    write(1, *letters("B-18"))
    write(0, 2)
    write(0, 2)  # the same counter is no message
    shutter.take("1")
    shutter.take("2")
    shutter.take("3")
    frames = source.frames()
    assert [next(frames).part for _ in range(3)] == ["Teil-Ä7", "B-18", None]
    with pytest.raises(SourceError, match="cannot listen at"):
        triggered(shutter, settings)
    source.close()


def test_an_authority_that_cannot_be_read_is_an_error_at_the_start(shutter: Shutter, tmp_path: Path) -> None:
    pytest.importorskip("paho.mqtt.client", reason="the package paho-mqtt is not installed")
    settings = MqttTrigger(host="localhost", topic="t", tls=True, ca_file=tmp_path / "none.crt")
    with pytest.raises(SettingsError, match=r"none\.crt cannot be read as certificates"):
        triggered(shutter, settings)


def test_each_function_that_writes_registers_is_a_message(shutter: Shutter) -> None:
    modbus = pytest.importorskip("pymodbus.client", reason="the package pymodbus is not installed")
    settings = ModbusTrigger(port=free_port())
    source = triggered(shutter, settings)
    with modbus.ModbusTcpClient("127.0.0.1", port=settings.port, timeout=MOST_S) as client:
        letter = ord("A") << 8
        assert not client.write_registers(1, [letter]).isError()
        assert not client.write_register(0, 1).isError()
        assert not client.readwrite_registers(
            read_address=0, read_count=1, write_address=0, values=[2, letter + 256]
        ).isError()
        assert not client.mask_write_register(address=0, and_mask=0, or_mask=3).isError()
        for name in ("1", "2", "3"):
            shutter.take(name)
        frames = source.frames()
        assert [next(frames).part for _ in range(3)] == ["A", "B", "B"]
    source.close()


def test_messages_of_a_broker_name_parts_also_after_it_was_lost(shutter: Shutter, tmp_path: Path) -> None:
    paho = pytest.importorskip("paho.mqtt.publish", reason="the package paho-mqtt is not installed")
    broker = Broker(tmp_path)
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    settings = MqttTrigger(
        host="localhost",
        port=broker.tls_port,
        ca_file=broker.authority.file,
        topic="line/part",
        username=USER,
        tls=True,
        password_file=tmp_path / "password",
        wait_s=60,
    )
    auth = {"username": USER, "password": PASSWORD}

    def publish(payload: str | bytes, *, retain: bool = False) -> None:
        paho.single("line/part", payload, qos=1, retain=retain, port=broker.port, auth=auth)

    publish("kept", retain=True)
    events: queue.Queue[SourceEvent] = queue.Queue()
    source = triggered(shutter, settings, events.put)
    frames = source.frames()
    try:
        # The broker answers some time after the subscription, and a message before it names nothing.
        until = time.monotonic() + MOST_S
        part = None
        while part is None and time.monotonic() < until:
            publish("A-17")
            time.sleep(0.05)
            shutter.take("1")
            part = next(frames).part
        assert part == "A-17"
        broker.kill()
        lost = events.get(timeout=MOST_S)
        broker.start()
        back = events.get(timeout=MOST_S)
        assert (lost.kind, back.kind) == ("trigger_lost", "trigger_back")
        assert PASSWORD not in lost.text
        time.sleep(0.1)
        for payload in ('{"part": "B-18", "speed": 3}', '{"part": 3}', b"\xff"):
            publish(payload)
        assert events.get(timeout=MOST_S).kind == "trigger_refused"
        while part == "A-17":  # a message that came late may still wait
            shutter.take("2")
            part = next(frames).part
        assert part == "B-18"
    finally:
        source.close()
        broker.kill()


def test_a_source_with_a_trigger_in_its_settings_waits_for_parts(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "in"
    folder.mkdir()
    settings = SourceSettings(
        address=str(folder), watch=True, trigger=TcpTrigger(port=free_port(), untriggered="skip", wait_s=60)
    )
    with SourceReader(lambda tell: open_source(settings, tell=tell)) as source:
        Image.new("RGB", (4, 4)).save(folder / "skipped.png")
        assert source.is_quiet()
        assert isinstance(source.source, Triggered)
        source.source.trigger("A")
        Image.new("RGB", (4, 4)).save(folder / "a.png")
        frame = source.next()
        assert (frame.id, frame.part) == (str(folder / "a.png"), "A")
