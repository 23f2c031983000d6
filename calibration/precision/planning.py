"""Plan every precision of one request: prune, take ranges, search for blocks, and judge the calibrated graphs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from flowedge.bundle import Bundle, clone_bundle
from flowedge.calibration.calibrate import calibrate_bundle
from flowedge.calibration.calibration_images import hash_of_images
from flowedge.calibration.calibration_record import BlockChoice, FittedGraph, PrecisionReport
from flowedge.calibration.gate_report import GateReport
from flowedge.calibration.precision.calibrator_choice import FIRST, Int8Searches, chosen_searches
from flowedge.calibration.precision.calibrators import AUTO, CalibratorName
from flowedge.calibration.precision.converted_graph import (
    FILES,
    ConvertedPrecision,
    PrecisionConverter,
    Written,
)
from flowedge.calibration.precision.gate_images import GateImages, failed_self_tests
from flowedge.calibration.precision.observed_graph import calibrated_with_ranges
from flowedge.calibration.precision.pieces import PiecedGraph
from flowedge.calibration.precision.planning_time import time_of_planning
from flowedge.calibration.precision.precision_request import PrecisionRequest
from flowedge.calibration.precision.pruning import PrunedGraph, pruned_graph
from flowedge.calibration.precision.ranges import TensorRange, image_range_of
from flowedge.calibration.precision.rounded import files_of_rounded_answers
from flowedge.calibration.precision.search import Search
from flowedge.calibration.precision.self_test_gate import SelfTestGate
from flowedge.calibration.score_maxima import StoredLevels
from flowedge.errors import PrecisionError
from flowedge.graph_files import bytes_of_graph
from flowedge.progress import Prefixed, Reports
from flowedge.runtime.device.device_cache import DeviceCache
from flowedge.runtime.opening.engine import JUDGE

_FINAL_ROUNDS: Final = 4  # Attempts to pass the gate with all graphs calibrated.


class Planning:
    """Adds the precisions of one request to one bundle, and writes all files into a folder for its next version.

    Attributes:
        converter: The converter of the calibrated fp32 graph, or of the pruned graph where the request prunes. It
            exists once `run` has observed the ranges.
    """

    converter: PrecisionConverter
    _fp32: Bundle
    _pruned: PrunedGraph | None = None

    def __init__(
        self,
        opened: Bundle,
        folder: Path,
        images: Sequence[Path],
        request: PrecisionRequest,
        threads: int | None,
        cache: DeviceCache | None,
        reports: Reports,
    ) -> None:
        self._opened, self._folder, self._images, self._request = opened, folder, images, request
        self._threads, self._cache, self._reports = threads, cache, reports
        self._precisions = request.precisions
        # The numbers fitted last, by precision, and the blocks of the graphs that they were fitted on.
        self._fitted: dict[str, FittedGraph] = {}
        self._chosen: dict[str, tuple[str, ...]] = {}

    def run(self) -> tuple[Bundle, tuple[PrecisionReport, ...]]:
        """Return the next version of the bundle, with every graph converted and calibrated, and the gate's reports."""
        request = self._request
        only_fp32 = msgspec.structs.replace(
            self._opened.manifest, graphs=(self._opened.manifest.graph("fp32"),)
        )
        draft = clone_bundle(self._opened, self._folder / "fp32", manifest=only_fp32)
        base, ranges = self._observed(draft, () if request.prune is not None else self._precisions)
        self._fp32 = base
        images = GateImages(base, self.gate_images, request.defects_per_image, self._threads)
        with contextlib.closing(images) as gate:
            if request.prune is not None:
                base, ranges = self._base_of_pruned(gate)
            self.converter = self._converter(base, "fp32", ranges)
            return self._planned(gate)

    def _base_of_pruned(self, gate: GateImages) -> tuple[Bundle, dict[str, TensorRange] | None]:
        """Prune the fp32 graph. Return what `_observed` returns of the pruned graph, which takes the name of fp32."""
        fitted = dict(self._fitted)
        self._pruned = pruned_graph(
            self._fp32,
            self._folder,
            self._images,
            self._images_sha256,
            self._request,
            gate,
            lambda draft: self._calibrated(draft, fitted),
            self._threads,
            self._reports,
        )
        fitted = dict(self._fitted)
        draft = self._pruned.in_place_of_fp32(self._fp32, self._folder / "base")
        base, ranges = self._observed(draft, self._precisions)
        gate.self_test = SelfTestGate(base, self._threads)
        self._fitted = fitted
        return base, ranges

    def _converter(
        self, base: Bundle, precision: str, ranges: dict[str, TensorRange] | None
    ) -> PrecisionConverter:
        """Return the converter of one graph of a bundle."""
        return PrecisionConverter(
            base.graph_path(precision),
            base.manifest.graph(precision),
            ranges,
            FIRST if self._request.calibrator == AUTO else self._request.calibrator,
            image_range_of(base.manifest.preprocessing),
        )

    def converter_of(self, name: ConvertedPrecision) -> PrecisionConverter:
        """Return the converter of the graph that a precision's graph is made of.

        A graph that the bundle has and that the request does not add rests on the fp32 graph, or on the pruned graph
        that the bundle has.
        """
        manifest = self._opened.manifest
        if name in self._precisions or name not in {graph.precision for graph in manifest.graphs}:
            return self.converter
        if manifest.graph(name).pruned:
            return self._converter(self._opened, "pruned", None)
        return self.converter if self._pruned is None else self._converter(self._fp32, "fp32", None)

    def _planned(self, gate: GateImages) -> tuple[Bundle, tuple[PrecisionReport, ...]]:
        """Return what `run` returns, once the converter is there."""
        request = self._request
        graphs: dict[str, PiecedGraph] = {}
        searches: dict[ConvertedPrecision, Search] = {}
        for name in self._precisions:
            if not name.startswith("int8"):
                graphs[name] = PiecedGraph(self.converter, name)
                searches[name] = self._search(name, gate, graphs[name])
        self._tell_time(gate)
        if "int8-cpu" in self._precisions:
            int8 = self._int8_searches(gate)
            graphs["int8"] = int8.graph
            searches |= int8.by_name
            searches = {name: searches[name] for name in self._precisions}
        reverted: dict[ConvertedPrecision, int] = {}
        for name, search in searches.items():
            # The two layouts of INT8 revert about as many blocks.
            likely = reverted.get("int8-gpu", 0) if name == "int8-cpu" else 0
            reverted[name] = search.first_that_passes(likely=likely)
            if name.startswith("int8"):
                search.measure()
            else:
                graphs[name].close()
        judged: dict[ConvertedPrecision, GateReport] = {}
        failed: dict[ConvertedPrecision, tuple[str, ...]] = {}
        chosen: dict[ConvertedPrecision, tuple[str, ...]] = {}
        # The search judged candidates with the numbers fitted on fp32. Each graph must also pass with its own score
        # maxima, so a graph that then fails loses more blocks.
        for _ in range(_FINAL_ROUNDS):
            chosen = {name: search.chosen(reverted[name]) for name, search in searches.items()}
            for graph in graphs.values():
                graph.close()  # The pieces need as much memory as a graph does.
            draft, written = self._assembled(chosen)
            # A calibration opens the graphs, and a graph that fails its self-test does not open.
            changed: list[ConvertedPrecision] = [
                name for name in self._precisions if self._chosen.get(name) != chosen[name]
            ]
            wrong = failed_self_tests(draft, changed)
            failed = dict(wrong)
            if not wrong:
                before = self._chosen
                calibrated = self._calibrated_anew(draft, chosen)
                for name in self._precisions:
                    # A graph with the blocks of the last round has the same answers.
                    if name in judged and before.get(name) == chosen[name]:
                        continue
                    told = Prefixed(self._reports, f"calibrated {name}")
                    judged[name] = gate.judge(
                        calibrated, name, request.limits_of(name), request.labelled, told
                    )
                failed = {name: report.failures for name, report in judged.items() if not report.passed}
                if not failed:
                    made = [
                        self._report(name, searches[name], chosen[name], written[name], judged[name])
                        for name in self._precisions
                    ]
                    return calibrated, (*([] if self._pruned is None else [self._pruned.report]), *made)
            for name in failed:
                if name in wrong:
                    searches[name].revert_for_self_test()
                reverted[name] = searches[name].first_that_passes(reverted[name] + 1)
        name, failures = next(iter(failed.items()))
        blocks = len(self.converter.blocks(name))
        count = blocks - len(chosen[name])
        raise PrecisionError(
            f"{name} does not pass its gate as it would ship, with {count} of {blocks} blocks "
            f"reverted: {'; '.join(failures)}. Nothing was written. Loosen a limit with --gate, or give more "
            "images."
        )

    def _int8_searches(self, gate: GateImages) -> Int8Searches:
        """Return the searches of both layouts of INT8, and leave the converter with the method that was chosen."""

        def searches_with(calibrator: CalibratorName) -> Int8Searches:
            converter = self.converter.with_calibrator(calibrator)
            # Both layouts share the pieces in fp32. The layout for CPUs has all blocks of the other.
            graph = PiecedGraph(converter, "int8-cpu")
            names: list[ConvertedPrecision] = [name for name in self._precisions if name.startswith("int8")]
            return Int8Searches(calibrator, graph, {name: self._search(name, gate, graph) for name in names})

        if self._request.calibrator != AUTO:
            return searches_with(self._request.calibrator)
        searches = chosen_searches(searches_with, Prefixed(self._reports, "int8"))
        self.converter = self.converter.with_calibrator(searches.calibrator)
        if searches.calibrator != FIRST:
            self._reports.note(
                f"int8: the ranges are those of --calibrator {searches.calibrator}. With {FIRST}, the graph with every "
                "block in INT8 is further from fp32."
            )
        return searches

    def _tell_time(self, gate: GateImages) -> None:
        """Report how long the planning will take, from the time of the fp32 answers that the gate needs in any case."""
        sentence = time_of_planning(
            gate.prepare(self._reports),
            self._precisions,
            images=len(self._images),
            frames=len(self.gate_images) * (1 + self._request.defects_per_image),
            blocks=len(self.converter.blocks("int8-cpu")),
        )
        if sentence is not None:
            self._reports.note(sentence)

    @cached_property
    def _images_sha256(self) -> str:
        return hash_of_images(self._images)

    def _calibrated(
        self,
        draft: Bundle,
        known: Mapping[str, FittedGraph],
        levels: Mapping[str, StoredLevels] = MappingProxyType({}),
    ) -> Bundle:
        """Calibrate a bundle.

        Args:
            draft: The bundle.
            known: The fitted numbers of graphs that did not change, by precision.
            levels: The levels of all images where they were inferred before, by precision.
        """
        done = calibrate_bundle(
            draft,
            self._images,
            known=known,
            levels=levels,
            request=self._request.thresholds,
            frame_rate=None,  # All precisions share one frame check, which is fitted once.
            engine=JUDGE,
            threads=1,  # As in the gate, each core takes an image of its own.
            reports=self._reports,
        )
        self._fitted |= {graph.precision: graph for graph in done.record.graphs}
        return done.bundle

    def _observed(
        self, draft: Bundle, precisions: Sequence[ConvertedPrecision]
    ) -> tuple[Bundle, dict[str, TensorRange] | None]:
        """Calibrate a bundle of one graph, and return it with the values that some precisions need."""
        cache = None if self._cache is None else (self._cache, self._images_sha256)
        return calibrated_with_ranges(
            draft,
            self._images,
            precisions,
            lambda ready, levels: self._calibrated(ready, {}, levels),
            cache=cache,
            threads=self._threads,
            reports=self._reports,
        )

    @property
    def gate_images(self) -> Sequence[Path]:
        """The images that the gate compares, spread over all good images."""
        wanted = min(self._request.gate_images, len(self._images))
        return [self._images[n * len(self._images) // wanted] for n in range(wanted)]

    def _search(self, name: ConvertedPrecision, gate: GateImages, graph: PiecedGraph) -> Search:
        reports = Prefixed(self._reports, name)
        return Search(self.converter, name, gate, self._request.limits_of(name), graph, reports)

    def _assembled(
        self, chosen: Mapping[ConvertedPrecision, tuple[str, ...]]
    ) -> tuple[Bundle, dict[ConvertedPrecision, Written]]:
        """Return a bundle whose graphs all run on this machine, and the record of each converted graph."""
        for graph in self._opened.manifest.graphs:
            # The engine that judges cannot run the bundle's own bfloat16 graph, so its emulation takes its place.
            if graph.precision == "bf16" and "bf16" not in chosen:
                blocks = tuple(
                    b for b in self.converter_of("bf16").blocks("bf16") if b not in graph.given_back
                )
                chosen = {**chosen, "bf16": blocks}
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        written: dict[ConvertedPrecision, Written] = {
            name: self.converter_of(name).write(name, blocks, folder / FILES[name], emulated=name == "bf16")
            for name, blocks in chosen.items()
        }
        new = [] if self._pruned is None else [self._pruned.graph]
        new += [one.graph for one in written.values()]
        renewed = {graph.precision for graph in new}
        old = tuple(graph for graph in self._opened.manifest.graphs if graph.precision not in renewed)
        manifest = msgspec.structs.replace(self._opened.manifest, graphs=(*old, *new))
        files: dict[str, Path | bytes] = {file.name: file for file in folder.iterdir()}
        # The gate replays the self-test, which compares the answers of an INT8 graph with these. A graph that stays
        # gets them too, because earlier versions recorded none.
        paths: dict[str, Path] = {graph.precision: self._opened.path / graph.file for graph in old}
        paths |= {name: folder / FILES[name] for name in written}
        files |= files_of_rounded_answers(self._opened, paths, threads=self._threads)
        if self._pruned is not None:
            files |= self._pruned.files
        return clone_bundle(self._opened, folder / "bundle", manifest=manifest, files=files), written

    def _calibrated_anew(self, draft: Bundle, chosen: Mapping[ConvertedPrecision, tuple[str, ...]]) -> Bundle:
        """Calibrate the bundle of a round, of which the blocks of each precision are given."""
        # A graph whose blocks are those of the last round keeps the numbers that were fitted for it.
        before, self._chosen = self._chosen, {str(name): blocks for name, blocks in chosen.items()}
        known = {
            name: one for name, one in self._fitted.items() if before.get(name) == self._chosen.get(name)
        }
        return self._calibrated(draft, known)

    def _report(
        self,
        name: ConvertedPrecision,
        search: Search,
        chosen: tuple[str, ...],
        written: Written,
        judged: GateReport,
    ) -> PrecisionReport:
        macs = self.converter.blocks(name)
        total = max(sum(macs.values()), 1)
        low: Literal["fp16", "bf16", "int8"] = "int8" if name.startswith("int8") else name  # type: ignore[assignment]
        high: Literal["fp32", "fp16"] = "fp16" if name == "int8-gpu" else "fp32"
        return PrecisionReport(
            precision=name,
            calibrator=self.converter.calibrator if low == "int8" else None,
            images=len(self._images),
            images_sha256=self._images_sha256,
            kept_in_fp32=dict(written.kept_in_fp32),
            blocks=tuple(
                BlockChoice(
                    name=block,
                    macs_share=count / total,
                    precision=low if block in chosen else high,
                    sensitivity=search.sensitivities.get(block),
                    reason="" if block in chosen else search.reason(block),
                )
                for block, count in macs.items()
            ),
            gate=judged,
            bytes_share=written.bytes / bytes_of_graph(self._fp32.graph_path("fp32")),
            pruning=None if self._pruned is None else self._pruned.report.pruning,
        )
