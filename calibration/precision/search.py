"""Search for the blocks of a graph that can have a lower precision while the gate still passes.

The search begins with all blocks. If the gate fails, it reverts the most sensitive blocks first, until the gate passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.calibration.dataset import Dataset
from flowedge.calibration.defects import DEFECTS, synthetic_defect
from flowedge.calibration.gate_report import GateLimits, GateReport
from flowedge.calibration.gates import compare, compared_frames
from flowedge.calibration.precision.converted_graph import FILES, ConvertedPrecision, PrecisionConverter
from flowedge.calibration.tally import Detection
from flowedge.errors import PrecisionError
from flowedge.manifest import Preprocessing
from flowedge.progress import SILENT, Reports
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.pixel_range import PixelRange
from flowedge.runtime.opening.engine import JUDGE
from flowedge.runtime.opening.unproven import open_unproven

# The two layouts of INT8 round alike, so the sensitivities of the CPU layout serve both.
_MEASURED_AS: Final[Mapping[ConvertedPrecision, ConvertedPrecision]] = MappingProxyType(
    {"int8-gpu": "int8-cpu"}
)
_PROBES: Final = 4  # Good images for measuring a block's sensitivity, each also with one defect.


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The part of a detector's answer that the gate compares."""

    score: float
    network_map: NDArray[np.float32]
    preprocessing: Preprocessing


def judging_detector(bundle: Bundle, precision: str, threads: int | None) -> Detector:
    """Open one graph of a bundle on the engine that judges candidates.

    The engine's answers need no proof beforehand, because the gate follows.
    """
    return Detector(bundle, open_unproven(JUDGE, bundle, precision, threads=threads))


def probe_frames(images: Sequence[Path], pixel_range: PixelRange | None) -> Iterator[NDArray[np.uint8]]:
    """Yield each good image, followed by a copy of it with a synthetic defect that the image's index decides."""
    for n, path in enumerate(images):
        frame = read_image(path, pixel_range)
        yield frame
        yield synthetic_defect(frame, tuple(DEFECTS)[n % len(DEFECTS)], np.random.default_rng(n)).frame


class GateImages:
    """Keeps the images that every candidate is compared on, and computes their fp32 answers once.

    Attributes:
        fp32: The bundle with the fp32 graph.
        sensitivities: The sensitivities that `Search.measure` found so far, by precision and block.
    """

    def __init__(
        self, fp32: Bundle, images: Sequence[Path], defects_per_image: int, threads: int | None
    ) -> None:
        """Keep the images. The fp32 graph runs only when a comparison first needs its answers.

        Args:
            fp32: The bundle with the fp32 graph.
            images: Images of good parts.
            defects_per_image: The number of synthetic defects made from each image.
            threads: The number of CPU threads.
        """
        self.fp32 = fp32
        self._images = images
        self._defects_per_image = defects_per_image
        self._threads = threads
        self.sensitivities: dict[ConvertedPrecision, dict[str, float]] = {}
        self._answers: list[Answer] = []
        self._probes: tuple[NDArray[np.float32], ...] | None = None

    def judge(
        self,
        candidate: Bundle,
        precision: str,
        limits: GateLimits,
        labelled: Dataset | None = None,
        reports: Reports = SILENT,
    ) -> GateReport:
        """Compare a graph with fp32 on good images, synthetic defects and then labelled images.

        All fp32 answers are computed first, because two sessions at a time slow each other down.
        """
        self._answer(labelled)
        answers = iter(self._answers)
        with judging_detector(candidate, precision, self._threads) as converted:
            return compare(
                lambda frame: next(answers),
                converted,
                self._images,
                self._defects_per_image,
                limits,
                labelled,
                reports,
                pixel_range=self.fp32.manifest.pixel_range,
            )

    def _answer(self, labelled: Dataset | None) -> None:
        """Compute the fp32 answers that are still missing for a comparison."""
        labels = 0 if labelled is None else len(labelled.samples)
        if len(self._answers) >= len(self._images) * (1 + self._defects_per_image) + labels:
            return
        frames = compared_frames(
            self._images, self._defects_per_image, labelled, pixel_range=self.fp32.manifest.pixel_range
        )
        with judging_detector(self.fp32, "fp32", self._threads) as fp32:
            for one in itertools.islice(frames, len(self._answers), None):
                self._answers.append(_kept(fp32(one.frame)))

    def sensitivity(self, candidate: Bundle, precision: str) -> float:
        """Return how much a candidate graph changes the anomaly map of fp32.

        The unit is that of `flowedge.calibration.calibration_record.BlockChoice`: standard deviations of the good
        images' fp32 map. The value is infinite where the candidate's map is not finite.
        """
        if self._probes is None:
            with judging_detector(self.fp32, "fp32", self._threads) as detect:
                self._probes = tuple(detect(frame).network_map for frame in self._probe_frames())
        spread = max(float(np.std(np.stack(self._probes[::2]))), 1e-12)
        with judging_detector(candidate, precision, self._threads) as detect:
            errors = [
                np.mean(np.square(detect(frame).network_map.astype(np.float64) - expected))
                for frame, expected in zip(self._probe_frames(), self._probes, strict=True)
            ]
        value = float(np.sqrt(np.mean(errors))) / spread
        return value if np.isfinite(value) else float("inf")

    def _probe_frames(self) -> Iterator[NDArray[np.uint8]]:
        return probe_frames(self._images[:_PROBES], self.fp32.manifest.pixel_range)


class Search:
    """Search for the blocks of one precision.

    Attributes:
        sensitivities: The sensitivity of each block, empty before `measure`.
    """

    def __init__(
        self,
        converter: PrecisionConverter,
        precision: ConvertedPrecision,
        gate: GateImages,
        limits: GateLimits,
        folder: Path,
        reports: Reports,
    ) -> None:
        """Prepare the search.

        Args:
            converter: The converter that writes the candidates.
            precision: The lower precision.
            gate: The images that candidates are compared on.
            limits: The limits that a candidate must keep.
            folder: The folder for candidates, which holds one candidate at a time.
            reports: Receives the progress of each step.
        """
        self._converter, self._gate, self._limits = converter, gate, limits
        self._precision: ConvertedPrecision = precision
        self._folder = folder
        self._reports = reports
        self._macs = converter.blocks(precision)
        self._blocks = tuple(self._macs)
        self.sensitivities: dict[str, float] = {}

    def first_that_passes(self, reverted: int = 0) -> int:
        """Return the smallest number of reverted blocks, at least ``reverted``, with which the gate passes.

        The search doubles its step until the gate passes, and then narrows the number down by halves. The search
        assumes that one more reverted block never makes the gate fail.

        Raises:
            PrecisionError: The gate fails as long as one block keeps the precision.
        """
        if reverted:
            self.measure()
        if reverted > self._most():
            raise PrecisionError(
                f"{self._precision} cannot pass its gate: none of its {len(self._blocks)} blocks would be left to "
                "compute anything in it. Nothing was written. Give more images, or loosen a limit with --gate."
            )
        # 1. Most graphs pass as they are, and then nothing has to be measured.
        report = self._judge(reverted)
        if report.passed:
            return reverted
        self.measure()
        fails, passes, step, most = reverted, reverted, 1, self._most()
        # 2. Revert 1, 3, 7, ... blocks more until the gate passes.
        while not report.passed:
            if fails >= most:
                raise PrecisionError(self._verdict(report))
            passes = min(fails + step, most)
            report = self._judge(passes)
            if not report.passed:
                fails, step = passes, 2 * step
        # 3. Halve the gap between the largest number that fails and the smallest that passes.
        while passes - fails > 1:
            middle = (passes + fails) // 2
            if self._judge(middle).passed:
                passes = middle
            else:
                fails = middle
        return passes

    def measure(self) -> None:
        """Measure the sensitivity of each block to the lower precision, once for both layouts of INT8.

        A block's sensitivity is the change of the map when this block alone has the lower precision.
        """
        precision: ConvertedPrecision = _MEASURED_AS.get(self._precision, self._precision)
        self.sensitivities = self._gate.sensitivities.setdefault(precision, {})
        self._reports.step("measuring the sensitivity of each block", len(self._blocks))
        for block in self._blocks:
            if block not in self.sensitivities:
                candidate = self._candidate((block,), precision)
                self.sensitivities[block] = self._gate.sensitivity(candidate, precision)
            self._reports.advance()

    def chosen(self, reverted: int) -> tuple[str, ...]:
        """Return the blocks that keep the precision when some are reverted, in the graph's order."""
        gone = set(self._order()[:reverted])
        return tuple(name for name in self._blocks if name not in gone)

    def _order(self) -> list[str]:
        return sorted(self._blocks, key=lambda name: -self.sensitivities.get(name, 0.0))

    def _most(self) -> int:
        """Return the largest number of blocks that may be reverted, so that one that does work keeps the precision."""
        return max(
            (n for n, name in enumerate(self._order()) if self._macs[name]), default=len(self._blocks) - 1
        )

    def _judge(self, reverted: int) -> GateReport:
        bundle = self._candidate(self.chosen(reverted), self._precision)
        return self._gate.judge(bundle, self._precision, self._limits, reports=self._reports)

    def _candidate(self, blocks: Sequence[str], precision: ConvertedPrecision) -> Bundle:
        """Write a candidate graph, and return a bundle of this graph alone for the gate."""
        for file in self._folder.iterdir():
            file.unlink()
        place = self._folder / FILES[precision]
        written = self._converter.write(precision, blocks, place, emulated=True)
        manifest = msgspec.structs.replace(self._gate.fp32.manifest, graphs=(written.graph,))
        return Bundle(self._folder, manifest)

    def _verdict(self, report: GateReport) -> str:
        worst = sorted(self.sensitivities.items(), key=lambda item: -item[1])[:3]
        other = (
            "Try another --calibrator or more images"
            if self._precision.startswith("int8")
            else "Give more images"
        )
        return (
            f"{self._precision} cannot pass its gate, however many blocks are reverted: {'; '.join(report.failures)}. "
            f"Most sensitive: {', '.join(f'{name} ({value:.2g})' for name, value in worst)}. "
            f"Nothing was written. {other}, or loosen a limit with --gate."
        )


def _kept(result: Detection) -> Answer:
    return Answer(
        score=result.score, network_map=result.network_map.copy(), preprocessing=result.preprocessing
    )
