"""Keep the state of the watch for drift in files, while one thread watches and another one writes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.files import write_whole_file
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.watch.drift import DriftState, DriftWatch
from flowedge.runtime.station.watch.reference import CALIBRATION, Reference, reference_of
from flowedge.runtime.station.watch.settings import WatchSettings

FOLDER: Final = "watch"
LEARN: Final = "learn"
"""The file in the folder that asks a running station to learn anew."""

_LOG: Final = logging.getLogger(__name__)
_SAVE_S: Final = 60.0
_LOOK_S: Final = 5.0


class DriftKeeper:
    """Watches the bundles of a station for drift, and writes the state once a minute and after each event.

    A station that is killed loses at most the last minute of evidence.
    """

    def __init__(
        self, settings: WatchSettings, folder: Path, bundles: Mapping[str, Bundle], *, area: Callable[[], str]
    ) -> None:
        """Take the settings. Files are read when the first frame of a bundle comes.

        Args:
            settings: The settings.
            folder: The station's folder for its state.
            bundles: The bundle of each product.
            area: Gives a name of the area that is judged, empty for whole frames.
        """
        self._settings = settings
        self._folder = folder / FOLDER
        self._bundles = bundles
        self._area = area
        self._watches: dict[tuple[str, str], DriftWatch] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_closed = False
        self._writer: threading.Thread | None = None

    def seen(
        self,
        record: Record,
        pixels: NDArray[np.uint8],
        quantities: NDArray[np.float64] | None = None,
    ) -> Sequence[Event]:
        """Take the next frame, and return the events of it."""
        if not self._settings.drift or record.verdict == "not_inspected":
            return ()
        events: list[Event] = []
        with self._lock:
            key = record.product, record.precision
            basis = self._basis(record)
            watch = self._watches.get(key)
            if watch is None or watch.state.basis != basis:
                watch = self._watches[key] = self._opened(record, basis, events)
            events += watch.seen(record, pixels, quantities)
        if events:
            self._wake.set()
        return events

    def status(self) -> Mapping[str, Any]:
        """Return the state of each product that has had a frame."""
        with self._lock:
            return {
                product: {"precision": precision, **watch.status()}
                for (product, precision), watch in self._watches.items()
            }

    def close(self) -> None:
        """Write the state, and end the thread that writes."""
        self._is_closed = True
        self._wake.set()
        if self._writer is not None:
            self._writer.join()
        self._save()

    def _basis(self, record: Record) -> str:
        """Describe everything that a reference belongs to."""
        one = self._settings
        return (
            f"{record.product} {record.bundle_sha256} {record.precision} {record.threshold} {record.log_nfa_limit} "
            f"{one.reference} {one.learn} {one.every} {self._area()}"
        )

    def _opened(self, record: Record, basis: str, events: list[Event]) -> DriftWatch:
        """Read the state of a bundle, or begin anew, and start the thread that writes."""
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="watch", daemon=True)
            self._writer.start()
        reference = Reference()
        if self._settings.reference == CALIBRATION:
            reference = reference_of(
                self._bundles[record.product],
                record.precision,
                accepted_below=record.threshold if record.log_nfa_limit is None else None,
                whole_frames=not self._area(),
            )
        state = self._read(self._file(record.product, record.precision), events)
        if state is not None and state.basis != basis:
            state = None
        return DriftWatch(self._settings, reference, basis=basis, product=record.product, state=state)

    def _read(self, file: Path, events: list[Event]) -> DriftState | None:
        if not file.exists():
            return None
        try:
            return msgspec.json.decode(file.read_bytes(), type=DriftState)
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            with contextlib.suppress(OSError):
                file.replace(file.with_suffix(".damaged"))
            events.append(
                Event(
                    kind="watch_state_lost",
                    level="warning",
                    text=f"{file} cannot be read, so the watch for drift begins anew: {error}",
                )
            )
            return None

    def _file(self, product: str, precision: str) -> Path:
        """Return the file of a product's state. Its name is a hash, because a product may have any name."""
        digest = hashlib.sha256(f"{product}\0{precision}".encode()).hexdigest()
        return self._folder / f"{digest[:16]}.json"

    def _write(self) -> None:
        waited = 0.0
        while not self._is_closed:
            is_woken = self._wake.wait(_LOOK_S)
            self._wake.clear()
            waited += _LOOK_S
            self._forget_where_asked()
            if is_woken or waited >= _SAVE_S:
                self._save()
                waited = 0.0

    def _forget_where_asked(self) -> None:
        request = self._folder / LEARN
        if not request.exists():
            return
        with self._lock:
            for watch in self._watches.values():
                watch.learn_anew()
        with contextlib.suppress(OSError):
            request.unlink()
        self._wake.set()

    def _save(self) -> None:
        with self._lock:
            contents = {
                self._file(*key): msgspec.json.encode(watch.state) for key, watch in self._watches.items()
            }
        for file, content in contents.items():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole_file(file, content)
            except OSError as error:
                _LOG.warning("%s cannot be written: %s", file, error)


def ask_to_learn(folder: Path) -> None:
    """Ask the station of a state folder to learn anew, at once or when it starts.

    Raises:
        OSError: The request cannot be written.
    """
    request = folder / FOLDER / LEARN
    request.parent.mkdir(parents=True, exist_ok=True)
    request.touch()
