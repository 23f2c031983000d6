"""Take changes of a threshold or of the region of interest, from a form of the page or as JSON from a program."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from flowedge.errors import FlowEdgeError, SettingsError
from flowedge.runtime.station.overrides import Polygons, check_polygons
from flowedge.runtime.station.page.access import Access
from flowedge.runtime.station.page.changes_view import changes_page
from flowedge.runtime.station.page.controls import Controls
from flowedge.runtime.station.page.layout import document
from flowedge.runtime.station.page.pictures import Pictures
from flowedge.runtime.station.page.polygons import area_of_text
from flowedge.runtime.station.page.worker import Worker
from flowedge.text import printable, shown

_Kind = TypeVar("_Kind")
_LOG: Final = logging.getLogger(__name__)
_MOST_FIELDS: Final = 20
_DONE: Final = {
    "threshold": "The threshold was changed. It decides from the next part on.",
    "area": "The region of interest was changed. It holds from the next part on.",
}
_REFUSALS: Final = {
    "wrong": (403, "The token is wrong. Nothing was changed."),
    "too many": (429, "There were too many wrong tokens. Nothing was changed. Try again in a minute."),
    "read only": (403, "This page only shows, since the station has no token. Nothing was changed."),
}


class _Threshold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The change of a limit as a program sends it."""

    value: float | None
    product: str = ""
    log_nfa: bool = False
    who: str
    why: str


class _Area(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The change of the region of interest as a program sends it."""

    frame_size: tuple[int, int]
    inspect: Polygons = ()
    ignore: Polygons = ()
    who: str
    why: str


class _Sent(NamedTuple):
    """A request for a change.

    Attributes:
        body: The body.
        fields: The fields of a form. The value is None for JSON.
        token: The token.
    """

    body: bytes
    fields: dict[str, str] | None
    token: str


class Changes:
    """The page of changes and the requests that make them."""

    def __init__(self, station: Controls, pictures: Pictures, worker: Worker, token: str | None) -> None:
        """Take the station.

        Args:
            station: The running station.
            pictures: The pictures, of which the newest is drawn on.
            worker: The thread that changes something, so that the other requests go on.
            token: The token that allows changes, or None.
        """
        self._station = station
        self._pictures = pictures
        self._worker = worker
        self._access = Access(token)
        self.routes = [
            Route("/changes", self._page),
            Route("/changes/threshold", self._threshold, methods=["POST"]),
            Route("/changes/area", self._area, methods=["POST"]),
        ]

    async def _page(self, request: Request) -> Response:
        done = _DONE.get(request.query_params.get("done", ""), "")
        return HTMLResponse(self._html(done=done))

    async def _threshold(self, request: Request) -> Response:
        def change(sent: _Sent) -> int:
            wanted = _threshold_of(sent)
            return self._station.change_threshold(
                wanted.value,
                product=wanted.product,
                is_log_nfa=wanted.log_nfa,
                who=wanted.who,
                why=wanted.why,
            )

        return await self._answer(request, "threshold", change)

    async def _area(self, request: Request) -> Response:
        def change(sent: _Sent) -> int:
            wanted = _area_of(sent)
            self._check_size(wanted)
            return self._station.change_area(
                wanted.inspect, wanted.ignore, frame_size=wanted.frame_size, who=wanted.who, why=wanted.why
            )

        return await self._answer(request, "area", change)

    def _check_size(self, wanted: _Area) -> None:
        """Refuse polygons for frames of another size than the newest one, since no frame would be judged with them.

        Raises:
            SettingsError: The sizes differ.
        """
        seen = self._pictures.shown()
        if seen is None or seen.result is None or not (wanted.inspect or wanted.ignore):
            return
        if tuple(wanted.frame_size) != seen.result.frame_size:
            (height, width), (tall, wide) = wanted.frame_size, seen.result.frame_size
            raise SettingsError(
                f"the region is for frames of {height}x{width} pixels (height x width), and the newest frame has "
                f"{tall}x{wide}. Draw the region on the newest frame."
            )

    async def _answer(self, request: Request, kind: str, change: Callable[[_Sent], int]) -> Response:
        """Check the token, make a change, and tell the outcome in the form of the request."""
        try:
            sent = await _sent(request)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        address = request.client.host if request.client else ""
        allowed = self._access.check(sent.token, address)
        if allowed != "allowed":
            _LOG.warning("a change of the %s from %s was refused: %s", kind, printable(address), allowed)
            status, words = _REFUSALS[allowed]
            return self._refusal(sent, kind, status, words)
        try:
            version = await self._worker.run(change, sent)
        except FlowEdgeError as error:
            return self._refusal(sent, kind, 400, f"Nothing was changed: {error}")
        if sent.fields is None:
            return JSONResponse({"version": version})
        return RedirectResponse(f"/changes?done={kind}", 303)

    def _refusal(self, sent: _Sent, kind: str, status: int, words: str) -> Response:
        headers = {"Retry-After": "60"} if status == 429 else {}
        if sent.fields is None:
            return JSONResponse({"error": words}, status, headers)
        typed = {name: text for name, text in sent.fields.items() if name != "token"} | {"form": kind}
        return HTMLResponse(self._html(typed=typed, problem=words), status, headers)

    def _html(self, *, typed: Mapping[str, str] = {}, problem: str = "", done: str = "") -> str:
        seen = self._pictures.shown()
        result = None if seen is None else seen.result
        content = changes_page(
            self._station.limits,
            self._station.area,
            self._station.changes,
            is_read_only=self._access.is_read_only,
            frame=(0, 0) if result is None else result.frame_size,
            number_shown=0 if seen is None else seen.record.number,
            typed=typed,
            problem=problem,
            done=done,
        )
        return document("Changes", self._station.name, "/changes", content)


async def _sent(request: Request) -> _Sent:
    """Read a request for a change.

    Raises:
        ValueError: The body is neither a form nor JSON.
    """
    body = await request.body()
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    match request.headers.get("content-type", "").partition(";")[0].strip().lower():
        case "application/json":
            return _Sent(body, None, bearer)
        case "application/x-www-form-urlencoded":
            pairs = parse_qsl(
                body.decode(errors="replace"), keep_blank_values=True, max_num_fields=_MOST_FIELDS
            )
            fields = dict(pairs)
            return _Sent(body, fields, bearer or fields.get("token", ""))
    raise ValueError("A change is sent as application/json or as application/x-www-form-urlencoded.")


def _threshold_of(sent: _Sent) -> _Threshold:
    """Read the change of a limit.

    Raises:
        SettingsError: The request has another form.
    """
    if sent.fields is None:
        return _decoded(sent.body, _Threshold)
    fields = sent.fields
    text = fields.get("value", "").strip()
    try:
        # In many languages the decimal sign is a comma.
        value = float(text.replace(",", ".")) if text else None
    except ValueError:
        raise SettingsError(f"{shown(text)} is no number. Write one such as 1.85.") from None
    return _Threshold(
        value=value,
        product=fields.get("product", ""),
        log_nfa=bool(fields.get("log_nfa")),
        who=fields.get("who", ""),
        why=fields.get("why", ""),
    )


def _area_of(sent: _Sent) -> _Area:
    """Read the change of the region of interest.

    Raises:
        SettingsError: The request has another form, or a polygon is none.
    """
    if sent.fields is None:
        wanted = _decoded(sent.body, _Area)
        check_polygons(wanted.inspect)
        check_polygons(wanted.ignore)
        return wanted
    fields = sent.fields
    height, _, width = fields.get("frame", "").partition("x")
    try:
        frame_size = int(height), int(width)
    except ValueError:
        raise SettingsError("the size of the frame is missing. Load the page again.") from None
    inspect, ignore = area_of_text(fields.get("points", ""))
    return _Area(
        frame_size=frame_size,
        inspect=inspect,
        ignore=ignore,
        who=fields.get("who", ""),
        why=fields.get("why", ""),
    )


def _decoded(body: bytes, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the request is not as expected: {printable(str(error))}.") from error
