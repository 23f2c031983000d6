"""Watch a station over time: its frames, its scores and the answers of its engine."""

from flowedge.runtime.station.watch.settings import WatchSettings as WatchSettings
from flowedge.runtime.station.watch.watching import Watch as Watch
