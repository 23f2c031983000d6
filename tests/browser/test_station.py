"""The page of a station in a real browser: it follows the line, runs nothing from outside, and changes by a token."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.live import Live
from flowedge.runtime.station.page.page import Page
from flowedge.runtime.station.page.settings import PageSettings
from flowedge.runtime.station.record import Event
from flowedge.runtime.station.settings import read_station
from flowedge.runtime.station.station import Station
from support.station_files import write_photos, write_station
from support.station_page import HOSTILE, TOKEN, PretendLine, PretendStation, tell_health

PATHS = ("/", "/records", "/records/1", "/records/2", "/events", "/changes")


class Clock:
    """The monotonic clock of the station, which a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Shown(NamedTuple):
    page: Page
    journal: Journal
    live: Live
    line: PretendLine
    station: PretendStation
    clock: Clock


@pytest.fixture(scope="module")
def shown(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """One station for all tests, whose first two parts have hostile names."""
    folder = tmp_path_factory.mktemp("station")
    (folder / "token").write_text(f"{TOKEN}\n")
    clock = Clock()
    journal = Journal(folder / "journal.sqlite", station="line 3", reserve_bytes=1 << 16)
    live = Live(clock=clock)
    station = PretendStation(folder, journal, name=f"line 3 {HOSTILE}")
    line = PretendLine(journal, live)
    line.part(is_nok=True, part=HOSTILE, source=HOSTILE, source_id=HOSTILE, product=HOSTILE, reason=HOSTILE)
    line.part(verdict="not_inspected", signal="nok", reason=HOSTILE, has_result=False, part=HOSTILE)
    journal.append((), [Event(kind="drift", level="alarm", text=HOSTILE)])
    tell_health(live)
    live.tell(HOSTILE, "warning", HOSTILE, kind="sink", unit=HOSTILE, value=1)
    settings = PageSettings(port=0, token_file=folder / "token", pictures_per_second=20, stale_after_s=10)
    with journal, Page(settings, journal, live, station) as page:
        yield Shown(page, journal, live, line, station, clock)


@pytest.fixture
def visit(browser: Any, shown: Shown) -> Iterator[Callable[..., Any]]:
    """Open an address of the station. In the end the page must have been silent and asked for nothing else."""
    contexts: list[Any] = []
    said: list[str] = []
    asked: list[str] = []

    def opened(path: str, width: int = 1280, height: int = 800, **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, **({"color_scheme": "light"} | options)
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{shown.page.url}{path[1:]}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [one for one in said if "403" not in one and "400" not in one] == []
    assert {one for one in asked if not one.startswith(shown.page.url)} == set()


def waits_for(page: Any, selector: str, text: str) -> None:
    page.locator(selector, has_text=text).first.wait_for(timeout=15_000)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_from_outside_becomes_a_part_of_a_page(visit: Callable[..., Any], path: str) -> None:
    page = visit(path)
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script").evaluate_all("(all) => all.every((one) => one.src && !one.textContent)")
    assert "<img src=x onerror=alert(1)>" in page.inner_text("body")
    assert "\u202e" not in page.inner_text("body")
    assert page.evaluate("[...document.images].every((one) => one.hasAttribute('alt'))")
    assert page.locator("h1").count() == 1
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    hidden = "[...document.querySelectorAll('.cards')].filter((one) => one.scrollWidth > one.clientWidth)"
    assert page.evaluate(f"{hidden}.map((one) => one.ariaLabel)") == []


def test_the_page_follows_the_line_and_shows_a_hostile_part_as_text(
    visit: Callable[..., Any], shown: Shown
) -> None:
    page = visit("/")
    shown.line.part(is_nok=False)
    waits_for(page, "#word", "OK")
    waits_for(page, "#title", f"Part T-{4000 + shown.line.count}")
    assert page.locator("#verdict.ok").count() == 1
    shown.line.part(is_nok=True, part=HOSTILE, reason=HOSTILE)
    waits_for(page, "#word", "NOK")
    waits_for(page, "#title", "<img src=x onerror=alert(1)>")
    number = shown.line.count
    page.locator(f"#picture[src$='number={number}']").wait_for()
    assert page.locator("#picture").evaluate("(one) => one.naturalWidth") == 320
    waits_for(page, "#recent .thumbnail span", "<img src=x")  # by the next look at the sections below
    assert page.locator("#word").evaluate("(one) => parseFloat(getComputedStyle(one).fontSize)") >= 100


def test_an_old_picture_and_a_station_that_stands_still_look_like_it(
    visit: Callable[..., Any], shown: Shown
) -> None:
    shown.line.part()
    page = visit("/")
    assert page.inner_text("#word") == "OK"
    assert not page.locator("#age").is_visible()
    shown.clock.now += 75
    waits_for(page, "#word", "WAITING")
    waits_for(page, "#title", "Last part: OK, 75 s ago")
    assert page.inner_text("#age") == "The picture is 75 s old"
    assert "grayscale" in page.locator("#picture").evaluate("(one) => getComputedStyle(one).filter")
    shown.live.tell("camera 1", "down", "no frame for 75 s", kind="source", is_needed=True)
    waits_for(page, "#word", "STOPPED")
    assert "no frame for 75 s" in page.inner_text("#reason")
    shown.live.tell("camera 1", "ok", kind="source", is_needed=True)
    shown.line.part()
    waits_for(page, "#verdict.ok", "OK")


def test_a_station_that_no_longer_answers_looks_like_it(browser: Any, shown: Shown) -> None:
    shown.line.part()
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.clock.install()
    page.goto(shown.page.url)
    waits_for(page, "#verdict.ok", "OK")
    context.set_offline(True)
    page.evaluate("dispatchEvent(new Event('pagehide'))")  # ends the stream, as a cut cable would
    page.clock.run_for(6000)
    waits_for(page, "#word", "OFFLINE")
    assert page.locator("#stage.lost").count() == 1
    context.close()


def test_a_browser_that_gets_no_stream_asks_from_time_to_time(browser: Any, shown: Shown) -> None:
    settings = PageSettings(port=0, streams=1)
    page = browser.new_page()
    with Page(settings, shown.journal, shown.live, shown.station) as crowded:
        first = urllib.request.urlopen(f"{crowded.url}live", timeout=20)
        assert first.readline().startswith(b"data: ")
        page.goto(crowded.url)
        shown.line.part()
        waits_for(page, "#title", f"Part T-{4000 + shown.line.count}")
        page.close()
    first.close()


def test_the_views_are_chosen_without_leaving_the_page(visit: Callable[..., Any], shown: Shown) -> None:
    shown.line.part(is_nok=True)
    page = visit("/")
    waits_for(page, "#word", "NOK")
    page.get_by_role("link", name="Map", exact=True).click()
    page.locator("#picture[src*='view=map']").wait_for()
    assert page.url.endswith("/?view=map")
    assert page.locator("[data-view=map][aria-current]").count() == 1


def test_a_person_finds_a_record_and_its_evidence(visit: Callable[..., Any], shown: Shown) -> None:
    for number in range(60):
        shown.line.part(is_nok=number == 30, has_result=number == 30)
    wanted = shown.line.count - 29
    page = visit("/")
    page.get_by_role("link", name="Records").click()
    page.get_by_role("link", name="Older →").click()
    page.get_by_role("link", name="← Newer").click()
    page.get_by_label("Signal").select_option("nok")
    page.get_by_label("Part").fill(f"T-{4000 + wanted}")
    page.get_by_role("button", name="Show").click()
    page.locator("tbody a", has_text=str(wanted)).click()
    assert page.inner_text("h2 >> nth=0") == f"Record {wanted}"
    picture = page.locator(".evidence img")
    picture.evaluate("(one) => one.decode()")
    assert picture.evaluate("(one) => one.naturalWidth") == 320
    page.get_by_role("link", name="Newer →").click()
    assert page.inner_text("h2 >> nth=0") == f"Record {wanted + 1}"
    assert "The archive has no picture" in page.inner_text("main")


def test_the_colours_hold_on_all_pages(visit: Callable[..., Any]) -> None:
    page = visit("/records", color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.locator("#theme").click()
    light = page.evaluate(background)
    assert light == "rgb(255, 255, 255)" != dark
    page.goto(page.url.replace("records", "events"))
    assert page.evaluate(background) == light


def corners(page: Any) -> list[list[str]]:
    return [line.split() for line in page.locator("#points").input_value().splitlines()]


def test_a_region_is_drawn_with_the_mouse_and_changed_by_the_token(
    visit: Callable[..., Any], shown: Shown
) -> None:
    shown.line.part()
    page = visit("/changes", height=1800)
    page.locator("#editor img").evaluate("(one) => one.decode()")
    page.get_by_role("button", name="Clear").click()
    box = page.locator("#editor svg").bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"] / 320, box["y"] + y * box["height"] / 240

    for x, y in ((40, 30), (280, 30), (280, 200), (40, 200), (40, 30)):
        page.mouse.click(*at(x, y))
    (polygon,) = corners(page)
    assert polygon[0] == "inspect"
    found = [tuple(map(int, one.split(","))) for one in polygon[1:]]
    for (x, y), (wanted_x, wanted_y) in zip(found, ((40, 30), (280, 30), (280, 200), (40, 200)), strict=True):
        assert abs(x - wanted_x) <= 1
        assert abs(y - wanted_y) <= 1
    page.mouse.move(*at(280, 200))
    page.mouse.down()
    page.mouse.move(*at(300, 220))
    page.mouse.up()
    assert corners(page)[0][3] in ("300,220", "300,219", "299,220", "299,219")
    page.get_by_role("button", name="Ignore").click()
    for x, y in ((100, 100), (140, 100), (120, 140)):
        page.mouse.click(*at(x, y))
    page.get_by_role("button", name="Close polygon").click()
    assert [one[0] for one in corners(page)] == ["inspect", "ignore"]
    page.get_by_role("button", name="Undo").click()
    assert [one[0] for one in corners(page)] == ["inspect"]
    page.get_by_role("button", name="Close polygon").click()

    form = page.locator("form[action='/changes/area']")
    form.get_by_label("Your name").fill("Ada")
    form.get_by_label("Reason").fill("the fixture is ignored")
    form.get_by_label("Token").fill("not the token")
    form.get_by_role("button", name="Change the region").click()
    waits_for(page, "[role=alert]", "The token is wrong")
    assert [one[0] for one in corners(page)] == ["inspect", "ignore"]
    page.locator("#editor polygon.ignore").wait_for(state="attached")
    assert page.locator("#editor polygon").count() == 2
    form.get_by_label("Token").fill(TOKEN)
    form.get_by_role("button", name="Change the region").click()
    waits_for(page, "[role=status]", "The region of interest was changed")
    assert (len(shown.station.area.inspect), len(shown.station.area.ignore)) == (1, 1)
    assert shown.station.area.frame_size == (240, 320)
    page.goto(shown.page.url)
    assert page.locator("#stage polygon.inspect").count() == 1
    assert "the fixture is ignored" in page.locator("#events").inner_text()


def test_a_region_is_drawn_by_touch_on_a_telephone(visit: Callable[..., Any], shown: Shown) -> None:
    shown.line.part()
    page = visit("/changes", width=390, height=1800, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="Clear").tap()
    box = page.locator("#editor svg").bounding_box()
    for x, y in ((30, 30), (290, 40), (160, 200)):
        page.touchscreen.tap(box["x"] + x * box["width"] / 320, box["y"] + y * box["height"] / 240)
    page.get_by_role("button", name="Close polygon").tap()
    (polygon,) = corners(page)
    assert len(polygon) == 4


def test_without_a_script_everything_is_still_there(visit: Callable[..., Any], shown: Shown) -> None:
    shown.line.part(is_nok=True)
    page = visit("/", java_script_enabled=False)
    assert page.inner_text("#word") == "NOK"
    assert page.locator("#picture").get_attribute("src").startswith("/live.jpg?view=findings&number=")
    page.goto(f"{shown.page.url}changes")
    form = page.locator("form[action='/changes/threshold']")
    form.get_by_label("New threshold").fill("1,85")
    form.get_by_label("Your name").fill("Bo")
    form.get_by_label("Reason").fill("no script here")
    form.get_by_label("Token").fill(TOKEN)
    form.get_by_role("button", name="Change the threshold").click()
    assert "The threshold was changed" in page.inner_text("[role=status]")
    assert shown.station.limits[0].value == 1.85


def test_another_site_can_neither_read_nor_change_anything(browser: Any, shown: Shown) -> None:
    """A page of another origin tries what a browser lets it: a form, a request by script, and a frame."""
    context = browser.new_context()
    page = context.new_page()
    page.route(
        "http://evil.example/", lambda route: route.fulfill(body="<h1>evil</h1>", content_type="text/html")
    )
    page.goto("http://evil.example/")
    before = len(shown.station.changes)
    outcome = page.evaluate(
        """async ([url, token]) => {
            const body = new URLSearchParams({ value: "9", who: "x", why: "y", token });
            const read = await fetch(url + "live.json").then(() => "read", () => "refused");
            const sent = await fetch(url + "changes/threshold", { method: "POST", body, mode: "no-cors" })
                .then((answer) => answer.type, () => "refused");
            const frame = document.createElement("iframe");
            frame.src = url;
            document.body.append(frame);
            await new Promise((done) => { frame.onload = done; setTimeout(done, 2000); });
            return [read, sent];
        }""",
        [shown.page.url, TOKEN],
    )
    assert outcome[0] == "refused"
    assert len(shown.station.changes) == before
    assert not any(one.url.startswith(shown.page.url) and one.locator("h1").count() for one in page.frames)
    context.close()


def test_the_page_is_reached_by_its_address_alone(shown: Shown) -> None:
    """A name that was bound anew to this address (DNS rebinding) leads to a refusal."""
    request = urllib.request.Request(f"{shown.page.url}live.json", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="421"):
        urllib.request.urlopen(request, timeout=10)


def test_a_threshold_that_a_person_changes_decides_on_the_next_part_of_a_real_station(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    file = write_station(tmp_path, photos=1, tables='[page]\nport = 0\ntoken_file = "token"\n')
    text = file.read_text().replace('address = "photos"\n', 'address = "photos"\nwatch = true\n')
    file.write_text(text)
    with Station(read_station(file), folder=tmp_path) as station:
        line = threading.Thread(target=station.run)
        line.start()
        try:
            assert station.page is not None
            page = browser.new_page()
            page.goto(station.page.url)
            waits_for(page, "#title", "0000.png")
            first = page.inner_text("#word")
            value = "-1000" if first == "OK" else "1000"
            page.get_by_role("link", name="Changes").click()
            form = page.locator("form[action='/changes/threshold']")
            form.get_by_label("New threshold").fill(value)
            form.get_by_label("Your name").fill("Ada")
            form.get_by_label("Reason").fill("to see it change")
            form.get_by_label("Token").fill(TOKEN)
            form.get_by_role("button", name="Change the threshold").click()
            waits_for(page, "[role=status]", "The threshold was changed")
            page.get_by_role("link", name="Live").click()
            write_photos(tmp_path / "photos", 1, first=1)
            waits_for(page, "#title", "0001.png")
            assert {first, page.inner_text("#word")} == {"OK", "NOK"}
            before, after = station.journal.records()
            assert (before.threshold_version, after.threshold_version) == (0, 1)
            assert after.threshold == float(value)
            assert before.bundle_sha256 == after.bundle_sha256
            waits_for(page, "#events", "Ada changed the limit")
            page.goto(f"{station.page.url}records/1")
            page.locator(".evidence img").evaluate("(one) => one.decode()")
            page.close()
        finally:
            station.stop()
            line.join()
