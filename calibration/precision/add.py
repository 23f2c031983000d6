"""Add graphs of lower precision to a bundle: take ranges on good images, choose blocks, and let the gate decide.

Each precision begins with a graph that has all of its blocks in that precision. The gate compares the graph with fp32
on the images and on synthetic defects. If the gate fails, blocks are reverted until it passes, the most sensitive ones
first. A block is reverted from INT8 to float16, or
to float32 in the layout for CPUs, because float16 slows a CPU down. From float16 a block is reverted to float32. A
precision whose graph cannot pass is not written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flowedge.bundle import Bundle, folder_for_next_version, replace_in_bundle
from flowedge.calibration.calibrate import with_fit_in_history, without_frame_check
from flowedge.calibration.calibration_images import GoodImages
from flowedge.calibration.calibration_record import RECORD, PrecisionReport, bytes_of_record, read_record
from flowedge.calibration.precision.device_graphs import with_device_graphs
from flowedge.calibration.precision.planning import Planning
from flowedge.calibration.precision.precision_page import pages_of_precisions
from flowedge.calibration.precision.precision_request import PrecisionRequest
from flowedge.calibration.precision.pruner import check_has_hidden_layers
from flowedge.calibration.precision.pruning import check_no_graph_rests_on_old_pruning
from flowedge.calibration.threshold_history import ChangeOrigin
from flowedge.errors import CalibrationError
from flowedge.progress import SILENT, Reports
from flowedge.runtime.device.device_cache import DeviceCache


def add_precisions(
    bundle: Bundle,
    images: Sequence[Path],
    request: PrecisionRequest,
    *,
    origin: ChangeOrigin = ChangeOrigin(),  # noqa: B008 - frozen
    threads: int | None = None,
    cache: DeviceCache | None = None,
    reports: Reports = SILENT,
) -> tuple[Bundle, tuple[PrecisionReport, ...]]:
    """Add graphs of lower precision, and fit the score maxima and the thresholds of every graph of the bundle.

    Args:
        bundle: The bundle, which is replaced when every precision has passed, and left as it was otherwise.
        images: Images of good parts.
        request: The precisions to add. A graph of the same precision is replaced.
        origin: The author of the change, for the history of the thresholds.
        threads: The number of CPU threads.
        cache: The device's cache, which keeps the ranges by graph and images. Without a cache the ranges are observed
            anew.
        reports: Receives the progress of each step.

    Returns:
        The calibrated bundle, and the report of each added precision.

    Raises:
        CalibrationError: There are no images, or an fp32 answer is not finite.
        PrecisionError: A precision cannot pass its gate, or the graph has no hidden units to leave out.
        BundleError: The bundle cannot be written.
        ImageError: An image cannot be read.
    """
    if not images:
        raise CalibrationError(
            f"{', '.join(request.names)}: ranges and the gate need images of good parts, got none. "
            "Name a folder of them."
        )
    opened = Bundle(Path(os.path.realpath(bundle.path)), bundle.manifest)
    if request.prune is None and "pruned" in {graph.precision for graph in opened.manifest.graphs}:
        reports.note(
            f"{', '.join(request.wanted)}: planned on the fp32 graph, although the bundle has a pruned graph. To plan "
            "on a pruned graph, add --prune auto or --prune RATIO, which prunes anew."
        )
    if request.prune is not None:
        check_no_graph_rests_on_old_pruning(opened.manifest, request)
        check_has_hidden_layers(opened.graph_path("fp32"), opened.manifest.family)
    checked = None
    good_frames: dict[str, tuple[float, ...]] = {}
    if request.frame_rate is not None:
        good = GoodImages(images, opened.manifest.pixel_range, measures=True)
        checked, good_frames = good.frame_check(request.frame_rate), good.frame_values()
    with folder_for_next_version(opened.path) as folder:
        start = without_frame_check(opened)
        work = Planning(start, folder, images, request, threads, cache, reports)
        calibrated, found = work.run()
        record = read_record(calibrated)
        assert record is not None, "calibrate_bundle writes one"
        pages = pages_of_precisions(calibrated, found, work.gate_images)
        shipped, found, files = with_device_graphs(
            calibrated, start.manifest, found, work.converter_of("bf16"), folder
        )
        renewed = {report.precision for report in found}
        lower = (*(report for report in record.lower_precisions if report.precision not in renewed), *found)
        record = msgspec.structs.replace(
            record,
            lower_precisions=lower,
            frame_notes=() if checked is None else checked.notes,
            good_frames=good_frames,
        )
        files |= {**pages, RECORD: bytes_of_record(record)}
        manifest = msgspec.structs.replace(
            shipped.manifest, frame_check=None if checked is None else checked.check
        )
        manifest = with_fit_in_history(opened.manifest, manifest, origin, record, request.thresholds)
        done = replace_in_bundle(opened, manifest=manifest, files=files)
    return Bundle(bundle.path, done.manifest), found
