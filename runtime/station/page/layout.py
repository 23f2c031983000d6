"""Give each page of a station its frame: the head, the navigation and the footer."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from flowedge.runtime.report.markup import Markup, element, joined
from flowedge.version import __version__

_PAGES: Final = (("Live", "/"), ("Records", "/records"), ("Events", "/events"), ("Changes", "/changes"))


def document(title: str, station: str, path: str, *content: object, reload_s: int | None = None) -> str:
    """Return a whole page. Style and script are files of the station, and nothing comes from another place.

    Args:
        title: The title of the page.
        station: The name of the station.
        path: The address of the page, which is marked in the navigation.
        content: The sections.
        reload_s: The seconds after which a browser without script loads the page again.
    """
    head = joined(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        None
        if reload_s is None
        else element("noscript", element("meta", http_equiv="refresh", content=str(reload_s))),
        element("title", f"{title}, {station}"),
        element("link", rel="icon", href="/static/icon.svg", type="image/svg+xml"),
        element("link", rel="stylesheet", href="/static/page.css"),
        element("link", rel="stylesheet", href="/static/station.css"),
        element("script", src="/static/theme.js"),
    )
    links = (
        element("a", name, href=address, aria_current="page" if address == path else None)
        for name, address in _PAGES
    )
    header = element(
        "header",
        element("h1", station),
        element("button", "Dark or light", type="button", id="theme", class_="quiet"),
        element("nav", *links, aria_label="Pages"),
    )
    footer = element("footer", f"FlowEdge {__version__}. Times are those of the station.")
    scripts = joined(*(element("script", src=f"/static/{name}.js") for name in ("page", "station")))
    body = joined(header, element("main", *content), footer, scripts)
    return f"<!doctype html>\n{element('html', element('head', head), element('body', body), lang='en')}\n"


def moment(time: datetime) -> Markup:
    """Return a wall time in the time zone of the station, with the exact time in UTC for programs."""
    try:
        shown = time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        shown = str(time)
    return element("time", shown, datetime=time.isoformat())


def moment_of(text: str) -> Markup | str:
    """Return a wall time that is stored as text, as `moment` does, or the text where it is no time."""
    try:
        return moment(datetime.fromisoformat(text))
    except ValueError:
        return text


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def ago(seconds: float) -> str:
    """Return a time span in words, such as ``12 s`` or ``3 h 5 min``."""
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 2 * 3600:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"
