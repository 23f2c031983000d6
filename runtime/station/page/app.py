"""Answer the requests of browsers and programs: one ASGI application over a running station."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Final, TypeVar, get_args

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from flowedge.errors import FlowEdgeError
from flowedge.runtime.exposition import CONTENT_TYPE, start_time
from flowedge.runtime.record import Verdict
from flowedge.runtime.report.markup import EMPTY, Markup, element
from flowedge.runtime.report.shell import notice, paragraph, section
from flowedge.runtime.station.journal_reader import JournalReader
from flowedge.runtime.station.live import Live
from flowedge.runtime.station.page.changes import Changes
from flowedge.runtime.station.page.controls import Controls
from flowedge.runtime.station.page.health import Judged, liveness, readiness
from flowedge.runtime.station.page.layout import document
from flowedge.runtime.station.page.lookup import LARGEST_NUMBER, SLICE, Filter, find
from flowedge.runtime.station.page.metrics import metrics_of
from flowedge.runtime.station.page.overview import event_table, live_section, status_sections
from flowedge.runtime.station.page.pictures import VIEWS, Pictures
from flowedge.runtime.station.page.records_view import record_list, record_page
from flowedge.runtime.station.page.settings import PageSettings
from flowedge.runtime.station.page.state import LiveState, state_of
from flowedge.runtime.station.page.worker import Worker
from flowedge.runtime.station.record import Record, Signal

_STATUS_KEPT_S: Final = 1.0
_HISTORY: Final = 300
_STRIP: Final = 12
_EVENTS: Final = 8
_HEARTBEAT_S: Final = 1.0
_RELOAD_S: Final = 5
_LONGEST_PART: Final = 200
_STATIC: Final = {
    "page.css": ("flowedge.runtime.report", "text/css; charset=utf-8"),
    "page.js": ("flowedge.runtime.report", "text/javascript; charset=utf-8"),
    "station.css": ("flowedge.runtime.station.page", "text/css; charset=utf-8"),
    "station.js": ("flowedge.runtime.station.page", "text/javascript; charset=utf-8"),
    "theme.js": ("flowedge.runtime.station.page", "text/javascript; charset=utf-8"),
    "icon.svg": ("flowedge.runtime.station.page", "image/svg+xml"),
    "none.svg": ("flowedge.runtime.station.page", "image/svg+xml"),
}
_Word = TypeVar("_Word", bound=str)


class Site:
    """The pages of one station. Everything but the application itself is shared by all requests."""

    def __init__(
        self, settings: PageSettings, journal: JournalReader, live: Live, station: Controls, token: str | None
    ) -> None:
        """Take the parts of the station.

        Args:
            settings: The settings of the page.
            journal: The journal.
            live: The newest results, counters and states.
            station: The running station.
            token: The token that allows changes, or None.
        """
        self._settings = settings
        self._journal = journal
        self._live = live
        self._station = station
        self._started = start_time()
        self._reading, self._drawing = Worker("page-reading"), Worker("page-drawing")
        self._pictures = Pictures(
            live, longest_px=settings.longest_px, per_second=settings.pictures_per_second
        )
        self._changes = Changes(station, self._pictures, self._reading, token)
        self._status = (EMPTY, -_STATUS_KEPT_S)
        self._streams = 0
        self._is_stopping = False
        self.app = Starlette(
            routes=[
                Route("/", self._overview),
                Route("/status", self._status_part),
                Route("/live", self._live_stream),
                Route("/live.json", self._live_json),
                Route("/live.jpg", self._live_picture),
                Route("/records", self._records),
                Route("/records/{number}", self._record),
                Route("/records/{number}/json", self._record_json),
                Route("/records/{number}/picture", self._record_picture),
                Route("/records/{number}/thumbnail", self._thumbnail),
                Route("/events", self._events),
                *self._changes.routes,
                Route("/metrics", self._metrics),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/static/{name}", self._static),
                Route("/favicon.ico", self._icon),
            ],
            exception_handlers={HTTPException: self._refused, Exception: self._failed},
        )

    def stop(self) -> None:
        """End the streams and the threads of the page."""
        self._is_stopping = True
        self._reading.close()
        self._drawing.close()

    def _state(self) -> LiveState:
        return state_of(self._live, self._pictures.shown(), self._settings.stale_after_s)

    async def _overview(self, request: Request) -> Response:
        view = _choice(request.query_params, "view", VIEWS) or "findings"
        status = element("div", await self._status_sections(), id="status")
        content = live_section(self._state(), self._station.area, view)
        return self._page("Live", "/", content, status, reload_s=_RELOAD_S)

    async def _status_part(self, request: Request) -> Response:
        return HTMLResponse(await self._status_sections())

    async def _status_sections(self) -> Markup:
        """Return the sections below the picture, which are made at most once a second for all browsers."""

        def made() -> Markup:
            html, at = self._status
            if time.monotonic() - at >= _STATUS_KEPT_S:
                html = self._status_now()
                self._status = (html, time.monotonic())
            return html

        html, at = self._status
        return html if time.monotonic() - at < _STATUS_KEPT_S else await self._reading.run(made)

    def _status_now(self) -> Markup:
        journal = self._journal
        try:
            return status_sections(
                self._live,
                recent=journal.records(limit=_HISTORY, newest=True),
                rejected=journal.records(limit=_STRIP, newest=True, signal="nok"),
                events=journal.events(limit=_EVENTS, newest=True),
            )
        except (FlowEdgeError, sqlite3.Error) as error:
            # The verdict and the picture above go on without the journal.
            return notice(f"The journal cannot be read: {error}.")

    async def _live_json(self, request: Request) -> Response:
        return _json(self._state())

    async def _live_stream(self, request: Request) -> Response:
        if self._streams >= self._settings.streams:
            # The script then asks for /live.json from time to time.
            raise HTTPException(503, "Too many browsers follow the line.", {"Retry-After": "10"})
        return StreamingResponse(self._states(), media_type="text/event-stream")

    async def _states(self) -> AsyncIterator[bytes]:
        """Give the state as server-sent events, when it changes and at least once a second."""
        self._streams += 1
        interval_s = min(1 / self._settings.pictures_per_second, _HEARTBEAT_S)
        told, told_at = b"", 0.0
        try:
            while not self._is_stopping:
                state, now = msgspec.json.encode(self._state()), time.monotonic()
                if state != told or now - told_at >= _HEARTBEAT_S:
                    told, told_at = state, now
                    yield b"data: " + state + b"\n\n"
                await asyncio.sleep(interval_s)
        finally:
            self._streams -= 1

    async def _live_picture(self, request: Request) -> Response:
        view = _choice(request.query_params, "view", VIEWS) or "findings"
        number = _number_of(request.query_params.get("number", "0"), least=0)
        return _picture(await self._drawing.run(self._pictures.live, number, view))

    async def _records(self, request: Request) -> Response:
        query = request.query_params
        wanted = Filter(
            signal=_choice(query, "signal", get_args(Signal)),
            verdict=_choice(query, "verdict", get_args(Verdict)),
            part=query.get("part", "")[:_LONGEST_PART] or None,
        )
        before, after = (_number_of(query.get(name) or "0", least=0) for name in ("before", "after"))
        found = await self._reading.run(find, self._journal, wanted, before=before, after=after)
        return self._page("Records", "/records", record_list(found, wanted))

    async def _record(self, request: Request) -> Response:
        view = _choice(request.query_params, "view", VIEWS) or "findings"

        def made(number: int) -> tuple[str, Markup]:
            record = self._found(number)
            content = record_page(
                record,
                first=self._journal.first(),
                last=self._journal.last(),
                views=VIEWS if self._pictures.can_draw(record) else (),
                has_file=self._station.picture_of(record) is not None,
                view=view,
            )
            return f"Record {number}", content

        title, content = await self._reading.run(made, _number_of(request.path_params["number"]))
        return self._page(title, "/records", content)

    async def _record_json(self, request: Request) -> Response:
        return _json(await self._reading.run(self._found, _number_of(request.path_params["number"])))

    async def _record_picture(self, request: Request) -> Response:
        view = _choice(request.query_params, "view", VIEWS)
        record = await self._reading.run(self._found, _number_of(request.path_params["number"]))

        def made() -> bytes | None:
            drawn = None if view is None else self._pictures.evidence(record, view)
            return drawn or self._pictures.stored(self._station.picture_of(record))

        return _picture(await self._drawing.run(made), kept=True)

    async def _thumbnail(self, request: Request) -> Response:
        record = await self._reading.run(self._found, _number_of(request.path_params["number"]))

        def made() -> bytes | None:
            return self._pictures.thumbnail(record, self._station.picture_of(record))

        return _picture(await self._drawing.run(made), kept=True)

    async def _events(self, request: Request) -> Response:
        before = _number_of(request.query_params.get("before") or "0", least=0)

        def made() -> Markup:
            last = self._journal.last_event()
            end = min(before, last + 1) if before else last + 1
            # The numbers of events have no gaps.
            events = self._journal.events(max(0, end - 1 - SLICE), min(SLICE, end - 1))
            older = events[0].number if events and events[0].number > 1 else 0
            links = element(
                "nav",
                element("a", "Newest", href="/events"),
                element("a", "Older →", href=f"/events?before={older}") if older else None,
                class_="slices",
                aria_label="Slices",
            )
            return section("Events", event_table(events[::-1]), links)

        return self._page("Events", "/events", await self._reading.run(made))

    async def _metrics(self, request: Request) -> Response:
        def made() -> str:
            try:
                last = self._journal.last()
            except (FlowEdgeError, sqlite3.Error):
                last = None
            return metrics_of(self._station, self._live, last, self._started)

        # A scrape is not work for the resting thread, since it must answer also while a filter searches.
        text = await asyncio.to_thread(made)
        return Response(text, media_type=CONTENT_TYPE)

    async def _healthz(self, request: Request) -> Response:
        return self._judged(liveness(self._live))

    async def _readyz(self, request: Request) -> Response:
        return self._judged(readiness(self._live))

    def _judged(self, judged: Judged) -> Response:
        return JSONResponse(judged.to_dict(self._live), 200 if judged.is_good else 503)

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _STATIC:
            raise HTTPException(404, "There is no such file.")
        return _static_file(name)

    async def _icon(self, request: Request) -> Response:
        return _static_file("icon.svg")

    def _found(self, number: int) -> Record:
        record = self._journal.record(number)
        if record is None:
            raise HTTPException(404, f"The journal has no record {number}.")
        return record

    def _page(self, title: str, path: str, *content: Markup, reload_s: int | None = None) -> Response:
        return HTMLResponse(document(title, self._station.name, path, *content, reload_s=reload_s))

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)
        content = section(f"Error {error.status_code}", paragraph(error.detail))
        html = document("Error", self._station.name, request.url.path, content)
        return HTMLResponse(html, error.status_code, error.headers)

    async def _failed(self, request: Request, error: Exception) -> Response:
        return PlainTextResponse("The station could not answer. Its log has the reason.\n", 500)


def _choice(query: QueryParams, name: str, choices: Sequence[_Word]) -> _Word | None:
    """Return the parameter of a query where it is one of the choices."""
    return next((one for one in choices if one == query.get(name)), None)


def _number_of(text: str, *, least: int = 1) -> int:
    """Return the number in an address.

    Raises:
        HTTPException: The text is no number that a record can have.
    """
    if (
        not text.isascii()
        or not text.isdecimal()
        or len(text) > 19
        or not least <= int(text) <= LARGEST_NUMBER
    ):
        raise HTTPException(404, "There is no such number.")
    return int(text)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _picture(content: bytes | None, *, kept: bool = False) -> Response:
    """Return a JPEG, or the placeholder where there is none.

    Args:
        content: The JPEG.
        kept: True lets the browser keep the picture for a minute.
    """
    if content is None:
        return _static_file("none.svg")
    headers = {"cache-control": "private, max-age=60"} if kept else {}
    return Response(content, media_type="image/jpeg", headers=headers)


def _static_file(name: str) -> Response:
    package, kind = _STATIC[name]
    return Response(_content(package, name), media_type=kind, headers={"cache-control": "no-cache"})


@cache
def _content(package: str, name: str) -> bytes:
    return files(package).joinpath(name).read_bytes()
