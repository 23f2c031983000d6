"""A network camera is lost and comes back: a real RTSP server is killed, frozen and restarted."""

from __future__ import annotations

import gc
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flowedge.errors import SourceError
from flowedge.runtime.sources import SourceSettings, open_source
from support.mqtt_broker import free_port
from support.picture_files import encoded, photograph, pil_pixels
from support.source_reader import SourceReader
from support.videos import picture, write_video
from support.waiting import wait_until

pytest.importorskip("av", reason="the package av is not installed")


class RtspServer:
    """The server of aio-rtsp-toolkit, which plays a file once to each client, in real time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.address = f"rtsp://inspector:secret@127.0.0.1:{self._port}/camera.mp4"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        places = ["-d", str(self._folder), "-H", "127.0.0.1", "-p", str(self._port), "-cp", str(free_port())]
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from server_demo import main; main()", *places],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def rtsp(tmp_path: Path) -> Iterator[RtspServer]:
    pytest.importorskip(
        "aio_rtsp_toolkit", reason="the package aio-rtsp-toolkit, an RTSP server, is not installed"
    )
    write_video(tmp_path / "camera.mp4", frames=500)
    server = RtspServer(tmp_path)
    yield server
    server.kill()


def read(address: str, **more: object) -> SourceReader:
    settings = {"timeout_s": 0.6, "reconnect_s": 0.05, "reconnect_max_s": 0.2, **more}
    made = SourceSettings(address=address, **settings)  # type: ignore[arg-type]
    return SourceReader(lambda tell: open_source(made, tell=tell))


def test_a_camera_that_dies_freezes_and_starts_again_comes_back_each_time(rtsp: RtspServer) -> None:
    with read(rtsp.address) as source:
        texts = [source.event().text]  # nobody listens yet
        rtsp.start()
        texts.append(source.event().text)
        frame = source.next()
        rtsp.kill()
        texts.append(source.event().text)
        source.forget()
        rtsp.start()
        texts.append(source.event().text)
        texts.append(source.next().id)
        rtsp.send(signal.SIGSTOP)
        texts.append(source.event().text)
        rtsp.send(signal.SIGCONT)
        texts.append(source.event().text)
    name = rtsp.address.replace("inspector:secret@", "")
    assert [text.replace(name, "camera") for text in texts if "#" not in text] == [
        "camera is lost: Connection refused",
        "camera is back",
        "camera is lost: the camera ended the stream",
        "camera is back",
        "camera is lost: no frame came for 0.6 s",
        "camera is back",
    ]
    assert frame.problem == ""
    assert frame.pixels.shape == picture(0).shape
    assert (frame.source, frame.id) == (name, f"{name}#1")
    assert frame.monotonic_ns > 0


def test_a_camera_is_closed_soon_also_while_it_is_frozen(rtsp: RtspServer) -> None:
    rtsp.start()
    with read(rtsp.address) as source:
        source.next()
        rtsp.send(signal.SIGSTOP)
        source.forget()
        source.source.close()
        source.source.close()


def test_frames_that_nobody_takes_are_dropped_and_counted(rtsp: RtspServer) -> None:
    rtsp.start()
    source = open_source(SourceSettings(address=rtsp.address, reconnect_s=0.05))
    frames = source.frames()
    first = next(frames)
    time.sleep(0.6)  # some 15 frames come, of which four are kept
    later = [next(frames) for _ in range(5)]
    source.close()
    assert sum(frame.dropped_before for frame in later) >= 5
    numbers = [int(frame.id.rpartition("#")[2]) for frame in (first, *later)]
    assert numbers == [1, 2, 3, 4, 5, 6]


class _Pictures(http.server.BaseHTTPRequestHandler):
    """Sends Motion JPEG to a client that knows the password: a good picture, a damaged one and a good one."""

    parts: tuple[bytes, ...] = ()

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != "Basic aW5zcGVjdG9yOnMvZWNyOnRA":  # inspector:s/ecr:t@
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=f")
        self.end_headers()
        for part in self.parts:
            head = f"--f\r\nContent-Type: image/jpeg\r\nContent-Length: {len(part)}\r\n\r\n"
            self.wfile.write(head.encode() + part + b"\r\n")

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def pictures() -> Iterator[str]:
    good = encoded(photograph(), "JPEG", quality=95)
    _Pictures.parts = (good, good[: len(good) // 2] + b"\xff\xd9", good)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/video"
    server.shutdown()
    server.server_close()
    thread.join()


def test_motion_jpeg_has_the_pixels_of_its_pictures_and_a_damaged_one_is_not_ok(
    pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_PASSWORD", "s/ecr:t@")
    with read(pictures, username="inspector", password_env="CAMERA_PASSWORD") as source:
        good, damaged, again = source.next(), source.next(), source.next()
    expected = pil_pixels(encoded(photograph(), "JPEG", quality=95))
    assert np.array_equal(good.pixels, expected)
    assert np.array_equal(again.pixels, expected)
    assert (good.problem, again.problem) == ("", "")
    assert f"{pictures}#2 is damaged" in damaged.problem
    assert damaged.pixels.size == 0


def test_a_wrong_password_is_told_and_not_shown(pictures: str) -> None:
    with read(pictures.replace("://", "://inspector:guessed@")) as source:
        event = source.event()
    assert event.kind == "source_lost"
    assert event.text == f"{pictures} is lost: Server returned 401 Unauthorized (authorization failed)"


def test_a_device_that_is_not_there_is_waited_for() -> None:
    with read("v4l2:///dev/video97") as source:
        assert source.event().text == "v4l2:///dev/video97 is lost: No such file or directory"


@pytest.mark.parametrize("address", ["v4l2://dev/video0", "v4l2:///etc/passwd"])
def test_an_address_of_no_device_is_an_error_at_once(address: str) -> None:
    with pytest.raises(SourceError, match="v4l2:///dev/video0"):
        open_source(address)


_AGAIN = {
    "username": "inspector",
    "password_env": "CAMERA_PASSWORD",
    "reconnect_s": 0.01,
    "reconnect_max_s": 0.01,
}
"""The settings of a camera that ends its stream after three pictures, again and again."""


def test_a_camera_that_is_lost_again_and_again_leaves_nothing_behind(
    pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_PASSWORD", "s/ecr:t@")

    def left() -> tuple[int, int, int]:
        threads = sum(thread.name.startswith("flowedge") for thread in threading.enumerate())
        files = len(os.listdir("/proc/self/fd"))
        containers = sum(type(one).__name__ == "InputContainer" for one in gc.get_objects())
        return threads, files, containers

    before = left()
    with read(pictures, **_AGAIN) as source:
        kinds = [source.event().kind for _ in range(60)]
        source.forget()
    assert kinds == ["source_lost", "source_back"] * 30
    # The threads of the server in this process end by themselves.
    wait_until(lambda: left() == before, f"threads, files and containers are {before} again")


def test_frames_are_freed_without_the_search_for_cycles(
    pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_PASSWORD", "s/ecr:t@")
    gc.collect()
    gc.disable()
    try:
        with read(pictures, **_AGAIN) as source:
            frames = [weakref.ref(source.next().pixels) for _ in range(30)]
            source.forget()
        assert [frame for frame in frames if frame() is not None] == []
    finally:
        gc.enable()
