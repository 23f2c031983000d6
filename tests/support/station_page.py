"""Make a station that a page can show and change, without a line behind it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import SettingsError
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.live import Live
from flowedge.runtime.station.overrides import Change, Overrides, Polygons
from flowedge.runtime.station.page.controls import Area, Limit
from flowedge.runtime.station.record import Event, Record, recorded_region
from support.made_result import made_result

HOSTILE: Final = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>\u202e../../etc/passwd"
"""A name that would run a script, leave an attribute, turn the writing direction or reach a file, if it could."""

TOKEN: Final = "a-token-for-tests-only"
FRAME: Final = (240, 320)
BUNDLE: Final = "ab" * 32
BEGUN: Final = datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.timezone.utc)


class PretendStation:
    """A station whose changes are kept and told as a real one does."""

    def __init__(
        self, folder: Path, journal: Journal, *, name: str = "line 3", polygons: Polygons = ()
    ) -> None:
        self.name = name
        self._folder = folder
        self._journal = journal
        self._overrides = Overrides(folder)
        self._polygons = polygons
        self.fixed_because = ""

    @property
    def limits(self) -> Sequence[Limit]:
        change = self._overrides.threshold(BUNDLE)
        return [
            Limit(
                value=2.5 if change is None else change.value,
                version=self._overrides.version(),
                bundle_value=2.5,
                bundle="tile.flowedge",
                bundle_sha256=BUNDLE,
            )
        ]

    @property
    def area(self) -> Area:
        change = self._overrides.area()
        if change is None:
            return Area(inspect=self._polygons, frame_size=FRAME, fixed_because=self.fixed_because)
        return Area(
            inspect=change.inspect, ignore=change.ignore, frame_size=change.frame_size, version=change.version
        )

    @property
    def changes(self) -> Sequence[Change]:
        return self._overrides.changes

    def picture_of(self, record: Record) -> Path | None:
        return None if record.picture is None else self._folder / "archive" / record.picture

    def change_threshold(
        self, value: float | None, *, product: str = "", is_log_nfa: bool = False, who: str, why: str
    ) -> int:
        if product:
            raise SettingsError(f"the station has no product {product}.")
        change = self._overrides.change_threshold(
            value, bundle_sha256=BUNDLE, is_log_nfa=is_log_nfa, who=who, why=why
        )
        self._tell("threshold_changed", f"{change.who} changed the threshold to {value}: {change.why}")
        return change.version

    def change_area(
        self, inspect: Polygons, ignore: Polygons, *, frame_size: tuple[int, int], who: str, why: str
    ) -> int:
        change = self._overrides.change_area(inspect, ignore, frame_size=frame_size, who=who, why=why)
        self._tell("area_changed", f"{change.who} changed the region of interest: {change.why}")
        return change.version

    def _tell(self, kind: str, text: str) -> None:
        self._journal.append((), [Event(kind=kind, text=text, data={})])


def made_frame(seed: int = 0, size: tuple[int, int] = FRAME) -> NDArray[np.uint8]:
    """Make a picture of brushed metal, ``(H, W, 3)`` uint8."""
    height, width = size
    noise = np.random.default_rng(seed).normal(0, 9, (height, 1)) + np.linspace(120, 170, width)
    return np.repeat(np.clip(noise, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def made_anomaly(size: tuple[int, int] = FRAME, *, at: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """Make a map of values below 2, with a spot of up to 3 around a row and a column."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    values = 1 + 0.2 * np.sin(rows / 17) * np.cos(columns / 23)
    if at is not None:
        values += 1.9 * np.exp(-((rows - at[0]) ** 2 + (columns - at[1]) ** 2) / 400)
    return np.asarray(values, np.float32)


class PretendLine:
    """A line that judges one part after the other into a journal and a page."""

    def __init__(self, journal: Journal, live: Live) -> None:
        self._journal = journal
        self._live = live
        self.count = 0

    def part(self, *, is_nok: bool = False, has_result: bool = True, **fields: Any) -> Record:
        """Judge one part, and return its record."""
        self.count += 1
        at = (60 + self.count * 37 % 120, 60 + self.count * 53 % 200) if is_nok else None
        frame, values = made_frame(self.count), made_anomaly(at=at)
        if at is not None:
            frame[at[0] - 6 : at[0] + 6, at[1] - 9 : at[1] + 9] //= 3
        result = made_result(frame, values, verdict="anomalous" if is_nok else "ok")
        facts: dict[str, Any] = {
            "station": "line 3",
            "run": self._journal.run,
            "time": BEGUN + datetime.timedelta(seconds=self.count),
            "monotonic_ns": self.count * 10**9,
            "source": "camera 1",
            "source_id": f"frame {self.count}",
            "part": f"T-{4000 + self.count}",
            "bundle_sha256": BUNDLE,
            "engine": "openvino",
            "engine_version": "2026.1",
            "engine_reason": "the station's file names it",
            "precision": "int8",
            "threshold": 2.5,
            "score": result.score,
            "verdict": result.verdict,
            "signal": "nok" if is_nok else "ok",
            "reason": "the score is above the threshold" if is_nok else "the score is below the threshold",
            "regions": tuple(
                recorded_region(one, length_px=float(one.width_px), mm_per_px=0.05) for one in result.regions
            ),
            "stages_ms": {
                "capture": 0.4 + self.count % 3 / 10,
                "prepare": 3.1 + self.count % 5 / 5,
                "infer": 12.4 + self.count % 7 / 3,
                "decide": 0.9,
                "total": 16.8 + self.count % 7 / 3,
            },
        }
        (record,) = self._journal.append([Record(**(facts | fields))]).records
        self._live.publish(record, result if has_result else None)
        return record


def tell_health(live: Live) -> None:
    """Set the states of the parts of a station that has a sink that is down and one quantity that drifts."""
    live.beat()
    live.tell("camera 1", "ok", "12.0 frames a second", kind="source", is_needed=True)
    live.tell("openvino", "ok", "int8 on the CPU", kind="engine", is_needed=True)
    live.tell("self-test", "ok", "passed 2 h ago", kind="self_test", is_needed=True)
    live.tell(
        "disk", "warning", "the archive deletes its oldest pictures", kind="disk", value=21.4e9, unit="bytes"
    )
    live.tell("modbus", "ok", "one client", kind="sink", value=0, unit="records behind")
    live.tell(
        "mqtt", "down", "broker.line3: connection refused", kind="sink", value=1240, unit="records behind"
    )
    live.tell("score", "ok", "", kind="drift", value=1.8, limit=6.0)
    live.tell(
        "brightness", "warning", "darker than the calibration images", kind="drift", value=5.1, limit=6.0
    )
    live.tell("sharpness", "ok", "", kind="drift", value=0.6, limit=6.0)
