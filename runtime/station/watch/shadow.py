"""Let a second bundle judge the frames of a station beside the first, without ever delaying it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from flowedge.errors import EngineUnavailableError
from flowedge.runtime.asked_process import AskedProcess
from flowedge.runtime.protocols import PixelArray
from flowedge.runtime.result import Result
from flowedge.runtime.station.record import Event, Record, Tell
from flowedge.runtime.station.settings import InspectSettings, ProductSettings, StationSettings
from flowedge.runtime.station.watch.comparison import (
    Compared,
    ComparisonFolder,
    Pair,
    Side,
    Subject,
    side_of,
)
from flowedge.runtime.station.watch.settings import ShadowSettings
from flowedge.runtime.station.watch.shadow_worker import Answer, Asked, ShadowJob, job_for

FOLDER: Final = "shadow"

_LOG: Final = logging.getLogger(__name__)
_WORKER: Final = "flowedge.runtime.station.watch.shadow_worker"
_JOIN_S: Final = 5.0


class Shadow:
    """Judges frames with a second bundle, in a process of the lowest priority, and keeps what it found.

    The newest frame is always taken, and all frames that come meanwhile are left out. So the second bundle never delays
    the first one by waiting, and a second bundle that fails ends nothing but the comparison. Processor, memory and
    caches are still shared.
    """

    def __init__(self, settings: ShadowSettings, folder: Path, job: ShadowJob, tell: Tell) -> None:
        """Start the process, in a thread that asks it.

        Args:
            settings: The settings.
            folder: The station's folder for its state.
            job: The bundle and the settings, for the process.
            tell: Takes the events.
        """
        self._settings = settings
        self._folder = folder
        self._job = job
        self._tell = tell
        self._newest: tuple[Record, PixelArray, Result] | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._state = "opening"
        self._problem = ""
        self._seen = self._compared = self._flipped = 0
        self._second: SecondBundle | None = None
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, record: Record, pixels: PixelArray, result: Result | None) -> None:
        """Offer a frame that the first bundle has judged, without waiting for the second one.

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
        """End the process and the thread. The frame that is being judged is given up."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._second is not None:
            self._second.kill()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        try:
            with SecondBundle() as second:
                self._second = second
                subject = second.open(self._job)
                self._state = "comparing"
                self._judge_all(second, subject)
        except Exception as error:
            if not self._is_closed:
                self._fail(f"the second bundle {self._settings.bundle} cannot judge: {error}", error)

    def _judge_all(self, second: SecondBundle, subject: Subject) -> None:
        kept: ComparisonFolder | None = None
        while (taken := self._next()) is not None:
            record, pixels, first = taken
            pair = Pair(first=_subject_of_record(record), second=subject)
            if kept is None or kept.pair != pair:
                kept = ComparisonFolder(self._folder / FOLDER, pair)
            if kept.frames >= self._settings.most_frames:
                self._finish(kept)
                return
            side, picture = second.judge(pixels, first.verdict)
            compared = Compared(
                number=record.number,
                source_id=record.source_id,
                time=record.time.isoformat(),
                part=record.part,
                first=side_of(first),
                second=side,
            )
            kept.add(compared, first, picture, most_pictures=self._settings.most_pictures)
            self._compared += 1
            self._flipped += compared.is_flipped

    def _next(self) -> tuple[Record, PixelArray, Result] | None:
        """Wait for the newest frame. The value is None where the shadow was closed."""
        with self._changed:
            while self._newest is None and not self._is_closed:
                self._changed.wait()
            taken, self._newest = self._newest, None
            return None if self._is_closed else taken

    def _finish(self, kept: ComparisonFolder) -> None:
        self._state = "done"
        self._tell(
            Event(
                kind="shadow_done",
                level="info",
                text=f"{self._settings.bundle.name} has judged {kept.frames} frames beside the first bundle. See the "
                "result with flowedge station shadow",
                data={"frames": kept.frames, "folder": str(kept.folder)},
            )
        )

    def _fail(self, text: str, error: Exception) -> None:
        _LOG.warning("%s", text, exc_info=error)
        self._state, self._problem = "failed", text
        self._tell(
            Event(
                kind="shadow_failed", level="warning", text=text, data={"bundle": str(self._settings.bundle)}
            )
        )


def job_of_shadow(settings: StationSettings, shadow: ShadowSettings) -> ShadowJob:
    """Describe the second bundle, which judges the area that is in force when it opens."""
    product, inspect = product_of_shadow(settings, shadow)
    return job_for(product, shadow.engine, inspect, settings.area, settings.station.state)


def product_of_shadow(
    settings: StationSettings, shadow: ShadowSettings
) -> tuple[ProductSettings, InspectSettings]:
    """Return the settings by which the second bundle is opened in place of the first one."""
    product = ProductSettings(name=shadow.product, bundle=shadow.bundle)
    inspect = msgspec.structs.replace(settings.inspect, precision=shadow.precision, threads=shadow.threads)
    return product, inspect


class SecondBundle(AskedProcess):
    """A second bundle in a process of its own."""

    def __init__(self) -> None:
        """Start the process."""
        super().__init__(_WORKER)

    def open(self, job: ShadowJob) -> Subject:
        """Open the bundle, and wait until its engine computes.

        Raises:
            EngineUnavailableError: The bundle does not open, or the process ended.
        """
        answer = self._answer_to(msgspec.json.encode(job) + b"\n")
        if answer.subject is None:
            raise EngineUnavailableError(answer.problem)
        return answer.subject

    def judge(self, pixels: PixelArray, verdict: str) -> tuple[Side, str | None]:
        """Judge a frame, and draw the anomaly map where the verdict is another one.

        Args:
            pixels: The frame as its source gave it.
            verdict: The verdict of the first bundle.

        Returns:
            The answer, and the picture as a ``data:`` address. A frame that the bundle does not take is not inspected.

        Raises:
            EngineUnavailableError: The process ended.
        """
        pixels = np.ascontiguousarray(pixels)
        asked = Asked(shape=pixels.shape, dtype=pixels.dtype.str, verdict=verdict)
        answer = self._answer_to(msgspec.json.encode(asked) + b"\n", pixels.data.cast("B"))
        if answer.side is None:
            return Side(verdict="not_inspected", problem=answer.problem), None
        return answer.side, answer.picture

    def __enter__(self) -> SecondBundle:
        return self

    def _answer_to(self, *said: bytes | memoryview) -> Answer:
        return msgspec.json.decode(self.exchange(*said), type=Answer)


def _subject_of_record(record: Record) -> Subject:
    return Subject(
        bundle_sha256=record.bundle_sha256,
        precision=record.precision,
        engine=record.engine,
        threshold=record.threshold,
        log_nfa_limit=record.log_nfa_limit,
    )
