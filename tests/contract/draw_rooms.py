"""Draw which folder of the package imports which, from the source files alone.

    PYTHONPATH=tests python tests/contract/draw_rooms.py        writes docs/images/rooms.svg

A box is a folder. A line leads from a folder down to one that it imports. A line is left out where a path of other
lines connects the same two folders. `tests/contract/test_drawing.py` fails where the picture is not up to date.
"""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path

from contract.test_rooms import CORE, DOOR, MAY_IMPORT, imports, room_of

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "rooms.svg"
TITLES = {CORE: "flowedge/", DOOR: "flowedge/__init__.py", "cli": "flowedge/cli/"}
WIDTH, HEIGHT = 190, 38
STEP_X, STEP_Y = 220, 84
MARGIN = 20


def arrows_between_rooms() -> dict[str, set[str]]:
    """Return for each folder the folders that its modules import."""
    found: dict[str, set[str]] = {room: set() for room in MAY_IMPORT}
    for module, imported in imports().items():
        room = room_of(module)
        found[room] |= {room_of(other) for other in imported} - {room}
    return found


def below(arrows: dict[str, set[str]], room: str) -> set[str]:
    """Return all folders that a folder reaches."""
    return arrows[room].union(*(below(arrows, other) for other in arrows[room]))


def without_shortcuts(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out every arrow that a longer path replaces."""
    return {
        room: {one for one in others if not any(one in below(arrows, other) for other in others - {one})}
        for room, others in arrows.items()
    }


def places(arrows: dict[str, set[str]]) -> dict[str, tuple[int, int]]:
    """Return the left upper corner of each box. A folder stands above all folders that it imports."""
    row: dict[str, int] = {}
    for room in TopologicalSorter(arrows).static_order():
        row[room] = 1 + max((row[other] for other in arrows[room]), default=-1)
    highest = max(row.values())
    rows = [sorted(room for room in row if row[room] == number) for number in range(highest + 1)]
    widest = max(map(len, rows))
    return {
        room: (
            MARGIN + (widest - len(rows[number])) * STEP_X // 2 + column * STEP_X,
            MARGIN + (highest - number) * STEP_Y,
        )
        for number in range(highest + 1)
        for column, room in enumerate(rows[number])
    }


def drawing() -> str:
    """Return the picture as SVG."""
    arrows = arrows_between_rooms()
    corners = places(arrows)
    width = max(x for x, _ in corners.values()) + WIDTH + MARGIN
    height = max(y for _, y in corners.values()) + HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="sans-serif" font-size="14">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#5c6675"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for room, others in without_shortcuts(arrows).items():
        for other in sorted(others):
            x1, y1 = corners[room][0] + WIDTH // 2, corners[room][1] + HEIGHT
            x2, y2 = corners[other][0] + WIDTH // 2, corners[other][1]
            lines.append(
                f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#5c6675" marker-end="url(#tip)"/>'
            )
    for room, (x, y) in corners.items():
        title = TITLES.get(room, room.replace(".", "/") + "/")
        lines.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef2f6" stroke="#9aa3ae"/>'
            f'<text x="{x + WIDTH // 2}" y="{y + HEIGHT // 2 + 5}" text-anchor="middle">{title}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
