"""Judge a soak: nothing lost, repeats only with their id, order kept, memory flat."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


_MOST_GROWTH_MB = 16.0
_SHORT_S = 180.0  # a shorter time shows no leak of some MB a minute beside the pictures that come and go
_MOST_GROWTH_OF_A_SHORT_RUN = 0.30


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


def level_between(samples: Sequence[tuple[float, int]], begin: float, end: float) -> float | None:
    """Return the median of a process's memory in MB over a quiet time.

    Args:
        samples: The seconds since the start of the process, and the resident bytes.
        begin: The second at which the quiet time begins.
        end: The second at which it ends.

    Returns:
        The median, or None where no sample is in that time.
    """
    sizes = [size / 1e6 for time, size in samples if begin <= time <= end]
    return statistics.median(sizes) if sizes else None


def check_memory(levels: Sequence[float | None], seconds: float) -> Check:
    """Check that a process needs no more memory after a round of faults than after the same round before it.

    The first round may need more than quiet running does, since the buffers for a backlog fill then for the first time.
    A leak would make each round need more than the one before. A run in which three minutes or less lie between the
    rounds cannot show that. Such a run only checks that the frames are not all kept.

    Args:
        levels: The memory in MB after each round, or None where nothing was measured.
        seconds: The time between the rounds.
    """
    is_short = seconds < _SHORT_S
    name = "the memory of a short run grows by less than 30 %" if is_short else "the memory is flat"
    known = [level for level in levels if level is not None]
    if len(known) < len(levels) or len(levels) < 2:
        return Check(name, False, "no process lived through two rounds of faults")
    most = _MOST_GROWTH_OF_A_SHORT_RUN * known[0] if is_short else _MOST_GROWTH_MB
    growth = max(known[1:]) - known[0]
    rounds = ", then ".join(f"{level:.0f} MB" for level in known)
    return Check(
        name, growth <= most, f"{rounds}, with {seconds:.0f} s from round to round ({growth:+.1f} MB)"
    )
