"""Define the part of a running station that the page shows and changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from flowedge.runtime.station.overrides import Change, Polygons
from flowedge.runtime.station.record import Record


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The limit that decides on one product, as it is in force now.

    Attributes:
        product: The name of the product. The name is empty where the station has one product without a name.
        value: The threshold of the score, or the limit of log NFA. The value is None where nothing decides.
        is_log_nfa: True where ``value`` is a limit of log NFA, below which an image is anomalous.
        version: The version of the limit, as records carry it in ``threshold_version``.
        bundle_value: The bundle's own limit, which decides without a change on this station.
        bundle: The name of the bundle's folder.
        bundle_sha256: The hash of the bundle.
    """

    product: str = ""
    value: float | None
    is_log_nfa: bool = False
    version: int
    bundle_value: float | None
    bundle: str
    bundle_sha256: str


class Area(msgspec.Struct, frozen=True, kw_only=True):
    """The region of interest, as it is in force now.

    Attributes:
        inspect: Polygons in pixels of the frame. Without a polygon the whole frame is inspected.
        ignore: Polygons in pixels of the frame whose inside is left out.
        frame_size: The height and the width in pixels of the frames on which the polygons were drawn, where they are
            known.
        version: The version of the change that made the region, 0 for the region of the settings.
        fixed_because: The reason why the page cannot change the region, such as a mask given as a PNG. The reason is
            empty where it can.
    """

    inspect: Polygons = ()
    ignore: Polygons = ()
    frame_size: tuple[int, int] | None = None
    version: int = 0
    fixed_because: str = ""


class Controls(Protocol):
    """A running station, as the page knows it. The page calls the methods from a thread of its own."""

    @property
    def name(self) -> str:
        """The name of the station."""
        ...

    @property
    def limits(self) -> Sequence[Limit]:
        """The limits of all products, in the order of the settings."""
        ...

    @property
    def area(self) -> Area:
        """The region of interest."""
        ...

    @property
    def changes(self) -> Sequence[Change]:
        """All changes that people have made on this station, the oldest first."""
        ...

    def picture_of(self, record: Record) -> Path | None:
        """Return the file of a record's evidence picture in the archive, if there is one."""
        ...

    def change_threshold(
        self, value: float | None, *, product: str = "", is_log_nfa: bool = False, who: str, why: str
    ) -> int:
        """Change the limit of a product on this station, and record an event. The bundle stays as it is.

        Args:
            value: The new limit. None takes back the station's change, so that the bundle's limit decides again.
            product: The name of the product, one of `limits`.
            is_log_nfa: True where ``value`` is a limit of log NFA.
            who: The name of the person.
            why: The reason.

        Returns:
            The version of the new limit, which each record carries from the next frame on.

        Raises:
            FlowEdgeError: The change is not possible, or cannot be stored. Nothing was changed then.
        """
        ...

    def change_area(
        self, inspect: Polygons, ignore: Polygons, *, frame_size: tuple[int, int], who: str, why: str
    ) -> int:
        """Change the region of interest on this station, and record an event.

        Args:
            inspect: Polygons in pixels of the frame. Without a polygon the whole frame is inspected.
            ignore: Polygons in pixels of the frame whose inside is left out.
            frame_size: The height and the width in pixels of the frames on which the polygons were drawn.
            who: The name of the person.
            why: The reason.

        Returns:
            The version of the new region.

        Raises:
            FlowEdgeError: The change is not possible, or cannot be stored. Nothing was changed then.
        """
        ...
