"""The drawing of the folders in ``docs/design.md`` shows the imports that the source files have."""

from __future__ import annotations

from contract.draw_rooms import PICTURE, drawing


def test_the_drawing_of_the_folders_is_up_to_date() -> None:
    assert PICTURE.read_text(encoding="utf-8") == drawing(), (
        "draw it anew: PYTHONPATH=tests python tests/contract/draw_rooms.py"
    )
