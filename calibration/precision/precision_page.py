"""Draw the HTML page of each precision: its gate, its blocks, and the maps of a few images side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.calibration.calibration_record import PrecisionReport
from flowedge.calibration.compared_frames import frames_of_image
from flowedge.calibration.gate_page import MapTriple, page_from_gate
from flowedge.calibration.precision.gate_images import judging_engine
from flowedge.runtime.device.machine import slow_precisions
from flowedge.runtime.frames.graph_input import GraphInput

_SHOWN: Final = 3  # Good images on the page, each also with a defect.


def pages_of_precisions(
    calibrated: Bundle, reports: Sequence[PrecisionReport], images: Sequence[Path]
) -> dict[str, bytes]:
    """Return the HTML page of each precision, by the name of its file in the bundle.

    Args:
        calibrated: The bundle with the fp32 graph and the graphs of the precisions, which all run on this machine.
        reports: The reports of the precisions.
        images: Images of good parts, of which the pages show the first ones.
    """
    frames = list(_shown_frames(calibrated, images))
    fp32 = _maps(calibrated, "fp32", frames)
    return {f"gate.{one.precision}.html": _page(calibrated, one, frames, fp32) for one in reports}


def _page(
    calibrated: Bundle,
    report: PrecisionReport,
    frames: Sequence[NDArray[np.uint8]],
    fp32: Sequence[NDArray[np.float32]],
) -> bytes:
    converted = _maps(calibrated, report.precision, frames)
    maps = [
        MapTriple(
            name="a good image" if n % 2 == 0 else "a synthetic defect",
            frame=frame,
            fp32=fp32[n],
            converted=converted[n],
        )
        for n, frame in enumerate(frames)
    ]
    title = f"{calibrated.manifest.source.file}: {report.precision}"
    notes = [sentence for name, sentence in slow_precisions().items() if name == report.precision]
    if report.calibrator is not None:
        notes.append(f"The ranges of activations are those of the calibrator {report.calibrator}.")
    page = page_from_gate(title, report.gate, report.blocks, maps, notes=notes, pruning=report.pruning)
    return page.encode()


def _maps(
    calibrated: Bundle, precision: str, frames: Sequence[NDArray[np.uint8]]
) -> list[NDArray[np.float32]]:
    """Return the anomaly map ``(h, w)`` of each frame in a precision."""
    input_of = GraphInput(calibrated.manifest)
    with contextlib.closing(judging_engine(calibrated, precision)) as engine:
        return [engine.infer(input_of([frame]))["anomaly_map"][0, 0] for frame in frames]


def _shown_frames(bundle: Bundle, images: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
    """Yield a few good images, each followed by a copy of it with a synthetic defect."""
    for index, path in enumerate(images[:_SHOWN]):
        for one in frames_of_image(path, index, 1, bundle.manifest.pixel_range):
            yield one.frame
