"""Open everything that a station's file names, one after the other, and tell what is wrong with each."""

from __future__ import annotations

import datetime
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from flowedge.clock import utc_now
from flowedge.errors import FlowEdgeError
from flowedge.files import existing_folder
from flowedge.packages import explain_missing
from flowedge.runtime.detector import Detector
from flowedge.runtime.protocols import Frame
from flowedge.runtime.sources import SourceEvent, open_source
from flowedge.runtime.station import journal_file
from flowedge.runtime.station.fitting import Fitting
from flowedge.runtime.station.health_report import LOW_DISK_BYTES
from flowedge.runtime.station.journal_reader import JournalReader
from flowedge.runtime.station.judges import engines_of, open_judge
from flowedge.runtime.station.overrides import Overrides
from flowedge.runtime.station.page.settings import PageSettings
from flowedge.runtime.station.rollout_follower import RolloutFollower, follower_of
from flowedge.runtime.station.settings import ProductSettings, StationSettings
from flowedge.runtime.station.sinks import StationLink, probe
from flowedge.runtime.station.status import NoStationError, ask_station
from flowedge.runtime.station.watch.settings import ShadowSettings
from flowedge.runtime.station.watch.shadow import product_of_shadow
from flowedge.source_addresses import without_password
from flowedge.text import printable

State: TypeAlias = Literal["ok", "warning", "wrong"]

_FRAME_S: Final = 5.0
_SOON: Final = datetime.timedelta(days=30)


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a station's file names, and what was found.

    Attributes:
        name: The table of the file, and the name of the thing.
        state: ``ok``, ``warning`` for what a person should know, ``wrong`` for what keeps the station from its work.
        text: The finding in words.
    """

    name: str
    state: State
    text: str


def check_station(settings: StationSettings, *, folder: Path) -> Iterator[Item]:
    """Open the parts of a station one by one, and give an item for each as soon as it is known.

    Nothing is judged, recorded or delivered. A station that runs on the same folder goes on.

    Args:
        settings: The settings.
        folder: The folder of the settings file, which the source's path is relative to.
    """
    state, archive = settings.station.state, settings.archive
    yield _tried("[station] state", lambda: _check_folder("[station] state", state))
    if (state / journal_file.NAME).exists():
        yield _tried("[journal]", lambda: _check_journal(state / journal_file.NAME))
    if archive.enabled and archive.folder is not None:
        pictures = archive.folder
        yield _tried("[archive] folder", lambda: _check_folder("[archive] folder", pictures))
    is_running = _is_running(settings.station.state)
    if is_running:
        yield Item(
            name="[station]",
            state="warning",
            text="this station runs at the moment, so its camera and its ports may be taken",
        )
    detectors: list[Detector] = []
    try:
        fit = Fitting(settings.area, Overrides(settings.station.state))
    except FlowEdgeError as error:
        yield Item(name="[station] state", state="wrong", text=printable(str(error)))
        return
    if (follower := follower_of(settings, lambda event: None, folder=folder)) is not None:
        yield _look_at_rollout(follower)
    for product in settings.all_products:
        yield from _check_product(product, settings, fit, detectors)
    if settings.shadow is not None:
        yield _tried("[shadow] bundle", partial(_check_shadow, settings, settings.shadow, fit))
    frame, item = _check_source(settings, folder, detectors)
    yield item
    if frame is not None and detectors:
        yield _tried("[area]", lambda: _check_frame(detectors[0], frame))
    link = StationLink(station=settings.station.name, run="check")
    for sink in settings.sinks:
        yield _tried(f"[[sinks]] {sink.cursor}", partial(probe, sink, link))
    if settings.page.enabled and not is_running:
        yield _tried("[page]", lambda: _check_page(settings.page))
    for detector in detectors:
        detector.close()


def _tried(name: str, look: Callable[[], str | Item]) -> Item:
    """Return what was found, or the error as an item that is wrong."""
    try:
        found = look()
    except FlowEdgeError as error:
        return Item(name=name, state="wrong", text=printable(str(error)))
    return found if isinstance(found, Item) else Item(name=name, state="ok", text=printable(found))


def _look_at_rollout(follower: RolloutFollower) -> Item:
    """Return what the rollout file names. A station without an accepted file runs, and changes no bundle."""
    name = "[rollout] file"
    try:
        return Item(name=name, state="ok", text=printable(follower.outlook()))
    except FlowEdgeError as error:
        return Item(name=name, state="warning", text=printable(f"no bundle is changed: {error}"))


def _check_shadow(settings: StationSettings, shadow: ShadowSettings, fit: Fitting) -> str:
    product, inspect = product_of_shadow(settings, shadow)
    judge = open_judge(product, shadow.engine, inspect, fit)
    judge.base.close()
    return f"{shadow.bundle} runs on {judge.base.engine_name} ({judge.base.precision}), and decides nothing"


def _check_folder(name: str, folder: Path) -> str | Item:
    # The folder may still have to be made, so its nearest parent is looked at.
    place = existing_folder(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise FlowEdgeError(f"{place} is no folder that this user may write to. Name another folder.")
    free = shutil.disk_usage(place).free
    text = f"{folder}, {free / 1e9:.1f} GB are free"
    if free < LOW_DISK_BYTES:
        return Item(name=name, state="warning", text=f"{text}, which is little for a journal and pictures")
    return text


def _check_journal(file: Path) -> str:
    with JournalReader(file) as journal:
        return f"{file} has {journal.last()} records"


def _check_page(settings: PageSettings) -> str | Item:
    with explain_missing("station"):
        from flowedge.runtime.station.page.page import probe_page
    address, warning = probe_page(settings)
    if warning:
        return Item(name="[page]", state="warning", text=printable(warning))
    return f"{address} is free"


def _is_running(state: Path) -> bool:
    try:
        ask_station(state)
    except NoStationError:
        return False
    except FlowEdgeError:
        return True
    return True


def _check_product(
    product: ProductSettings, settings: StationSettings, fit: Fitting, detectors: list[Detector]
) -> Iterator[Item]:
    """Open a product on each of its engines, and keep the detector of the first one that opens."""
    prefix = f"[[products]] {product.name}, " if product.name else "[inspect] "
    first: Detector | None = None
    # Without a wish, engines that are not installed are no fault.
    engines = engines_of(settings.inspect) if settings.inspect.engines else (None,)
    for engine in engines:
        name = f"{prefix}engine {engine}" if engine else f"{prefix}bundle"
        try:
            judge = open_judge(product, engine, settings.inspect, fit)
        except FlowEdgeError as error:
            yield Item(name=name, state="wrong", text=printable(str(error)))
            continue
        detector = judge.detector
        text = (
            f"{product.bundle} runs on {detector.engine_name} {judge.engine_version} ({detector.precision}), which "
            "gives the expected answers"
        )
        yield Item(name=name, state="ok", text=printable(text))
        if first is None:
            first = detector
            detectors.append(detector)
        else:
            detector.close()
    signature = first.bundle.signature if first else None
    if signature is not None and signature.ends is not None and signature.ends < utc_now() + _SOON:
        text = f"the signature is accepted until {signature.ends.isoformat()} alone, and after it no station starts"
        yield Item(name=f"{prefix}signature", state="warning", text=text)
    thresholds = first.thresholds if first else None
    if thresholds is not None and thresholds.image is None and thresholds.nfa is None:
        text = "the bundle has no threshold, so no frame is ever ok. Run flowedge calibrate first."
        yield Item(name=f"{prefix}threshold", state="warning", text=text)


def _check_source(
    settings: StationSettings, folder: Path, detectors: list[Detector]
) -> tuple[Frame | None, Item]:
    """Open the source and wait some seconds for a frame."""
    name = f"[source] {printable(without_password(settings.source.address))}"
    told: list[SourceEvent] = []
    pixel_range = detectors[0].bundle.manifest.pixel_range if detectors else None
    try:
        source = open_source(settings.source, folder=folder, pixel_range=pixel_range, tell=told.append)
    except FlowEdgeError as error:
        return None, Item(name=name, state="wrong", text=printable(str(error)))
    frames: list[Frame] = []
    problems: list[str] = []

    def take() -> None:
        try:
            frames.extend(frame for frame, _ in zip(source.frames(), range(1), strict=False))
        except Exception as error:
            problems.append(str(error))

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    taking.join(_FRAME_S + (0 if settings.source.watch else settings.source.timeout_s))
    source.close()
    taking.join(_FRAME_S)
    if frames and not frames[0].problem:
        height, width = frames[0].pixels.shape[:2]
        return frames[0], Item(name=name, state="ok", text=f"gives frames of {height}x{width}")
    if frames:
        return None, Item(
            name=name, state="warning", text=printable(f"the first frame has a problem: {frames[0].problem}")
        )
    if problems or told:
        text = problems[0] if problems else told[-1].text
        return None, Item(name=name, state="wrong", text=printable(text))
    text = "is open, and has given no frame yet" if settings.source.watch else "gave no frame"
    return None, Item(name=name, state="ok" if settings.source.watch else "warning", text=text)


def _check_frame(detector: Detector, frame: Frame) -> str:
    result = detector(frame.pixels)
    if result.problem:
        raise FlowEdgeError(f"a frame of the source is not inspected: {result.problem}")
    return f"a frame of the source gets the verdict {result.verdict} with the score {result.score:.4g}"
