"""Let a second bundle judge the frames of a station beside the first, without ever delaying it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from flowedge.runtime.protocols import PixelArray
from flowedge.runtime.result import Result
from flowedge.runtime.station.judges import Judge, Tell
from flowedge.runtime.station.record import Record
from flowedge.runtime.station.recording import limits_of
from flowedge.runtime.station.watch.comparison import Compared, ComparisonFolder, Pair, Subject, side_of
from flowedge.runtime.station.watch.settings import ShadowSettings

FOLDER: Final = "shadow"

_LOG: Final = logging.getLogger(__name__)
_NICEST: Final = 19  # the lowest priority of Linux
_JOIN_S: Final = 5.0


class Shadow:
    """Judges frames with a second bundle, in a thread of the lowest priority.

    The thread always takes the newest frame, and all frames that come meanwhile are left out. The engine is opened in
    this thread, so that its own threads inherit the priority. The two bundles still share memory and caches.
    """

    def __init__(
        self, settings: ShadowSettings, folder: Path, open_second: Callable[[], Judge], tell: Tell
    ) -> None:
        """Start the thread, which opens the second bundle.

        Args:
            settings: The settings.
            folder: The station's folder for its state.
            open_second: Opens the second bundle on its engine.
            tell: Takes the events.
        """
        self._settings = settings
        self._folder = folder
        self._open_second = open_second
        self._tell = tell
        self._newest: tuple[Record, PixelArray, Result] | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._state = "opening"
        self._problem = ""
        self._seen = self._compared = self._flipped = 0
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, record: Record, pixels: PixelArray, result: Result | None) -> None:
        """Offer a frame that the first bundle has judged. This never waits for the second bundle.

        Args:
            record: The record of the frame.
            pixels: The frame as its source gave it.
            result: The result of the first bundle. Frames without one are not compared.
        """
        if result is None or record.product != self._settings.product or self._state in ("done", "failed"):
            return
        with self._changed:
            self._seen += 1
            self._newest = record, pixels, result
            self._changed.notify()

    def status(self) -> Mapping[str, Any]:
        """Return the state for the page and for ``flowedge station status``, as JSON's own types."""
        return {
            "bundle": str(self._settings.bundle),
            "state": self._state,
            "problem": self._problem,
            "frames": self._compared,
            "of": self._seen,
            "flipped": self._flipped,
        }

    def close(self) -> None:
        """End the thread after the frame that it is judging."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICEST)
        try:
            judge = self._open_second()
        except Exception as error:
            self._fail(f"the second bundle does not open: {error}", error)
            return
        try:
            self._judge_all(judge)
        except Exception as error:
            self._fail(f"the second bundle has stopped: {error}", error)
        finally:
            judge.detector.close()

    def _judge_all(self, judge: Judge) -> None:
        kept: ComparisonFolder | None = None
        second_bundle = subject_of(judge)
        self._state = "comparing"
        while kept is None or kept.frames < self._settings.most_frames:
            with self._changed:
                while self._newest is None and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                assert self._newest is not None
                (record, pixels, first), self._newest = self._newest, None
            pair = Pair(first=_subject_of_record(record), second=second_bundle)
            if kept is None or kept.pair != pair:
                kept = ComparisonFolder(self._folder / FOLDER, pair)
                if kept.frames >= self._settings.most_frames:
                    break
            (second,) = judge.detector.detect_batch([pixels])
            compared = Compared(
                number=record.number,
                source_id=record.source_id,
                time=record.time.isoformat(),
                part=record.part,
                first=side_of(first),
                second=side_of(second),
            )
            kept.add(compared, first, second, most_pictures=self._settings.most_pictures)
            self._compared += 1
            self._flipped += compared.is_flipped
        self._state = "done"
        self._tell(
            "shadow_done",
            "info",
            f"{self._settings.bundle.name} has judged {kept.frames} frames beside the first bundle. See the result "
            "with flowedge station shadow",
            frames=kept.frames,
            folder=str(kept.folder),
        )

    def _fail(self, text: str, error: Exception) -> None:
        _LOG.warning("%s", text, exc_info=error)
        self._state, self._problem = "failed", text
        self._tell("shadow_failed", "warning", text, bundle=str(self._settings.bundle))


def subject_of(judge: Judge) -> Subject:
    """Describe the bundle of a detector for a comparison."""
    threshold, log_nfa_limit = limits_of(judge.detector.thresholds)
    return Subject(
        bundle_sha256=judge.bundle_sha256,
        precision=judge.detector.precision,
        engine=judge.detector.engine_name,
        threshold=threshold,
        log_nfa_limit=log_nfa_limit,
    )


def _subject_of_record(record: Record) -> Subject:
    return Subject(
        bundle_sha256=record.bundle_sha256,
        precision=record.precision,
        engine=record.engine,
        threshold=record.threshold,
        log_nfa_limit=record.log_nfa_limit,
    )
