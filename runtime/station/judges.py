"""Keep a station's detectors at work: open an engine, and replace one that fails by the next configured one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle_files import hash_of_bundle
from flowedge.errors import EngineUnavailableError, FlowEdgeError
from flowedge.runtime.detector import Detector
from flowedge.runtime.from_path import load_detectors
from flowedge.runtime.lanes import inferences_at_once
from flowedge.runtime.opening.engine import ENGINES, library_version
from flowedge.runtime.protocols import PixelArray
from flowedge.runtime.station.record import Event, Level, Tell
from flowedge.runtime.station.settings import InspectSettings, ProductSettings

_LOG: Final = logging.getLogger(__name__)
_GOOD_RUNS: Final = 100
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """The detector of one product, with the facts that every record of its has.

    Attributes:
        product: The name of the product.
        base: The detector of whole frames, as its bundle gives it.
        detector: The detector that judges, which has the engine of ``base``.
        bundle_sha256: The SHA-256 of the bundle's manifest.
        engine_version: The version of the engine's library.
        threshold_version: The number of changes in the bundle's history of thresholds.
        copies: The smallest number of images of one run of the engine. A frame fills it by itself.
        opening: The number of the opening of engines that the detector belongs to. All of one opening are closed
            together.
    """

    product: str
    base: Detector
    detector: Detector
    bundle_sha256: str
    engine_version: str
    threshold_version: int
    copies: int = 1
    opening: int = 0

    @property
    def lanes(self) -> int:
        """The number of frames that the engine judges at once."""
        return inferences_at_once(self.detector.engine)

    def prepare(self, pixels: PixelArray) -> tuple[list[NDArray[np.uint8]], Any]:
        """Make the engine's input of one frame, and return it with the frame as 8-bit RGB.

        Raises:
            ImageError: The frame is not such as the detector takes.
        """
        return self.detector.prepare([pixels] * self.copies)


Open = Callable[[Sequence[ProductSettings], "str | None"], "dict[str, Judge]"]
"""A function that opens the bundles of products on an engine. The name None means the first engine that opens."""


class Judges:
    """The detectors of all products of a station, which run on one engine at a time.

    One thread, the one that runs the engine, calls `failed`, `worked` and `refresh`. An engine that fails once is
    opened again. An engine that fails once more within 100 frames is replaced by the next one of the settings.
    """

    def __init__(
        self,
        products: Sequence[ProductSettings],
        engines: Sequence[str | None],
        open_all: Open,
        tell: Tell,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to open engines.

        Args:
            products: The products.
            engines: The names of the engines in the order of preference.
            open_all: Opens the bundles of all products on an engine.
            tell: Takes the events.
            clock: The monotonic clock in seconds.
        """
        self._products = tuple(products)
        self._engines = tuple(engines)
        self._open_all = open_all
        self._tell = tell
        self._clock = clock
        self._judges: dict[str, Judge] = {}
        # Frames are prepared also while an engine is being opened, since that needs none.
        self._known: dict[str, Judge] = {}
        self._at = self._openings = 0
        self._name = ""
        self._requested: Callable[[Judge], Judge] | None = None
        self._good_runs = _GOOD_RUNS
        self._pause_s = _FIRST_PAUSE_S
        self._next_try = 0.0
        self.problem = ""

    @property
    def judges(self) -> tuple[Judge, ...]:
        """The open detectors, in the order of the settings. The tuple is empty while no engine is open."""
        return tuple(self._judges.values())

    @property
    def is_first_choice(self) -> bool:
        """True while the first engine of the settings computes."""
        return self._at == 0

    def open(self) -> None:
        """Open the first engine that opens, at the start of the station.

        Raises:
            FlowEdgeError: No engine opens. The message has the reason of each.
        """
        problems = self._open_first_of(range(len(self._engines)))
        if not self._judges:
            raise EngineUnavailableError(" ".join(problems))
        if problems:
            text = f"{self._name} computes in place of an engine that does not open: {' '.join(problems)}"
            self._report("engine_replaced", "alarm", text, engine=self._name, before=self._engines[0])

    def judge_of(self, part: str | None) -> tuple[Judge | None, str]:
        """Return the newest detector for a part, or None and the reason why there is none.

        The engine of the detector may be closed. The detector then still prepares frames, and `current` has another.
        """
        known = self._known
        for product in self._products:
            if product.fits(part):
                return known.get(product.name), ""
        return (
            None,
            f"no product is for the part {part}"
            if part
            else "the frame has no part, and every product needs one",
        )

    def current(self, judge: Judge) -> Judge | None:
        """Return a detector that is still open, or else the one that now computes for its product, if any does."""
        now = self._judges.get(judge.product)
        return judge if now is not None and now.opening == judge.opening else now

    def worked(self) -> None:
        """Count a run of the engine that succeeded."""
        self._good_runs += 1

    def failed(self, error: Exception) -> None:
        """Replace the engine, since a run of it failed."""
        name, is_first = self._name, self._good_runs >= _GOOD_RUNS
        _LOG.exception("the engine %s failed", name, exc_info=error)
        self._report("engine_failed", "alarm", f"the engine {name} failed: {error}", engine=name)
        self._good_runs = 0
        self.close()
        self.problem = f"the engine {name} failed: {error}"
        self._open_again(is_same_first=is_first)

    def refresh(self) -> None:
        """Make a change that `request` has asked for, and try to open an engine where none is open."""
        change, self._requested = self._requested, None
        if change is not None:
            try:
                self._judges = {name: change(judge) for name, judge in self._judges.items()}
            except Exception as error:
                _LOG.exception("a change is not in force")
                text = f"a change is not in force, and parts are judged as before: {error}. Start the station again."
                self._report("change_failed", "alarm", text)
            self._known = self._judges or self._known
        # An engine that does not open is tried again after a pause, which grows.
        if not self._judges and self._clock() >= self._next_try:
            self._open_again(is_same_first=False)

    def request(self, change: Callable[[Judge], Judge]) -> None:
        """Ask for changed detectors, for instance with another threshold. Any thread may call this.

        The next `refresh` makes the change. Engines that open later must have it by themselves.
        """
        self._requested = change

    def open_others(self, products: Sequence[ProductSettings]) -> dict[str, Judge]:
        """Open other bundles of the products on the engine that computes, beside those that judge. Any thread calls it.

        Raises:
            FlowEdgeError: A bundle cannot be trusted, or the engine cannot run it on this machine.
        """
        return self._open_all(products, self._engines[self._at])

    def take(self, products: Sequence[ProductSettings], opened: Mapping[str, Judge]) -> tuple[Judge, ...]:
        """Let detectors of `open_others` judge from the next frame on.

        Args:
            products: The products with the bundles that engines are opened with from now on.
            opened: The detectors.

        Returns:
            The detectors that judged. The caller closes them when their last frames have their answers.

        Raises:
            EngineUnavailableError: Another engine computes by now, or none.
        """
        if not self._judges or any(one.detector.engine_name != self._name for one in opened.values()):
            raise EngineUnavailableError("the engine was replaced while another bundle was opened on it.")
        before = tuple(self._judges.values())
        self._openings += 1
        self._products = tuple(products)
        self._judges = {name: replace(judge, opening=self._openings) for name, judge in opened.items()}
        self._known = self._judges
        return before

    def close(self) -> None:
        """Close the detectors."""
        judges, self._judges = self._judges, {}
        for judge in judges.values():
            with suppress(Exception):  # a broken engine may not even close
                judge.detector.close()

    def _open_again(self, *, is_same_first: bool) -> None:
        before = self._name
        places = [(self._at + step) % len(self._engines) for step in range(len(self._engines))]
        # The first choice may be an engine that is also named, so names are compared and not places.
        same = [place for place in places if place == self._at or self._engines[place] == before]
        others = [place for place in places if place not in same]
        problems = self._open_first_of([*same, *others] if is_same_first else [*others, *same])
        if not self._judges:
            self.problem = " ".join(problems)
            self._next_try = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            text = f"no engine opens, so no frame is inspected: {self.problem}"
            self._report("engine_lost", "alarm", text, engine=before)
            return
        self._pause_s = _FIRST_PAUSE_S
        if self._name == before:
            self._report("engine_reopened", "warning", f"the engine {before} was opened again", engine=before)
        else:
            text = f"the engine {before} was replaced by {self._name}"
            self._report("engine_replaced", "alarm", text, engine=self._name, before=before)

    def _report(self, kind: str, level: Level, text: str, **data: object) -> None:
        self._tell(Event(kind=kind, level=level, text=text, data=data))

    def _open_first_of(self, places: Iterable[int]) -> list[str]:
        """Open the first engine that opens for all products, and return why those before it did not open."""
        names: dict[str, list[str]] = {}  # The engines that did not open, by the reason.
        for place in places:
            try:
                opened = self._open_all(self._products, self._engines[place])
            except Exception as error:
                if not isinstance(error, FlowEdgeError):
                    _LOG.exception("%s does not open", self._engines[place])
                names.setdefault(str(error), []).append(self._engines[place] or "the first choice")
                continue
            self._openings += 1
            self._at = place
            self._judges = {name: replace(judge, opening=self._openings) for name, judge in opened.items()}
            self._known = self._judges
            self._name = next(iter(opened.values())).detector.engine_name
            break
        # A reason that all of several engines share, such as a missing bundle, is not about engines.
        if len(names) == 1 and len(*names.values()) > 1:
            return list(names)
        return [f"{', '.join(engines)}: {reason}" for reason, engines in names.items()]


def open_judges(
    products: Sequence[ProductSettings],
    engine: str | None,
    inspect: InspectSettings,
    fit: Callable[[Judge], Judge],
) -> dict[str, Judge]:
    """Open the bundles of products on a proven engine. Products of one pack share its backbone.

    Args:
        products: The products.
        engine: The name of the engine, or None for the first that opens.
        inspect: The settings of all products.
        fit: Gives a judge the limit and the area that are in force at the station.

    Returns:
        The judges by the names of their products.

    Raises:
        FlowEdgeError: A bundle cannot be trusted, or the engine cannot run it on this machine.
    """
    detectors = load_detectors(
        [product.bundle for product in products],
        engine=engine,
        precision=inspect.precision,
        threads=inspect.threads,
        min_region_px=inspect.min_region_px,
        levels=False,
        require_signature=inspect.require_signature,
    )
    try:
        return {
            product.name: fit(_judge(product, detector))
            for product, detector in zip(products, detectors, strict=True)
        }
    except BaseException:
        for detector in detectors:
            detector.close()
        raise


def open_judge(
    product: ProductSettings,
    engine: str | None,
    inspect: InspectSettings,
    fit: Callable[[Judge], Judge],
) -> Judge:
    """Open the bundle of one product, as `open_judges` opens several.

    Raises:
        FlowEdgeError: The cause is one of `open_judges`.
    """
    return open_judges([product], engine, inspect, fit)[product.name]


def _judge(product: ProductSettings, detector: Detector) -> Judge:
    return Judge(
        product=product.name,
        base=detector,
        detector=detector,
        bundle_sha256=hash_of_bundle(product.bundle),
        engine_version=library_version(detector.engine.spec),
        threshold_version=len(detector.bundle.manifest.threshold_history),
        copies=(detector.engine.batches or (1, 1))[0],
    )


def engines_of(inspect: InspectSettings) -> tuple[str | None, ...]:
    """Return the engines in the order of preference. Without a wish it is the first that opens, and then each."""
    if inspect.engines:
        return inspect.engines
    by_order = sorted((spec.order, name) for name, spec in ENGINES.items() if spec.order is not None)
    return (None, *(name for _, name in by_order))
