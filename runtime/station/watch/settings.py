"""Define the tables ``[watch]`` and ``[shadow]`` of a station's file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from flowedge.runtime.settings import Settings


class WatchSettings(Settings, frozen=True, kw_only=True):
    """The settings of what a station checks about itself and about its frames while it runs.

    Attributes:
        self_test_hours: The self-test of the bundle is repeated after this many hours. With 0 it runs at the start
            only.
        frozen_frames: From this number of equal frames in a row on, a frame is not inspected. With 0 equal frames are
            inspected.
        stale_s: A frame of a camera that waited longer than this many seconds after its capture is not inspected. With
            0 no frame is too old.
        drift: True watches scores, brightness, contrast, sharpness and layout for a drift.
        reference: ``calibration`` compares with the good images of the calibration, where the bundle holds their
            values. ``line`` compares with the first frames of this station.
        learn: The number of watched frames, at least 50, from which the spacing is learned, and with ``line`` the
            reference.
        every: Each n-th inspected frame is watched. The number doubles while neighbouring values depend on each other.
        frames_per_false_alarm: The mean number of watched frames per false alarm of drift, all quantities together, is
            at least this.
        smallest_shift: A smaller shift raises no alarm. The unit is the standard deviation of the reference, computed
            from the median absolute deviation.
    """

    self_test_hours: Annotated[float, msgspec.Meta(ge=0, le=8760)] = 24.0
    frozen_frames: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 2
    stale_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 10.0
    drift: bool = True
    reference: Literal["calibration", "line"] = "calibration"
    learn: Annotated[int, msgspec.Meta(ge=50, le=10_000)] = 200
    every: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    frames_per_false_alarm: Annotated[int, msgspec.Meta(ge=100, le=1_000_000_000)] = 10_000_000
    smallest_shift: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.5


class ShadowSettings(Settings, frozen=True, kw_only=True):
    """The settings of a second bundle that judges the same frames beside the first, and decides nothing.

    Attributes:
        bundle: The second bundle.
        product: The product whose frames the second bundle judges, for a station of several products.
        engine: The engine of the second bundle. Without a name, the first that opens is taken.
        precision: The precision of the second bundle's graph.
        threads: The number of CPU threads of one inference of the second bundle.
        most_frames: The comparison ends after this many frames.
        most_pictures: The number of flipped verdicts whose pictures are kept.
    """

    bundle: Path
    product: Annotated[str, msgspec.Meta(max_length=64)] = ""
    engine: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    precision: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "fp32"
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    most_frames: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 100_000
    most_pictures: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 500
