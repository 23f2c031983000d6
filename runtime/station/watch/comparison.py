"""Compare the verdicts of two bundles on the same frames, and keep what each of them found."""

from __future__ import annotations

import base64
import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from flowedge.errors import DataError
from flowedge.files import write_whole_file
from flowedge.runtime.record import Verdict
from flowedge.runtime.report.pictures import pictures_of
from flowedge.runtime.result import Result
from flowedge.runtime.station.judges import Judge
from flowedge.runtime.station.recording import limits_of
from flowedge.runtime.station.watch.ranks import rank_correlation

PICTURES: Final = ("image", "map of the first", "map of the second")

_FILE: Final = "compared.jsonl"
_ABOUT: Final = "about.json"
_ENDINGS: Final = ("frame", "first", "second")


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two bundles of a comparison.

    Attributes:
        bundle_sha256: The SHA-256 of the bundle's manifest.
        precision: The precision of the graph.
        engine: The name of the engine.
        threshold: The image threshold, where it decides.
        log_nfa_limit: The limit of the number of false alarms, where it decides.
    """

    bundle_sha256: str
    precision: str
    engine: str
    threshold: float | None = None
    log_nfa_limit: float | None = None


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """The two bundles of a comparison. The first one decides."""

    first: Subject
    second: Subject

    @property
    def name(self) -> str:
        """A name that two other bundles, or two others by precision, do not have."""
        one, other = (f"{side.bundle_sha256[:12]}-{side.precision}" for side in (self.first, self.second))
        return f"{other}-beside-{one}"


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of one bundle to a frame.

    Attributes:
        verdict: The verdict.
        score: The image score. A frame that was not inspected has none.
        log_nfa: The lowest log10 number of false alarms, where it decides.
        problem: The reason why the frame was not inspected.
    """

    verdict: Verdict
    score: float | None = None
    log_nfa: float | None = None
    problem: str = ""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of two bundles to one frame, which is one line of the comparison's file.

    Attributes:
        number: The number of the frame's record in the journal, or its place among the pictures of a folder.
        source_id: The name of the frame.
        time: The time of the frame, ISO 8601, where it is known.
        part: The number or name of the part.
        first: The answer of the bundle that decides.
        second: The answer of the other bundle.
        has_pictures: True where the pictures of the frame were kept.
    """

    number: int
    source_id: str
    time: str = ""
    part: str | None = None
    first: Side
    second: Side
    has_pictures: bool = False

    @property
    def is_flipped(self) -> bool:
        """True where the two verdicts differ."""
        return self.first.verdict != self.second.verdict


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison of two bundles in numbers.

    Attributes:
        frames: The number of frames that both bundles judged.
        verdicts: The number of frames by the verdict of the first and of the second bundle, such as
            ``{"ok": {"anomalous": 3}}``.
        flipped: The number of frames whose verdicts differ.
        anomalous_first: The share of the inspected frames that the first bundle calls anomalous.
        anomalous_second: The share of the inspected frames that the second bundle calls anomalous.
        rank_correlation: Spearman's correlation of the two scores, None where a score does not vary.
    """

    frames: int
    verdicts: dict[str, dict[str, int]]
    flipped: int
    anomalous_first: float | None
    anomalous_second: float | None
    rank_correlation: float | None


def subject_of(judge: Judge) -> Subject:
    """Describe the bundle of a detector for a comparison."""
    threshold, log_nfa_limit = limits_of(judge.detector.thresholds)
    return Subject(
        bundle_sha256=judge.bundle_sha256,
        precision=judge.detector.precision,
        engine=judge.detector.engine_name,
        threshold=threshold,
        log_nfa_limit=log_nfa_limit,
    )


def side_of(result: Result) -> Side:
    """Return what a comparison keeps of a result."""
    is_inspected = result.verdict != "not_inspected"
    return Side(
        verdict=result.verdict,
        score=result.score if is_inspected else None,
        log_nfa=result.log_nfa if is_inspected else None,
        problem=result.problem,
    )


def summary_of(compared: Sequence[Compared]) -> Summary:
    """Count the verdicts of compared frames, and compare their scores."""
    counts = Counter((one.first.verdict, one.second.verdict) for one in compared)
    verdicts: dict[str, dict[str, int]] = {}
    for (first, second), count in sorted(counts.items()):
        verdicts.setdefault(first, {})[second] = count
    pairs = [
        (one.first.score, one.second.score)
        for one in compared
        if one.first.score is not None and one.second.score is not None
    ]
    scores = np.array(pairs, np.float64).reshape(-1, 2)
    return Summary(
        frames=len(compared),
        verdicts=verdicts,
        flipped=sum(one.is_flipped for one in compared),
        anomalous_first=_anomalous_share(one.first for one in compared),
        anomalous_second=_anomalous_share(one.second for one in compared),
        rank_correlation=rank_correlation(scores[:, 0], scores[:, 1]),
    )


def _anomalous_share(sides: Iterable[Side]) -> float | None:
    verdicts = [side.verdict for side in sides if side.verdict in ("ok", "anomalous")]
    return verdicts.count("anomalous") / len(verdicts) if verdicts else None


class ComparisonFolder:
    """A folder with the compared frames of two bundles, and the pictures of those with different verdicts.

    Attributes:
        folder: The folder.
        pair: The two bundles.
        frames: The number of compared frames in the folder.
        pictures: The number of frames with pictures.
    """

    def __init__(self, parent: Path, pair: Pair) -> None:
        """Make the folder where it is missing, and count what it holds.

        Args:
            parent: The folder that it is in.
            pair: The two bundles.

        Raises:
            OSError: The folder cannot be written.
            DataError: The folder cannot be read.
        """
        self.folder, self.pair = parent / pair.name, pair
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole_file(self.folder / _ABOUT, msgspec.json.encode(pair))
        compared = list(read_compared(self.folder))
        self.frames = len(compared)
        self.pictures = sum(one.has_pictures for one in compared)

    def add(
        self, compared: Compared, first: Result, second: Result | str | None, *, most_pictures: int
    ) -> None:
        """Write a frame, with its pictures where the verdicts differ and there is room.

        Args:
            compared: The frame.
            first: The result of the first bundle.
            second: The result of the second bundle, or the picture of its anomaly map as a ``data:`` address.
            most_pictures: The number of frames whose pictures are kept.

        Raises:
            OSError: The system refuses.
        """
        if compared.is_flipped and self.pictures < most_pictures:
            frame, _, first_map = pictures_of(first.frame, first)
            second_map = pictures_of(second.frame, second)[2] if isinstance(second, Result) else second
            for ending, picture in zip(_ENDINGS, (frame, first_map, second_map), strict=True):
                if picture is not None:
                    content = base64.b64decode(picture.partition(",")[2])
                    _picture(self.folder, compared.number, ending).write_bytes(content)
            compared = msgspec.structs.replace(compared, has_pictures=True)
            self.pictures += 1
        with (self.folder / _FILE).open("ab") as file:
            # A line that a kill has cut is ended, so that it alone is lost.
            if file.tell() and not self._ends_whole():
                file.write(b"\n")
            file.write(msgspec.json.encode(compared) + b"\n")
        self.frames += 1

    def _ends_whole(self) -> bool:
        with (self.folder / _FILE).open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"


def read_pair(folder: Path) -> Pair:
    """Read which two bundles a folder compares.

    Raises:
        DataError: The folder is none of a comparison.
    """
    try:
        return msgspec.json.decode((folder / _ABOUT).read_bytes(), type=Pair)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{folder} holds no comparison of two bundles: {error}") from error


def comparisons_in(parent: Path) -> list[tuple[Path, Pair]]:
    """Return the comparisons in a folder with their bundles, the one that was changed last at the end."""
    found = []
    for folder in parent.glob("*-beside-*"):
        with contextlib.suppress(DataError, OSError):
            found.append(((folder / _FILE).stat().st_mtime_ns, folder, read_pair(folder)))
    return [(folder, pair) for _, folder, pair in sorted(found, key=lambda one: one[:2])]


def read_compared(folder: Path) -> Iterator[Compared]:
    """Read the compared frames of a folder. A line that was cut is left out.

    Raises:
        DataError: The file cannot be read.
    """
    file = folder / _FILE
    if not file.exists():
        return
    decoder = msgspec.json.Decoder(Compared)
    try:
        with file.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(msgspec.MsgspecError):
                    yield decoder.decode(line)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error


def read_pictures(folder: Path, number: int) -> tuple[str | None, ...]:
    """Read the pictures of a frame as ``data:`` addresses. A picture that is missing is None."""
    addresses: list[str | None] = []
    for ending in _ENDINGS:
        try:
            content = _picture(folder, number, ending).read_bytes()
        except OSError:
            addresses.append(None)
        else:
            addresses.append(f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}")
    return tuple(addresses)


def _picture(folder: Path, number: int, ending: str) -> Path:
    return folder / f"{number:09d}-{ending}.jpg"
