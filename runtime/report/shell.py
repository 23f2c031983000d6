"""Give every page its frame: the head with style, script and security policy, the heading, and the footer."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Final

from flowedge.runtime.report.markup import EMPTY, Markup, element, joined
from flowedge.version import __version__

_FILES: Final = "flowedge.runtime.report"


def page_of(
    title: str,
    sections: Iterable[Markup],
    *,
    lead: object = None,
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """Return a whole HTML page that needs no other file and no network.

    The security policy of the page allows one style and one script, by their hashes, and pictures inside the page. So
    nothing that a text could smuggle into the page would run or load.

    Args:
        title: The heading, and the title of the browser's window.
        sections: The content, in order.
        lead: Text or markup under the heading.
        links: Names and relative addresses of other pages.
    """
    style, script = _file("page.css"), _file("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = joined(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=f"FlowEdge {__version__}"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style)),
    )
    header = element(
        "header",
        element("h1", title),
        element("button", "Dark or light", type="button", id="theme", class_="quiet"),
        None if lead is None else element("div", lead, class_="lead"),
        _navigation(links),
    )
    footer = element("footer", f"Written by FlowEdge {__version__}. This page works offline.")
    body = joined(header, element("main", *sections), footer, element("script", Markup(script)))
    return f"<!doctype html>\n{element('html', element('head', head), element('body', body), lang='en')}\n"


def section(title: str, *content: object, identifier: str | None = None) -> Markup:
    """Return a section with its heading."""
    return element("section", element("h2", title), *content, id=identifier)


def paragraph(*content: object, soft: bool = False) -> Markup:
    """Return a paragraph, in a softer colour where the text only explains."""
    return element("p", *content, class_="soft" if soft else None)


def notice(*content: object) -> Markup:
    """Return a paragraph that a reader must not miss."""
    return element("p", *content, class_="notice", role="note")


def figures(entries: Iterable[tuple[str, object]]) -> Markup:
    """Return the most important numbers of a page, large and each with its name below."""
    boxes = (element("div", element("b", value), element("span", name)) for name, value in entries)
    return element("div", *boxes, class_="figures")


def facts(entries: Iterable[tuple[str, object]]) -> Markup:
    """Return names and values as a list. A value that is None or empty is left out."""
    shown = ((name, value) for name, value in entries if value is not None and value != "")
    return element("dl", *(joined(element("dt", n), element("dd", v)) for n, v in shown), class_="facts")


def list_of(items: Iterable[object]) -> Markup:
    """Return a list with one text or piece of markup for each item."""
    return element("ul", *(element("li", item) for item in items))


def _navigation(links: Sequence[tuple[str, str]]) -> Markup:
    if not links:
        return EMPTY
    return element("nav", *(element("a", name, href=address) for name, address in links), aria_label="Pages")


@cache
def _file(name: str) -> str:
    return files(_FILES).joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
