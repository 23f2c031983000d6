"""Judge a soak: nothing lost, repeats only with their id, order kept, memory flat."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from soak.receiver import Received


@dataclass(frozen=True)
class Check:
    """One promise of the station, and whether a run has kept it.

    Attributes:
        name: The promise in words.
        kept: True where it was kept.
        detail: The numbers behind it.
    """

    name: str
    kept: bool
    detail: str


class Slope(NamedTuple):
    """A straight line through samples of memory, by least squares.

    Attributes:
        mb_per_minute: The slope.
        error: The standard error of the slope, as if the samples were independent.
        growth_mb: The growth of the line over the samples' time.
        mean_mb: The mean of the samples.
        minutes: The time of the samples.
    """

    mb_per_minute: float
    error: float
    growth_mb: float
    mean_mb: float
    minutes: float


WARM_UP_S = 60.0
"""The first seconds of a process, in which its buffers fill and each library works for the first time."""

_MOST_GROWTH_MB = 16.0
_SHORT_MINUTES = 3.0  # a shorter time shows no slope of some MB a minute beside the pictures that come and go
_MOST_GROWTH_OF_A_SHORT_RUN = 0.30
_FEWEST_SAMPLES = 10


def check_journal(records: Sequence[Received]) -> list[Check]:
    """Check that a journal has every number from its first to its last, and no id twice."""
    numbers = [record.number for record in records]
    wanted = list(range(numbers[0], numbers[0] + len(numbers))) if numbers else []
    ids = {record.id for record in records}
    return [
        Check(
            "the journal has each number once, in order",
            bool(numbers) and numbers == wanted,
            f"{len(numbers)} records",
        ),
        Check("no two records have one id", len(ids) == len(records), f"{len(ids)} ids"),
    ]


def check_receiver(name: str, journal: Sequence[Received], arrived: Sequence[Received]) -> list[Check]:
    """Check what a receiver got against the journal.

    Args:
        name: The name of the receiver.
        journal: The records of the journal in order.
        arrived: The verdicts as they arrived.
    """
    first: dict[str, Received] = {}
    repeats = changed = 0
    for one in arrived:
        if one.id in first:
            repeats += 1
            changed += one.digest != first[one.id].digest
        else:
            first[one.id] = one
    known = {record.id for record in journal}
    lost = sum(record.id not in first for record in journal)
    ghosts = sum(one not in known for one in first)
    order = [one.number for one in first.values()]
    swapped = sum(later <= earlier for earlier, later in itertools.pairwise(order))
    return [
        Check(f"{name} lost no verdict", lost == 0, f"{lost} of {len(journal)} lost"),
        Check(f"{name} got no verdict that the journal has not", ghosts == 0, f"{ghosts} unknown"),
        Check(f"{name} got the verdicts in order", swapped == 0, f"{swapped} out of order"),
        Check(
            f"{name} got repeats with their id alone", changed == 0, f"{repeats} repeats, {changed} differ"
        ),
    ]


def check_frames(wanted: int, judged: Iterable[str]) -> Check:
    """Check that each frame of a video file was judged once, in order.

    Args:
        wanted: The number of frames of the file.
        judged: The ids of the frames in the order of the journal, such as ``video.mp4#12``.
    """
    numbers = [int(one.rpartition("#")[2]) for one in judged]
    twice = len(numbers) - len(set(numbers))
    missing = len(set(range(1, wanted + 1)) - set(numbers))
    return Check(
        "each frame of the video file was judged once, in order",
        numbers == list(range(1, wanted + 1)),
        f"{len(numbers)} of {wanted} frames, {missing} missing, {twice} twice",
    )


def slope_of(samples: Sequence[tuple[float, int]], warm_up_s: float) -> Slope | None:
    """Fit a line through the memory of a process after its warm-up.

    Args:
        samples: The seconds since the start, and the resident bytes.
        warm_up_s: The time that is left out.

    Returns:
        The line, or None where there are too few samples.
    """
    kept = np.array([(time / 60, size / 1e6) for time, size in samples if time >= warm_up_s])
    if len(kept) < _FEWEST_SAMPLES:
        return None
    minutes, megabytes = kept.T
    (slope, _), covariance = np.polyfit(minutes, megabytes, 1, cov=True)
    return Slope(
        mb_per_minute=float(slope),
        error=math.sqrt(covariance[0, 0]),
        growth_mb=float(slope * (minutes[-1] - minutes[0])),
        mean_mb=float(megabytes.mean()),
        minutes=float(minutes[-1] - minutes[0]),
    )


def check_memory(slope: Slope | None) -> Check:
    """Check the memory of the process that lived longest.

    After its warm-up the process may grow by 16 MB while everything around it breaks. A run that leaves less than three
    minutes after the warm-up cannot show that. Such a run only checks that the frames are not all kept.
    """
    is_short = slope is not None and slope.minutes < _SHORT_MINUTES
    name = "the memory of a short run grows by less than 30 %" if is_short else "the memory is flat"
    if slope is None:
        return Check(name, False, "no process lived long enough")
    most = _MOST_GROWTH_OF_A_SHORT_RUN * slope.mean_mb if is_short else _MOST_GROWTH_MB
    return Check(
        name,
        slope.growth_mb <= most,
        f"{slope.growth_mb:+.1f} MB in {slope.minutes:.1f} min at {slope.mean_mb:.0f} MB, which is "
        f"{slope.mb_per_minute:+.2f} ± {slope.error:.2f} MB/min",
    )
