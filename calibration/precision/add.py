"""Add graphs of lower precision to a bundle: ranges on good images, a plan, and a gate that decides.

Each precision begins with every block in it. The gate compares that graph with fp32 on the images and on synthetic
defects; where it fails, the blocks that cost most by themselves are given back, most sensitive first, until it passes:
from INT8 to float16 (to float32 in the layout for CPUs, which float16 only slows down), from float16 to float32. What
cannot pass is not written.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle, clone_bundle, folder_for_next_version, replace_in_bundle
from flowedge.calibration.calibrate import calibrate_bundle, without_frame_check
from flowedge.calibration.calibration_record import (
    RECORD,
    BlockChoice,
    FittedGraph,
    PrecisionReport,
    bytes_of_record,
    read_record,
)
from flowedge.calibration.dataset import Dataset
from flowedge.calibration.gate_page import MapTriple, page_from_gate
from flowedge.calibration.gate_report import DEFAULT_LIMITS, GateLimits, GateReport
from flowedge.calibration.good_images import GoodImages, hash_of_images
from flowedge.calibration.precision.calibrators import CalibratorName
from flowedge.calibration.precision.converted_graph import (
    FILES,
    ConvertedPrecision,
    PrecisionConverter,
    Written,
    tensors_for_conversion,
)
from flowedge.calibration.precision.ranges import (
    Observer,
    TensorRange,
    bytes_from_ranges,
    ranges_from_bytes,
    ranges_key,
)
from flowedge.calibration.precision.rounded import files_of_rounded_answers
from flowedge.calibration.precision.search import (
    GateImages,
    Search,
    judging_detector,
    probe_frames,
)
from flowedge.calibration.score_maxima import StoredLevels, constants_of, has_score_maxima
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.errors import CalibrationError, PrecisionError
from flowedge.frame_quantities import DEFAULT_FRAME_RATE
from flowedge.manifest import Manifest, level_outputs
from flowedge.onnx_constants import write_constants
from flowedge.progress import SILENT, Prefixed, Reports
from flowedge.runtime.device_cache import DeviceCache
from flowedge.runtime.engine import JUDGE
from flowedge.runtime.engine_file import graph_hash
from flowedge.runtime.graph_input import GraphInput
from flowedge.runtime.images import read_image

Wanted: TypeAlias = Literal["fp16", "bf16", "int8"]
"""What a user asks for; ``int8`` is two graphs, one for each kind of device."""

_GRAPHS: Final[Mapping[Wanted, tuple[ConvertedPrecision, ...]]] = MappingProxyType(
    {"fp16": ("fp16",), "bf16": ("bf16",), "int8": ("int8-gpu", "int8-cpu")}
)
_FINAL_ROUNDS: Final = 4
_SHOWN: Final = 3  # good images on the page, each also with a defect


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRequest:
    """The precisions to add, and the limits that they are held to.

    Attributes:
        wanted: The precisions, each once.
        calibrator: How an activation's range is chosen for INT8.
        limits: What each of ``wanted`` is held to.
        defects_per_image: Synthetic defects made from each image of the gate.
        gate_images: How many of the images the gate looks at, spread over all of them; ranges are taken from all.
        labelled: Images with labels, whose metrics are held to a limit as well.
        thresholds: Which thresholds every precision gets in the end.
        frame_rate: As for `calibrate_bundle`.
    """

    wanted: tuple[Wanted, ...]
    calibrator: CalibratorName = "percentile"
    limits: Mapping[str, GateLimits] = field(default_factory=lambda: DEFAULT_LIMITS)
    defects_per_image: int = 2
    gate_images: int = 48
    labelled: Dataset | None = None
    thresholds: ThresholdRequest = field(default_factory=ThresholdRequest)
    frame_rate: float | None = DEFAULT_FRAME_RATE


def add_precisions(
    bundle: Bundle,
    images: Sequence[Path],
    request: PrecisionRequest,
    *,
    threads: int | None = None,
    cache: DeviceCache | None = None,
    reports: Reports = SILENT,
) -> tuple[Bundle, tuple[PrecisionReport, ...]]:
    """Add typed graphs, and fit the reference maxima and the thresholds of every graph of the bundle.

    Args:
        bundle: The bundle; it is replaced when every precision has passed, and left as it was otherwise.
        images: Good images.
        request: What to add. A graph of the same precision is replaced.
        threads: CPU threads.
        cache: Keeps the ranges by graph and images; None observes anew.
        reports: Told of each step.

    Returns:
        The calibrated bundle, and what its gates found.

    Raises:
        CalibrationError: No images, or an fp32 answer that is not finite.
        PrecisionError: A precision cannot pass its gate.
        BundleError: The bundle cannot be written.
        ImageError: An image cannot be read.
    """
    if not images:
        raise CalibrationError(
            f"{', '.join(request.wanted)}: ranges and the gate need images of good parts, got none. "
            "Name a folder of them."
        )
    opened = Bundle(Path(os.path.realpath(bundle.path)), bundle.manifest)
    checked = None
    if request.frame_rate is not None:
        checked = GoodImages(images, opened.manifest.pixel_range, measures=True).frame_check(
            request.frame_rate
        )
    with folder_for_next_version(opened.path) as folder:
        start = without_frame_check(opened)
        work = _Work(start, folder, images, request, threads, cache, reports)
        calibrated, found = work.run()
        record = read_record(calibrated)
        assert record is not None, "calibrate_bundle writes one"
        pages = {f"gate.{report.precision}.html": work.page(calibrated, report) for report in found}
        shipped, found, files = work.for_devices(calibrated, found)
        renewed = {report.precision for report in found}
        lower = (*(report for report in record.lower_precisions if report.precision not in renewed), *found)
        record = msgspec.structs.replace(
            record, lower_precisions=lower, frame_notes=() if checked is None else checked.notes
        )
        files |= files_of_rounded_answers(calibrated, threads=threads)
        files |= {**pages, RECORD: bytes_of_record(record)}
        manifest = msgspec.structs.replace(
            shipped.manifest, frame_check=None if checked is None else checked.check
        )
        done = replace_in_bundle(opened, manifest=manifest, files=files)
    return Bundle(bundle.path, done.manifest), found


class _Work:
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
        self._precisions: tuple[ConvertedPrecision, ...] = tuple(
            name for wanted in request.wanted for name in _GRAPHS[wanted]
        )
        self._fitted: dict[str, FittedGraph] = {}  # of these graphs, whose blocks are:
        self._chosen: dict[str, tuple[str, ...]] = {}

    def run(self) -> tuple[Bundle, tuple[PrecisionReport, ...]]:
        """The bundle with every graph typed and calibrated, somewhere in the folder, and the reports."""
        request = self._request
        fp32, ranges = self._observed()
        self._converter = PrecisionConverter(
            fp32.graph_path("fp32"), fp32.manifest.graph("fp32"), ranges, request.calibrator
        )
        gate = GateImages(fp32, self._gate_images(), request.defects_per_image, self._threads)
        searches: dict[ConvertedPrecision, Search] = {
            name: self._search(name, gate) for name in self._precisions
        }
        reverted: dict[ConvertedPrecision, int] = {}
        for name, search in searches.items():
            reverted[name] = search.first_that_passes()
            if name.startswith("int8"):
                search.measure()
        failed: dict[ConvertedPrecision, GateReport] = {}
        for _ in range(_FINAL_ROUNDS):
            chosen: dict[ConvertedPrecision, tuple[str, ...]] = {
                name: search.chosen(reverted[name]) for name, search in searches.items()
            }
            calibrated, written = self._assembled(fp32, chosen)
            judged: dict[ConvertedPrecision, GateReport] = {}
            # Once more, with what was fitted for it, and with the labelled images.
            for name in self._precisions:
                told = Prefixed(self._reports, f"calibrated {name}")
                judged[name] = gate.judge(calibrated, name, self._limits(name), request.labelled, told)
            failed = {name: report for name, report in judged.items() if not report.passed}
            if not failed:
                return calibrated, tuple(
                    self._report(name, searches[name], chosen[name], written[name], judged[name])
                    for name in self._precisions
                )
            for name in failed:
                reverted[name] = searches[name].first_that_passes(reverted[name] + 1)
        name, report = next(iter(failed.items()))
        blocks = len(self._converter.blocks(name))
        back = blocks - len(self._chosen[name])
        raise PrecisionError(
            f"{name} does not pass its gate as it would ship, with {back} of {blocks} blocks "
            f"given back: {'; '.join(report.failures)}. Nothing was written. Loosen a limit with --gate, or give more "
            "images."
        )

    def for_devices(
        self, calibrated: Bundle, reports: Sequence[PrecisionReport]
    ) -> tuple[Bundle, tuple[PrecisionReport, ...], dict[str, Path | bytes]]:
        """With the real bfloat16 graph in place of its emulation, and the constants that the emulation was given.

        Args:
            calibrated: The bundle that ran here.
            reports: What its gates found.

        Returns:
            The same bundle with a manifest that describes the real graph; the reports with its size; and the new
            files, of this and of every other precision.
        """
        new = {
            stored.path: calibrated.path / stored.path
            for stored in calibrated.manifest.files
            if stored not in self._opened.manifest.files
        }
        if "bf16" not in {graph.precision for graph in calibrated.manifest.graphs}:
            return calibrated, tuple(reports), dict(new)
        graph = calibrated.manifest.graph("bf16")
        folder, patched = self._folder / "real", self._folder / graph.file
        folder.mkdir()
        blocks = [name for name in self._converter.blocks("bf16") if name not in graph.given_back]
        written = self._converter.write("bf16", blocks, folder / graph.file)
        for file in [name for name in new if name.startswith(graph.file)]:
            del new[file]
        new |= {file.name: file for file in folder.iterdir()}
        if graph.scoring.score_maxima is not None:
            write_constants(folder / graph.file, patched, constants_of(graph.scoring.score_maxima))
            new[graph.file] = patched
        graphs = tuple(
            msgspec.structs.replace(one, opset=written.graph.opset) if one is graph else one
            for one in calibrated.manifest.graphs
        )
        share = written.bytes / self._converter.fp32_bytes
        return (
            Bundle(calibrated.path, msgspec.structs.replace(calibrated.manifest, graphs=graphs)),
            tuple(
                msgspec.structs.replace(report, bytes_share=share) if report.precision == "bf16" else report
                for report in reports
            ),
            dict(new),
        )

    def page(self, calibrated: Bundle, report: PrecisionReport) -> bytes:
        """What the gate found, block by block and with a few maps side by side."""
        maps: list[MapTriple] = []
        with (
            judging_detector(calibrated, "fp32", self._threads) as fp32,
            judging_detector(calibrated, report.precision, self._threads) as converted,
        ):
            for n, frame in enumerate(self._shown_frames(calibrated)):
                maps.append(
                    MapTriple(
                        name="a good image" if n % 2 == 0 else "a synthetic defect",
                        frame=frame,
                        fp32=fp32(frame).network_map,
                        converted=converted(frame).network_map,
                    )
                )
        title = f"{calibrated.manifest.source.file}: {report.precision}"
        return page_from_gate(title, report.gate, report.blocks, maps).encode()

    def _shown_frames(self, bundle: Bundle) -> Iterator[NDArray[np.uint8]]:
        return probe_frames(self._gate_images()[:_SHOWN], bundle.manifest.pixel_range)

    @cached_property
    def _images_sha256(self) -> str:
        return hash_of_images(self._images)

    def _calibrated(
        self,
        draft: Bundle,
        known: Mapping[str, FittedGraph],
        levels: Mapping[str, StoredLevels] = MappingProxyType({}),
    ) -> Bundle:
        """Calibrate all graphs but those that were before, and infer no image whose levels are there."""
        done = calibrate_bundle(
            draft,
            self._images,
            known=known,
            levels=levels,
            request=self._request.thresholds,
            frame_rate=None,  # one check for all precisions, fitted once
            engine=JUDGE,
            threads=self._threads,
            reports=self._reports,
        )
        self._fitted |= {graph.precision: graph for graph in done.record.graphs}
        return done.bundle

    def _observed(self) -> tuple[Bundle, dict[str, TensorRange] | None]:
        """The bundle with its fp32 graph alone, calibrated, and the ranges of that graph's tensors.

        One pass over the images finds both; no range depends on what is fitted.
        """
        opened = self._opened
        only_fp32 = msgspec.structs.replace(opened.manifest, graphs=(opened.manifest.graph("fp32"),))
        draft = clone_bundle(opened, self._folder / "fp32", manifest=only_fp32)
        graph = draft.graph_path("fp32")
        tensors, counted = tensors_for_conversion(graph, self._precisions)
        if not tensors:
            return self._calibrated(draft, {}), None
        if self._cache is not None:
            with contextlib.suppress(ValueError):  # not there, or damaged: observed anew
                ranges = ranges_from_bytes(self._cache.read_extra(self._ranges_name(draft, tensors, counted)))
                if ranges.keys() == set(tensors):
                    return self._calibrated(draft, {}), ranges
        self._reports.step("taking the ranges of all tensors", len(self._images))
        names = list(level_outputs(draft.manifest.levels, None))
        observer = Observer(graph, tensors, counted=counted, outputs=names, threads=self._threads)
        answers = self._answers(observer, draft.manifest)
        with contextlib.ExitStack() as stack:
            levels: dict[str, StoredLevels] = {}
            if has_score_maxima(draft.manifest):
                paths = [str(path) for path in self._images]
                levels["fp32"] = stack.enter_context(StoredLevels(answers, names=paths))
            else:
                for _ in answers:
                    pass
            fp32 = self._calibrated(draft, {}, levels)
        if self._cache is not None:
            content = bytes_from_ranges(observer.ranges)
            # Whether the next run begins with the one or the other.
            for name in {self._ranges_name(bundle, tensors, counted) for bundle in (draft, fp32)}:
                self._cache.write_extra(name, content)
        return fp32, observer.ranges

    def _ranges_name(self, fp32: Bundle, tensors: Sequence[str], counted: Sequence[str]) -> str:
        """Of stored ranges in the cache."""
        manifest = fp32.manifest
        preprocessing = msgspec.json.encode((manifest.preprocessing, manifest.pixel_range)).decode()
        key = ranges_key(graph_hash(fp32, "fp32"), self._images_sha256 + preprocessing, tensors, counted)
        return f"ranges/{key}.npz"

    def _answers(self, observer: Observer, manifest: Manifest) -> Iterator[tuple[NDArray[np.float32], ...]]:
        input_of = GraphInput(manifest)
        for path in self._images:
            yield observer(input_of([read_image(path, manifest.pixel_range)]))
            self._reports.advance()

    def _gate_images(self) -> Sequence[Path]:
        wanted = min(self._request.gate_images, len(self._images))
        return [self._images[n * len(self._images) // wanted] for n in range(wanted)]

    def _search(self, name: ConvertedPrecision, gate: GateImages) -> Search:
        folder = self._folder / f"search-{name}"
        folder.mkdir()
        reports = Prefixed(self._reports, name)
        return Search(self._converter, name, gate, self._limits(name), folder, reports)

    def _limits(self, name: ConvertedPrecision) -> GateLimits:
        return self._request.limits[name.partition("-")[0]]

    def _assembled(
        self, fp32: Bundle, chosen: Mapping[ConvertedPrecision, tuple[str, ...]]
    ) -> tuple[Bundle, dict[ConvertedPrecision, Written]]:
        """All graphs in one bundle that runs here, calibrated."""
        for graph in self._opened.manifest.graphs:
            # It was there before, and the engine that judges cannot run it.
            if graph.precision == "bf16" and "bf16" not in chosen:
                blocks = tuple(b for b in self._converter.blocks("bf16") if b not in graph.given_back)
                chosen = {**chosen, "bf16": blocks}
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        written: dict[ConvertedPrecision, Written] = {
            name: self._converter.write(name, blocks, folder / FILES[name], emulated=name == "bf16")
            for name, blocks in chosen.items()
        }
        graphs = (
            *(graph for graph in self._opened.manifest.graphs if graph.precision not in written),
            *(one.graph for one in written.values()),
        )
        manifest = msgspec.structs.replace(self._opened.manifest, graphs=graphs)
        files: dict[str, Path | bytes] = {file.name: file for file in folder.iterdir()}
        draft = clone_bundle(self._opened, folder / "bundle", manifest=manifest, files=files)
        before, self._chosen = self._chosen, {str(name): blocks for name, blocks in chosen.items()}
        known = {
            name: one for name, one in self._fitted.items() if before.get(name) == self._chosen.get(name)
        }
        return self._calibrated(draft, known), written

    def _report(
        self,
        name: ConvertedPrecision,
        search: Search,
        chosen: tuple[str, ...],
        written: Written,
        judged: GateReport,
    ) -> PrecisionReport:
        macs = self._converter.blocks(name)
        total = max(sum(macs.values()), 1)
        low: Literal["fp16", "bf16", "int8"] = "int8" if name.startswith("int8") else name  # type: ignore[assignment]
        high: Literal["fp32", "fp16"] = "fp16" if name == "int8-gpu" else "fp32"
        return PrecisionReport(
            precision=name,
            calibrator=self._request.calibrator if low == "int8" else None,
            images=len(self._images),
            images_sha256=self._images_sha256,
            kept_in_fp32=dict(written.kept_in_fp32),
            blocks=tuple(
                BlockChoice(
                    name=block,
                    macs_share=count / total,
                    precision=low if block in chosen else high,
                    sensitivity=search.sensitivities.get(block),
                    reason="" if block in chosen else "among the most sensitive: without it the gate failed",
                )
                for block, count in macs.items()
            ),
            gate=judged,
            bytes_share=written.bytes / self._converter.fp32_bytes,
        )
