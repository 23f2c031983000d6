"""Write the region of interest as lines of text, and read it from them.

Each line is one polygon: the word ``inspect`` or ``ignore``, then ``column,row`` of each corner in pixels of the frame.
"""

from __future__ import annotations

from flowedge.errors import SettingsError
from flowedge.runtime.station.overrides import Point, Polygons, check_polygons
from flowedge.runtime.station.page.controls import Area
from flowedge.text import shown


def text_of_area(area: Area) -> str:
    """Return the polygons of a region as lines."""
    return "\n".join(
        f"{kind} " + " ".join(f"{x:g},{y:g}" for x, y in polygon)
        for kind, polygons in (("inspect", area.inspect), ("ignore", area.ignore))
        for polygon in polygons
    )


def area_of_text(text: str) -> tuple[Polygons, Polygons]:
    """Read the polygons to inspect and to ignore from lines.

    Raises:
        SettingsError: A line has another form, or a polygon is none.
    """
    polygons: dict[str, list[tuple[Point, ...]]] = {"inspect": [], "ignore": []}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if words[0] not in polygons:
            raise SettingsError(
                f"line {number} begins with {shown(words[0])}. A line begins with inspect or ignore."
            )
        polygons[words[0]].append(tuple(_corner(word, number) for word in words[1:]))
    inspect, ignore = tuple(polygons["inspect"]), tuple(polygons["ignore"])
    check_polygons(inspect)
    check_polygons(ignore)
    return inspect, ignore


def _corner(word: str, number: int) -> Point:
    x, _, y = word.partition(",")
    try:
        return float(x), float(y)
    except ValueError:
        raise SettingsError(
            f"line {number} has the corner {shown(word)}. A corner is column,row, such as 120,80."
        ) from None
