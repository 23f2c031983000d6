"""Parts of a station that answer beforehand known things, for tests of what is between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.opening.engine import NULL
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.protocols import Frame
from flowedge.runtime.station.decision import Decision, DecisionSettings
from flowedge.runtime.station.judges import Judge, Judges
from flowedge.runtime.station.loop import Loop
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.recording import Recorder
from flowedge.runtime.station.settings import InspectSettings, ProductSettings
from flowedge.runtime.station.stages import LoopParts
from flowedge.runtime.station.work import Work


def frame(number: int, *, part: str | None = None, problem: str = "") -> Frame:
    """Make a frame of noise that differs from every other one."""
    pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Frame(
        pixels=pixels,
        id=f"frame-{number}",
        time=datetime.now(timezone.utc),
        source="test",
        part=part,
        problem=problem,
        version=f"v{number}",
    )


class FrameList:
    """A source of the frames of a list, which may wait or raise between them."""

    def __init__(self, frames: Sequence[Frame | Callable[[], object]]) -> None:
        self.taken = 0
        self._frames = list(frames)
        self._closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        while self._frames and not self._closed.is_set():
            one = self._frames.pop(0)
            if isinstance(one, Frame):
                self.taken += 1
                yield one
            else:
                one()

    def close(self) -> None:
        self._closed.set()


class ScriptedEngine(NullEngine):
    """An engine of constant answers that first does what a function says, such as waiting or failing."""

    def __init__(self, bundle: Bundle, before: Callable[[], None] = lambda: None, **answers: Any) -> None:
        super().__init__(bundle.manifest, answers)
        self._before = before
        self.runs = 0
        self.is_closed = False

    def infer(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        self.runs += 1
        self._before()
        return super().infer(*inputs)

    def close(self) -> None:
        self.is_closed = True
        super().close()


def judge_on(
    bundle: Bundle, engine: NullEngine, name: str = "null", product: str = "", threads: int | None = None
) -> Judge:
    """Make a detector that runs on an engine of a test."""
    spec = replace(NULL, name=name)
    opened = Opened(engine=engine, spec=spec, precision="fp32", reason="named", threads=threads)
    detector = Detector(bundle, opened)
    return Judge(
        product=product,
        base=detector,
        detector=detector,
        bundle_sha256="0" * 64,
        engine_version="0",
        threshold_version=0,
    )


class Notes:
    """Takes what the loop writes and tells.

    Attributes:
        records: The committed records.
        events: The committed events.
        published: The numbers of the records that were handed over.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.events: list[Event] = []
        self.published: list[int] = []
        self.commits = 0

    def append(self, records: Sequence[Record], events: Sequence[Event]) -> Sequence[Record]:
        self.commits += 1
        first = len(self.records) + 1
        numbered = [msgspec.structs.replace(one, number=first + at) for at, one in enumerate(records)]
        self.records += numbered
        self.events += events
        return numbered

    def publish(self, written: Sequence[tuple[Record, Work]]) -> None:
        self.published += [record.number for record, _ in written]

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def loop_of(
    source: FrameList,
    open_judge: Callable[[ProductSettings, str | None], Judge],
    notes: Notes,
    *,
    engines: Sequence[str | None] = ("first", "second"),
    products: Sequence[ProductSettings] = (ProductSettings(name="", bundle=Path("b")),),
    check: Callable[[Work], str] = lambda work: "",
    test: Callable[[Judge], str] = lambda judge: "",
    clock: Callable[[], float] = time.monotonic,
    working: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext(),
    **settings: Any,
) -> Loop:
    """Make a loop over parts of a test, with open engines."""
    inspect = InspectSettings(bundle=Path("b"), **settings)
    made: list[Loop] = []

    def open_all(products: Sequence[ProductSettings], engine: str | None) -> dict[str, Judge]:
        return {product.name: open_judge(product, engine) for product in products}

    judges = Judges(products, engines, open_all, lambda event: made[0].put_event(event), clock=clock)
    judges.open()
    record = Recorder(Decision(DecisionSettings()), station="s", run="r", deadline_ms=inspect.deadline_ms)
    parts = LoopParts(
        source=source,
        judges=judges,
        check=check,
        record=record,
        stamp=record.stamp,
        append=notes.append,
        test=test,
        tell=lambda event: made[0].put_event(event),
        publish=notes.publish,
        working=working,
    )
    made.append(Loop(parts, inspect, retries_source=False))
    return made[0]
