"""Store the changes that people make on a running station: thresholds and the region of interest.

The changes are kept in the station's state folder, never in the bundle, so the bundle's hash stays. The file is a list
to which each change is added. The newest change of a kind is in force, and the older ones are the history.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec

from flowedge.clock import utc_now
from flowedge.errors import FlowEdgeError, SettingsError
from flowedge.files import open_regular_file, write_whole_file
from flowedge.runtime.area.settings import MOST_CORNERS, MOST_POLYGONS

FILE: Final = "changes.json"
_MOST_CHANGES: Final = 2000
_MOST_BYTES: Final = 16 << 20
_LARGEST_PX: Final = 100_000

Point: TypeAlias = tuple[float, float]
"""The column and the row of a corner, in pixels of the frame."""

Polygons: TypeAlias = tuple[tuple[Point, ...], ...]
"""Polygons, each by its corners. The last corner joins the first."""

_Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class ThresholdChange(msgspec.Struct, frozen=True, kw_only=True, tag="threshold", tag_field="kind"):
    """A change of the limit that decides.

    Attributes:
        version: The number of the change, counted over all changes of this station.
        time: The time in UTC, by ISO 8601.
        who: The name of the person.
        why: The reason.
        product: The name of the product. The name is empty where the station has one product without a name.
        bundle_sha256: The hash of the bundle whose scores the limit belongs to.
        value: The new limit. The value is None where the bundle's limit decides again.
        is_log_nfa: True where ``value`` is a limit of log NFA.
    """

    version: int
    time: str
    who: _Text
    why: _Text
    product: str = ""
    bundle_sha256: str
    value: float | None
    is_log_nfa: bool = False


class AreaChange(msgspec.Struct, frozen=True, kw_only=True, tag="area", tag_field="kind"):
    """A change of the region of interest.

    Attributes:
        version: The number of the change, counted over all changes of this station.
        time: The time in UTC, by ISO 8601.
        who: The name of the person.
        why: The reason.
        frame_size: The height and the width in pixels of the frames on which the polygons were drawn.
        inspect: Polygons in pixels of the frame. Without a polygon the whole frame is inspected.
        ignore: Polygons in pixels of the frame whose inside is left out.
    """

    version: int
    time: str
    who: _Text
    why: _Text
    frame_size: tuple[int, int]
    inspect: Polygons = ()
    ignore: Polygons = ()


Change: TypeAlias = ThresholdChange | AreaChange


class _File(msgspec.Struct, frozen=True, kw_only=True):
    schema: int
    changes: tuple[Change, ...]


class Overrides:
    """The changes of one station. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        """Read the changes of a station.

        Args:
            folder: The state folder, which exists.

        Raises:
            FlowEdgeError: The file of the changes cannot be read or is damaged.
        """
        self._file = folder / FILE
        self._lock = threading.Lock()
        self._changes = _read(self._file)

    @property
    def changes(self) -> tuple[Change, ...]:
        """All changes, the oldest first."""
        return self._changes

    def threshold(self, bundle_sha256: str, product: str = "") -> ThresholdChange | None:
        """Return the change of a product's limit that is in force, if there is one.

        A change belongs to the scores of one bundle. A change that was made for another bundle is not in force, since
        the same number means something else there.

        Args:
            bundle_sha256: The hash of the bundle that runs.
            product: The name of the product.
        """
        for change in reversed(self._changes):
            if isinstance(change, ThresholdChange) and change.product == product:
                in_force = change.bundle_sha256 == bundle_sha256 and change.value is not None
                return change if in_force else None
        return None

    def version(self, product: str = "") -> int:
        """Return the version of the newest change of a product's limit, 0 without one.

        The version also counts a change that took back an earlier one. So each change has a version of its own.

        Args:
            product: The name of the product.
        """
        return max(
            (
                one.version
                for one in self._changes
                if isinstance(one, ThresholdChange) and one.product == product
            ),
            default=0,
        )

    def area(self) -> AreaChange | None:
        """Return the change of the region of interest that is in force, if there is one."""
        return next((one for one in reversed(self._changes) if isinstance(one, AreaChange)), None)

    def change_threshold(
        self,
        value: float | None,
        *,
        bundle_sha256: str,
        product: str = "",
        is_log_nfa: bool = False,
        who: str,
        why: str,
    ) -> ThresholdChange:
        """Store a change of a limit. `ThresholdChange` describes the arguments.

        Raises:
            FlowEdgeError: The value is not finite, ``who`` or ``why`` is empty or too long, or the file cannot be
                written. Nothing was changed then.
        """
        if value is not None and not math.isfinite(value):
            raise SettingsError(f"a threshold is a finite number, got {value}.")
        with self._lock:
            change = ThresholdChange(
                version=self._next(),
                time=utc_now().isoformat(),
                who=_text("who", who),
                why=_text("why", why),
                product=product,
                bundle_sha256=bundle_sha256,
                value=value,
                is_log_nfa=is_log_nfa,
            )
            self._add(change)
        return change

    def change_area(
        self, inspect: Polygons, ignore: Polygons, *, frame_size: tuple[int, int], who: str, why: str
    ) -> AreaChange:
        """Store a change of the region of interest. `AreaChange` describes the arguments.

        Raises:
            FlowEdgeError: A polygon has fewer than three corners, a corner is no place in a frame, ``who`` or ``why``
                is empty or too long, or the file cannot be written. Nothing was changed then.
        """
        check_polygons(inspect)
        check_polygons(ignore)
        with self._lock:
            change = AreaChange(
                version=self._next(),
                time=utc_now().isoformat(),
                who=_text("who", who),
                why=_text("why", why),
                frame_size=frame_size,
                inspect=inspect,
                ignore=ignore,
            )
            self._add(change)
        return change

    def _next(self) -> int:
        return self._changes[-1].version + 1 if self._changes else 1

    def _add(self, change: Change) -> None:
        kept = tuple(_kept([*self._changes, change]))
        content = msgspec.json.format(msgspec.json.encode(_File(schema=1, changes=kept)), indent=1)
        try:
            write_whole_file(self._file, content + b"\n")
        except OSError as error:
            raise FlowEdgeError(
                f"{self._file} cannot be written: {error.strerror}. Nothing was changed. Check the space on the disk "
                "and the permissions."
            ) from error
        self._changes = kept


def check_polygons(polygons: Polygons) -> None:
    """Check that polygons are such that a frame can hold them.

    Raises:
        SettingsError: There are too many polygons or corners, a polygon has fewer than three corners or no area, or a
            corner is negative or not finite.
    """
    if len(polygons) > MOST_POLYGONS:
        raise SettingsError(f"a region has at most {MOST_POLYGONS} polygons, got {len(polygons)}.")
    for number, polygon in enumerate(polygons, 1):
        if not 3 <= len(polygon) <= MOST_CORNERS:
            raise SettingsError(
                f"polygon {number} has {len(polygon)} corners. A polygon has 3 to {MOST_CORNERS} corners."
            )
        for x, y in polygon:
            if not (0 <= x <= _LARGEST_PX and 0 <= y <= _LARGEST_PX):
                raise SettingsError(
                    f"polygon {number} has a corner at column {x:g}, row {y:g}. Both are 0 to {_LARGEST_PX}."
                )
        joined = zip(polygon, (*polygon[1:], polygon[0]), strict=True)
        if abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in joined)) < 2:
            raise SettingsError(f"polygon {number} has no area: its corners lie on one line.")


def _read(file: Path) -> tuple[Change, ...]:
    try:
        with open_regular_file(file) as opened:
            content = opened.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise FlowEdgeError(f"{file} cannot be read: {error.strerror}. Check the permissions.") from error
    try:
        read = msgspec.json.decode(content, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FlowEdgeError(
            f"{file} is damaged: {error}. It holds the thresholds that people have set on this station. Restore the "
            "file, or move it away to go on with the bundle's thresholds."
        ) from error
    if read.schema != 1:
        raise FlowEdgeError(
            f"{file} has the schema {read.schema}, and this FlowEdge reads 1. Install the newer FlowEdge."
        )
    return read.changes


def _kept(changes: list[Change]) -> Iterator[Change]:
    """Leave out the oldest changes of a list that is full. A change that is in force stays."""
    surplus = len(changes) - _MOST_CHANGES
    newest = {(type(one), getattr(one, "product", "")): one for one in changes}
    for one in changes:
        if surplus > 0 and newest[type(one), getattr(one, "product", "")] is not one:
            surplus -= 1
        else:
            yield one


def _text(name: str, text: str) -> str:
    stripped = " ".join(text.split())
    if not 1 <= len(stripped) <= 500:
        raise SettingsError(f"{name} is a text of 1 to 500 characters, got {len(stripped)}.")
    return stripped
