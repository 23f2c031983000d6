"""Keep pictures as evidence, by a policy, in a thread of its own that never holds up the line."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.render import draw, encoded
from flowedge.runtime.result import Result
from flowedge.runtime.station.findings import findings_of
from flowedge.runtime.station.keeping_settings import ArchiveSettings
from flowedge.runtime.station.picture_store import PictureStore, frame_name
from flowedge.runtime.station.record import Event, Record, Signal, Tell, picture_name
from flowedge.runtime.station.throttle import Throttle

_LOG: Final = logging.getLogger(__name__)
_GIB: Final = 1 << 30
_MIB: Final = 1 << 20
_STEP: Final = 16 * _MIB
_EVENT_S: Final = 60.0
_JPEG_QUALITY: Final = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveStatus:
    """The state of the archive.

    Attributes:
        written: The number of records whose pictures were written in this run.
        dropped: The number of records whose pictures were not written in this run, since too many waited or the disk
            was full.
        waiting: The number of records whose pictures wait.
        size: The bytes of all pictures.
        problem: The reason why nothing is written at the moment. The text is empty where all is well.
    """

    written: int
    dropped: int
    waiting: int
    size: int
    problem: str


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    record: Record
    result: Result | None
    pixels: NDArray[np.uint8] | None

    @property
    def size(self) -> int:
        """The bytes of the frame, and of the maps that are drawn."""
        if self.result is not None:
            return (
                3 * self.result.frame.nbytes
            )  # A map of float32 is a little larger than its frame of three bytes.
        return 0 if self.pixels is None else self.pixels.nbytes


class Archive:
    """The pictures of a station. Any thread may call it, and no call waits for the disk."""

    def __init__(
        self,
        settings: ArchiveSettings,
        store: PictureStore,
        tell: Tell = lambda event: None,
    ) -> None:
        """Start the thread that writes.

        Args:
            settings: The policy.
            store: The folder of the pictures.
            tell: Journals an event.
        """
        self._settings = settings
        self._store = store
        self._tell = tell
        self._waiting: deque[_Item] = deque()
        self._before: deque[_Item] = deque(maxlen=settings.frames_before)
        self._bytes = self._after = self._accepted = self._written = self._dropped = 0
        self._problem = ""
        # A full disk is told although pictures were dropped for another reason shortly before.
        self._may_tell = {kind: Throttle(_EVENT_S) for kind in ("picture_dropped", "disk_low")}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
        self._thread.start()

    def wants(self, signal: Signal) -> bool:
        """Return True where the policy keeps the picture of the next record, which has this signal.

        The record is then appended with an empty text as its ``picture``, so that the journal names the file.
        """
        if not self._settings.enabled:
            return False
        if signal == "nok":
            return self._settings.nok
        every = self._settings.ok_one_in
        self._accepted += 1
        return bool(every) and (self._accepted - 1) % every == 0

    def put(self, record: Record, result: Result | None, pixels: NDArray[np.uint8] | None = None) -> None:
        """Take a record that the journal has written, with what its pictures are made of.

        Args:
            record: The record. The picture is kept where the record has a name for one, and around events.
            result: The findings. The value is None for a frame that was not judged.
            pixels: ``(H, W, 3)`` uint8, RGB, the frame where there is no result.
        """
        if not self._settings.enabled or (result is None and pixels is None):
            return
        item = _Item(record, result, pixels)
        with self._changed:
            if record.picture is not None or self._after:
                self._after = max(0, self._after - 1)
                self._queue(item)
            else:
                self._before.append(item)

    def event(self, event: Event) -> None:
        """Keep the frames around an event of one of the kinds that the policy names."""
        if not self._settings.enabled or event.kind not in self._settings.events:
            return
        with self._changed:
            while self._before:
                self._queue(self._before.popleft())
            self._after = self._settings.frames_after

    def find(self, record: Record) -> Path | None:
        """Return the picture of a record, if one was kept."""
        return self._store.find(record.id, record.signal)

    def make_room(self, folder: Path) -> None:
        """Delete some of the oldest pictures where they are on the same full disk as a folder."""
        if self._store.shares_disk_with(folder):
            self._store.delete_oldest(_STEP)

    def delete_up_to(self, number: int, signal: Signal) -> None:
        """Delete the pictures with a signal of the journal's records up to a number."""
        self._store.delete_up_to(number, signal)

    @property
    def settings(self) -> ArchiveSettings:
        """The policy."""
        return self._settings

    @property
    def status(self) -> ArchiveStatus:
        """The state of the archive."""
        # The store may be busy with the disk, and no frame waits for that.
        size = self._store.size
        with self._changed:
            return ArchiveStatus(
                written=self._written,
                dropped=self._dropped,
                waiting=len(self._waiting),
                size=size,
                problem=self._problem,
            )

    def close(self) -> None:
        """Write what waits, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _queue(self, item: _Item) -> None:
        """Let an item wait to be written, or drop it where too much waits. The lock is held."""
        if self._waiting and self._bytes + item.size > self._settings.waiting_mib * _MIB:
            self._drop("too many pictures wait to be written")
            return
        self._bytes += item.size
        self._waiting.append(item)
        self._changed.notify()

    def _drop(self, reason: str, kind: str = "picture_dropped") -> None:
        self._dropped += 1
        if self._may_tell[kind]():
            text = f"{self._dropped} pictures were not kept since the start: {reason}"
            self._tell(Event(kind=kind, level="warning", text=text, data={"dropped": self._dropped}))

    def _run(self) -> None:
        try:
            self._store.scan()
        except OSError as error:
            self._problem = f"{self._store.folder} cannot be read: {error.strerror}"
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                item = self._waiting.popleft()
                self._bytes -= item.size
            self._keep(item)

    def _keep(self, item: _Item) -> None:
        kind, problem = "disk_low", ""
        try:
            problem = self._lack_of_room()
            if not problem:
                self._write(item)
        except OSError as error:
            kind = "picture_dropped"
            problem = f"{self._store.folder} cannot be written: {error.strerror or error}"
        except Exception as error:  # The thread goes on with the next picture.
            _LOG.exception("the picture of record %d failed", item.record.number)
            kind, problem = "picture_dropped", f"a picture cannot be made: {error}"
        with self._changed:
            self._problem = problem
            if problem:
                self._drop(problem, kind)
            else:
                self._written += 1

    def _lack_of_room(self) -> str:
        """Delete the oldest pictures where a limit wants it, and return why there is no room all the same."""
        over = self._store.size - int(self._settings.max_gib * _GIB)
        if over > 0:
            self._store.delete_oldest(over)
        floor = int(self._settings.min_free_gib * _GIB)
        lacking = floor - self._store.free
        if lacking > 0:
            self._store.delete_oldest(lacking)
            if self._store.free < floor:
                least = self._settings.min_free_gib
                return f"the disk has less than {least:g} GiB free, and no picture is left to delete"
        return ""

    def _write(self, item: _Item) -> None:
        record, result = item.record, item.result
        name = record.picture or picture_name(record.id.partition("-")[0], record.number, record.signal)
        if result is None:
            assert item.pixels is not None, "put checked it"
            self._store.write(name, encoded(item.pixels, ".jpg", jpeg_quality=_JPEG_QUALITY))
            return
        # Before Python 3.12, all results share one lock for each map that is made on first use. Findings of the whole
        # size take only what the line has made already, so that the line never waits for a picture.
        findings = findings_of(record, result, max(result.frame_size))
        self._store.write(name, encoded(draw(findings), ".jpg", jpeg_quality=_JPEG_QUALITY))
        kind = self._settings.frame
        if kind != "none":
            quality = _JPEG_QUALITY if kind == "jpg" else None
            frame = encoded(result.frame, f".{kind}", jpeg_quality=quality)
            self._store.write(frame_name(name, kind), frame)
