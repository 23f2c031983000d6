"""Observe the values that the tensors of a graph take on images, in the pass that calibrates the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.calibration.precision.converted_graph import ConvertedPrecision, tensors_for_conversion
from flowedge.calibration.precision.in_order import in_order
from flowedge.calibration.precision.range_cache import RangeCache
from flowedge.calibration.precision.ranges import Observer, TensorRange
from flowedge.calibration.score_maxima import StoredLevels, has_score_maxima
from flowedge.manifest import Manifest, level_outputs
from flowedge.progress import Reports
from flowedge.runtime.device.device_cache import DeviceCache
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.frames.images import read_image


def calibrated_with_ranges(
    draft: Bundle,
    images: Sequence[Path],
    precisions: Sequence[ConvertedPrecision],
    calibrated: Callable[[Bundle, Mapping[str, StoredLevels]], Bundle],
    *,
    cache: tuple[DeviceCache, str] | None,
    threads: int | None,
    reports: Reports,
) -> tuple[Bundle, dict[str, TensorRange] | None]:
    """Calibrate a bundle of one graph, and return it with the values that the graph's tensors took.

    One pass over the images finds both, because no range depends on the fitted numbers.

    Args:
        draft: The bundle, whose only graph is that of fp32 or stands in its place.
        images: Images of good parts.
        precisions: The precisions that need the values.
        calibrated: A function that calibrates the bundle, given the levels of all images where they are known.
        cache: The device's cache, which keeps the values, and the hash of the images. Without a cache the values are
            observed anew.
        threads: The number of images that run at a time.
        reports: Receives the progress.

    Returns:
        The calibrated bundle. The values by the tensor's name, or None where no precision needs any.
    """
    graph = draft.graph_path("fp32")
    observed = tensors_for_conversion(graph, precisions)
    if not observed.tensors:
        return calibrated(draft, {}), None
    stored = None
    if cache is not None:
        stored = RangeCache(*cache, observed)
        ranges = stored.read(draft)
        if ranges is not None:
            return calibrated(draft, {}), ranges
    reports.step("taking the ranges of all tensors", len(images))
    names = list(level_outputs(draft.manifest.levels, None))
    observer = Observer(graph, observed.tensors, counted=observed.counted, outputs=names, threads=1)
    answers = _answers(observer, draft.manifest, images, threads, reports)
    with contextlib.ExitStack() as stack:
        levels: dict[str, StoredLevels] = {}
        if has_score_maxima(draft.manifest):
            paths = [str(path) for path in images]
            levels["fp32"] = stack.enter_context(StoredLevels(answers, names=paths))
        else:
            # The levels are not needed, but running the answers observes the ranges.
            for _ in answers:
                pass
        fp32 = calibrated(draft, levels)
    if stored is not None:
        # The next run may start from the uncalibrated or from the calibrated bundle.
        stored.write(observer.ranges, (draft, fp32))
    return fp32, observer.ranges


def _answers(
    observer: Observer, manifest: Manifest, images: Sequence[Path], threads: int | None, reports: Reports
) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """Yield the levels of each image, and observe its tensors."""
    input_of = GraphInput(manifest)

    def answered(path: Path) -> tuple[NDArray[np.float32], ...]:
        return observer(input_of([read_image(path, manifest.pixel_range)]))

    # Each image runs on one thread, because counting values takes as long as the graph does.
    for answer in in_order(answered, images, threads, bytes_each=observer.run_bytes):
        yield answer
        reports.advance()
