"""Draw the pictures of the page from results and from the archive, only when a browser asks for one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.files import open_regular_file
from flowedge.runtime.colours import painted_values
from flowedge.runtime.render import draw, encoded
from flowedge.runtime.report.pictures import shrunk, whole_map
from flowedge.runtime.result import Result
from flowedge.runtime.station.findings import findings_of, resized_frame
from flowedge.runtime.station.live import Live, Seen
from flowedge.runtime.station.record import Record

View: TypeAlias = Literal["findings", "camera", "map"]
"""``findings``: the frame with what was found. ``camera``: the bare frame. ``map``: the whole anomaly map."""

VIEWS: Final[tuple[View, ...]] = get_args(View)
THUMBNAIL_PX: Final = 176
_QUALITY: Final = 82
_SHOWN: Final = 8
_LIVE_PICTURES: Final = 12
_THUMBNAILS: Final = 300
_MOST_FILE_BYTES: Final = 64 << 20


class Pictures:
    """The pictures that the page shows. Each is drawn once and kept for all browsers."""

    def __init__(
        self,
        live: Live,
        *,
        longest_px: int,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Draw nothing yet.

        Args:
            live: The newest results.
            longest_px: The longer side of the live picture.
            per_second: The most records that are shown live in a second.
            clock: The monotonic clock in seconds.
        """
        self._live = live
        self._longest_px = longest_px
        self._interval_s = 1 / per_second
        self._clock = clock
        self._shown: deque[Seen] = deque(maxlen=_SHOWN)
        self._shown_at = -np.inf
        self._lock = threading.Lock()
        self._drawn = _Cache(_LIVE_PICTURES)
        self._thumbnails = _Cache(_THUMBNAILS)

    def shown(self) -> Seen | None:
        """Return the record that all browsers show now, which changes at most so many times in a second.

        Its verdict and its picture belong together, also on a line that is faster than any eye.
        """
        with self._lock:
            newest = self._live.newest
            if newest is None:
                return None
            is_other = not self._shown or self._shown[-1].record.number != newest.record.number
            now = self._clock()
            if is_other and now - self._shown_at >= self._interval_s:
                self._shown.append(newest)
                self._shown_at = now
            return self._shown[-1]

    def live(self, number: int | None, view: View) -> bytes | None:
        """Return a JPEG of a record that is or was shown live, or of the newest one. A record may have no picture.

        Args:
            number: The number of the record.
            view: The kind of picture.
        """
        newest = self.shown()
        with self._lock:
            seen = next((one for one in self._shown if one.record.number == number), newest)
        if seen is None or seen.result is None:
            return None
        return self._large(seen.record, seen.result, view)

    def thumbnail(self, record: Record, file: Path | None) -> bytes | None:
        """Return a small JPEG of a record's findings, from its result or else from the archive, if there is either.

        Args:
            record: The record.
            file: The picture in the archive, if there is one.
        """
        key = (record.id, record.number)

        def made() -> bytes | None:
            result = self._result_of(record)
            if result is not None:
                return _jpeg(_drawn(record, result, "findings", THUMBNAIL_PX))
            picture = None if file is None else _read(file)
            return None if picture is None else _jpeg(shrunk(picture, THUMBNAIL_PX))

        return self._thumbnails.get(key, made)

    def can_draw(self, record: Record) -> bool:
        """Return True where the result of a record is still kept, so that it can be drawn in each view."""
        return self._result_of(record) is not None

    def evidence(self, record: Record, view: View) -> bytes | None:
        """Return a large JPEG of a record whose result is still kept, or None where it is not."""
        result = self._result_of(record)
        return None if result is None else self._large(record, result, view)

    def stored(self, file: Path | None) -> bytes | None:
        """Return a JPEG of a picture in the archive, at the size of the page. The value is None where it is gone."""
        picture = None if file is None else _read(file)
        return None if picture is None else _jpeg(shrunk(picture, self._longest_px))

    def _large(self, record: Record, result: Result, view: View) -> bytes | None:
        key = (record.id, record.number, view)
        return self._drawn.get(key, lambda: _jpeg(_drawn(record, result, view, self._longest_px)))

    def _result_of(self, record: Record) -> Result | None:
        seen = self._live.seen(record.number)
        return None if seen is None or seen.record.id != record.id else seen.result


class _Cache:
    """Pictures by name, of which the ones that were asked for last are kept."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], bytes | None]) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        if made is not None:
            with self._lock:
                self._kept[key] = made
                while len(self._kept) > self._size:
                    self._kept.popitem(last=False)
        return made


def _drawn(record: Record, result: Result, view: View, longest_px: int) -> NDArray[np.uint8]:
    """Draw a result at the size of the page, so that a frame of any size costs little."""
    if view == "camera" or not np.isfinite(result.network_map).all():
        return resized_frame(result.frame, longest_px)
    findings = findings_of(record, result, longest_px)
    return whole_map(painted_values(findings)) if view == "map" else draw(findings, captions=False)


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    return encoded(picture, ".jpg", jpeg_quality=_QUALITY)


def _read(file: Path) -> NDArray[np.uint8] | None:
    """Return a picture of the archive as RGB, or None where it is gone or damaged."""
    try:
        with open_regular_file(file) as opened:
            content = opened.read(_MOST_FILE_BYTES)
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    return None if picture is None else np.ascontiguousarray(picture[..., ::-1], np.uint8)
