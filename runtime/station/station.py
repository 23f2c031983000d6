"""Put the parts of a station together, start them in order, and stop them without losing a verdict."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flowedge.errors import FlowEdgeError, JournalError, SettingsError
from flowedge.packages import explain_missing
from flowedge.runtime.sources import SourceEvent, open_source
from flowedge.runtime.sources.triggers import Triggered
from flowedge.runtime.station import journal_file
from flowedge.runtime.station.archive import Archive
from flowedge.runtime.station.decision import Decision
from flowedge.runtime.station.delivery import Deliveries
from flowedge.runtime.station.fitting import Fitting
from flowedge.runtime.station.health_report import HealthReport
from flowedge.runtime.station.housekeeping import Housekeeper
from flowedge.runtime.station.journal import Journal
from flowedge.runtime.station.judges import Judges, engines_of, open_judges
from flowedge.runtime.station.live import Live
from flowedge.runtime.station.loop import Loop
from flowedge.runtime.station.notify import Notifier, Watchdog
from flowedge.runtime.station.overrides import Overrides
from flowedge.runtime.station.picture_store import PictureStore
from flowedge.runtime.station.record import Event, Level
from flowedge.runtime.station.recording import Recorder
from flowedge.runtime.station.rollout_follower import follower_of
from flowedge.runtime.station.settings import StationSettings
from flowedge.runtime.station.sinks import StationLink
from flowedge.runtime.station.stage_calls import StageCalls
from flowedge.runtime.station.stages import LoopParts
from flowedge.runtime.station.station_controls import StationControls
from flowedge.runtime.station.status import StatusServer
from flowedge.runtime.station.summary import summary
from flowedge.runtime.station.watch import Watch
from flowedge.runtime.station.watch.shadow import Shadow, job_of_shadow
from flowedge.source_addresses import without_password

if TYPE_CHECKING:
    from flowedge.runtime.station.page.page import Page

_LOG: Final = logging.getLogger(__name__)
_REMEMBERED: Final = 1000
_TICK_S: Final = 1.0
_DRAIN_LOOP_S: Final = 30.0
_DRAIN_SINKS_S: Final = 5.0


class Station:
    """A station that runs in this process.

    Attributes:
        final: The status at the end of `run`.

    Examples:
        >>> from flowedge.runtime.station.settings import read_station
        >>> from flowedge.runtime.station.station import Station
        >>> with Station(read_station("station.toml"), folder=Path(".")) as station:  # doctest: +SKIP
        ...     station.run()
    """

    def __init__(
        self,
        settings: StationSettings,
        *,
        folder: Path,
        until_end: bool = False,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """Open all parts and test the engine. Frames are taken by `run`.

        Args:
            settings: The settings.
            folder: The folder of the settings file, which the source's path is relative to.
            until_end: True ends the station where its source ends or fails.
            on_event: Called with each event that is told, for instance to print it. Any thread may call it.

        Raises:
            FlowEdgeError: A part cannot be opened. The parts that were opened are closed.
        """
        self.settings = settings
        self._on_event = on_event
        self._started = time.monotonic()
        self._is_asked_to_stop = False
        self._wake = threading.Event()
        self._loop: Loop | None = None
        self._early: list[Event] = []
        self.final: dict[str, Any] = {}
        self._source_problem = ""
        self.page: Page | None = None
        self._until_end = until_end
        self.live = Live()
        self._health = HealthReport(self.live, settings.station.state)
        self._notifier = Notifier()
        with ExitStack() as stack:
            self._open(stack, folder)
            self._stack = stack.pop_all()

    def _open(self, stack: ExitStack, folder: Path) -> None:
        settings, state = self.settings, self.settings.station.state
        _make_state_folder(state)
        # The journal's lock refuses a second station on the same folder, so it comes first.
        self.journal = Journal(
            state / journal_file.NAME,
            station=settings.station.name,
            on_full=lambda: self._archive.make_room(state),
        )
        stack.callback(self.journal.close)
        store = PictureStore(settings.archive.folder or state / "archive", self.journal.name)
        self._archive = Archive(settings.archive, store, self.tell)
        stack.callback(self._archive.close)
        fitting = Fitting(settings.area, Overrides(state))
        self._follower = follower_of(settings, self.tell, folder=folder)
        self._judges = Judges(
            settings.all_products if self._follower is None else self._follower.products(),
            engines_of(settings.inspect),
            partial(open_judges, inspect=settings.inspect_by_source, fit=fitting),
            self.tell,
        )
        self._judges.open()
        stack.callback(self._judges.close)
        bundles = {judge.product: judge.detector.bundle for judge in self._judges.judges}
        self._watch = Watch(settings.watch, state, bundles, area=lambda: fitting.area_name)
        stack.callback(self._watch.close)
        self._watchdog = Watchdog(self._notifier, self._status_line)
        first = next(iter(bundles.values()))
        self._source = open_source(
            settings.source,
            folder=folder,
            pixel_range=first.manifest.pixel_range,
            tell=self._tell_source,
            seen=self.journal.seen,
        )
        stack.callback(self._source.close)
        link = StationLink(
            station=settings.station.name,
            run=self.journal.run,
            alive=lambda: not self._watchdog.hanging(),
            trigger=self._trigger if isinstance(self._source, Triggered) else None,
        )
        self._shadow = self._new_shadow()
        if self._shadow is not None:
            stack.callback(self._shadow.close)
        self._deliveries = Deliveries.of(settings.sinks, self.journal, link, self.tell)
        self._calls = StageCalls(
            watch=self._watch,
            journal=self.journal,
            archive=self._archive,
            live=self.live,
            deliveries=self._deliveries,
            shadow=self._shadow,
            tell=self.tell,
        )
        for judge in self._judges.judges:
            self._calls.test_between_frames(judge)
        self._housekeeper = Housekeeper(
            self.journal, settings.journal, settings.sinks, self._archive, self.tell
        )
        stack.callback(self._housekeeper.close)
        self._loop = self._new_loop()
        for event in self._early:
            self._loop.put_event(event)
        if settings.page.enabled:
            self._open_page(stack, fitting)
        stack.callback(StatusServer(state, self.status).close)
        self._tell_health()

    def _open_page(self, stack: ExitStack, fitting: Fitting) -> None:
        """Serve the page. Where it cannot be served, the station goes on without it, since parts must be judged."""
        controls = StationControls(
            self.settings.station.name,
            self._judges,
            fitting,
            self.tell,
            between_frames=self._running_loop.between_frames,
            picture_of=self._archive.find,
        )
        try:
            with explain_missing("station"):
                from flowedge.runtime.station.page.page import Page
            page = stack.enter_context(Page(self.settings.page, self.journal, self.live, controls))
        except SettingsError:
            raise
        except FlowEdgeError as error:
            self.tell(Event(kind="page_down", level="alarm", text=f"the page is not served: {error}"))
        else:
            self.page = page

    def _new_loop(self) -> Loop:
        inspect = self.settings.inspect
        decision = Decision(self.settings.decision)
        decision.remember(self.journal.records(limit=_REMEMBERED, newest=True))
        record = Recorder(
            decision,
            station=self.settings.station.name,
            run=self.journal.run,
            deadline_ms=inspect.deadline_ms,
        )
        parts = LoopParts(
            source=self._source,
            judges=self._judges,
            check=self._calls.check,
            test=self._calls.test,
            record=record,
            stamp=record.stamp,
            append=self._calls.append,
            tell=self.tell,
            publish=self._calls.publish,
            working=self._watchdog.working,
            on_end=self._wake.set,
        )
        return Loop(parts, inspect, retries_source=not self._until_end)

    def _new_shadow(self) -> Shadow | None:
        settings = self.settings
        if settings.shadow is None:
            return None
        return Shadow(
            settings.shadow, settings.station.state, job_of_shadow(settings, settings.shadow), self.tell
        )

    def run(self) -> bool:
        """Run until `stop` is called or, with ``until_end``, until the source has ended and everything is delivered.

        What was captured is then judged, written and delivered. A station runs once.

        Returns:
            True where every captured frame has its record, and the source did not fail.
        """
        loop = self._running_loop
        self._begin()
        try:
            self._wait()
        finally:
            self._end()
        return not loop.source_problem and not loop.unwritten and loop.join(0)

    def _wait(self) -> None:
        """Wait until the station is to stop, and do meanwhile what is due."""
        loop = self._running_loop
        while not self._is_asked_to_stop:
            has_ended = self._until_end and loop.has_ended
            if has_ended and self._deliveries.wait_drained(_TICK_S):
                break
            if not has_ended:
                self._wake.wait(_TICK_S)
            self._wake.clear()
            self._tick()

    def stop(self) -> None:
        """Ask `run` to return. Any thread and any signal handler may call this."""
        self._is_asked_to_stop = True
        self._wake.set()

    def close(self) -> None:
        """Close all parts in the reverse order of their opening."""
        self._stack.close()

    def __enter__(self) -> Station:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def tell(self, event: Event) -> None:
        """Put an event into the journal. Any thread may call this, and none waits in it."""
        self._show_event(event)
        self._archive.event(event)
        if self._loop is None:
            self._early.append(event)
        else:
            self._loop.put_event(event)

    def status(self) -> dict[str, Any]:
        """Return what the station does, as JSON's own types."""
        return summary(
            name=self.settings.station.name,
            source=self._source_name,
            source_problem=self._source_problem or self._running_loop.source_problem,
            journal=self.journal,
            judges=self._judges,
            loop=self._running_loop,
            live=self.live,
            sinks=self._deliveries.status,
            archive=self._archive.status,
            page="" if self.page is None else self.page.url,
            watch=self._watch.status(),
            shadow=None if self._shadow is None else self._shadow.status(),
            rollout=None if self._follower is None else self._follower.status(),
        )

    @property
    def _running_loop(self) -> Loop:
        assert self._loop is not None  # a station that is open has its loop
        return self._loop

    @property
    def _source_name(self) -> str:
        return self.settings.source.name or without_password(self.settings.source.address)

    def _tell_source(self, event: SourceEvent) -> None:
        level: Level = (
            "info" if event.kind.endswith("_back") else "alarm" if event.kind == "source_lost" else "warning"
        )
        if event.kind in ("source_lost", "source_back"):
            self._source_problem = event.text if event.kind == "source_lost" else ""
        self.tell(Event(kind=event.kind, level=level, text=event.text, data=dict(event.data)))

    def _trigger(self, part: str | None) -> None:
        """Take a trigger of a controller that a sink serves."""
        if isinstance(self._source, Triggered) and part is not None:
            self._source.trigger(part)

    def _show_event(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:  # no thread ends because nobody reads what is printed
            _LOG.exception("an event cannot be shown")

    def _tick(self) -> None:
        """Do what is due also while no frame comes."""
        if not self._watchdog.hanging():
            self.live.beat()
        try:
            self._tell_health()
        except Exception:
            _LOG.exception("the states of the parts cannot be told")
        for judge in self._judges.judges:
            if self._watch.due(judge.detector, product=judge.product):
                self._running_loop.between_frames(partial(self._calls.test_between_frames, judge))

    def _tell_health(self) -> None:
        loop = self._running_loop
        self._health.source(self._source_problem or loop.source_problem, self._source_name)
        self._health.engine(self._judges)
        self._health.watch(self._watch.status())
        self._health.journal(self.journal.problem or loop.write_problem)
        self._health.archive(self._archive.status)
        self._health.sinks(self._deliveries.status)
        self._health.rollout(None if self._follower is None else self._follower.status())

    def _status_line(self) -> str:
        counts = self.live.counts
        return f"{counts.total} frames, {counts.of_signal('nok')} NOK, {counts.dropped} dropped"

    def _begin(self) -> None:
        self._deliveries.start()
        self._housekeeper.start()
        self._watchdog.start()
        engine = self._judges.judges[0].detector
        facts = {"engine": engine.engine_name, "precision": engine.precision}
        text = f"the station {self.settings.station.name} has started on {engine.engine_name} ({engine.precision})"
        self.tell(Event(kind="started", level="info", text=text, data=facts))
        if self.page is not None:
            self.tell(Event(kind="page", level="info", text=f"the page is at {self.page.url}"))
            if self.page.warning:
                self.tell(Event(kind="page", level="warning", text=self.page.warning))
        self._running_loop.start()
        if self._follower is not None:
            self._follower.attach(self._judges, self._watch, self._running_loop.between_frames)
            self._follower.start()
        self.live.beat()
        self._notifier.ready(self._status_line())

    def _end(self) -> None:
        self._notifier.stopping()
        loop = self._running_loop
        loop.stop()
        if not loop.join(_DRAIN_LOOP_S):
            loop.give_up()
            loop.join(_DRAIN_SINKS_S)
        text = f"the station {self.settings.station.name} has stopped"
        event = Event(kind="stopped", level="info", text=text, data={"unwritten": loop.unwritten})
        self._show_event(event)
        if loop.join(0) and not self.journal.problem:
            with suppress(JournalError):  # the disk may be full just now, and the sinks still get the rest
                self.journal.append(events=[event])
        self._deliveries.stop(_DRAIN_SINKS_S)
        if self._follower is not None:
            self._follower.close()
        self._watchdog.stop()
        self.final = self.status()


def _make_state_folder(folder: Path) -> None:
    """Make the state folder where it is missing, readable by its owner and group.

    Raises:
        FlowEdgeError: The folder cannot be made.
    """
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise FlowEdgeError(
            f"{folder} cannot be made: {error.strerror}. Name another folder as state in [station], or make it."
        ) from error
