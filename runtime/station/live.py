"""Hand the newest results, the counters and the states of the parts from the line to those who watch it."""

from __future__ import annotations

import threading
import time
from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from flowedge.clock import utc_now
from flowedge.runtime.result import Result
from flowedge.runtime.station.record import Record

BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""The upper limits in seconds of the histogram of a stage's times. One more bucket is open."""

_RECENT_TIMES: Final = 1000
_MOST_STAGES: Final = 16
_MOST_RESULTS: Final = 24
_RESULT_BYTES: Final = 32 << 20
_RATE_SECONDS: Final = 60

Health: TypeAlias = Literal["ok", "warning", "down"]
"""``warning``: the part works, and a person should look at it. ``down``: the part does not do its work."""

Kind: TypeAlias = Literal[
    "source", "engine", "journal", "sink", "disk", "self_test", "drift", "archive", "rollout"
]
"""The kind of a part, by which the page puts parts together."""


class PartState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one part of a station, such as its source or one of its sinks.

    Attributes:
        name: The name of the part, unique in the station, such as ``source`` or ``mqtt``.
        kind: The kind of the part.
        state: The state.
        text: The reason of the state, in words.
        since: The time in UTC, by ISO 8601, at which the part came into this state.
        value: A number that describes the part, such as the free bytes of a disk or a drift statistic.
        limit: The limit of ``value``.
        unit: The unit of ``value`` and ``limit``.
        is_needed: True where the station can judge nothing while the part is down.
    """

    name: str
    kind: Kind
    state: Health
    text: str = ""
    since: str = ""
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    is_needed: bool = False


class Seen(NamedTuple):
    """A record with the result that its pictures are drawn from.

    Attributes:
        record: The record, which has its number.
        result: The result. The value is None for a frame that could not be judged at all.
        at: The monotonic time in seconds at which the station published the record.
    """

    record: Record
    result: Result | None
    at: float


class Rates(NamedTuple):
    """The numbers of the last minute, or of the time since the start where that is shorter.

    Attributes:
        seconds: The length of the time.
        records: The number of records.
        nok: The number of records whose signal was ``nok``.
        dropped: The number of frames that the source or a queue dropped.
    """

    seconds: float
    records: int
    nok: int
    dropped: int


class Counts(NamedTuple):
    """The numbers since the start of the process.

    Attributes:
        records: The number of records by verdict and signal.
        dropped: The number of frames that the source or a queue dropped.
        late: The number of verdicts that missed their deadline.
    """

    records: Mapping[tuple[str, str], int]
    dropped: int
    late: int

    @property
    def total(self) -> int:
        """The number of all records."""
        return sum(self.records.values())

    def of_signal(self, signal: str) -> int:
        """Return the number of records with a signal, ``ok`` or ``nok``."""
        return sum(count for (_, one), count in self.records.items() if one == signal)


class StageTimes(NamedTuple):
    """The times of one stage.

    Attributes:
        buckets: The number of times in each of ``BUCKETS_S``, and last the number above all of them.
        seconds: The sum of all times in seconds.
        recent_ms: The newest times in ms, at most a thousand, in no order.
    """

    buckets: tuple[int, ...]
    seconds: float
    recent_ms: tuple[float, ...]

    def quantile_ms(self, share: float) -> float:
        """Return the time in ms that a share of the newest times does not exceed.

        Args:
            share: The share, 0 to 1.
        """
        times = sorted(self.recent_ms)
        return times[min(len(times) - 1, int(share * len(times)))] if times else 0.0


class Live:
    """The newest results, counters and states of a station, which any thread may write and read.

    Nothing in this class waits: a writer holds a lock for some microseconds. Results are kept by reference up to a
    number of bytes, and a picture is drawn only by a reader.
    """

    def __init__(
        self, *, result_bytes: int = _RESULT_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with nothing published.

        Args:
            result_bytes: The bytes of pictures and maps that are kept of the newest results, and as many of the newest
                results whose signal was ``nok``. The newest result is kept whatever its size.
            clock: The monotonic clock in seconds.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._started = clock()
        self._recent = _Kept(result_bytes)
        self._rejected = _Kept(result_bytes)
        self._records: Counter[tuple[str, str]] = Counter()
        self._dropped = self._late = 0
        self._stages: dict[str, _Stage] = {}
        self._minute: deque[list[int]] = deque()
        self._parts: dict[str, PartState] = {}
        self._beat: float | None = None

    def publish(self, record: Record, result: Result | None) -> None:
        """Take a record that the journal has committed.

        Args:
            record: The record.
            result: The result of its frame. The value is None for a frame that could not be judged at all.
        """
        now = self._clock()
        seen = Seen(record, result, now)
        is_nok = record.signal != "ok"
        with self._lock:
            self._recent.add(seen)
            if is_nok:
                self._rejected.add(seen)
            self._records[record.verdict, record.signal] += 1
            self._dropped += record.dropped_before
            self._late += record.late
            for name, milliseconds in record.stages_ms.items():
                if name in self._stages or len(self._stages) < _MOST_STAGES:
                    self._stages.setdefault(name, _Stage()).add(milliseconds)
            second = int(now)
            if not self._minute or self._minute[-1][0] != second:
                self._minute.append([second, 0, 0, 0])
                while self._minute[0][0] <= second - _RATE_SECONDS:
                    self._minute.popleft()
            for place, amount in enumerate((1, int(is_nok), record.dropped_before), 1):
                self._minute[-1][place] += amount

    def tell(
        self,
        name: str,
        state: Health,
        text: str = "",
        *,
        kind: Kind,
        value: float | None = None,
        limit: float | None = None,
        unit: str = "",
        is_needed: bool = False,
    ) -> None:
        """Set the state of a part. `PartState` describes the arguments."""
        with self._lock:
            before = self._parts.get(name)
            is_new = before is None or before.state != state
            since = utc_now().isoformat() if before is None or is_new else before.since
            self._parts[name] = PartState(
                name=name,
                kind=kind,
                state=state,
                text=text,
                since=since,
                value=value,
                limit=limit,
                unit=unit,
                is_needed=is_needed,
            )

    def beat(self) -> None:
        """Record that the station's loop is alive. The loop calls this at least every few seconds, also when idle."""
        self._beat = self._clock()

    @property
    def beat_age_s(self) -> float | None:
        """The seconds since the last `beat`. The value is None before the first one."""
        beat = self._beat
        return None if beat is None else max(0.0, self._clock() - beat)

    @property
    def newest(self) -> Seen | None:
        """The newest record with its result. The value is None before the first record."""
        with self._lock:
            return self._recent.newest

    def seen(self, number: int) -> Seen | None:
        """Return the record with this number, if its result is still kept."""
        with self._lock:
            return self._recent.find(number) or self._rejected.find(number)

    def age_s(self, seen: Seen) -> float:
        """Return the seconds since a record was published."""
        return max(0.0, self._clock() - seen.at)

    @property
    def uptime_s(self) -> float:
        """The seconds since the start."""
        return self._clock() - self._started

    @property
    def counts(self) -> Counts:
        """The numbers since the start."""
        with self._lock:
            return Counts(dict(self._records), self._dropped, self._late)

    @property
    def rates(self) -> Rates:
        """The numbers of the last minute."""
        now = self._clock()
        with self._lock:
            inside = [one for one in self._minute if one[0] > now - _RATE_SECONDS]
        seconds = min(float(_RATE_SECONDS), max(1.0, now - self._started))
        return Rates(seconds, *(sum(one[place] for one in inside) for place in (1, 2, 3)))

    @property
    def stages(self) -> dict[str, StageTimes]:
        """The times of each stage, in the order in which the stages first came."""
        with self._lock:
            return {name: stage.times() for name, stage in self._stages.items()}

    @property
    def parts(self) -> tuple[PartState, ...]:
        """The states of all parts, in the order in which the parts first came."""
        with self._lock:
            return tuple(self._parts.values())


class _Kept:
    """Some of the newest results, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: deque[tuple[Seen, int]] = deque()

    @property
    def newest(self) -> Seen | None:
        return self._kept[-1][0] if self._kept else None

    def add(self, seen: Seen) -> None:
        size = 0 if seen.result is None else _size(seen.result)
        self._kept.append((seen, size))
        self._bytes += size
        while len(self._kept) > 1 and (len(self._kept) > _MOST_RESULTS or self._bytes > self._most_bytes):
            self._bytes -= self._kept.popleft()[1]

    def find(self, number: int) -> Seen | None:
        return next((seen for seen, _ in self._kept if seen.record.number == number), None)


class _Stage:
    """The times of one stage, as they are counted."""

    def __init__(self) -> None:
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._seconds = 0.0
        self._recent = array("f")
        self._next = 0

    def add(self, milliseconds: float) -> None:
        seconds = milliseconds / 1000
        self._buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self._seconds += seconds
        if len(self._recent) < _RECENT_TIMES:
            self._recent.append(milliseconds)
        else:
            self._recent[self._next] = milliseconds
            self._next = (self._next + 1) % _RECENT_TIMES

    def times(self) -> StageTimes:
        return StageTimes(tuple(self._buckets), self._seconds, tuple(self._recent))


def _size(result: Result) -> int:
    """Return the bytes of a result's arrays, those that were computed on first use included."""
    held = [*vars(result).values(), *result.levels]
    return sum(one.nbytes for one in held if isinstance(one, np.ndarray))
