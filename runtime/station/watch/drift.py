"""Watch the scores and the pictures of one bundle for drift, from the first frames on and over restarts."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.frames.frame_check import frame_statistics
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.watch.quantities import (
    QUANTITIES,
    median_and_deviation,
    picture_values,
    spread_of,
    words_for,
)
from flowedge.runtime.station.watch.reference import CALIBRATION, LINE, Reference
from flowedge.runtime.station.watch.sequential import SequentialTest, TestState
from flowedge.runtime.station.watch.settings import WatchSettings
from flowedge.runtime.station.watch.spacing import LARGEST_SPACING, is_independent, largest_autocorrelation

_RECENT: Final = 256  # values that a shift is measured on, at most
_BACK: Final = 64  # values that show that a drift is over
_BACK_EVERY: Final = 32  # values between two looks
_INSPECTED: Final = ("ok", "anomalous", "unknown")
_ACCEPTED: Final = ("ok", "unknown")


class Drifted(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A drift that is not over.

    Attributes:
        direction: The change, one of `flowedge.runtime.station.watch.sequential.DIRECTIONS`.
        since: The time of the first frame after the change, ISO 8601.
        values: The number of values that came since the alarm.
    """

    direction: str
    since: str
    values: int = 0


class Watched(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The state of one watched quantity.

    Attributes:
        reference: The origin of the reference, ``calibration`` or ``line``.
        median: The median of the reference.
        spread: The spread of the reference, see `flowedge.runtime.station.watch.quantities.spread_of`.
        test: The state of the test.
        recent: The newest values, the oldest first.
        drifted: The drift that is not over.
    """

    reference: str
    median: float
    spread: Annotated[float, msgspec.Meta(gt=0)]
    test: TestState
    recent: list[float] = []
    drifted: Drifted | None = None


class DriftState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The state of the watch of one bundle, which outlives a restart.

    Attributes:
        basis: The bundle, the threshold and the settings that the state belongs to. Another basis begins anew.
        compare_with: The wanted reference, ``calibration`` or ``line``.
        spacing: Each n-th inspected frame is watched.
        inspected: The number of inspected frames.
        learned: The watched frames while the station learns: the time, the score and the quantities of the picture.
        autocorrelation: The largest correlation of neighbouring values when the spacing was found.
        watched: The quantities by name. The mapping is empty while the station learns.
    """

    basis: str
    compare_with: Literal["calibration", "line"]
    spacing: Annotated[int, msgspec.Meta(ge=1)]
    inspected: int = 0
    learned: list[tuple[str, list[float]]] = []
    autocorrelation: float = 0.0
    watched: dict[str, Watched] = {}

    def __post_init__(self) -> None:
        """Check that the quantities are those of this version.

        Raises:
            ValueError: The quantities are those of another version.
        """
        if (self.watched and tuple(self.watched) != QUANTITIES) or any(
            len(values) != len(QUANTITIES) for _, values in self.learned
        ):
            raise ValueError("the quantities are those of another version")


class DriftWatch:
    """Watches one bundle on one station. One thread calls it.

    Attributes:
        state: The whole state, which each frame changes.
    """

    def __init__(
        self,
        settings: WatchSettings,
        reference: Reference,
        *,
        basis: str = "",
        product: str = "",
        state: DriftState | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Go on from a state, or begin anew.

        Args:
            settings: The settings.
            reference: The values of the calibration.
            basis: The bundle and the settings in words.
            product: The product, for the events.
            state: The state that an earlier run left.
            rng: The random numbers of the tests.
        """
        self._settings = settings
        self._reference = reference
        self._product = product
        self._rng = rng or random.Random()
        self.state = state or DriftState(basis=basis, compare_with=settings.reference, spacing=settings.every)
        self._limit = float(settings.frames_per_false_alarm) * len(QUANTITIES)
        self._tests = {name: SequentialTest(one.test, self._rng) for name, one in self.state.watched.items()}

    def learn_anew(self) -> None:
        """Take the next frames as the new reference, because a person found them good."""
        self._tests = {}
        self.state = DriftState(basis=self.state.basis, compare_with=LINE, spacing=self._settings.every)

    def seen(
        self,
        record: Record,
        pixels: NDArray[np.uint8],
        quantities: NDArray[np.float64] | None = None,
    ) -> Sequence[Event]:
        """Take the next frame, and return the events of it.

        Args:
            record: The record of the frame.
            pixels: ``(H, W, 3)`` uint8, RGB.
            quantities: The quantities of the frame, where they were measured already.
        """
        is_accepted = record.verdict in _ACCEPTED and record.score is not None
        if record.verdict not in _INSPECTED or not (self._tests or is_accepted) or not self.is_next_watched():
            return ()
        score = record.score if is_accepted and record.score is not None else math.nan
        values = [
            score,
            *picture_values(frame_statistics(pixels) if quantities is None else quantities).tolist(),
        ]
        return self.take(record.time.isoformat(timespec="seconds"), values)

    def is_next_watched(self) -> bool:
        """Count an inspected frame, and return True where the spacing lets it be watched."""
        self.state.inspected += 1
        return self.state.inspected % self.state.spacing == 0

    def take(self, when: str, values: Sequence[float]) -> Sequence[Event]:
        """Take the values of a watched frame, and return the events of it.

        Args:
            when: The time of the frame, ISO 8601.
            values: A value for each name of ``QUANTITIES``. A value that is NaN is left out. A frame without a score is
                not taken while the station learns.
        """
        if self._tests:
            return tuple(self._events(when, values))
        if not all(map(math.isfinite, values)):
            return ()
        self.state.learned.append((when, list(values)))
        return tuple(self._learn()) if len(self.state.learned) >= self._settings.learn else ()

    def _learn(self) -> Iterator[Event]:
        """Double the spacing while neighbouring values depend on each other, then begin to test."""
        state = self.state
        rows = np.array([values for _, values in state.learned])
        state.autocorrelation = round(largest_autocorrelation(rows), 3)
        if not is_independent(rows) and state.spacing < LARGEST_SPACING * self._settings.every:
            state.spacing *= 2
            state.learned = state.learned[1::2]
            return
        origins = {name: self._watch(name, rows[:, place]) for place, name in enumerate(QUANTITIES)}
        learned, state.learned = state.learned, []
        by_calibration = [name for name, origin in origins.items() if origin == CALIBRATION]
        yield Event(
            kind="watch_learned",
            level="info" if is_independent(rows) else "warning",
            text=self._learned_text(by_calibration, dependent=not is_independent(rows)),
            data={
                "product": self._product,
                "spacing": state.spacing,
                "autocorrelation": state.autocorrelation,
                "references": origins,
            },
        )
        for when, values in learned:
            yield from self._events(when, values, only=by_calibration)

    def _watch(self, name: str, learned: NDArray[np.float64]) -> str:
        """Begin to watch a quantity, and return the origin of its reference."""
        values, origin = np.asarray(self._reference.values.get(name, ()), float), CALIBRATION
        if self.state.compare_with == LINE or not len(values):
            values, origin = learned, LINE
        test = SequentialTest.against(values, self._rng)
        self._tests[name] = test
        self.state.watched[name] = Watched(
            reference=origin, median=float(np.median(values)), spread=spread_of(name, values), test=test.state
        )
        return origin

    def _learned_text(self, by_calibration: Sequence[str], *, dependent: bool) -> str:
        state = self.state
        origin = "the calibration" if by_calibration else f"the first {self._settings.learn} watched frames"
        which = "each" if state.spacing == 1 else f"one in {state.spacing}"
        text = f"{which} of the inspected frames is watched for drift and compared with {origin}"
        if by_calibration and len(by_calibration) < len(QUANTITIES):
            others = [name for name in QUANTITIES if name not in by_calibration]
            text += f" ({', '.join(others)}: with the first frames, as the bundle has no values that fit)"
        if state.compare_with == CALIBRATION and self._reference.problem:
            text += f": {self._reference.problem}"
        if dependent:
            text += (
                f". Neighbouring values still have the correlation {state.autocorrelation:.2f}, so false alarms may be "
                "more frequent than the settings say"
            )
        return text

    def _events(
        self, when: str, values: Sequence[float], only: Sequence[str] = QUANTITIES
    ) -> Iterator[Event]:
        for name, value in zip(QUANTITIES, values, strict=True):
            if name in only and math.isfinite(value):
                event = self._event(name, when, value)
                if event is not None:
                    yield event

    def _event(self, name: str, when: str, value: float) -> Event | None:
        watched = self.state.watched[name]
        watched.recent.append(value)
        del watched.recent[:-_RECENT]
        if watched.drifted is not None:
            return self._over(name, watched, watched.drifted)
        test = self._tests[name]
        test.add(value, when)
        if test.evidence < self._limit:
            return None
        found = test.found()
        since = watched.recent[-found.values :]
        direction = self._direction(watched, since)
        if not direction:
            return None
        evidence = test.evidence
        test.forget()
        watched.drifted = Drifted(direction=direction, since=found.label)
        facts = self._facts(name, watched, since)
        return Event(
            kind="drift",
            level="alarm",
            text=f"{words_for(name)} is {direction} than in {_ORIGINS[watched.reference]}: {facts['value']:.4g} "
            f"instead of {facts['reference']:.4g} ({facts['shift_sd']:+.1f} standard deviations, scatter "
            f"{facts['scatter']:.1f} times) since {found.label}, over {found.values} watched frames",
            data={
                **facts,
                "direction": direction,
                "since": found.label,
                "watched_frames": found.values,
                "evidence_log10": round(math.log10(evidence), 2),
                "limit_log10": round(math.log10(self._limit), 2),
                "autocorrelation": self.state.autocorrelation,
            },
        )

    def _direction(self, watched: Watched, since: Sequence[float]) -> str:
        """Return the direction of a change that is large enough for an alarm, or an empty string."""
        shift, scatter = _shift_and_scatter(watched, since)
        if abs(shift) >= self._settings.smallest_shift:
            return "higher" if shift > 0 else "lower"
        return "more scattered" if scatter - 1 >= self._settings.smallest_shift else ""

    def _over(self, name: str, watched: Watched, drifted: Drifted) -> Event | None:
        """Look now and then if a drift is over, by half of the shift that raises an alarm."""
        drifted.values += 1
        if drifted.values < _BACK or drifted.values % _BACK_EVERY:
            return None
        newest = watched.recent[-_BACK:]
        shift, scatter = _shift_and_scatter(watched, newest)
        half = self._settings.smallest_shift / 2
        if abs(shift) > half or scatter - 1 > half:
            return None
        watched.drifted = None
        return Event(
            kind="drift_over",
            text=f"{words_for(name)} is again as in {_ORIGINS[watched.reference]}, after a drift since {drifted.since}",
            data={**self._facts(name, watched, newest), "since": drifted.since},
        )

    def _facts(self, name: str, watched: Watched, values: Sequence[float]) -> dict[str, Any]:
        shift, scatter = _shift_and_scatter(watched, values)
        return {
            "product": self._product,
            "quantity": name,
            "compared_with": watched.reference,
            "reference": watched.median,
            "spread": watched.spread,
            "value": float(np.median(values)),
            "shift_sd": round(shift, 3),
            "scatter": round(scatter, 3),
            "spacing": self.state.spacing,
        }

    def status(self) -> Mapping[str, Any]:
        """Return the state for the page and the metrics, as JSON's own types."""
        state = self.state
        return {
            "phase": "watching" if state.watched else "learning",
            "learned": self._settings.learn if state.watched else len(state.learned),
            "learn": self._settings.learn,
            "inspected": state.inspected,
            "spacing": state.spacing,
            "autocorrelation": state.autocorrelation,
            "limit_log10": round(math.log10(self._limit), 2),
            "quantities": [
                {
                    **self._facts(name, one, one.recent[-_BACK:] or [one.median]),
                    "watched_frames": one.test.values,
                    "evidence_log10": round(math.log10(max(self._tests[name].evidence, 1e-9)), 2),
                    "drifted": None if one.drifted is None else msgspec.to_builtins(one.drifted),
                }
                for name, one in state.watched.items()
            ],
        }


_ORIGINS: Final = {CALIBRATION: "the calibration", LINE: "the first frames of this station"}


def _shift_and_scatter(watched: Watched, values: Sequence[float]) -> tuple[float, float]:
    """Return the shift of the median in spreads, and the spread of values over that of the reference."""
    median, deviation = median_and_deviation(values)
    return (median - watched.median) / watched.spread, deviation / watched.spread
