"""Fit the ranges of plain statistics that frames of good parts have, with a stated rate of good frames outside.

Many quantities are compared at once, so one limit is fitted for all of them together. Each quantity is transformed so
that factors become sums (a mean and a share by their log odds, the others by their logarithm). A frame's deviation in
one quantity is its distance from the median of the good frames, in units of the mean of the largest twentieth of these
distances on that side. A frame's deviation is its largest over all quantities. The ranges hold every frame whose
deviation is below one limit, so the rate belongs to the whole family of comparisons, however they depend on each
other. The deviation of each good frame is measured against the other frames only, in up to 20 folds.

The limit is extrapolated, because N frames alone show no rate below 1 / (N + 1). The k largest deviations are taken to
fall off exponentially above the next largest one, ``u``. With ``b`` as their mean excess, a new frame's deviation is
above ``u + x`` with probability ``(k + 1) / (N + 1) * (1 + x / (k b)) ** -k``: the excess of a new value over the mean
of k exponential ones has an F distribution of 2 and 2 k degrees of freedom. This counts the uncertainty of ``b`` in,
which widens the ranges where the frames are few.

Two bounds are prior knowledge. A range is never narrower than a tolerance, so that steady pictures do not make the
check brittle, and a defect in a steady picture stays within it. A range never reaches farther than a factor beyond the
extremes of the good frames, so that few frames do not make the check blind. A frame that is that far from all others is
left out of the fit, and named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import CalibrationError
from flowedge.frame_quantities import DEFAULT_FRAME_RATE, FRAME_QUANTITIES, LARGEST_QUANTITY
from flowedge.manifest import FrameCheck, FrameRange
from flowedge.runtime.frames.frame_check import FrameChecker

FEWEST_FRAMES: Final = 8
"""Frames that ranges are fitted on, at least."""

Array: TypeAlias = NDArray[np.float64]

_FOLDS: Final = 20
_EXTREME_SHARE: Final = 0.05  # of the frames, whose mean deviation is a quantity's scale
_TAIL_SHARE: Final = 0.2  # of the frames, whose excess the tail is fitted on
_TAIL: Final = (3, 10)  # frames of the tail, at least and at most
_NAMED: Final = 5  # frames in one note


class FittedFrameCheck(NamedTuple):
    """The ranges, which are None where there are too few frames, and notes on frames that are outside."""

    check: FrameCheck | None
    notes: tuple[str, ...]


class _Tolerance(NamedTuple):
    """Gives the least distance from the median to one end of a range.

    The distance is the sum of ``fixed``, in the quantity's unit, and of ``share`` times the median.
    """

    fixed: float
    share: float = 0.0

    def at(self, centre: float) -> float:
        return self.fixed + self.share * centre


class _Kind(NamedTuple):
    """Defines the rule by which quantities of one kind are compared.

    Attributes:
        offset: The number added to the value (and to its complement) before the logarithm, in the quantity's unit.
        largest: The largest possible value where the quantity is compared by its log odds, else None.
        below: The tolerance of smaller values.
        above: The tolerance of larger values.
        widest: The factor by which a range may go beyond the good frames' extremes. The number is a factor of the odds
            where the quantity is compared by its log odds.
    """

    offset: float
    largest: float | None
    below: _Tolerance
    above: _Tolerance
    widest: float

    def transformed(self, value: Array) -> Array:
        if self.largest is None:
            return np.log(value + self.offset)
        return np.log((value + self.offset) / (self.largest + self.offset - value))

    def restored(self, value: Array) -> Array:
        if self.largest is None:
            return np.exp(value) - self.offset
        share = 1 / (1 + np.exp(-value))
        return share * (self.largest + 2 * self.offset) - self.offset


# A defect changes one cell and raises its contrast. So the tolerances of cells let pass any change that a defect makes.
_KINDS: Final = {
    "mean": _Kind(4.0, 255.0, _Tolerance(3.0, 0.15), _Tolerance(3.0, 0.15), 10.0),
    "contrast": _Kind(2.0, None, _Tolerance(2.0, 0.2), _Tolerance(15.0, 0.3), 4.0),
    "detail": _Kind(0.5, None, _Tolerance(0.5, 0.3), _Tolerance(15.0, 1.0), 3.0),
    "sharpness": _Kind(0.0, None, _Tolerance(0.0, 0.2), _Tolerance(0.0, 0.2), 1.4),
    "share": _Kind(0.02, 1.0, _Tolerance(0.25), _Tolerance(0.25), 4.0),
    "colour": _Kind(4.0, None, _Tolerance(15.0, 0.2), _Tolerance(15.0, 0.2), 4.0),
    "cell mean": _Kind(4.0, 255.0, _Tolerance(10.0, 0.4), _Tolerance(10.0, 0.4), 10.0),
    "cell contrast": _Kind(2.0, None, _Tolerance(2.0, 0.5), _Tolerance(60.0), 4.0),
}


def check_frame_rate(rate: float) -> None:
    """Refuse a rate of good frames outside that is not between 0 and 1.

    Raises:
        CalibrationError: The rate is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise CalibrationError(f"the rate of good frames outside must lie between 0 and 1, got {rate}.")


def fit_frame_check(
    statistics: Array, *, rate: float = DEFAULT_FRAME_RATE, names: Sequence[str] | None = None
) -> FittedFrameCheck:
    """Fit the ranges of good frames.

    Args:
        statistics: ``(N, Q)`` float64, a row per frame as `frame_statistics` gives it.
        rate: The expected share of good frames outside of any range, between 0 and 1. Near-copies among the frames,
            such as neighbours of one video, make the true share larger.
        names: ``(N,)``, the names of the frames for notes. By default a note gives the index.

    Returns:
        The ranges, or None for fewer than ``FEWEST_FRAMES`` frames. The notes name good frames that are outside.

    Raises:
        CalibrationError: The rate is not between 0 and 1.
    """
    check_frame_rate(rate)
    frames = len(statistics)
    if frames < FEWEST_FRAMES:
        note = (
            f"no ranges of plain statistics: they need {FEWEST_FRAMES} good images, got {frames}. A dark or unsharp "
            "frame will not be recognised."
        )
        return FittedFrameCheck(None, (note,))
    values = np.column_stack(
        [kind.transformed(column) for kind, column in zip(_kinds(), statistics.T, strict=True)]
    )
    floors = _tolerances(statistics)
    widest = np.log([kind.widest for kind in _kinds()])
    values = values[_plausible(values, floors, widest)]
    deviations = _cross_fitted(values, floors)
    limit = _extrapolated_limit(np.sort(deviations), rate)
    spread = _Spread(values, floors)
    low = np.maximum(spread.centre - limit * spread.below, values.min(axis=0) - widest)
    high = np.minimum(spread.centre + limit * spread.above, values.max(axis=0) + widest)
    low = np.minimum(low, spread.centre - floors[0])
    high = np.maximum(high, spread.centre + floors[1])
    check = FrameCheck(
        rate=rate,
        images=len(values),
        ranges=tuple(_natural_ranges(zip(FRAME_QUANTITIES, low, high, strict=True))),
    )
    return FittedFrameCheck(check, _notes(check, statistics, names))


class _Spread:
    """The centre of each quantity and its scale on either side, all in transformed units."""

    def __init__(self, values: Array, floors: tuple[Array, Array]) -> None:
        """Compute them from ``(N, Q)`` values. No scale is below half of its floor, ``(Q,)`` on either side."""
        extremes = math.ceil(_EXTREME_SHARE * len(values))
        self.centre = np.median(values, axis=0)
        ordered = np.sort(values - self.centre, axis=0)
        self.below = np.maximum(np.maximum(-ordered[:extremes], 0).mean(axis=0), floors[0] / 2)
        self.above = np.maximum(np.maximum(ordered[-extremes:], 0).mean(axis=0), floors[1] / 2)

    def deviations(self, values: Array) -> Array:
        """Return each frame's largest deviation: ``(N, Q)`` to ``(N,)``."""
        distance = values - self.centre
        return np.asarray(np.maximum(distance / self.above, -distance / self.below).max(axis=1))


def _cross_fitted(values: Array, floors: tuple[Array, Array]) -> Array:
    """Return each frame's deviation, measured against the frames of the other folds: ``(N, Q)`` to ``(N,)``."""
    deviations = np.empty(len(values))
    folds = np.arange(len(values)) % min(len(values), _FOLDS)
    for fold in range(folds.max() + 1):
        out = folds == fold
        deviations[out] = _Spread(values[~out], floors).deviations(values[out])
    return deviations


def _plausible(values: Array, floors: tuple[Array, Array], widest: Array) -> NDArray[np.bool_]:
    """Tell good frames from those that are among them by mistake: ``(N, Q)`` to ``(N,)``.

    Only the twentieth of the frames with the largest deviations is doubted. Such a frame is left out of the fit where
    it is farther from all other frames than any range may reach. One dark frame would otherwise open the ranges for
    every dark frame.
    """
    suspects = np.argsort(_cross_fitted(values, floors))[-math.ceil(_EXTREME_SHARE * len(values)) :]
    others = np.delete(values, suspects, axis=0)
    low = others.min(axis=0) - np.maximum(widest, floors[0])
    high = others.max(axis=0) + np.maximum(widest, floors[1])
    plausible = np.ones(len(values), np.bool_)
    plausible[suspects] = ((values[suspects] >= low) & (values[suspects] <= high)).all(axis=1)
    return plausible


def _extrapolated_limit(deviations: Array, rate: float) -> float:
    """Return the limit that a new deviation exceeds with the given probability, as the module explains.

    Args:
        deviations: ``(N,)``, ascending.
        rate: A probability.
    """
    count = len(deviations)
    tail = min(max(_TAIL[0], math.ceil(_TAIL_SHARE * count)), _TAIL[1], count - 1)
    if rate * (count + 1) > tail:  # the frames alone show it
        return float(deviations[count - int(rate * (count + 1))])
    start = float(deviations[-tail - 1])
    mean_excess = float((deviations[-tail:] - start).mean())
    growth = float(((tail + 1) / ((count + 1) * rate)) ** (1 / tail)) - 1
    return start + tail * mean_excess * max(growth, 0.0)


def _kinds() -> list[_Kind]:
    """Return the kind of each quantity of ``FRAME_QUANTITIES``."""
    words = [name.split() for name in FRAME_QUANTITIES]
    return [
        _KINDS[f"cell {last}" if first == "cell" else last]
        for first, last in ((one[0], one[-1]) for one in words)
    ]


def _tolerances(statistics: Array) -> tuple[Array, Array]:
    """Return the least distances from the centre to the ends of the ranges, in transformed units: below and above."""
    below, above = [], []
    for kind, centre in zip(_kinds(), np.median(statistics, axis=0), strict=True):
        largest = LARGEST_QUANTITY if kind.largest is None else kind.largest
        ends = np.array(
            [max(centre - kind.below.at(centre), 0.0), centre, min(centre + kind.above.at(centre), largest)]
        )
        low, middle, high = kind.transformed(ends)
        # At an end of the scale there is nothing beyond, and the range needs a width all the same.
        widest = max(middle - low, high - middle)
        below.append(middle - low if ends[0] > 0 else widest)
        above.append(high - middle if ends[2] < largest else widest)
    return np.array(below), np.array(above)


def _natural_ranges(transformed: Iterable[tuple[str, float, float]]) -> Iterable[FrameRange]:
    """Give the ranges in the quantities' units, cut to the values that there are."""
    for (name, low, high), kind in zip(transformed, _kinds(), strict=True):
        largest = LARGEST_QUANTITY if kind.largest is None else kind.largest
        with np.errstate(over="ignore"):
            ends = np.clip(kind.restored(np.array([low, high])), 0.0, largest)
        yield FrameRange(quantity=name, low=float(ends[0]), high=float(ends[1]))


def _notes(check: FrameCheck, statistics: Array, names: Sequence[str] | None) -> tuple[str, ...]:
    checker = FrameChecker(check)
    problems = {n: problem for n, row in enumerate(statistics) if (problem := checker.problem(row))}
    notes = [
        f"{f'image {n}' if names is None else names[n]}: {problem}. Look at it: is it a good frame?"
        for n, problem in list(problems.items())[:_NAMED]
    ]
    if len(problems) > _NAMED:
        notes.append(f"and {len(problems) - _NAMED} more of the {check.images} good images are outside.")
    return tuple(notes)
