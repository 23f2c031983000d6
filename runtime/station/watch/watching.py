"""Watch a station: refuse frames that must not be judged, test the engine, and recognise drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.runtime.protocols import Frame
from flowedge.runtime.result import Result
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.watch.drift_keeper import DriftKeeper
from flowedge.runtime.station.watch.engine_test import EngineTest, Tested
from flowedge.runtime.station.watch.frame_gate import FrameGate
from flowedge.runtime.station.watch.settings import WatchSettings


class Watch:
    """Watches the frames, the engines and the scores of a station. Drift raises events and changes no threshold.

    Three threads of the station call it, each one its own methods: `check` before inference, `due`, `test` and
    `problem` where the engine runs, and `seen` after a verdict.
    """

    def __init__(
        self,
        settings: WatchSettings,
        folder: Path,
        bundles: Mapping[str, Bundle],
        *,
        area: Callable[[], str] = str,
    ) -> None:
        """Read the state that an earlier run left.

        Args:
            settings: The settings.
            folder: The station's folder for its state, in which the watch has a folder of its own.
            bundles: The bundle of each product. A station of one product calls it by an empty text.
            area: Gives a name of the area that is judged, empty for whole frames. Scores of an area are not compared
                with those of the calibration, which judged whole frames, and another area begins anew.
        """
        self._settings = settings
        self._bundles = dict(bundles)
        self._gate = FrameGate(settings)
        self._tests = {product: EngineTest(settings.self_test_hours) for product in bundles}
        self._drift = DriftKeeper(settings, folder, self._bundles, area=area)

    def prove(self, detector: Tested) -> tuple[EngineTest, Sequence[Event]]:
        """Run the whole self-test on the engine of a detector that does not judge yet. Any thread may call this.

        Returns:
            The test for `change_bundles`, whose problem is empty where it has passed, and the event of it.
        """
        test = EngineTest(self._settings.self_test_hours)
        return test, test.step(detector)

    def change_bundles(self, bundles: Mapping[str, Bundle], tests: Mapping[str, EngineTest]) -> None:
        """Compare with other bundles of the products from now on. The thread of the engine calls this.

        Args:
            bundles: The bundle of each product.
            tests: The test of each product by `prove`, so that no frame waits for it.
        """
        self._bundles.update(bundles)
        self._tests.update(tests)

    def check(self, frame: Frame, pixels: NDArray[np.uint8], *, product: str = "") -> str:
        """Return the reason why a frame must not be judged, as a clause, or an empty string.

        Each frame of a source is checked once, in the order of capture, after it was prepared.

        Args:
            frame: The frame as its source gave it.
            pixels: ``(H, W, 3)`` uint8, RGB, the pixels that are to be judged.
            product: The product that the frame is judged as.
        """
        return self._gate(frame, pixels, has_ranges=self._bundles[product].manifest.frame_check is not None)

    def due(self, detector: Tested, *, product: str = "") -> bool:
        """Return True where `test` is to be called before the next frame: a test is due, or the engine is another."""
        return self._tests[product].due(detector)

    def test(self, detector: Tested, *, product: str = "") -> Sequence[Event]:
        """Do the next part of the self-test on the engine of a detector.

        The first test of an engine is one call and takes about a dozen inferences. A later test takes one call and one
        inference for each frame of the self-test.

        Returns:
            An event where a test has ended.
        """
        return self._tests[product].step(detector)

    def problem(self, *, product: str = "") -> str:
        """Return the reason why no frame may be inspected, as a clause, or an empty string.

        The reason stays until an engine passes its test. While there is one, `due` is True again after a minute, or at
        once for another engine.
        """
        return self._tests[product].problem

    def seen(
        self, record: Record, pixels: NDArray[np.uint8] | None, result: Result | None = None
    ) -> Sequence[Event]:
        """Take the record of one frame into the test for drift, and return the events of it.

        Args:
            record: The record.
            pixels: ``(H, W, 3)`` uint8, RGB, the pixels that were judged. The value is None where nothing was.
            result: The findings in the frame, which may have its quantities already.
        """
        if pixels is None:
            return ()
        return self._drift.seen(record, pixels, None if result is None else result.frame_quantities)

    def status(self) -> Mapping[str, Any]:
        """Return the state of the watch by product, as JSON's own types, for the page and the metrics.

        Each product has ``self_test`` (the reason why no frame may be inspected, or an empty string) and ``drift``,
        which `flowedge.runtime.station.watch.drift.DriftWatch.status` makes. Without frames ``drift`` is None.
        """
        drift = self._drift.status()
        return {
            product: {"self_test": test.problem, "drift": drift.get(product)}
            for product, test in self._tests.items()
        }

    def close(self) -> None:
        """Write the state."""
        self._drift.close()
