"""Fit a detector to its station: the limit that people have set there, and the area of the frame."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec

from flowedge.bundle import Bundle
from flowedge.errors import SettingsError
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.area.detector import AreaDetector
from flowedge.runtime.area.settings import AreaSettings
from flowedge.runtime.detector import Detector
from flowedge.runtime.station.judges import Judge
from flowedge.runtime.station.overrides import AreaChange, Overrides, ThresholdChange


class Fitting:
    """Makes the detectors that a station judges with, from those that its bundles give.

    Attributes:
        area: The area of the settings.
        overrides: The changes that people have made on the station.
    """

    def __init__(self, area: AreaSettings, overrides: Overrides) -> None:
        self.area = area
        self.overrides = overrides
        self._digest = hashlib.sha256(repr(area).encode()).hexdigest()[:12]

    @property
    def current_area(self) -> AreaSettings:
        """The area that is in force: that of the settings, or the newest change of it."""
        return changed_area(self.area, self.overrides.area())

    @property
    def area_name(self) -> str:
        """A name that no other area has. Whole frames have an empty name."""
        if self.current_area == AreaSettings():
            return ""
        change = self.overrides.area()
        return f"{self._digest}-{change.version if change else 0}"

    def __call__(self, judge: Judge) -> Judge:
        """Return a judge whose detector has the limit and the area that are in force.

        Raises:
            SettingsError: The area does not suit the bundle.
        """
        product, history = judge.product, judge.base.bundle.manifest.threshold_history
        return replace(
            judge,
            detector=fitted(
                judge.base, self.overrides.threshold(judge.bundle_sha256, product), self.current_area
            ),
            threshold_version=len(history) + self.overrides.version(product),
        )


def fitted(base: Detector, change: ThresholdChange | None, area: AreaSettings) -> Detector:
    """Return a detector on the engine of another one, with the limit of a change and with an area.

    Args:
        base: The detector of the whole frame with the bundle's limit.
        change: The change of the limit, if there is one.
        area: The area.

    Raises:
        SettingsError: The area does not suit the bundle, or the change is of another kind of limit.
    """
    detector = base
    if change is not None and change.value is not None:
        bundle = with_limit(base.bundle, base.precision, change.value, is_log_nfa=change.is_log_nfa)
        detector = Detector(bundle, base.engine, min_region_px=base.min_region_px, levels=base.levels)
    return detector if area == AreaSettings() else AreaDetector(detector, area)


def with_limit(bundle: Bundle, precision: str, value: float, *, is_log_nfa: bool) -> Bundle:
    """Return a bundle whose graph of a precision decides by another limit. Nothing on disk changes.

    Args:
        bundle: The bundle.
        precision: The precision of the graph.
        value: The threshold of the score, or the limit of log NFA.
        is_log_nfa: True for a limit of log NFA.

    Raises:
        SettingsError: The graph decides by the other kind of limit.
    """
    graph = bundle.manifest.graph(precision)
    if (graph.thresholds.nfa is not None) != is_log_nfa:
        decides = "a limit of log NFA" if graph.thresholds.nfa is not None else "a threshold of the score"
        raise SettingsError(f"{bundle.path} decides by {decides}, so no other kind of limit can be set.")
    limited = msgspec.structs.replace(graph, thresholds=_limited(graph.thresholds, value))
    graphs = tuple(limited if one is graph else one for one in bundle.manifest.graphs)
    return replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, graphs=graphs))


def _limited(thresholds: Thresholds, value: float) -> Thresholds:
    if thresholds.nfa is not None:
        return msgspec.structs.replace(thresholds, nfa=msgspec.structs.replace(thresholds.nfa, log_nfa=value))
    return msgspec.structs.replace(thresholds, image=Threshold(value=value, method="manual"))


def changed_area(area: AreaSettings, change: AreaChange | None) -> AreaSettings:
    """Return an area with the polygons of a change. Tiles and the rest stay those of the settings.

    A change without polygons has no size of the frames, so frames of each size are judged again.
    """
    if change is None:
        return area
    if not (change.inspect or change.ignore):
        kept = None if area.inspect or area.ignore else area.frame_size
        return msgspec.structs.replace(area, frame_size=kept, inspect=(), ignore=())
    return msgspec.structs.replace(
        area, frame_size=change.frame_size, inspect=change.inspect, ignore=change.ignore
    )
