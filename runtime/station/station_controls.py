"""Let the page show and change the limits and the area of a running station."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from flowedge.errors import FlowEdgeError
from flowedge.runtime.station.fitting import Fitting, changed_area, fitted, with_limit
from flowedge.runtime.station.judges import Judge, Judges
from flowedge.runtime.station.overrides import AreaChange, Change, Polygons
from flowedge.runtime.station.page.controls import Area, Limit
from flowedge.runtime.station.record import Event, Record, Tell
from flowedge.runtime.station.recording import limits_of
from flowedge.text import printable

_APPLIED_S: Final = (
    1.0  # A change that waits longer, for instance for a slow engine, is shown by the next look.
)


class StationControls:
    """A running station as `flowedge.runtime.station.page.controls.Controls`."""

    def __init__(
        self,
        name: str,
        judges: Judges,
        fitting: Fitting,
        tell: Tell,
        *,
        between_frames: Callable[[Callable[[], object]], bool],
        picture_of: Callable[[Record], Path | None] = lambda record: None,
    ) -> None:
        """Take the parts of a station.

        Args:
            name: The name of the station.
            judges: The detectors.
            fitting: The limit and the area that are in force.
            tell: Takes the events.
            between_frames: Lets the thread of the engine do something between two frames.
            picture_of: Finds the picture of a record in the archive.
        """
        self.name = name
        self._judges, self._fitting, self._tell = judges, fitting, tell
        self._between_frames = between_frames
        self._picture_of = picture_of

    @property
    def limits(self) -> Sequence[Limit]:
        """The limits of all products, in the order of the settings."""
        return [self._limit(judge) for judge in self._judges.judges]

    @property
    def area(self) -> Area:
        """The region of interest."""
        area, change = self._fitting.current_area, self._fitting.overrides.area()
        return Area(
            inspect=area.inspect,
            ignore=area.ignore,
            frame_size=area.frame_size,
            version=0 if change is None else change.version,
            fixed_because="the settings give the region as a picture" if area.mask is not None else "",
        )

    @property
    def changes(self) -> Sequence[Change]:
        """All changes that people have made on this station, the oldest first."""
        return self._fitting.overrides.changes

    def picture_of(self, record: Record) -> Path | None:
        """Return the file of a record's evidence picture in the archive, if there is one."""
        return self._picture_of(record)

    def change_threshold(
        self, value: float | None, *, product: str = "", is_log_nfa: bool = False, who: str, why: str
    ) -> int:
        """Change the limit of a product on this station, see `Controls`.

        Raises:
            FlowEdgeError: The change is not possible, or cannot be stored. Nothing was changed then.
        """
        judge = self._judge(product)
        if value is not None:
            with_limit(judge.base.bundle, judge.base.precision, value, is_log_nfa=is_log_nfa)
        change = self._fitting.overrides.change_threshold(
            value,
            bundle_sha256=judge.bundle_sha256,
            product=product,
            is_log_nfa=is_log_nfa,
            who=who,
            why=why,
        )
        self._apply()
        limit = "that of the bundle" if value is None else f"{value:g}"
        self._tell(
            Event(
                kind="threshold_changed",
                level="warning",
                text=f"{change.who} changed the limit{f' of {product}' if product else ''} to {limit}: {change.why}",
                data={
                    "value": value,
                    "product": product,
                    "who": change.who,
                    "why": change.why,
                    "change": change.version,
                },
            )
        )
        return len(judge.base.bundle.manifest.threshold_history) + change.version

    def change_area(
        self, inspect: Polygons, ignore: Polygons, *, frame_size: tuple[int, int], who: str, why: str
    ) -> int:
        """Change the region of interest on this station, see `Controls`.

        Raises:
            FlowEdgeError: The change is not possible, or cannot be stored. Nothing was changed then.
        """
        if self.area.fixed_because:
            raise FlowEdgeError(
                f"{self.area.fixed_because}. Change the picture, and start the station again."
            )
        tried = AreaChange(
            version=0, time="", who=who, why=why, frame_size=frame_size, inspect=inspect, ignore=ignore
        )
        area = changed_area(self._fitting.area, tried)
        for judge in self._judges.judges:
            fitted(judge.base, None, area)  # raises where the area does not suit the bundle
        change = self._fitting.overrides.change_area(inspect, ignore, frame_size=frame_size, who=who, why=why)
        self._apply()
        self._tell(
            Event(
                kind="area_changed",
                level="warning",
                text=f"{change.who} changed the region of interest: {change.why}",
                data={"who": change.who, "why": change.why, "change": change.version},
            )
        )
        return change.version

    def _apply(self) -> None:
        """Let the thread of the engine take the change before its next frame, or at once where none comes."""
        self._judges.request(self._fitting)
        applied = threading.Event()

        def apply() -> None:
            self._judges.refresh()
            applied.set()

        # A person who has made a change looks at it next, so the old limit must not be shown any more.
        if self._between_frames(apply):
            applied.wait(_APPLIED_S)

    def _judge(self, product: str) -> Judge:
        for judge in self._judges.judges:
            if judge.product == product:
                return judge
        names = ", ".join(judge.product for judge in self._judges.judges)
        raise FlowEdgeError(
            f"there is no product {printable(product)!r} on this station, but: {names or 'none'}."
        )

    def _limit(self, judge: Judge) -> Limit:
        of_bundle, now = limits_of(judge.base.thresholds), limits_of(judge.detector.thresholds)
        is_log_nfa = judge.base.thresholds.nfa is not None
        return Limit(
            product=judge.product,
            value=now[is_log_nfa],
            is_log_nfa=is_log_nfa,
            version=judge.threshold_version,
            bundle_value=of_bundle[is_log_nfa],
            bundle=judge.base.bundle.path.name,
            bundle_sha256=judge.bundle_sha256,
        )
