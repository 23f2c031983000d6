"""Print a row for each inspected image as it comes, and the totals in the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.text import Text

from flowedge.cli.output import RESULTS, number
from flowedge.text import images_words

if TYPE_CHECKING:
    from flowedge.cli.progress import Display
    from flowedge.manifest import Threshold, Thresholds
    from flowedge.runtime.detector import Detector
    from flowedge.runtime.record import Inspection, Verdict

_STYLES: Final[dict[Verdict, str]] = {
    "ok": "green",
    "anomalous": "bold red",
    "unknown": "",
    "not_inspected": "yellow",
}
_SHORTEST_NAME: Final = 20  # characters of a name that a narrow terminal still shows


class Rows:
    """A table that is printed row by row.

    The widths are fixed beforehand, because later rows are not known yet. The name of the image stands last, so a long
    name moves no column. A name is shortened in front only where it does not fit a terminal.
    """

    def __init__(self, display: Display, *, by_nfa: bool) -> None:
        """Print nothing yet.

        Args:
            display: The display of the progress, which the rows must not disturb.
            by_nfa: True adds the column of log NFA, where log NFA decides.
        """
        self._display = display
        self._by_nfa = by_nfa
        self._begun = False

    def add(self, inspection: Inspection) -> None:
        """Print the row of one image. The first row is printed below the heads of the columns."""
        if not self._begun:
            self._begun = True
            heads = self._numbers("score", "log NFA", "ms")
            self._display.print_result(Text(f"{'verdict':<13}{heads}  image", style="bold"))
        numbers = self._numbers(
            number(inspection.score), number(inspection.log_nfa, 1), number(inspection.latency_ms, 1)
        )
        row = Text(f"{inspection.verdict:<13}", style="").append(
            f"{numbers}  {_fitting(inspection.image, numbers)}"
        )
        row.stylize(_STYLES[inspection.verdict], 0, len(inspection.verdict))
        self._display.print_result(row)

    def _numbers(self, score: str, log_nfa: str, ms: str) -> str:
        nfa = f"{log_nfa:>10}" if self._by_nfa else ""
        return f"{score:>11}{nfa}{ms:>9}"


class Totals:
    """Counts of the inspections by verdict, and the time that all of them took.

    Attributes:
        verdicts: The number of images by verdict.
        file_problems: The number of images that were inspected and whose pictures could not be written.
    """

    def __init__(self) -> None:
        """Begin to count now."""
        self.verdicts: Counter[Verdict] = Counter()
        self.file_problems = 0
        self._begun = time.monotonic()

    def add(self, inspection: Inspection) -> None:
        """Count one inspection."""
        self.verdicts[inspection.verdict] += 1
        self.file_problems += bool(inspection.problem) and inspection.verdict != "not_inspected"

    @property
    def images(self) -> int:
        """The number of images that were counted."""
        return self.verdicts.total()

    def print(self, detector: Detector) -> None:
        """Print the counts, the speed with the reading of the files, and the facts by which all of them were judged."""
        seconds = time.monotonic() - self._begun
        counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(self.verdicts.items()))
        rate = f", {self.images / seconds:.1f} images/s" if self.images and seconds > 0 else ""
        RESULTS.print()
        RESULTS.print(f"{images_words(self.images)}{': ' if counts else ''}{counts}{rate}", soft_wrap=True)
        RESULTS.print(f"threshold {_decided_by(detector.thresholds)}", soft_wrap=True)
        RESULTS.print(f"precision {detector.precision}", soft_wrap=True)
        RESULTS.print(f"engine {detector.engine.name}: {detector.engine.reason}", soft_wrap=True)


def _fitting(name: str, numbers: str) -> str:
    """Return a name that fits behind the other columns of a terminal. Outside of a terminal every name stays whole."""
    room = max(_SHORTEST_NAME, RESULTS.width - 15 - len(numbers))
    return shortened(name, room) if sys.stdout.isatty() else name


def shortened(name: str, room: int) -> str:
    """Return a name without its beginning where it is too long, since the beginning is mostly the same folder.

    Args:
        name: The name.
        room: The number of columns that the name may take. A wide character takes two.
    """
    if cell_len(name) <= room:
        return name
    while cell_len(name) >= room:
        name = name[1:]
    return f"…{name}"


def _decided_by(thresholds: Thresholds) -> str:
    """Describe the limit that decides the verdicts."""
    if thresholds.nfa is not None:
        return f"log NFA below {thresholds.nfa.log_nfa:g}, {thresholds.nfa.form} form"
    return "none" if thresholds.image is None else _fitted(thresholds.image)


def _fitted(threshold: Threshold) -> str:
    """Describe a threshold and the method that gave it."""
    parameter = "" if threshold.parameter is None else f" {threshold.parameter:g}"
    images = f" of {images_words(threshold.images)}" if threshold.images else ""
    method = "set by hand" if threshold.method == "manual" else threshold.method
    return f"score above {threshold.value:.4f} ({method}{parameter}{images})"
