"""The page of a station answers real requests: what it shows, what it refuses, and what it tells programs."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import sqlite3
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import cv2
import numpy as np
import pytest
from starlette.exceptions import HTTPException

from flowedge.errors import FlowEdgeError, SettingsError
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.live import Live
from flowedge.runtime.station.page.guard import MOST_BODY_BYTES, POLICY
from flowedge.runtime.station.page.history import score_history
from flowedge.runtime.station.page.page import Page
from flowedge.runtime.station.page.settings import PageSettings
from flowedge.runtime.station.page.worker import Worker
from support.certificates import Authority
from support.station_page import HOSTILE, TOKEN, PretendLine, PretendStation, tell_health
from support.station_records import made_record

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
CHANGE = {"value": "1.75", "who": "Ada", "why": "too many misses", "token": TOKEN}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served(NamedTuple):
    """A page that answers, and what is behind it."""

    page: Page
    live: Live
    line: PretendLine
    station: PretendStation
    journal: Journal

    def get(self, path: str, method: str = "GET", body: str = "", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.page.port, timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body.encode() if body else None, named)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, path: str, fields: dict[str, str], **headers: str) -> Answer:
        return self.get(path, "POST", urlencode(fields), **{**FORM, **headers})


def serve(folder: Path, **settings: Any) -> Iterator[Served]:
    (folder / "token").write_text(f"{TOKEN}\n")
    journal, live = Journal(folder / "journal.sqlite", station="line 3", reserve_bytes=1 << 16), Live()
    station = PretendStation(folder, journal)
    wanted: dict[str, Any] = {"port": 0, "token_file": folder / "token"} | settings
    with journal, Page(PageSettings(**wanted), journal, live, station) as page:
        yield Served(page, live, PretendLine(journal, live), station, journal)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    yield from serve(tmp_path)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page with one part, for tests that change nothing."""
    for served in serve(tmp_path_factory.mktemp("station")):
        served.line.part()
        yield served


def test_a_station_without_any_part_has_pages(served: Served) -> None:
    for path in ("/", "/records", "/events", "/changes", "/status", "/live.json", "/live.jpg", "/metrics"):
        assert served.get(path).status == 200, path
    assert "No part was judged since the start" in served.get("/").text
    assert served.get("/live.jpg").headers["content-type"] == "image/svg+xml"


def test_the_live_picture_is_that_of_the_record_that_is_shown(served: Served) -> None:
    served.line.part(is_nok=True)
    state = served.get("/live.json").json
    assert (state["look"], state["word"], state["number"]) == ("nok", "NOK", 1)
    for view in ("findings", "camera", "map"):
        answer = served.get(f"/live.jpg?number=1&view={view}")
        assert answer.headers["content-type"] == "image/jpeg"
        picture = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape == (240, 320, 3)
    assert len({served.get(f"/live.jpg?view={view}").body for view in ("findings", "camera", "map")}) == 3


def test_a_frame_that_nobody_judged_is_shown_as_rejected_and_without_a_picture(served: Served) -> None:
    served.line.part(
        verdict="not_inspected", signal="nok", score=None, reason="the file is cut", has_result=False
    )
    state = served.get("/live.json").json
    assert (state["look"], state["picture"], state["reason"]) == ("nok", False, "the file is cut")


def test_an_old_verdict_keeps_its_reason(tmp_path: Path) -> None:
    for served in serve(tmp_path, stale_after_s=1):
        served.line.part(signal="nok", reason="the file is cut")
        time.sleep(1.1)
        state = served.get("/live.json").json
        assert state["look"] == "old"
        assert state["reason"].endswith(": the file is cut")


@pytest.mark.parametrize(
    "path",
    [
        "/records/0",
        "/records/-1",
        "/records/7",
        "/records/99999999999999999999",
        f"/records/{'9' * 1500}",
        "/records/%D9%A1",
        "/records/1.5/picture",
        "/records/../../etc/passwd",
        "/records/%2e%2e%2f%2e%2e%2fetc%2fpasswd/picture",
        "/static/../page.py",
        "/static/%2e%2e%2fpage.py",
        "/static/settings.py",
        "/nothing",
    ],
)
def test_an_address_leads_to_a_record_of_the_journal_or_nowhere(quiet: Served, path: str) -> None:
    answer = quiet.get(path)
    assert answer.status == 404
    assert b"root:" not in answer.body


def test_every_answer_has_the_headers_of_security(quiet: Served) -> None:
    for path in ("/", "/records/1", "/live.jpg", "/metrics", "/static/page.js", "/nothing"):
        headers = quiet.get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    assert "'unsafe" not in POLICY
    assert quiet.get("/").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("192.168.1.20", 200),
        ("LOCALHOST:8080", 200),
        ("localhost.", 200),
        (socket.gethostname(), 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("evil.example:127", 421),
        ("user@127.0.0.1", 421),
        ("127.0.0.1/../evil", 421),
        ("", 421),
        ("[::1", 421),
    ],
)
def test_only_a_name_of_this_station_is_answered(quiet: Served, host: str, status: int) -> None:
    assert quiet.get("/healthz", Host=host).status in ({status} if status == 421 else {200, 503})


def test_a_name_of_the_settings_is_answered(tmp_path: Path) -> None:
    for served in serve(tmp_path, hosts=("station.plant.example",)):
        assert served.get("/live.json", Host="Station.Plant.example:443").status == 200
        assert served.get("/live.json", Host="other.example").status == 421


def test_a_hostile_name_is_text_everywhere(served: Served) -> None:
    served.line.part(
        is_nok=True, part=HOSTILE, source=HOSTILE, source_id=HOSTILE, product=HOSTILE, reason=HOSTILE
    )
    served.live.tell(HOSTILE, "warning", HOSTILE, kind="sink", value=1, unit=HOSTILE)
    for path in (
        "/",
        "/status",
        "/records",
        "/records/1",
        "/events",
        f"/records?{urlencode({'part': HOSTILE})}",
    ):
        text = served.get(path).text
        assert "<script>" not in text
        assert "<img src=x" not in text
        assert "\u202e" not in text
    assert "&lt;img src=x" in served.get("/records/1").text


def test_records_are_listed_by_slices_and_filters(served: Served) -> None:
    for number in range(1, 121):
        served.line.part(is_nok=number % 40 == 0, has_result=False)

    def listed(query: str) -> list[int]:
        found = re.findall(
            r'data-name="record"><a href="/records/(\d+)"', served.get(f"/records?{query}").text
        )
        return [int(one) for one in found]

    assert listed("") == list(range(120, 70, -1))
    assert listed("before=71") == list(range(70, 20, -1))
    assert listed("before=21") == list(range(20, 0, -1))
    assert listed("after=20") == list(range(70, 20, -1))
    assert listed("signal=nok") == [120, 80, 40]
    assert listed("verdict=anomalous&before=120") == [80, 40]
    assert listed("part=T-4007") == [7]
    assert listed("part=T-4007&signal=nok") == []
    assert listed("signal=%27+OR+1%3D1&before=-3") == []
    assert "before=71" in served.get("/records").text
    assert "before=" not in served.get("/records?before=21").text


def test_a_change_by_form_is_stored_told_and_shown(served: Served) -> None:
    answer = served.post("/changes/threshold", CHANGE)
    assert (answer.status, answer.headers["location"]) == (303, "/changes?done=threshold")
    assert served.station.limits[0].value == 1.75
    assert [one.kind for one in served.journal.events()] == ["threshold_changed"]
    text = served.get("/changes").text
    assert "too many misses" in text
    assert TOKEN not in text
    back = served.post("/changes/threshold", CHANGE | {"value": ""})
    assert back.status == 303
    assert (served.station.limits[0].value, served.station.limits[0].version) == (2.5, 2)


def test_a_change_by_json_needs_the_token_in_its_header(served: Served) -> None:
    body = json.dumps({"value": 1.5, "who": "MES", "why": "recipe 7"})
    headers = {"Content-Type": "application/json"}
    assert served.get("/changes/threshold", "POST", body, **headers).status == 403
    allowed = headers | {"Authorization": f"Bearer {TOKEN}"}
    assert served.get("/changes/threshold", "POST", body, **allowed).json == {"version": 1}
    wrong = json.dumps({"value": "1.5", "who": "MES", "why": "recipe 7", "size": 1})
    answer = served.get("/changes/threshold", "POST", wrong, **allowed)
    assert (answer.status, "Nothing was changed" in answer.json["error"]) == (400, True)
    area = json.dumps(
        {"frame_size": [240, 320], "inspect": [[[0, 0], [9, 0], [9, 9]]], "who": "MES", "why": "recipe 7"}
    )
    assert served.get("/changes/area", "POST", area, **allowed).json == {"version": 2}
    assert served.station.area.inspect == (((0, 0), (9, 0), (9, 9)),)


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("threshold", {"value": "high"}, "is no number"),
        ("threshold", {"value": "nan"}, "finite"),
        ("threshold", {"why": " "}, "why is a text"),
        ("area", {"points": "inspect 1,1 2,2", "frame": "240x320"}, "3 to 1000 corners"),
        ("area", {"points": "outside 1,1 2,2 1,2", "frame": "240x320"}, "begins with"),
        ("area", {"points": "inspect 1,1 2;2 9,1", "frame": "240x320"}, "the corner"),
        ("area", {"points": "inspect 1,1 nan,2 9,1", "frame": "240x320"}, "has a corner"),
        ("area", {"points": ""}, "size of the frame"),
    ],
)
def test_a_change_that_is_wrong_keeps_what_was_typed(
    quiet: Served, path: str, fields: dict[str, str], words: str
) -> None:
    answer = quiet.post(f"/changes/{path}", CHANGE | fields)
    assert answer.status == 400
    assert words in answer.text
    assert 'value="Ada"' in answer.text
    assert TOKEN not in answer.text
    assert "<script>alert" not in answer.text
    assert quiet.station.changes == ()


def test_a_region_for_frames_of_another_size_is_refused_and_no_region_always_goes(served: Served) -> None:
    served.line.part()
    drawn = {"points": "inspect 1,1 30,1 30,30", "frame": "480x640"}
    answer = served.post("/changes/area", CHANGE | drawn)
    assert (answer.status, "the newest frame has 240x320" in answer.text) == (400, True)
    assert served.station.changes == ()
    assert served.post("/changes/area", CHANGE | drawn | {"points": ""}).status == 303


def test_a_region_can_be_cleared_where_the_newest_frame_has_no_picture(served: Served) -> None:
    served.line.part(verdict="not_inspected", signal="nok", score=None, reason="cut", has_result=False)
    page = served.get("/changes").text
    assert "there is no picture of it" in page
    assert "clear the region" in page


def test_a_product_that_is_not_there_is_named_as_text(served: Served) -> None:
    answer = served.post("/changes/threshold", CHANGE | {"product": HOSTILE})
    assert (answer.status, "no product &lt;img" in answer.text) == (400, True)


def test_wrong_tokens_are_limited_and_change_nothing(served: Served) -> None:
    for _ in range(5):
        assert served.post("/changes/threshold", CHANGE | {"token": "wrong"}).status == 403
    answer = served.post("/changes/threshold", CHANGE)
    assert (answer.status, answer.headers["retry-after"]) == (429, "60")
    assert served.station.changes == ()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_a_change_from_another_site_is_refused(quiet: Served, headers: dict[str, str], status: int) -> None:
    assert quiet.post("/changes/threshold", CHANGE, **headers).status == status


def test_a_page_of_this_station_may_send_a_change(served: Served) -> None:
    origin = f"http://127.0.0.1:{served.page.port}"
    headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
    assert served.post("/changes/threshold", CHANGE, **headers).status == 303


def test_nobody_changes_anything_without_a_token(tmp_path: Path) -> None:
    for served in serve(tmp_path, token_file=None):
        served.line.part()
        assert "<form" not in served.get("/changes").text
        assert served.post("/changes/threshold", CHANGE).status == 403
        assert served.post("/changes/threshold", CHANGE | {"token": ""}).status == 403
        assert served.station.changes == ()


def test_requests_that_are_too_large_or_of_another_kind_are_refused(served: Served) -> None:
    assert served.post("/changes/threshold", CHANGE | {"why": "x" * MOST_BODY_BYTES}).status == 413
    assert served.get(f"/records?part={'x' * 3000}").status == 414
    assert served.get("/", "PUT").status == 405
    assert served.get("/changes/threshold", "DELETE").status == 405
    many = urlencode([("value", "1")] * 5000)
    assert served.get("/changes/threshold", "POST", many, **FORM).status == 400
    assert served.get("/changes/threshold", "POST", "value=1", **{"Content-Type": "text/plain"}).status == 400
    assert served.station.changes == ()


def test_an_address_in_use_a_short_token_and_half_a_certificate_are_errors(
    served: Served, tmp_path: Path
) -> None:
    (tmp_path / "short").write_text("secret\n")
    for wanted, kind, words in (
        ({"port": served.page.port}, FlowEdgeError, "cannot listen"),
        ({"port": 0, "token_file": tmp_path / "short"}, SettingsError, "at least 12"),
        ({"port": 0, "tls_key": tmp_path / "key.pem"}, SettingsError, "belong together"),
        ({"port": 0, "address": "no.such.host.invalid"}, FlowEdgeError, "cannot listen"),
    ):
        with pytest.raises(kind, match=words):
            Page(PageSettings(**wanted), served.journal, served.live, served.station)


def test_another_address_is_warned_about(served: Served, tmp_path: Path) -> None:
    def warning(**wanted: Any) -> str:
        page = Page(PageSettings(port=0, **wanted), served.journal, served.live, served.station)
        page.stop()
        return page.warning

    assert warning() == ""
    assert "Nobody can change anything" in warning(address="0.0.0.0")
    assert "plain text" in warning(address="0.0.0.0", token_file=tmp_path / "token")


def test_health_has_reasons(served: Served) -> None:
    assert served.get("/healthz").status == 200
    answer = served.get("/readyz")
    assert (answer.status, answer.json["reasons"]) == (503, ["the loop has not started yet"])
    tell_health(served.live)
    answer = served.get("/readyz")
    assert (answer.status, answer.json["status"]) == (200, "ok")
    assert answer.json["parts"]["mqtt"]["state"] == "down"
    served.live.tell("camera 1", "down", "no frame for 5 s", kind="source", is_needed=True)
    served.line.part()
    answer = served.get("/readyz")
    assert (answer.status, answer.json["reasons"]) == (503, ["camera 1 is down: no frame for 5 s"])
    state = served.get("/live.json").json
    assert (state["look"], state["word"]) == ("stopped", "STOPPED")


def test_a_loop_that_hangs_is_not_alive(tmp_path: Path) -> None:
    from flowedge.runtime.station.page.health import liveness, readiness

    now = 0.0
    live = Live(clock=lambda: now)
    live.beat()
    now = 31.0
    assert not liveness(live).is_good
    assert readiness(live).reasons == ("the loop has given no sign of life for 31 s",)


def test_prometheus_reads_the_metrics(served: Served) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")
    tell_health(served.live)
    served.live.tell(HOSTILE + "\n\\", "ok", kind="drift", value=0.5, limit=1.0)
    for number in range(1, 21):
        served.line.part(is_nok=number % 5 == 0, dropped_before=1)
    answer = served.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {one.name: one for one in parser.text_string_to_metric_families(answer.text)}
    kinds = {name: one.type for name, one in families.items()}
    assert kinds["flowedge_records"] == "counter"
    assert kinds["flowedge_stage_seconds"] == "histogram"
    assert kinds["flowedge_limit"] == "gauge"
    counted = {
        (one.labels["verdict"], one.labels["signal"]): one.value
        for one in families["flowedge_records"].samples
    }
    assert counted == {("ok", "ok"): 16, ("anomalous", "nok"): 4}
    assert families["flowedge_frames_dropped"].samples[0].value == 20
    stages = families["flowedge_stage_seconds"].samples
    infer = [one for one in stages if one.labels["stage"] == "infer"]
    buckets = [one.value for one in infer if one.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 20
    assert next(one.value for one in infer if one.name.endswith("_count")) == 20
    parts = {one.labels["part"] for one in families["flowedge_part_state"].samples}
    assert HOSTILE + "\n\\" in parts


def test_streams_are_limited_and_end_with_the_page(tmp_path: Path) -> None:
    for served in serve(tmp_path, streams=2):
        served.line.part()
        open_ones = []
        for _ in range(2):
            one = http.client.HTTPConnection("127.0.0.1", served.page.port, timeout=20)
            one.request("GET", "/live")
            answer = one.getresponse()
            assert answer.status == 200
            assert answer.readline().startswith(b'data: {"look":"ok"')
            open_ones.append((one, answer))
        assert served.get("/live").status == 503
    for one, answer in open_ones:
        answer.read()  # ends, since the page has ended
        one.close()


def test_nothing_is_drawn_while_nobody_looks(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(
        "flowedge.runtime.station.page.pictures.findings_of", lambda *given: drawn.append(given)
    )
    for _ in range(5):
        served.line.part()
    served.get("/metrics")
    served.get("/")
    assert drawn == []


def test_many_browsers_cost_one_drawing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowedge.runtime.station import findings
    from flowedge.runtime.station.page import pictures

    drawn: list[object] = []
    real = findings.findings_of

    def counted(*given: Any) -> Any:
        drawn.append(given)
        return real(*given)

    monkeypatch.setattr(pictures, "findings_of", counted)
    served.line.part()
    for _ in range(10):
        assert served.get("/live.jpg?number=1").status == 200
        assert served.get("/records/1/thumbnail").status == 200
    assert len(drawn) == 2


def test_the_limit_of_the_history_jumps_where_it_was_changed() -> None:
    records = [
        made_record(number, score=1.0, threshold=2.0 if number < 4 else 3.0 if number < 6 else 2.5)
        for number in range(1, 9)
    ]
    drawn = score_history(records)
    line = re.search(r'<polyline points="([^"]+)" class="limit">', drawn)
    assert line is not None
    heights = [float(one.split(",")[1]) for one in line[1].split()]
    assert len(set(heights)) == 3
    assert len(heights) == 6  # two corners for each limit
    assert score_history([made_record(1, verdict="not_inspected", signal="nok", score=None)]) == ""


def test_a_client_that_is_slow_loses_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowedge.runtime.station.page.guard._REQUEST_SECONDS", 0.3)
    monkeypatch.setattr("flowedge.runtime.station.page.guard.PageProtocol.request_s", 0.3)
    for served in serve(tmp_path, connections=4):
        idle = [socket.create_connection(("127.0.0.1", served.page.port), timeout=20) for _ in range(4)]
        idle[0].sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        idle[1].sendall(b"GET /live.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answers = []
        for one in idle:
            answer = b""
            while part := one.recv(1 << 16):
                answer += part
            answers.append(answer[:12])
            one.close()
        assert answers[0] == answers[2] == b""
        assert served.get("/live.json").status == 200
        body = socket.create_connection(("127.0.0.1", served.page.port), timeout=20)
        body.sendall(
            b"POST /changes/threshold HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\nvalue=1"
        )
        assert body.recv(1 << 16).startswith(b"HTTP/1.1 408")
        body.close()


def test_idle_connections_make_room_for_a_browser(tmp_path: Path) -> None:
    for served in serve(tmp_path, connections=4):
        idle = [socket.create_connection(("127.0.0.1", served.page.port), timeout=20) for _ in range(6)]
        assert served.get("/live.json").status == 200
        assert [one.recv(1) for one in idle[:3]] == [b""] * 3
        for one in idle:
            one.close()


def test_the_page_is_served_by_https(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("page")
    for served in serve(tmp_path, tls_certificate=certificate, tls_key=key):
        assert served.page.url.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=authority.file)
        with urllib.request.urlopen(f"{served.page.url}live.json", context=trusted, timeout=20) as answer:
            assert answer.status == 200


def test_work_that_has_not_begun_ends_with_the_page() -> None:
    async def closed_while_two_wait() -> list[object]:
        worker, go_on = Worker("test"), threading.Event()
        first = asyncio.ensure_future(worker.run(go_on.wait, 20))
        second = asyncio.ensure_future(worker.run(go_on.wait, 20))
        await asyncio.sleep(0.05)  # the thread has begun with the first
        worker.close()
        go_on.set()
        third = worker.run(go_on.wait, 20)
        return list(await asyncio.gather(first, second, third, return_exceptions=True))

    # A loop of its own thread, since a browser of another test may have one that runs here.
    with ThreadPoolExecutor(1) as pool:
        first, second, third = pool.submit(asyncio.run, closed_while_two_wait()).result()
    assert first is True
    for one in (second, third):
        assert isinstance(one, HTTPException)
        assert one.status_code == 503


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00" * 2000,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET /%00%ff%fe/../%2e HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"GET /records?part=%ff%00&before=%31 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"POST /changes/area HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_a_client_that_talks_nonsense_is_refused_and_the_page_goes_on(
    quiet: Served, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", quiet.page.port), timeout=20) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1 << 16)[9:12] in (b"", b"200", b"400", b"404", b"421")
    assert quiet.get("/live.json").status == 200
    assert "Traceback" not in caplog.text


def test_verdict_picture_and_metrics_go_on_where_the_journal_cannot_be_read(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.line.part()

    def broken(*_: object, **__: object) -> list[object]:
        raise sqlite3.OperationalError("disk I/O error")

    for name in ("records", "events", "last"):
        monkeypatch.setattr(Journal, name, broken)
    assert "The journal cannot be read: disk I/O error" in served.get("/").text
    assert served.get("/live.json").json["word"] == "OK"
    assert served.get("/live.jpg").headers["content-type"] == "image/jpeg"
    text = served.get("/metrics").text
    assert "flowedge_records_total" in text
    assert "flowedge_journal_last_record" not in text
