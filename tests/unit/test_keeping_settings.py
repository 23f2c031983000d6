"""The page about stations has every key of the decision, the archive and the journal, with its default."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowedge.runtime.settings import Settings
from flowedge.runtime.station.decision import DecisionSettings, SeverityClass, SizeLimits
from flowedge.runtime.station.keeping_settings import ArchiveSettings, JournalSettings
from flowedge.runtime.station.measuring import ScaleSettings
from support.settings_rows import rows_of

PAGE = Path(__file__).parents[2] / "docs" / "station.md"
TABLES_INSIDE = ("scale", "limits", "severity")


@pytest.mark.parametrize(
    ("kind", "without"),
    [
        (DecisionSettings, None),
        (ScaleSettings, None),
        (SizeLimits, None),
        (SeverityClass, SizeLimits),
        (ArchiveSettings, None),
        (JournalSettings, None),
    ],
)
def test_the_page_has_each_key_with_its_default(kind: type[Settings], without: type[Settings] | None) -> None:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    rows = {row for row in rows_of(kind, without=without) if row.split("`")[1] not in TABLES_INSIDE}
    assert not rows - set(page)
