"""A server under attack and under load: each request is answered or refused in words, and nothing is lost."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import math
import socket
import struct
import subprocess
import threading
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import flowedge
from flowedge.children import python_command
from flowedge.errors import EngineUnavailableError, FlowEdgeError, SettingsError
from flowedge.runtime.result import Result
from flowedge.runtime.serving.repository import name_of
from flowedge.runtime.serving.server import ModelServer
from flowedge.runtime.serving.settings import (
    BatchSettings,
    LimitSettings,
    ModelSettings,
    ServerSettings,
    ServeSettings,
    TraceSettings,
)
from flowedge.runtime.settings import Settings
from support.made_result import made_result
from support.pages import REPOSITORY
from support.served import Gate, Reply, Served, infer_body, served, some_frames, tiny_models
from support.settings_rows import rows_of
from support.waiting import wait_until

INFER = "/v2/models/bottle/infer"
PNG = cv2.imencode(".png", some_frames(1)[0])[1].tobytes()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSettings, ...]:
    return tiny_models(tmp_path_factory.mktemp("limits"))


@pytest.fixture(scope="module")
def server(models: tuple[ModelSettings, ...]) -> Iterator[Served]:
    """A server with one thread, batches of at most four frames and room for six."""
    limits = LimitSettings(queue=6, body_mb=1, megapixels=0.1, memory_mb=4, header_s=0.5, body_s=0.5)
    with served(models, limits=limits, batch=BatchSettings(largest=4, delay_ms=0, workers=1)) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_held(server: Served) -> Iterator[None]:
    """After each test the server still answers and holds nothing."""
    yield
    body, headers = infer_body(some_frames(1))
    assert server.send("POST", INFER, body, headers).status == 200
    wait_until(lambda: server.metric("flowedge_held_bytes") == 0, "the bytes of all requests are free")
    assert server.metric('flowedge_queue_frames{model="bottle"}') == 0


def outcomes(server: Served) -> Counter[str]:
    return Counter(server.batcher().counts.outcomes)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [1, 2, 3, 3], "datatype": "UINT8", "data": [7] * 18} | changes


def message(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


def binary(
    shape: Sequence[Any], size: Any, data: bytes = bytes(18), **changes: Any
) -> tuple[bytes, dict[str, str]]:
    one = {
        "name": "image",
        "shape": shape,
        "datatype": "UINT8",
        "parameters": {"binary_data_size": size},
    } | changes
    head = json.dumps({"inputs": [one]}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


SHAPE = [1, 2, 3, 3]
BINARY = binary(SHAPE, 18)
PRODUCT = message(
    tensor(), {"name": "product", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}}
)
DAMAGED: dict[str, tuple[bytes, dict[str, str], str]] = {
    "empty": (b"", {}, "failed to parse the request JSON buffer"),
    "cut JSON": (message(tensor())[:-9], {}, "failed to parse the request JSON buffer"),
    "no JSON": (b"\x00\xff" * 9, {}, "failed to parse the request JSON buffer"),
    "NaN": (message(tensor(data=[math.nan] * 18)), {}, "failed to parse the request JSON buffer"),
    "deep": (b'{"inputs":' + b"[" * 9000, {}, "failed to parse the request JSON buffer"),
    "deep data": (
        message(tensor()).replace(b"[7, ", b"[" * 5000 + b"7, "),
        {},
        "failed to parse the request JSON",
    ),
    "no inputs": (b'{"inputs":[]}', {}, "the input image of the datatype UINT8 is missing"),
    "twice": (message(tensor(), tensor()), {}, "is there twice"),
    "other name": (message(tensor(name="x" * 9000)), {}, "unexpected inference input"),
    "other output": (
        message(tensor(), outputs=[{"name": "logits"}]),
        {},
        "unexpected inference output 'logits'",
    ),
    "other type": (message(tensor(datatype="FP32")), {}, "the datatype 'FP32'"),
    "no elements": (message({"name": "image", "shape": SHAPE, "datatype": "UINT8"}), {}, "neither data nor"),
    "few elements": (message(tensor(data=[7] * 17)), {}, "must be 18 whole numbers from 0 to 255"),
    "large elements": (message(tensor(data=[256] * 18)), {}, "must be 18 whole numbers from 0 to 255"),
    "huge elements": (message(tensor(data=[10**30] * 18)), {}, "must be 18 whole numbers from 0 to 255"),
    "fractions": (message(tensor(data=[0.5] * 18)), {}, "must be 18 whole numbers from 0 to 255"),
    "texts": (message(tensor(data=["a"] * 18)), {}, "must be 18 whole numbers from 0 to 255"),
    "ragged": (message(tensor(data=[[7] * 9, [7] * 8])), {}, "must be 18 whole numbers from 0 to 255"),
    "transposed": (message(tensor(data=[[7] * 2] * 9)), {}, "flat or in the shape"),
    "huge shape": (*binary([2**31 - 1] * 4, 18), "needs 21267647892"),
    "larger shape": (*binary([2**40, 1, 1, 3], 18), "which is not allowed"),
    "negative": (*binary([-1, 2, 3, 3], 18), "which is not allowed"),
    "many sides": (*binary([1] * 99, 18), "which is not allowed"),
    "no shape": (*binary([], 18), "which is not allowed"),
    "a shape of texts": (*binary(["1"], 18), "failed to parse the request JSON buffer"),
    "an empty image": (*binary([1, 0, 3, 3], 0, b""), "at least one pixel"),
    "a grey image": (*binary([1, 6, 3, 1], 18), "must have the shape [N, H, W, 3]"),
    "one image": (*binary([2, 3, 3], 18), "must have the shape [N, H, W, 3]"),
    "short": (*binary(SHAPE, 18, bytes(17)), "17 bytes are left in the body"),
    "long": (*binary(SHAPE, 18, bytes(19)), "19 bytes behind its JSON, and the inputs name 18"),
    "negative size": (*binary(SHAPE, -18), "binary_data_size -18"),
    "a size of text": (*binary(SHAPE, "18"), "binary_data_size '18'"),
    "a true size": (*binary(SHAPE, True), "binary_data_size True"),
    "data and size": (message(tensor(parameters={"binary_data_size": 0})), {}, "Send one of the two"),
    "a long header": (
        BINARY[0],
        {"Inference-Header-Content-Length": "9999"},
        "inference header size should be in range",
    ),
    "a header of text": (
        BINARY[0],
        {"Inference-Header-Content-Length": "-1"},
        "inference header size should be in",
    ),
    "a header of nothing": (
        BINARY[0],
        {"Inference-Header-Content-Length": "0"},
        "inference header size should be in",
    ),
    "a short header": (
        BINARY[0],
        {"Inference-Header-Content-Length": "20"},
        "failed to parse the request JSON buffer",
    ),
    "shared memory": (
        message(tensor(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 18})),
        {},
        "does not read or write",
    ),
    "classes": (
        message(tensor(), outputs=[{"name": "score", "parameters": {"classification": 2}}]),
        {},
        "no classes",
    ),
    "a wish of text": (
        message(tensor(), outputs=[{"name": "score", "parameters": {"binary_data": "yes"}}]),
        {},
        "true or false",
    ),
    "a time of text": (message(tensor(), parameters={"timeout": "soon"}), {}, "a whole number"),
    "a product": (message(tensor(), parameters={"product": "cable"}), {}, "the bundle of one product"),
    "bytes": (
        PRODUCT + b"\xff\xff\xff\xffab",
        {"Inference-Header-Content-Length": str(len(PRODUCT))},
        "ends within an element",
    ),
    "other coding": (b"x", {"Content-Encoding": "br"}, "Send the body as gzip, deflate or unchanged"),
    "no gzip": (b"x" * 99, {"Content-Encoding": "gzip"}, "the body is no whole gzip"),
    "cut gzip": (gzip.compress(message(tensor()))[:-6], {"Content-Encoding": "gzip"}, "it ends too early"),
    "gzip and more": (
        gzip.compress(message(tensor())) + b"x",
        {"Content-Encoding": "gzip"},
        "1 bytes behind its gzip",
    ),
    "no deflate": (gzip.compress(b"x"), {"Content-Encoding": "deflate"}, "the body is no whole deflate"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_body_is_refused_in_words(server: Served, name: str) -> None:
    body, headers, words = DAMAGED[name]
    answer = server.send("POST", INFER, body, headers)
    assert 400 <= answer.status < 500
    assert words in answer.error
    assert len(answer.error) < 500


def test_a_bomb_is_not_unpacked(server: Served) -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    assert len(bomb) < 1_000_000
    answer = server.send("POST", INFER, bomb, {"Content-Encoding": "deflate"})
    assert (answer.status, "more than 1000000 bytes after decompression" in answer.error) == (413, True)


def test_a_body_that_is_too_long_is_refused_before_it_is_read(server: Served) -> None:
    with server.raw() as raw:
        raw.sendall(
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n" % INFER.encode()
        )
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 413")
    with server.raw() as raw:
        raw.sendall(
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % INFER.encode()
        )
        with contextlib.suppress(OSError):
            for _ in range(40):
                raw.sendall(b"%x\r\n%s\r\n" % (1 << 15, bytes(1 << 15)))
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_a_body_in_pieces_is_judged(server: Served) -> None:
    body = message(tensor())
    with server.raw() as raw:
        raw.sendall(
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % INFER.encode()
        )
        for at in range(0, len(body), 50):
            piece = body[at : at + 50]
            raw.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        raw.sendall(b"0\r\n\r\n")
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_frame_with_too_many_pixels_is_refused(server: Served) -> None:
    body, headers = infer_body(some_frames(1, size=(320, 320)))
    assert server.send("POST", INFER, body, headers).status == 413
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 60_000, 60_000) + b"\x08\x02\0\0\0"
    answer = server.send("POST", "/v1/inspect", header)
    assert (answer.status, "0.1 million are allowed" in answer.error) == (413, True)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "the body is empty"),
        (b"GIF89a" + bytes(99), 415, "neither a JPEG nor a PNG"),
        (PNG[:-30], 422, "the picture is damaged"),
        (PNG[:20], 415, "neither a JPEG nor a PNG"),
        (b"\xff\xd8\xff" + bytes(99), 422, "the header of the JPEG is damaged"),
        (PNG[:60] + bytes(40) + PNG[100:], 422, "the picture is damaged"),
    ],
)
def test_a_damaged_picture_is_never_ok(server: Served, body: bytes, status: int, words: str) -> None:
    answer = server.send("POST", "/v1/inspect", body)
    assert (answer.status, answer.json["verdict"]) == (status, "not_inspected")
    assert words in answer.error


@pytest.mark.parametrize(
    "query", ["map=jpg", "model=cable", "product=cable", "a=b", "map=png&map=png", "deadline_ms=x"]
)
def test_a_wrong_parameter_is_refused(server: Served, query: str) -> None:
    answer = server.send("POST", f"/v1/inspect?{query}", PNG)
    assert 400 <= answer.status < 500
    assert answer.json["verdict"] == "not_inspected"


def lost(frames: Sequence[NDArray[Any]], products: Sequence[str | None]) -> list[Result]:
    """Give results of an engine whose answers are not finite."""
    return [
        made_result(frame, np.ones((4, 4)), verdict="not_inspected", problem="the answer is not finite")
        for frame in frames
    ]


def test_an_answer_that_is_not_finite_is_never_a_score(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.batcher().model, "judge", lost)
    body, headers = infer_body(some_frames(1), outputs=[{"name": "score"}])
    answer = server.send("POST", INFER, body, headers)
    assert (answer.status, "was not inspected: the answer is not finite" in answer.error) == (422, True)
    body, headers = infer_body(
        some_frames(1), outputs=[{"name": "score"}, {"name": "verdict"}, {"name": "problem"}]
    )
    outputs = {one["name"]: one["data"] for one in server.send("POST", INFER, body, headers).json["outputs"]}
    assert outputs == {"score": [None], "verdict": ["not_inspected"], "problem": ["the answer is not finite"]}
    answer = server.send("POST", "/v1/inspect", PNG)
    assert (answer.status, answer.json["verdict"], answer.json["score"]) == (200, "not_inspected", None)


def test_an_engine_that_fails_is_an_error_and_the_next_request_is_judged(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(frames: Sequence[NDArray[Any]], products: Sequence[str | None]) -> list[Result]:
        raise EngineUnavailableError("no memory on the device")

    body, headers = infer_body(some_frames(1))
    monkeypatch.setattr(server.batcher().model, "judge", failed)
    answer = server.send("POST", INFER, body, headers)
    assert (answer.status, "no memory on the device" in answer.error) == (503, True)

    def broken(frames: Sequence[NDArray[Any]], products: Sequence[str | None]) -> list[Result]:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(server.batcher().model, "judge", broken)
    answer = server.send("POST", INFER, body, headers)
    assert (answer.status, "secret" in answer.error) == (500, False)


class Crowd:
    """Many clients at once."""

    def __init__(self, server: Served) -> None:
        self.server = server
        self.pool = ThreadPoolExecutor(40)
        self.replies: list[Any] = []

    def ask(self, count: int, **parameters: Any) -> None:
        body, headers = infer_body(some_frames(1), parameters=parameters)
        self.replies += [
            self.pool.submit(self.server.send, "POST", INFER, body, headers) for _ in range(count)
        ]

    def answers(self) -> list[Reply]:
        self.pool.shutdown()
        return [one.result() for one in self.replies]


def test_an_overload_is_refused_and_counted_and_nothing_is_lost(server: Served) -> None:
    before, crowd = outcomes(server), Crowd(server)
    with Gate(server.batcher()) as gate:
        crowd.ask(1)
        gate.entered.acquire()
        crowd.ask(30)
        wait_until(
            lambda: sum((outcomes(server) - before).values()) == 24 and server.batcher().frames_waiting == 6,
            "six requests wait and 24 are refused",
        )
        gate.open()
        answers = crowd.answers()
    assert Counter(one.status for one in answers) == {200: 7, 429: 24}
    refused = [one for one in answers if one.status == 429]
    assert all(int(one.headers["retry-after"]) >= 1 and "the queue is full" in one.error for one in refused)
    assert outcomes(server) - before == {"ok": 7, "queue_full": 24}
    assert gate.judged == [1, 4, 2]


def test_a_request_with_many_frames_is_several_batches_and_one_answer(server: Served) -> None:
    frames = some_frames(6)
    body, headers = infer_body(frames, outputs=[{"name": "score"}])
    with Gate(server.batcher()) as gate:
        gate.open()
        (output,) = server.send("POST", INFER, body, headers).json["outputs"]
    assert gate.judged == [4, 2]
    with flowedge.load(server.server.site.models.entries["bottle"].settings.bundle, threads=1) as detector:
        assert output["data"] == [np.float32(one.score) for one in detector.detect_batch(frames)]
    body, headers = infer_body(some_frames(7))
    assert "the queue has room for 6" in server.send("POST", INFER, body, headers).error


def test_a_request_that_would_be_late_is_refused_at_once(server: Served) -> None:
    batcher, crowd = server.batcher(), Crowd(server)
    with Gate(batcher) as gate:
        crowd.ask(1)
        gate.entered.acquire()
        crowd.ask(2)
        wait_until(lambda: batcher.frames_waiting == 2, "two requests wait")
        batcher._s_per_frame, usual = 2.0, batcher._s_per_frame
        body, headers = infer_body(some_frames(1), parameters={"timeout": 3_000_000})
        answer = server.send("POST", INFER, body, headers)
        batcher._s_per_frame = usual
        gate.open()
        assert [one.status for one in crowd.answers()] == [200] * 3
    assert (answer.status, "would wait 6.00 s" in answer.error) == (429, True)
    assert int(answer.headers["retry-after"]) == 6


def test_a_late_request_gets_an_error_and_is_not_computed(server: Served) -> None:
    before, crowd = outcomes(server), Crowd(server)
    with Gate(server.batcher()) as gate:
        crowd.ask(1)
        gate.entered.acquire()
        crowd.ask(2, timeout=50_000)
        wait_until(lambda: (outcomes(server) - before)["late"] == 2, "two requests are late")
        assert server.batcher().frames_waiting == 0
        gate.open()
        answers = crowd.answers()
    assert Counter(one.status for one in answers) == {200: 1, 504: 2}
    assert gate.judged == [1]


def test_a_client_that_is_killed_is_not_computed(server: Served) -> None:
    before, crowd = outcomes(server), Crowd(server)
    body, headers = infer_body(some_frames(1))
    head = "".join(f"{name}: {value}\r\n" for name, value in {**headers, "Content-Length": len(body)}.items())
    with Gate(server.batcher()) as gate:
        crowd.ask(1)
        gate.entered.acquire()
        killed = server.raw()
        killed.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode() + body)
        wait_until(lambda: server.batcher().frames_waiting == 1, "the request waits")
        killed.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )  # a reset, as of a killed process
        killed.close()
        wait_until(lambda: (outcomes(server) - before)["client_gone"] == 1, "the server notices")
        assert server.batcher().frames_waiting == 0
        gate.open()
        assert [one.status for one in crowd.answers()] == [200]
    assert gate.judged == [1]


def test_a_client_that_leaves_within_its_body_frees_it(server: Served) -> None:
    before = outcomes(server)
    raw = server.raw()
    raw.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\nabc" % INFER.encode())
    wait_until(lambda: server.metric("flowedge_held_bytes") == 900000, "the body is expected")
    raw.close()
    wait_until(lambda: (outcomes(server) - before)["client_gone"] == 1, "the server notices")


def test_bodies_that_come_at_once_share_a_memory(server: Served) -> None:
    waiting = [server.raw() for _ in range(5)]
    for one in waiting:
        one.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n" % INFER.encode())
    last = waiting[-1].recv(1 << 16)
    first = [one for one in waiting if one is not waiting[-1]]
    refused = [last] if b" 429 " in last else [one.recv(1 << 16) for one in first]
    assert any(b" 429 " in one and b"are allowed. Try again later" in one for one in refused)
    for one in waiting:
        one.close()


def test_a_slow_client_loses_its_connection(server: Served) -> None:
    silent, header, body = server.raw(), server.raw(), server.raw()
    header.sendall(b"POST /v1/inspect HTTP/1.1\r\nHost: localhost\r\nX-")
    body.sendall(b"POST /v1/inspect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc")
    assert b"HTTP/1.1 408" in body.recv(1 << 16)
    for one in (silent, header):
        assert one.recv(1 << 16) == b""
    for one in (silent, header, body):
        one.close()


def kept_alive(server: Served, path: str = "/healthz") -> http.client.HTTPConnection:
    """Send one request, and leave its connection open."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", path)
    assert connection.getresponse().read() is not None
    return connection


def test_idle_connections_make_room_for_new_ones(models: tuple[ModelSettings, ...]) -> None:
    with served(models, limits=LimitSettings(connections=4)) as small, contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(contextlib.closing(kept_alive(small))) for _ in range(2))
        silent, slow = (stack.enter_context(small.raw()) for _ in range(2))
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-")
        wait_until(lambda: small.server.site.connections() == 4, "four connections are idle")
        first.request("GET", "/healthz")
        assert first.getresponse().read() is not None
        for closed in (second.sock, silent, slow):
            stack.enter_context(contextlib.closing(kept_alive(small)))
            assert closed.recv(1) == b""  # the one that had been idle longest
        assert small.server.site.connections() == 4
        # The first connection was used last, so it is still open.
        first.request("GET", "/healthz")
        assert first.getresponse().status == 200


def test_busy_connections_are_not_closed_and_others_are_refused_in_words(
    models: tuple[ModelSettings, ...],
) -> None:
    limits, batch = LimitSettings(connections=4), BatchSettings(workers=1)
    with served(models, limits=limits, batch=batch) as small, contextlib.ExitStack() as stack:
        crowd = Crowd(small)
        with Gate(small.batcher()) as gate:
            crowd.ask(4)
            gate.entered.acquire()
            wait_until(lambda: small.batcher().frames_waiting == 3, "four requests are being answered")
            refused = small.get("/healthz")
            assert (refused.status, "more than 4 connections" in refused.error) == (503, True)
            silent = [stack.enter_context(small.raw()) for _ in range(3)]
            assert [one.recv(1) for one in silent[:2]] == [b""] * 2
            gate.open()
            assert [one.status for one in crowd.answers()] == [200] * 4
        assert small.get("/healthz").status == 200


def test_an_idle_connection_is_closed_in_time(models: tuple[ModelSettings, ...]) -> None:
    limits = LimitSettings(idle_s=1, header_s=60)
    with served(models, limits=limits) as small, contextlib.closing(kept_alive(small)) as idle:
        assert idle.sock.recv(1) == b""


def test_a_client_that_does_not_take_the_end_of_its_answer_loses_its_connection(
    models: tuple[ModelSettings, ...],
) -> None:
    body, headers = infer_body(
        some_frames(6), outputs=[{"name": "anomaly_map", "parameters": {"binary_data": True}}]
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in {**headers, "Content-Length": len(body)}.items())
    with served(models, limits=LimitSettings(answer_s=0.5)) as small, socket.socket() as lazy:
        small.server._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, 1
        )  # a small buffer in the system
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        lazy.connect(("127.0.0.1", small.port))
        lazy.sendall(
            f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}\r\n".encode() + body
        )
        wait_until(lambda: small.batcher().counts.outcomes["ok"] == 1, "the request is answered")
        wait_until(lambda: small.server.site.connections() == 0, "the connection is closed")


def test_headers_without_an_end_are_refused(server: Served) -> None:
    with server.raw() as raw, contextlib.suppress(ConnectionError):
        raw.sendall(b"GET /healthz HTTP/1.1\r\n")
        for number in range(200):
            raw.sendall(b"X-%d: %s\r\n" % (number, b"a" * 1000))
        answer = raw.recv(1 << 16)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431")
    with server.raw() as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
        assert b'{"error":"Invalid HTTP request received."}' in raw.recv(1 << 16)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "localhost:1"}, 200),
    ],
)
def test_a_page_of_another_site_reaches_nothing(server: Served, headers: dict[str, str], status: int) -> None:
    assert server.send("POST", "/v2/repository/index", b"", headers).status == status


def test_a_client_must_not_load_models_unless_the_operator_allows_it(server: Served) -> None:
    answer = server.send("POST", "/v2/repository/models/bottle/unload", b"{}")
    assert (answer.status, "--model-control" in answer.error) == (400, True)


def test_a_frame_that_does_not_fit_takes_no_other_request_with_it(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, crowd = server.batcher(), Crowd(server)
    wide, headers = infer_body(some_frames(1, size=(1, 2000)))
    with Gate(batcher) as gate:
        crowd.ask(1)
        gate.entered.acquire()
        bad = crowd.pool.submit(server.send, "POST", INFER, wide, headers)
        crowd.ask(1)
        wait_until(lambda: batcher.frames_waiting == 2, "both wait for one batch")
        gate.open()
        assert [one.status for one in crowd.answers()] == [200, 200]
    answer = bad.result()
    assert (answer.status, "1024 times the shorter one" in answer.error) == (422, True)


def test_keys_open_everything_but_the_health(models: tuple[ModelSettings, ...], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("the-first-long-key\n\nthe-second-long-key\n")
    with served(models, server=ServerSettings(port=0, key_file=keys)) as locked:
        body, headers = infer_body(some_frames(1))
        for sent, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Basic the-first-long-key"}, 401),
            ({"X-API-Key": "the-first-long-key\xff"}, 401),
            ({"Authorization": "Bearer the-second-long-key"}, 200),
            ({"X-API-Key": "the-first-long-key", "Host": "by.any.name"}, 200),
        ):
            assert locked.send("POST", INFER, body, {**headers, **sent}).status == status
        assert locked.get("/metrics").status == 401
        # A refused picture has a verdict as well, so that nobody takes it for a good part.
        assert locked.send("POST", "/v1/inspect", PNG).json["verdict"] == "not_inspected"
        assert locked.get("/v1/inspect").json["verdict"] == "not_inspected"
        assert [locked.get(path).status for path in ("/healthz", "/readyz", "/v2/health/live")] == [200] * 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ServerSettings(host="0.0.0.0", port=0), "there is no key"),
        (ServerSettings(port=0, key_env="FLOWEDGE_NO_SUCH_KEY"), "is not set"),
        (ServerSettings(port=0, tls_key=Path("x")), "belong together"),
    ],
)
def test_a_server_that_is_not_safe_does_not_start(
    models: tuple[ModelSettings, ...], settings: ServerSettings, words: str
) -> None:
    with pytest.raises(FlowEdgeError, match=words):
        ModelServer(ServeSettings(models=models, server=settings))


def test_a_short_key_is_refused(models: tuple[ModelSettings, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWEDGE_TEST_KEY", "short")
    with pytest.raises(SettingsError, match="has 5 characters"):
        ModelServer(ServeSettings(models=models, server=ServerSettings(port=0, key_env="FLOWEDGE_TEST_KEY")))


def test_names_of_models_are_checked(models: tuple[ModelSettings, ...]) -> None:
    with pytest.raises(SettingsError, match="two models have the name bottle"):
        ModelServer(ServeSettings(models=models * 2, server=ServerSettings(port=0)))
    with pytest.raises(SettingsError, match="there is no model to serve"):
        ModelServer(ServeSettings(server=ServerSettings(port=0)))
    with pytest.raises(SettingsError, match="gives no name of a model"):
        name_of(Path("a b.flowedge"))


def test_a_server_whose_model_cannot_be_loaded_ends(tmp_path: Path) -> None:
    missing = (ModelSettings(bundle=tmp_path / "missing.flowedge"),)
    server = ModelServer(ServeSettings(models=missing, server=ServerSettings(port=0)))
    with pytest.raises(FlowEdgeError, match="no such folder"):
        server.start()


def test_a_server_that_is_stopped_answers_what_it_has(models: tuple[ModelSettings, ...]) -> None:
    limits = LimitSettings(drain_delay_s=0.3)
    with served(models, limits=limits, batch=BatchSettings(workers=1)) as running:
        crowd = Crowd(running)
        with Gate(running.batcher()) as gate:
            crowd.ask(1)
            gate.entered.acquire()
            crowd.ask(2)
            wait_until(lambda: running.batcher().frames_waiting == 2, "two requests wait")
            running.server.stop()
            wait_until(lambda: running.get("/readyz").status == 503, "the server is not ready")
            assert running.get("/healthz").status == 200
            gate.open()
            assert [one.status for one in crowd.answers()] == [200] * 3
        running.server.wait()
        with pytest.raises(ConnectionError):
            running.get("/healthz")


def test_the_command_ends_in_good_order_on_sigterm(models: tuple[ModelSettings, ...]) -> None:
    command = [*python_command("flowedge.cli"), "serve", str(models[0].bundle), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["models"] == ["bottle"]
        assert urlopen(f"{told['url']}readyz").status == 200
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "serving bottle on http://127.0.0.1:" in errors


def test_an_engine_that_hangs_makes_the_server_not_ready(models: tuple[ModelSettings, ...]) -> None:
    with served(models, limits=LimitSettings(stuck_s=0.05)) as running:
        crowd = Crowd(running)
        with Gate(running.batcher()) as gate:
            crowd.ask(1)
            gate.entered.acquire()
            wait_until(lambda: running.get("/readyz").status == 503, "the run takes too long")
            gate.open()
            assert [one.status for one in crowd.answers()] == [200]
        assert running.get("/readyz").status == 200


def test_traces_reach_a_collector(models: tuple[ModelSettings, ...]) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    got: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                content = gzip.GzipFile(fileobj=io.BytesIO(content)).read()
            got.append(trace_service.ExportTraceServiceRequest.FromString(content))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever, daemon=True)
    thread.start()
    traces = TraceSettings(endpoint=f"http://127.0.0.1:{collector.server_port}/v1/traces")
    trace_id, parent = "ab" * 16, "cd" * 8
    with served(models, traces=traces) as running:
        body, headers = infer_body(some_frames(1))
        running.send("POST", INFER, body, {**headers, "traceparent": f"00-{trace_id}-{parent}-01"})
        running.get("/healthz")
    collector.shutdown()
    collector.server_close()
    thread.join()
    spans = [
        span
        for request in got
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {span.name for span in spans} == {"POST /v2/models/{model}/infer", "queue", "judge"}
    assert {span.trace_id.hex() for span in spans} == {trace_id}
    (whole,) = [span for span in spans if span.parent_span_id.hex() == parent]
    facts = {one.key: one.value for one in whole.attributes}
    assert facts["model"].string_value == "bottle"
    assert facts["http.response.status_code"].int_value == 200


@pytest.mark.parametrize(
    "kind",
    [ServerSettings, BatchSettings, LimitSettings, TraceSettings, ModelSettings],
    ids=lambda kind: kind.__name__,
)
def test_the_page_has_every_setting(kind: type[Settings]) -> None:
    page = (REPOSITORY / "docs" / "fleet.md").read_text(encoding="utf-8")
    assert "\n".join(rows_of(kind)) in page
