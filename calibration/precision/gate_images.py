"""Keep the frames that every candidate is compared on, with their fp32 answers."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.calibration.compared_frames import ComparedFrame, frames_of_image, labelled_frames, naming
from flowedge.calibration.dataset import Dataset
from flowedge.calibration.gate_report import GateLimits, GateReport
from flowedge.calibration.gates import Gate, self_test_quantity
from flowedge.calibration.precision.block_order import bearable_score_noise, score_noise
from flowedge.calibration.precision.converted_graph import ConvertedPrecision
from flowedge.calibration.precision.in_order import in_order
from flowedge.calibration.precision.input_store import InputStore
from flowedge.calibration.precision.pieces import PiecedGraph
from flowedge.calibration.precision.self_test_gate import SelfTestGate, has_self_test
from flowedge.calibration.precision.trial_gate import Fp32Facts, TrialGate, fp32_facts, squared_error
from flowedge.manifest import Preprocessing
from flowedge.progress import SILENT, Reports
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.opening.engine import JUDGE
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.verify import Check, replay_selftest

_Name = TypeVar("_Name", bound=str)
Outputs: TypeAlias = Mapping[str, NDArray[Any]]
Candidate: TypeAlias = Callable[[NDArray[Any]], Outputs]
"""A function from a graph's input for one image to the graph's outputs."""

_PROBES: Final = 4  # Good images for measuring a block's sensitivity, each also with one defect.
_PART: Final = 4  # The search begins on every fourth image.
_FEWEST_IN_PART: Final = 6  # Fewer images tell too little about the ranks of scores.


class BlockEffect(NamedTuple):
    """Gives what changes when a block, or several of them, have a lower precision.

    Attributes:
        sensitivity: The root mean square change of the map, in standard deviations of the good images' fp32 maps. The
            value is infinite where a map is not finite.
        score_noise: The standard deviation of the changes of the scores that no line explains.
    """

    sensitivity: float
    score_noise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The part of a graph's answer that the gate compares."""

    score: float
    network_map: NDArray[np.float32]
    preprocessing: Preprocessing


def judging_engine(bundle: Bundle, precision: str) -> Opened:
    """Open one graph of a bundle on the engine that judges candidates, on one thread.

    The engine's answers need no proof beforehand, because the gate follows.
    """
    return open_unproven(JUDGE, bundle, precision, threads=1)


def failed_self_tests(bundle: Bundle, precisions: Sequence[_Name]) -> dict[_Name, tuple[str, ...]]:
    """Replay the self-test on some graphs of a bundle, and return one line to read for each that fails it."""
    failed: dict[_Name, tuple[str, ...]] = {}
    for precision in precisions if has_self_test(bundle) else ():
        with contextlib.closing(judging_engine(bundle, precision)) as engine:
            quantity = self_test_quantity(replay_selftest(bundle, engine))
        if not quantity.passed:
            failed[precision] = (quantity.summary,)
    return failed


class GateImages:
    """Keeps the frames that every candidate is compared on, and computes their fp32 answers once.

    Each image runs on one thread, and several images at a time. So the answers do not depend on the number of threads.

    Attributes:
        fp32: The bundle with the fp32 graph.
        self_test: The self-test of the bundle, for candidates.
        every_for_search: The search begins on every n-th image, which is each image where there are few.
        effects: The effects that `Search.measure` found so far, by precision and block.
        self_test_errors: The errors in the self-test that `Search.measure` found so far, by precision and block.
    """

    def __init__(
        self, fp32: Bundle, images: Sequence[Path], defects_per_image: int, threads: int | None
    ) -> None:
        """Keep the images. The fp32 graph runs only when a comparison first needs its answers.

        Args:
            fp32: The bundle with the fp32 graph.
            images: Images of good parts.
            defects_per_image: The number of synthetic defects made from each image.
            threads: The number of images that run at a time.
        """
        self.fp32 = fp32
        self._images = images
        self._defects_per_image = defects_per_image
        self._threads = threads
        self._input_of = GraphInput(fp32.manifest)
        self.self_test = SelfTestGate(fp32, threads)
        self.every_for_search = _PART if len(images) >= _PART * _FEWEST_IN_PART else 1
        self.effects: dict[ConvertedPrecision, dict[str, BlockEffect]] = {}
        self.self_test_errors: dict[ConvertedPrecision, dict[str, float]] = {}
        self._frames: list[_Kept] = []
        self._inputs = InputStore()
        self._facts: dict[int, Fp32Facts] = {}
        self._hardness: list[float] = []
        self._labelled: list[Answer] = []

    def close(self) -> None:
        """Remove the prepared inputs of the frames."""
        self._inputs.close()

    def judge(
        self,
        candidate: Bundle,
        precision: str,
        limits: GateLimits,
        labelled: Dataset | None = None,
        reports: Reports = SILENT,
    ) -> GateReport:
        """Replay a graph's self-test, and compare the graph with fp32 on good, synthetic and labelled images.

        All fp32 answers are computed first, because two sessions at a time slow each other down.
        """
        frames = self._prepared(reports)
        samples = () if labelled is None else labelled.samples
        if labelled is not None and len(self._labelled) < len(samples):
            with contextlib.closing(judging_engine(self.fp32, "fp32")) as engine:
                self._labelled = [answer for _, answer in self._labelled_answers(labelled, engine)]
        gate = Gate(limits)
        reports.step("comparing with fp32", len(frames) + len(samples))
        with contextlib.closing(judging_engine(candidate, precision)) as engine:
            if has_self_test(candidate):
                gate.add_self_test(replay_selftest(candidate, engine))
            answers = in_order(lambda one: self._answer(engine.infer, one), frames, self._threads)
            for one, answer in zip(frames, answers, strict=True):
                with naming(one.path):
                    gate.add(one.compared(), one.answer, answer)
                reports.advance()
            if labelled is not None:
                found = self._labelled_answers(labelled, engine)
                for expected, (frame, answer) in zip(self._labelled, found, strict=True):
                    with naming(frame.path):
                        gate.add(frame, expected, answer)
                    reports.advance()
        return gate.report()

    def trial(
        self,
        candidate: Candidate,
        limits: GateLimits,
        reports: Reports = SILENT,
        *,
        self_test: Sequence[Check] = (),
        to_the_end: bool = False,
        every: int = 1,
    ) -> GateReport | None:
        """Compare a candidate of the search with fp32, without the quantities that have no limit.

        Frames on which the candidates before differed most from fp32 come first, because a candidate that cannot pass
        fails there.

        Args:
            candidate: The candidate, which threads may call at the same time.
            limits: The limits that the candidate must keep.
            reports: Receives the progress, one unit for each frame.
            self_test: The outcome of the self-test, for the report.
            to_the_end: True compares all frames also where the candidate cannot pass any more.
            every: Only every n-th image is compared, with its defects.

        Returns:
            The report, or None where the candidate could not pass any more after some of the frames.
        """
        frames = self._prepared(reports)
        order = sorted(
            (n for n, one in enumerate(frames) if one.index % every == 0), key=lambda n: -self._hardness[n]
        )
        reports.step("comparing with fp32", len(order))
        if every not in self._facts:
            self._facts[every] = fp32_facts((frames[n].mask is None, frames[n].answer) for n in order)
        gate = TrialGate(limits, self._facts[every])
        gate.add_self_test(self_test)
        answers = in_order(lambda n: self._answer(candidate, frames[n]), order, self._threads)
        with contextlib.closing(answers):
            for n, answer in zip(order, answers, strict=True):
                with naming(frames[n].path):
                    gate.add(frames[n].compared(), frames[n].answer, answer)
                self._hardness[n] = squared_error(frames[n].answer, answer)
                reports.advance()
                if not to_the_end and gate.cannot_pass():
                    return None
        return gate.report()

    def measure(
        self, graph: PiecedGraph, precision: ConvertedPrecision, blocks: Sequence[str], reports: Reports
    ) -> dict[str, BlockEffect]:
        """Return how much each block alone changes map and score of fp32 when it has a lower precision.

        Args:
            graph: The pieces of the fp32 graph.
            precision: The lower precision.
            blocks: The blocks.
            reports: Receives the progress, one unit for each block and probe.
        """
        probes, spread = self._probes(reports)
        reports.step("measuring the sensitivity of each block", len(blocks) * len(probes))

        def changes(probe: _Kept) -> tuple[list[float], list[float]]:
            values = graph.values(self._input(probe))
            expected = values["anomaly_map"].astype(np.float64)
            answers = [graph.changed(values, precision, block) for block in blocks]
            errors = [float(np.mean(np.square(one["anomaly_map"] - expected))) for one in answers]
            return errors, [float(one["score"][0]) for one in (values, *answers)]

        found = []
        for one in in_order(changes, probes, self._threads):
            found.append(one)
            reports.advance(len(blocks))
        maps = np.sqrt(np.mean([errors for errors, _ in found], axis=0)) / spread
        scores = np.array([scores for _, scores in found]).T
        return {
            block: BlockEffect(
                sensitivity=float(value) if np.isfinite(value) else math.inf,
                score_noise=score_noise(scores[0], changed),
            )
            for block, value, changed in zip(blocks, maps, scores[1:], strict=True)
        }

    def bearable_score_noise(self, rank_agreement: float) -> float:
        """Return the standard deviation of errors of the scores that a limit of the rank agreement bears."""
        return bearable_score_noise([one.answer.score for one in self._prepared(SILENT)], rank_agreement)

    def prepare(self, reports: Reports) -> float:
        """Make the inputs and the fp32 answers of all frames, and return the seconds that one frame takes."""
        begun = time.monotonic()
        frames = self._prepared(reports)
        return (time.monotonic() - begun) / len(frames)

    def effect(self, candidate: Candidate, reports: Reports = SILENT) -> BlockEffect:
        """Return how much a candidate changes map and score of fp32 on the frames that `measure` takes.

        Args:
            candidate: The candidate, which threads may call at the same time.
            reports: Receives the progress where the frames are not prepared yet.
        """
        probes, spread = self._probes(reports)
        answers = list(in_order(lambda probe: self._answer(candidate, probe), probes, self._threads))
        maps = [
            float(np.mean(np.square(answer.network_map.astype(np.float64) - probe.answer.network_map)))
            for probe, answer in zip(probes, answers, strict=True)
        ]
        value = float(np.sqrt(np.mean(maps))) / spread
        scores = [np.array([one.score for one in side]) for side in ([p.answer for p in probes], answers)]
        return BlockEffect(
            sensitivity=value if np.isfinite(value) else math.inf, score_noise=score_noise(*scores)
        )

    def _probes(self, reports: Reports) -> tuple[Sequence[_Kept], float]:
        """Return the frames that sensitivities are measured on, and the standard deviation of their good maps."""
        step = 1 + min(self._defects_per_image, 1)
        every = 1 + self._defects_per_image
        frames = self._prepared(reports)[: _PROBES * every]
        probes = [one for n, one in enumerate(frames) if n % every < step]
        good = [one.answer.network_map for one in probes if one.mask is None]
        return probes, max(float(np.std(np.stack(good))), 1e-12)

    def _prepared(self, reports: Reports) -> Sequence[_Kept]:
        """Return all frames, with their inputs and fp32 answers."""
        if not self._frames:
            reports.step("preparing the gate", len(self._images))
            with contextlib.closing(judging_engine(self.fp32, "fp32")) as engine:

                def prepared(item: tuple[int, Path]) -> list[tuple[_Kept, NDArray[Any]]]:
                    index, path = item
                    return [
                        self._kept(index, place, frame, engine)
                        for place, frame in enumerate(self._read(index, path))
                    ]

                for found in in_order(prepared, enumerate(self._images), self._threads):
                    for kept, image in found:
                        self._inputs.add(image)
                        self._frames.append(kept)
                    reports.advance()
            self._hardness = [0.0] * len(self._frames)
        return self._frames

    def _read(self, index: int, path: Path) -> Iterator[ComparedFrame]:
        return frames_of_image(path, index, self._defects_per_image, self.fp32.manifest.pixel_range)

    def _kept(
        self, index: int, place: int, frame: ComparedFrame, engine: Opened
    ) -> tuple[_Kept, NDArray[Any]]:
        image = self._input_of([frame.frame])
        kept = _Kept(
            path=frame.path,
            index=index,
            place=place,
            number=index * (1 + self._defects_per_image) + place,
            mask=None if frame.mask is None else np.packbits(frame.mask),
            size=frame.frame.shape[:2],
            answer=self._compared_part(engine.infer(image)),
        )
        return kept, image

    def _input(self, one: _Kept) -> NDArray[Any]:
        stored = self._inputs.read(one.number)
        if stored is not None:
            return stored
        frame = next(itertools.islice(self._read(one.index, one.path), one.place, None))
        return self._input_of([frame.frame])

    def _answer(self, candidate: Candidate, one: _Kept) -> Answer:
        return self._compared_part(candidate(self._input(one)))

    def _compared_part(self, outputs: Outputs) -> Answer:
        return Answer(
            score=float(outputs["score"][0]),
            network_map=outputs["anomaly_map"][0, 0],
            preprocessing=self.fp32.manifest.preprocessing,
        )

    def _labelled_answers(self, labelled: Dataset, engine: Opened) -> Iterator[tuple[ComparedFrame, Answer]]:
        def answered(frame: ComparedFrame) -> tuple[ComparedFrame, Answer]:
            with naming(frame.path):
                return frame, self._compared_part(engine.infer(self._input_of([frame.frame])))

        frames = labelled_frames(labelled, self.fp32.manifest.pixel_range)
        return in_order(answered, frames, self._threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """One frame of the gate, without its pixels.

    Attributes:
        path: The image file.
        index: The place of the image among the images.
        place: The place of the frame among the frames of its image. The first is the good one.
        number: The place of the frame among all frames.
        mask: The mask of a synthetic defect, packed to bits, or None for a good frame.
        size: Height and width of the mask.
        answer: The fp32 graph's answer.
    """

    path: Path
    index: int
    place: int
    number: int
    mask: NDArray[np.uint8] | None
    size: tuple[int, ...]
    answer: Answer

    def compared(self) -> ComparedFrame:
        """Return the frame for the gate, which reads only its mask."""
        mask = None
        if self.mask is not None:
            mask = np.unpackbits(self.mask, count=math.prod(self.size)).reshape(self.size).astype(np.bool_)
        return ComparedFrame(self.path, _NO_PIXELS, mask)


_NO_PIXELS: Final = np.zeros((0, 0, 3), np.uint8)
