"""Draw the HTML page of a precision: its gate, its blocks, and the maps of a few images side by side."""

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


def page_of_precision(calibrated: Bundle, report: PrecisionReport, images: Sequence[Path]) -> bytes:
    """Return the HTML page of one precision.

    Args:
        calibrated: The bundle with the fp32 graph and the graph of the precision, which both run on this machine.
        report: The report of the precision.
        images: Images of good parts, of which the page shows the first ones.
    """
    maps: list[MapTriple] = []
    input_of = GraphInput(calibrated.manifest)
    with (
        contextlib.closing(judging_engine(calibrated, "fp32")) as fp32,
        contextlib.closing(judging_engine(calibrated, report.precision)) as converted,
    ):
        for n, frame in enumerate(_shown_frames(calibrated, images)):
            image = input_of([frame])
            maps.append(
                MapTriple(
                    name="a good image" if n % 2 == 0 else "a synthetic defect",
                    frame=frame,
                    fp32=fp32.infer(image)["anomaly_map"][0, 0],
                    converted=converted.infer(image)["anomaly_map"][0, 0],
                )
            )
    title = f"{calibrated.manifest.source.file}: {report.precision}"
    notes = [sentence for name, sentence in slow_precisions().items() if name == report.precision]
    return page_from_gate(title, report.gate, report.blocks, maps, notes=notes).encode()


def _shown_frames(bundle: Bundle, images: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
    """Yield a few good images, each followed by a copy of it with a synthetic defect."""
    for index, path in enumerate(images[:_SHOWN]):
        for one in frames_of_image(path, index, 1, bundle.manifest.pixel_range):
            yield one.frame
