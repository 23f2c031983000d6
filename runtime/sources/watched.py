"""Take frames from the pictures that come into a folder, each when it is complete.

The kernel tells when a writer closes a file and when a file is renamed. A rescan finds what the kernel does not tell:
files on network shares, events lost in a full queue, and a folder that was deleted and made again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from flowedge.errors import SourceError
from flowedge.packages import explain_missing
from flowedge.runtime.frames.finding import IMAGE_SUFFIXES, PICTURES, UNREAD_SUFFIXES, natural_order
from flowedge.runtime.image_files import version_of
from flowedge.runtime.protocols import Frame
from flowedge.runtime.sources.events import SourceEvent
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.picture_files import read_frame

_RESCAN_S: Final = 1.0
_SHARE_OF_RESCANS: Final = 10  # A rescan of a huge folder takes at most a tenth of the time.
_QUIET_S: Final = 0.25  # A file that nobody has closed is read once it has not changed for so long.
_HOPELESS_S: Final = (
    2.0  # A file that cannot be decoded is given with its problem once it has not changed for so long.
)


class _Waiting(NamedTuple):
    """A file that has not been given yet.

    Attributes:
        version: The size of the file and the time of its last change.
        since: The time of the monotonic clock at which this version was first seen.
        is_closed: True where the kernel told that the writer has closed or renamed the file.
        tries: The number of times that this version could not be decoded.
    """

    version: str
    since: float
    is_closed: bool
    tries: int = 0


class WatchedFolder:
    """A folder as a source of frames that does not end. Pictures that are there at the start come first.

    Pictures come in the order in which they came into the folder, whatever their names are. For those that are there at
    the start, the order is that of their last change.

    A picture is given when its writer has closed or renamed it, or when it has not changed for a moment, and only when
    it can be decoded and did not change while it was read. A picture that is written again is given again. The end of
    a name tells a picture from another file, and hidden files are left out.
    """

    def __init__(self, folder: Path, opening: Opening) -> None:
        """Watch a folder from now on.

        Raises:
            SourceError: The path is no folder, or the system cannot watch any more folders.
            MissingPackageError: The package watchdog is not installed.
        """
        if not folder.is_dir():
            what = "is not a folder" if os.path.lexists(folder) else "does not exist"
            raise SourceError(
                f"{folder} {what}, and watch = true needs one. Make the folder, or correct the address."
            )
        with explain_missing("station"):
            import watchdog.observers  # noqa: F401
        self._folder = folder
        self._opening = opening
        self._wake = threading.Condition()
        # The kernel's events: the time of each, and True where the file was closed or renamed.
        self._told: dict[Path, tuple[float, bool]] = {}
        self._closed = False
        self._waiting: dict[Path, _Waiting] = {}
        self._given: dict[Path, str] = {}
        self._observer: Any = None
        self._inode = 0
        self._is_lost = False

    def frames(self) -> Iterator[Frame]:
        """Give the picture files as they become complete, until the source is closed."""
        next_scan = 0.0
        try:
            while not self._closed:
                now = time.monotonic()
                if now >= next_scan:
                    self._watch()
                    # The events come first, because they know when each picture came. A scan only knows now.
                    self._take_events()
                    self._scan()
                    next_scan = time.monotonic() + max(
                        _RESCAN_S, _SHARE_OF_RESCANS * (time.monotonic() - now)
                    )
                self._take_events()
                for path in sorted(self._waiting, key=self._arrival):
                    if self._closed:
                        return
                    if (frame := self._look_at(path)) is not None:
                        yield frame
                    elif path in self._waiting and self._opening.settings.trigger is not None:
                        # A picture that passed an earlier one would get the part of the earlier one.
                        break
                with self._wake:
                    if not self._told and not self._closed:
                        pause = _QUIET_S / 5 if self._waiting else next_scan - time.monotonic()
                        self._wake.wait(max(0.0, pause))
        finally:
            self._unwatch()

    def close(self) -> None:
        """End the iteration, which stops the watch."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def _arrival(self, path: Path) -> tuple[float, int, object]:
        """Order pictures by the time at which they came, then by their last change, and at last by their names."""
        waiting = self._waiting[path]
        return waiting.since, int(waiting.version.rpartition("-")[2]), natural_order(path)

    def _look_at(self, path: Path) -> Frame | None:
        """Give the frame of a file where it is complete."""
        waiting, version = self._waiting[path], version_of(path)
        if not version or self._given.get(path) == version:
            del self._waiting[path]
            return None
        now = time.monotonic()
        if version != waiting.version:  # The file is written again, so an earlier close counts no more.
            self._waiting[path] = waiting = _Waiting(version, now, is_closed=False)
        quiet = now - waiting.since
        # Each further try waits longer, so that a file that cannot be decoded costs a few readings.
        if quiet < min(_QUIET_S * (2**waiting.tries - waiting.is_closed), _HOPELESS_S):
            return None
        if self._opening.seen(str(path), version):
            self._given[path] = version
            del self._waiting[path]
            return None
        frame = read_frame(path, self._opening)
        if frame.version != version or version_of(path) != version:
            self._waiting[path] = _Waiting(version_of(path), time.monotonic(), is_closed=False)
            return None
        if frame.problem and quiet < _HOPELESS_S:
            self._waiting[path] = waiting._replace(tries=waiting.tries + 1)
            return None
        self._given[path] = version
        del self._waiting[path]
        # The picture was taken when it came, also where it has waited for the frames before it.
        return replace(frame, monotonic_ns=int(waiting.since * 1e9))

    def _take_events(self) -> None:
        with self._wake:
            told, self._told = self._told, {}
        for path, (since, is_closed) in told.items():
            self._note(path, since, is_closed=is_closed)

    def _note(self, path: Path, since: float, *, is_closed: bool) -> None:
        """Wait for a file, unless this version of it was given."""
        if not _is_picture(path, self._folder):
            return
        version = version_of(path)
        if not version or self._given.get(path) == version:
            return
        known = self._waiting.get(path)
        if known is None or known.version != version:
            self._waiting[path] = _Waiting(version, since, is_closed)
        elif is_closed and not known.is_closed:
            self._waiting[path] = known._replace(is_closed=True, tries=0)

    def _scan(self) -> None:
        """Note every picture of the folder, and forget those that are gone."""
        found: set[Path] = set()
        for parent, folders, names in os.walk(self._folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            if not self._opening.settings.recursive:
                folders.clear()
            found |= {Path(parent, name) for name in names}
        now = time.monotonic()
        for path in found:
            self._note(path, now, is_closed=False)
        for path in self._given.keys() - found:
            del self._given[path]

    def _watch(self) -> None:
        """Watch the folder, also where it was deleted and made again, which the kernel does not tell."""
        try:
            inode = os.stat(self._folder).st_ino
        except OSError as error:
            if not self._is_lost:
                self._is_lost = True
                self._unwatch()
                self._opening.tell(
                    SourceEvent(
                        kind="source_lost",
                        text=f"the folder {self._folder} cannot be read: {error.strerror}. Make it again.",
                    )
                )
            return
        is_alive = self._observer is not None and all(one.is_alive() for one in self._observer.emitters)
        if inode != self._inode or not is_alive:
            self._unwatch()
            self._start()
            self._inode = inode
        if self._is_lost:
            self._is_lost = False
            self._opening.tell(
                SourceEvent(kind="source_back", text=f"the folder {self._folder} is there again")
            )

    def _start(self) -> None:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer

        take = self._event

        class Handler(FileSystemEventHandler):
            """Hands the names of files to the source."""

            def on_created(self, event: FileSystemEvent) -> None:
                take(event.src_path, is_closed=False)

            def on_closed(self, event: FileSystemEvent) -> None:
                take(event.src_path, is_closed=True)

            def on_moved(self, event: FileSystemEvent) -> None:
                take(event.dest_path, is_closed=True)

        observer = Observer()
        observer.schedule(Handler(), str(self._folder), recursive=self._opening.settings.recursive)
        try:
            observer.start()
        except OSError:
            # The system has no watches left, or the folder is gone again. The rescan goes on without events.
            with contextlib.suppress(RuntimeError):
                observer.stop()
            return
        self._observer = observer

    def _unwatch(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(2)
            self._observer = None

    def _event(self, name: bytes | str, *, is_closed: bool) -> None:
        path = Path(os.fsdecode(name))
        if _is_picture(path, self._folder):
            with self._wake:
                self._told[path] = (time.monotonic(), is_closed or self._told.get(path, (0.0, False))[1])
                self._wake.notify_all()


def _is_picture(path: Path, folder: Path) -> bool:
    """Check that a name below a folder is that of a picture: not hidden, no folder, no picture of an earlier run."""
    inner = path.relative_to(folder).parts if path.is_relative_to(folder) else (path.name,)
    return (
        path.suffix.lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES
        and not path.name.endswith(PICTURES)
        and not any(part.startswith(".") for part in inner)
        and not path.is_dir()
    )
