"""Define what a station keeps and for how long: the tables ``[archive]`` and ``[journal]`` of ``station.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

from flowedge.runtime.settings import Settings

_Frames: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1000)]
_Gib: TypeAlias = Annotated[float, msgspec.Meta(ge=0.001, le=1e6)]


class ArchiveSettings(Settings, frozen=True, kw_only=True):
    """The table ``[archive]``: the pictures that a station keeps as evidence, and for how long.

    Attributes:
        enabled: True keeps pictures.
        folder: The folder of the pictures. Without it they are in the folder ``archive`` of the station's state.
        nok: True keeps the picture of every rejected frame.
        ok_one_in: The picture of one in so many accepted frames is kept. With 0 none is kept.
        events: The kinds of events around which the frames are kept.
        frames_before: The number of frames that are kept before such an event.
        frames_after: The number of frames that are kept after such an event.
        frame: The format of the bare frame that is kept beside the picture of the findings, ``jpg``, or ``png`` to lose
            nothing. With ``none`` no bare frame is kept.
        keep_ok_days: The age in days of operation after which pictures of accepted frames are deleted.
        keep_nok_days: The age in days of operation after which pictures of rejected frames are deleted.
        max_gib: The largest size of all pictures in GiB. The oldest accepted ones are deleted first.
        min_free_gib: The space in GiB that stays free on the disk. The oldest pictures are deleted for it.
        waiting_mib: The size in MiB of the frames that may wait to be written. Further pictures are dropped.
    """

    enabled: bool = True
    folder: Path | None = None
    nok: bool = True
    ok_one_in: Annotated[int, msgspec.Meta(ge=0, le=10**9)] = 100
    events: Annotated[tuple[str, ...], msgspec.Meta(max_length=50)] = (
        "drift",
        "self_test_failed",
        "engine_failed",
        "engine_lost",
        "engine_replaced",
        "threshold_changed",
        "area_changed",
    )
    frames_before: _Frames = 5
    frames_after: _Frames = 5
    frame: Literal["jpg", "png", "none"] = "jpg"
    keep_ok_days: Annotated[float, msgspec.Meta(gt=0, le=1e5)] = 30.0
    keep_nok_days: Annotated[float, msgspec.Meta(gt=0, le=1e5)] = 365.0
    max_gib: _Gib = 20.0
    min_free_gib: _Gib = 1.0
    waiting_mib: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 256


class JournalSettings(Settings, frozen=True, kw_only=True):
    """The table ``[journal]``: how long records are kept. A record that a sink still needs is kept longer.

    Attributes:
        keep_days: The age in days of operation after which records and events are removed.
        max_gib: The size of the journal in GiB beyond which the oldest records are removed.
    """

    keep_days: Annotated[float, msgspec.Meta(gt=0, le=1e5)] = 400.0
    max_gib: Annotated[float, msgspec.Meta(ge=0.01, le=1e5)] = 10.0
