"""Build tables: small ones that stand in the page, and one of many images that a script shows in slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from flowedge.runtime.report.markup import Markup, data_block, element, joined, text_of
from flowedge.text import printable

_NARROW: Final = 3  # columns that fit a telephone
_LONG: Final = 30  # characters of a cell that may be broken into lines


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    styles: Sequence[str] = (),
    sortable: bool = False,
) -> Markup:
    """Return a table, whose rows become cards or scroll inside the page where the window is narrow.

    Args:
        caption: The table's caption.
        columns: The heads. A head that begins with ``>`` has numbers below it, aligned at the right.
        rows: The cells, as text or markup.
        styles: A CSS class for each row, by default none.
        sortable: True makes each head a button that sorts.
    """
    listed = [list(row) for row in rows]
    # A column without any value would only take room.
    filled = [n for n in range(len(columns)) if not listed or any(row[n] != "" for row in listed)]
    columns = [columns[n] for n in filled]
    listed = [[row[n] for n in filled] for row in listed]
    kinds = [
        "n" if column.startswith(">") else "long" if any(_is_long(row[n]) for row in listed) else None
        for n, column in enumerate(columns)
    ]
    names = [column.lstrip(">") for column in columns]
    head = [
        element(
            "th",
            element("button", name, type="button") if sortable and name else name,
            class_=kind,
            scope="col",
        )
        for kind, name in zip(kinds, names, strict=True)
    ]
    body = [
        element(
            "tr",
            *(
                element("td", one, class_=kind, data_name=name or None)
                for kind, name, one in zip(kinds, names, row, strict=True)
            ),
            class_=style or None,
        )
        for row, style in zip(listed, styles or [""] * len(listed), strict=True)
    ]
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *body),
        class_="sortable" if sortable else None,
    )
    # Where the window is narrow, each row of many columns becomes a card, since half of a row explains nothing.
    kind = "scroll cards" if len(columns) > _NARROW else "scroll"
    # A region that scrolls must be reachable by keyboard.
    return element("div", made, class_=kind, tabindex=0, role="region", aria_label=caption)


def _is_long(cell: object) -> bool:
    return not isinstance(cell, Markup) and len(str(cell)) > _LONG


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column of the table of images.

    Attributes:
        name: The head.
        kind: ``number`` is aligned at the right and sorted by value. ``choice`` is a text with few different values,
            and gets a list to choose from. ``name`` and ``text`` are free texts, the second a long one.
        digits: The digits after the point of a number.
        styles: The CSS class for each value of a choice.
    """

    name: str
    kind: Literal["name", "number", "choice", "text"]
    digits: int = 0
    styles: Mapping[str, str] = {}


def image_table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | float | None]],
    pictures: Mapping[int, Sequence[str | None]],
    captions: Sequence[str],
) -> Markup:
    """Return a table that can be searched, filtered and sorted, and whose pictures can be enlarged.

    The rows are compact JSON. A script shows 50 of them at a time, so that ten thousand open as fast as ten.

    Args:
        caption: The table's caption.
        columns: The columns. The first names the image.
        rows: The values of each image, one for each column.
        pictures: The ``data:`` addresses of an image's pictures, by the number of its row.
        captions: The names of the pictures, in their order.
    """
    # A column without any value would only take room.
    filled = [n for n in range(len(columns)) if n == 0 or any(row[n] is not None for row in rows)]
    columns = [columns[n] for n in filled]
    rows = [[row[n] for n in filled] for row in rows]
    heads = [
        element(
            "th",
            element("button", one.name, type="button"),
            scope="col",
            class_="n" if one.kind == "number" else None,
        )
        for one in columns
    ]
    if captions:
        heads.insert(0, element("th", "pictures", scope="col"))
    filters = [
        element("label", "Search", element("input", type="search", placeholder="part of a name or reason")),
        *(
            element(
                "label",
                one.name.capitalize(),
                element(
                    "select",
                    element("option", "all", value=""),
                    *(element("option", value, value=value) for value in _choices(rows, place)),
                    data_column=place,
                    aria_label=one.name.capitalize(),
                ),
            )
            for place, one in enumerate(columns)
            if one.kind == "choice"
        ),
        element("span", class_="count", aria_live="polite"),
    ]
    pager = element(
        "div",
        element("button", "Previous 50", type="button"),
        element("button", "Next 50", type="button"),
        element("span", aria_live="polite"),
        class_="pager",
    )
    content = {
        "columns": columns,
        "rows": [[printable(one) if isinstance(one, str) else one for one in row] for row in rows],
        "pictures": {str(row): addresses for row, addresses in pictures.items()},
        "captions": list(captions),
    }
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),
        element("tbody"),
    )
    return joined(
        element(
            "div",
            element("noscript", element("p", "This table needs the script of this page.", class_="notice")),
            element("div", *filters, class_="tools"),
            element("div", made, class_="scroll", tabindex=0, role="region", aria_label=caption),
            pager,
            class_="images",
            data_source="rows",
        ),
        data_block("rows", content),
    )


def _choices(rows: Sequence[Sequence[str | float | None]], place: int) -> list[Markup]:
    return sorted({text_of(row[place]) for row in rows if row[place]})
