"""A server gets each record by a signed POST, and whatever it answers, no record is lost or blocks for ever."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowedge.errors import SettingsError
from flowedge.runtime.settings import settings_from
from flowedge.runtime.station.delivery import Deliveries
from flowedge.runtime.station.record import Event
from flowedge.runtime.station.sinks import RecordSink, RefusedError, SinkError, StationLink, make_sink, probe
from flowedge.runtime.station.sinks.settings import WebhookSettings
from support.certificates import Authority
from support.pages import blocks_of
from support.station_records import MemoryJournal, made_record
from support.waiting import wait_until

LINK = StationLink(station="line-1", run="run-1")
SECRET = "whsec_" + base64.b64encode(b"a secret of twenty-four!").decode()


class Server(http.server.ThreadingHTTPServer):
    """A server that answers as a test wants, and keeps what it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.connections = 0
        self.drips = False
        self.scheme = "http"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.server_port}/hook?line=1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing where a client goes away."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((dict(self.headers.items()), body))
        if self.server.drips:
            self.wfile.write(b"HTTP/1.1 200 ")
            while self.server.drips:
                self.wfile.write(b"x")
                time.sleep(0.02)
            return
        status, headers, content = self.server.answers.pop(0) if self.server.answers else (200, {}, b"ok")
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, the name is the base class's
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.drips = False
    one.shutdown()
    one.server_close()


@pytest.fixture
def sink_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RecordSink]]:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.setenv("HOOK_TOKEN", "t0ken")
    made: list[RecordSink] = []

    def make(server: Server, **fields: Any) -> RecordSink:
        made.append(make_sink(WebhookSettings(**{"url": server.url, "timeout_s": 5.0, **fields}), LINK))
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[..., RecordSink]


def numbers(server: Server) -> list[int]:
    return [json.loads(body)["number"] for _, body in server.got]


def test_each_record_is_a_post_over_one_connection(server: Server, sink_of: Make) -> None:
    sink = sink_of(server, token_env="HOOK_TOKEN")
    sink.deliver([made_record(number) for number in range(1, 21)])
    sink.event(Event(id="e1", kind="drift", text="the scores rise"))
    assert numbers(server)[:20] == list(range(1, 21))
    assert server.connections == 1
    headers, body = server.got[0]
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Bearer t0ken"
    assert headers["webhook-id"] == json.loads(body)["id"] == "line-1/1"
    assert json.loads(server.got[-1][1])["kind"] == "drift"


def test_the_signature_is_that_of_standard_webhooks(server: Server, sink_of: Make) -> None:
    library = pytest.importorskip("standardwebhooks", reason="the independent check needs standardwebhooks")
    sink_of(server, secret_env="HOOK_SECRET").deliver([made_record(1, part="Gehäuse")])
    headers, body = server.got[0]
    assert library.Webhook(SECRET).verify(body, headers)["part"] == "Gehäuse"
    with pytest.raises(library.WebhookVerificationError):
        library.Webhook(SECRET).verify(body.replace(b'"ok"', b'"no"'), headers)


def test_the_check_of_the_documentation_accepts_it(server: Server, sink_of: Make) -> None:
    sink_of(server, secret_env="HOOK_SECRET").deliver([made_record(1)])
    headers, body = server.got[0]
    page = Path(__file__).parents[2] / "docs" / "station.md"
    (block,) = (one for one in blocks_of(page) if "def is_genuine" in one.text)
    names: dict[str, Any] = {}
    exec(block.text, names)
    is_genuine = names["is_genuine"]
    assert is_genuine(SECRET, headers, body)
    assert not is_genuine(SECRET, headers, body + b" ")
    assert not is_genuine(SECRET.replace("_", "_AAAA"), headers, body)
    old = {**headers, "webhook-timestamp": str(int(time.time()) - 3600)}
    assert not is_genuine(SECRET, old, body)


def test_a_secret_that_is_any_text_is_its_bytes(
    server: Server, sink_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "Geheimnis ü")
    sink_of(server, secret_env="HOOK_SECRET").deliver([made_record(1)])
    headers, body = server.got[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new("Geheimnis ü".encode(), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_an_answer_about_the_message_is_a_refusal(server: Server, sink_of: Make, status: int) -> None:
    server.answers = [(200, {}, b""), (status, {}, b"the field \x1b[31mscore is wrong")]
    with pytest.raises(RefusedError, match=rf"answers {status} .*: the field \\x1b\[31mscore") as raised:
        sink_of(server).deliver([made_record(1), made_record(2)])
    assert raised.value.delivered == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405, 408, 410, 429, 500, 502, 503])
def test_any_other_failure_keeps_the_record(server: Server, sink_of: Make, status: int) -> None:
    server.answers = [(status, {"Retry-After": "7"}, b"")]
    with pytest.raises(SinkError, match=rf"http://localhost:\d+ answers {status} ") as raised:
        sink_of(server).deliver([made_record(1)])
    assert not isinstance(raised.value, RefusedError)
    assert raised.value.retry_after_s == 7
    assert "line=1" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("", 0), ("-5", 0), ("9" * 30, 0), ("99999", 3600), ("Wed, 21 Oct 2026 07:28 GMT", 0)],
)
def test_a_strange_time_to_wait_is_bounded(server: Server, sink_of: Make, value: str, seconds: float) -> None:
    server.answers = [(429, {"Retry-After": value}, b"")]
    with pytest.raises(SinkError) as raised:
        sink_of(server).deliver([made_record(1)])
    assert raised.value.retry_after_s == seconds


def test_a_redirect_is_not_followed(server: Server, sink_of: Make) -> None:
    other = Server()
    server.answers = [(307, {"Location": other.url}, b"")]
    with pytest.raises(SinkError, match=r"A redirect to http://localhost:\d+/hook\?line=1 is not followed"):
        sink_of(server).deliver([made_record(1)])
    assert other.got == []
    other.shutdown()
    other.server_close()


def test_a_server_that_answers_drop_by_drop_is_left_at_the_deadline(server: Server, sink_of: Make) -> None:
    server.drips = True
    with pytest.raises(SinkError, match=r"has not answered within 0\.3 s"):
        sink_of(server, timeout_s=0.3).deliver([made_record(1)])


def test_a_server_that_says_nothing_is_left_at_the_deadline(sink_of: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink = make_sink(
            WebhookSettings(url=f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout_s=0.3), LINK
        )
        with pytest.raises(SinkError, match="has not answered"):
            sink.deliver([made_record(1)])


def test_an_answer_without_end_is_cut_and_the_next_message_is_right(server: Server, sink_of: Make) -> None:
    server.answers = [(200, {}, b"x" * (1 << 20)), (200, {}, b"")]
    sink_of(server).deliver([made_record(1), made_record(2)])
    assert numbers(server) == [1, 2]


def test_a_server_that_closes_idle_connections_gets_every_record(server: Server, sink_of: Make) -> None:
    server.answers = [(200, {"Connection": "close"}, b""), (200, {}, b"")]
    sink = sink_of(server)
    sink.deliver([made_record(1)])
    sink.deliver([made_record(2)])
    assert numbers(server) == [1, 2]


@pytest.mark.parametrize("garbage", [b"nonsense\r\n\r\n", b"HTTP/1.1 2", b""])
def test_a_server_that_is_none_is_told(garbage: bytes, sink_of: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as strange:

        def answer() -> None:
            client, _ = strange.accept()
            with client:
                client.recv(100000)
                client.sendall(garbage)

        thread = threading.Thread(target=answer)
        thread.start()
        sink = make_sink(
            WebhookSettings(url=f"http://127.0.0.1:{strange.getsockname()[1]}/", timeout_s=5.0), LINK
        )
        with pytest.raises(SinkError, match="has broken off"):
            sink.deliver([made_record(1)])
        thread.join()


def test_a_server_that_fails_for_a_while_gets_every_record_in_order(server: Server, sink_of: Make) -> None:
    failures: list[tuple[int, dict[str, str], bytes]] = [
        (500, {}, b""),
        (429, {}, b""),
        (503, {}, b""),
        (410, {}, b""),
    ]
    server.answers = [(200, {}, b""), *failures, (200, {}, b""), (422, {}, b"no"), (200, {}, b"")]
    journal = MemoryJournal()
    journal.add(*(made_record(number) for number in range(1, 5)))
    settings = WebhookSettings(url=server.url, retry_max_s=0.1, begin="oldest", events=False)
    deliveries = Deliveries.of([settings], journal, LINK, journal.tell)
    deliveries.start()
    wait_until(deliveries.is_drained, "everything is delivered or refused")
    deliveries.stop()
    assert numbers(server) == [1, 2, 2, 2, 2, 2, 3, 4]
    assert sorted(journal.kinds()) == ["sink_back", "sink_down", "sink_refused"]


def test_a_certificate_is_checked(tmp_path: Path, server: Server, sink_of: Make) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.scheme = "https"
    sink_of(server, ca_file=authority.file).deliver([made_record(1)])
    assert numbers(server) == [1]
    settings = WebhookSettings(url=server.url, ca_file=authority.file)
    assert "its certificate is accepted. No message was sent." in probe(settings, LINK)
    with pytest.raises(SinkError, match="its certificate is not accepted: "):
        probe(WebhookSettings(url=server.url), LINK)
    assert len(server.got) == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"url": "ftp://host/"}, "begins with http:// or https://"),
        ({"url": "https://host/a b"}, "has no spaces"),
        ({"url": "https:///path"}, "url needs a host"),
        ({"url": "https://host:99999/"}, "ort out of range"),
        ({"url": "https://me:pw@host/"}, "url may have no user"),
        ({"url": "http://host/", "token_env": "T"}, "a token needs https or localhost"),
        ({"url": "http://host/", "ca_file": "a"}, "ca_file needs https"),
        ({"url": "https://host/", "secret_env": "A", "secret_file": "b"}, "only one of"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    table: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_from({"kind": "webhook", **table}, WebhookSettings, name="station.toml", folder=tmp_path)


def test_a_secret_that_is_damaged_is_told_before_the_start(
    server: Server, sink_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "whsec_***")
    with pytest.raises(SettingsError, match="is no base64"):
        sink_of(server, secret_env="HOOK_SECRET")
    monkeypatch.setenv("HOOK_TOKEN", "a\x01b")
    with pytest.raises(SettingsError, match="has characters that no header may have"):
        sink_of(server, token_env="HOOK_TOKEN")
