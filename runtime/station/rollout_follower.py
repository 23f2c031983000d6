"""Follow a rollout file: pull the bundles that it names, open them beside the old ones, and switch between frames."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime  # Python 3.10 has another one of this name
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from flowedge.clock import utc_now
from flowedge.errors import EngineWrongError, FlowEdgeError, RegistryError, SignatureError
from flowedge.runtime.registry.rollout import Rollout, Stage, fetch_rollout, read_rollout
from flowedge.runtime.station.judges import Judge, Judges
from flowedge.runtime.station.record import Event, Tell
from flowedge.runtime.station.rolled_out import RolledOut, content_of
from flowedge.runtime.station.settings import ProductSettings, RolloutSettings, StationSettings
from flowedge.runtime.station.watch import Watch
from flowedge.runtime.station.watch.engine_test import EngineTest
from flowedge.text import printable
from flowedge.trusted_keys import TrustedKeys, read_keys

_LOG: Final = logging.getLogger(__name__)
_SWITCH_S: Final = 60.0
_JOIN_S: Final = 5.0


class RolloutFollower:
    """Keeps the bundles of a station at the versions that a rollout file names, in a thread of its own.

    A file or a bundle that is not accepted changes nothing, and the reason becomes an event once.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        station: str,
        state: Path,
        products: Sequence[ProductSettings],
        tell: Tell,
        *,
        folder: Path,
    ) -> None:
        """Take the settings. Nothing is fetched before `start`.

        Args:
            settings: The table ``[rollout]``.
            station: The name of the station.
            state: The station's folder for its state, in which the follower has a folder of its own.
            products: The products with the bundles of the settings.
            tell: Takes the events.
            folder: The folder of the settings file, which a path of the rollout file is relative to.
        """
        self._settings, self._station, self._tell = settings, station, tell
        self._file = settings.file if "://" in settings.file else str(folder / settings.file)
        self._problem = ""
        self._products = tuple(products)
        self._state = RolledOut(settings, state, products, tell)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)
        self._old: tuple[Judge, ...] = ()
        self._rollout: Rollout | None = None

    def products(self) -> tuple[ProductSettings, ...]:
        """Return the products with the bundles that are in force, at the start of the station."""
        return self._state.products()

    def attach(
        self, judges: Judges, watch: Watch, between_frames: Callable[[Callable[[], object]], bool]
    ) -> None:
        """Take the parts of the station in which a switch changes the bundles.

        Args:
            judges: The detectors.
            watch: The checks, which compare with the bundles in force.
            between_frames: Lets the thread of the engine do something between two frames.
        """
        self._judges, self._watch, self._between_frames = judges, watch, between_frames

    def start(self) -> None:
        """Start the thread, after `attach`."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, and close the detectors that a switch has left."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)
        self._close_old()

    def status(self) -> Mapping[str, Any]:
        """Return the state for ``flowedge station status``, as JSON's own types."""
        rollout = self._rollout
        return {
            "file": printable(self._settings.file),
            "version": None if rollout is None else rollout.version,
            "expires": None if rollout is None else rollout.expires,
            "problem": self._problem,
            "in_force": msgspec.to_builtins(dict(self._state.in_force)),
        }

    def _run(self) -> None:
        while not self._stop.is_set():
            self._close_old()
            self._look_and_tell()
            self._stop.wait(self._settings.every_s)

    def _look_and_tell(self) -> None:
        try:
            self.look()
            self._problem = ""
        except FlowEdgeError as error:
            self._tell_problem(str(error))
        except Exception as error:
            _LOG.exception("the rollout cannot be followed")
            self._tell_problem(f"{type(error).__name__}: {error}")

    def look(self) -> None:
        """Look at the rollout file once, and switch to the bundles that it names.

        Raises:
            FlowEdgeError: The file, a bundle or the switch is not accepted. What judges goes on judging.
        """
        now = utc_now()
        rollout = self._rollout = self._newest()
        if rollout.is_expired(now):
            raise RegistryError(
                f"the rollout file {printable(self._settings.file)} expired on {rollout.expires}, so no bundle is "
                "changed by it. Have it renewed with flowedge rollout renew, or set the clock."
            )
        wanted: dict[str, Stage] = {}
        for product in self._products:
            stage = rollout.stage_for(self._station, self._settings.rings, product.name, now)
            if stage is not None and stage.sha256 != self._state.version_of_product(product):
                wanted[product.name] = stage
        if wanted:
            self._switch(wanted, rollout)

    def outlook(self) -> str:
        """Return in words what the rollout file names for this station now. Nothing is changed or stored.

        Raises:
            FlowEdgeError: The file cannot be fetched, or is not accepted.
        """
        now = utc_now()
        rollout = self._newest(stores=False)
        words = []
        for product in self._products:
            stage = rollout.stage_for(self._station, self._settings.rings, product.name, now)
            name = f"{product.name}: " if product.name else ""
            words.append(f"{name}{'the bundle of this file' if stage is None else stage.bundle}")
        state = "has expired" if rollout.is_expired(now) else f"holds until {rollout.expires}"
        return f"version {rollout.version} {state}, and names {', '.join(words)}"

    def _newest(self, *, stores: bool = True) -> Rollout:
        """Fetch the rollout file, and check that it is no older one than the station has taken before.

        Args:
            stores: Store the file as the newest one that was taken.

        Raises:
            FlowEdgeError: The file cannot be fetched, or is not accepted.
        """
        accepted = self._state.accepted
        keys = read_keys(self._settings.keys)
        content = fetch_rollout(self._file, self._state.connection)
        if content is None:
            raise RegistryError(f"the rollout file {printable(self._settings.file)} is not there.")
        rollout = read_rollout(content, keys, self._settings.file)
        before = content_of(accepted)
        if content == before:
            return rollout
        if before is not None:
            self._check_newer(rollout, before, keys)
        if stores:
            self._state.write(accepted, content)
        return rollout

    def _check_newer(self, rollout: Rollout, before: bytes, keys: TrustedKeys) -> None:
        """Refuse a rollout file that is older than the one that the station has taken before, or is another one.

        The number of a file whose key is not trusted any more does not count: whoever has stolen the key may have given
        the highest one (The Update Framework, 6.2, "recovery from fast-forward attacks").

        Raises:
            SignatureError: The file is refused.
        """
        accepted = self._state.accepted
        try:
            known = read_rollout(before, keys, str(accepted))
        except SignatureError as error:
            _LOG.warning("the rollout file that was taken before does not count any more: %s", error)
            return
        if rollout.name != known.name:
            raise SignatureError(
                f"{printable(self._settings.file)} is the rollout {rollout.name}, and this station follows "
                f"{known.name}. Remove {accepted} to follow another one."
            )
        if rollout.version <= known.version:
            raise SignatureError(
                f"{printable(self._settings.file)} has version {rollout.version}, and this station has taken "
                f"version {known.version} already. Somebody has put an old or another file there. To go back to an "
                "older bundle, set it with flowedge rollout set."
            )

    def _switch(self, wanted: Mapping[str, Stage], rollout: Rollout) -> None:
        """Pull and open bundles, and let them judge from the next frame on."""
        products = []
        for product in self._products:
            if (stage := wanted.get(product.name)) is not None:
                products.append(
                    msgspec.structs.replace(product, bundle=self._state.pulled(stage, product.name))
                )
            else:
                products.append(msgspec.structs.replace(product, bundle=self._state.bundle_of(product)))
        opened = self._judges.open_others(products)
        try:
            self._check_source(opened)
            old = self._take(products, opened, {name: self._proven(one) for name, one in opened.items()})
        except BaseException:
            for judge in opened.values():
                judge.detector.close()
            raise
        # Frames that an old detector has prepared still get its answers, so it is closed before the next look.
        self._old = old
        for name, stage in wanted.items():
            self._state.remember(name, stage, rollout.version)

    def _proven(self, judge: Judge) -> EngineTest:
        """Run the self-test before the switch, so that no frame waits for it.

        Raises:
            EngineWrongError: The test has not passed.
        """
        test, events = self._watch.prove(judge.detector)
        if test.problem:
            raise EngineWrongError(f"{judge.base.bundle.path} is not used: {test.problem}")
        for event in events:
            self._tell(event)
        return test

    def _take(
        self,
        products: Sequence[ProductSettings],
        opened: Mapping[str, Judge],
        tests: Mapping[str, EngineTest],
    ) -> tuple[Judge, ...]:
        """Let the thread of the engine switch between two frames.

        Raises:
            RegistryError: The thread of the engine does not come to it.
            EngineUnavailableError: The engine was replaced meanwhile.
        """
        switched: Future[tuple[Judge, ...]] = Future()

        def switch() -> None:
            if not switched.set_running_or_notify_cancel():
                return  # nobody waits any more
            try:
                old = self._judges.take(products, opened)
                bundles = {name: one.detector.bundle for name, one in opened.items()}
                self._watch.change_bundles(bundles, tests)
            except Exception as error:
                switched.set_exception(error)
            else:
                switched.set_result(old)

        if self._between_frames(switch):
            with suppress(NotInTime):
                return switched.result(_SWITCH_S)
        # A switch that has begun is waited for, also where it ended just now: its detectors judge already.
        if switched.cancel():
            raise RegistryError("the engine is too busy to switch to another bundle. It is tried again.")
        return switched.result()

    def _check_source(self, opened: Mapping[str, Judge]) -> None:
        """Refuse a bundle that needs other pixels of the source, which was opened for those of the old one."""
        for name, judge in opened.items():
            now = next((one for one in self._judges.judges if one.product == name), None)
            wanted = judge.base.bundle.manifest.pixel_range
            if now is not None and wanted != now.base.bundle.manifest.pixel_range:
                raise RegistryError(
                    f"{judge.base.bundle.path} takes other grey levels of the source than the bundle before it. Name "
                    "it in the station's file, and start the station again."
                )

    def _close_old(self) -> None:
        old, self._old = self._old, ()
        for judge in old:
            judge.detector.close()

    def _tell_problem(self, text: str) -> None:
        """Tell a problem once, until all is well or it is another one."""
        if text != self._problem:
            self._tell(Event(kind="rollout_problem", level="warning", text=f"no bundle is changed: {text}"))
        self._problem = text


def follower_of(settings: StationSettings, tell: Tell, *, folder: Path) -> RolloutFollower | None:
    """Make the follower of a station, or None where its settings name no rollout file.

    Args:
        settings: The settings of the station.
        tell: Takes the events.
        folder: The folder of the settings file.
    """
    if settings.rollout is None:
        return None
    place = settings.station
    return RolloutFollower(
        settings.rollout, place.name, place.state, settings.all_products, tell, folder=folder
    )
