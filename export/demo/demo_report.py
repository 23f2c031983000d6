"""Write the demo's report: one HTML page with all pictures inside, which opens offline and can be mailed."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import jinja2
import numpy as np
import torch

from flowedge.clock import utc_now
from flowedge.export.demo.demo_result import DemoResult, InspectedPhoto
from flowedge.export.demo.report_template import PAGE
from flowedge.files import write_whole_file
from flowedge.manifest import Manifest
from flowedge.runtime.render import data_address
from flowedge.version import __version__

_SHOWN_PER_KIND: Final = 6
_BINS: Final = 24
_PLOT_WIDTH, _PLOT_HEIGHT = 720, 180

_LIMITS: Final = (
    "The defects are painted in. The report shows that every step works, not how well a detector "
    "would do on a real line.",
    "All images are crops of one 512x512 photograph, and crops of one set overlap: 100 test images are far from "
    "100 independent parts. Training, calibration and test crops share no pixel.",
    "The thresholds were fitted on good calibration images only; no test image was used for them. The best F1 "
    "before calibration is taken on the test images themselves, because there is no threshold yet.",
    "The flow was trained for a minute or two on a CPU, by FlowEdge in FrEIA's modules; anomalib only lent the "
    "checkpoint's layout.",
    "Times are wall-clock times of this machine, with whatever else it was doing.",
)


class Bar(NamedTuple):
    """A rectangle of the histogram, in the units of the drawing."""

    x: float
    y: float
    width: float
    height: float
    kind: str


class Histogram(NamedTuple):
    """A drawing of the test set's image scores. Each bin stacks good images below defective ones."""

    width: int
    height: int
    bars: tuple[Bar, ...]
    threshold_x: float
    low: float
    high: float
    largest_count: int


def write_report(
    path: Path, result: DemoResult, manifest: Manifest, inspected: Sequence[InspectedPhoto]
) -> None:
    """Write the report as one HTML page.

    Args:
        path: The HTML file.
        result: The files and measurements of the demo.
        manifest: The manifest of the calibrated bundle.
        inspected: The test images, inspected in fp32.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "jpeg": partial(data_address, jpeg_quality=85),
        "png": data_address,
        "number": _number,
    }
    threshold = manifest.graph("fp32").thresholds.image
    assert threshold is not None
    page = environment.from_string(PAGE).render(
        result=result,
        manifest=manifest,
        calibrated=next(one for one in result.measured if one.normalisation == "fixed_reference"),
        kinds={
            label: [one for one in inspected if one.label == label][:_SHOWN_PER_KIND]
            for label in sorted({one.label for one in inspected}, key=lambda label: (label == "good", label))
        },
        wrong=[one for one in inspected if one.is_wrong],
        inspected=inspected,
        histogram=histogram_of(inspected, threshold.value),
        limits=_LIMITS,
        machine=_machine(),
        seconds=sum(step.seconds for step in result.steps),
    )
    write_whole_file(path, page.encode())


def histogram_of(inspected: Sequence[InspectedPhoto], threshold: float) -> Histogram:
    """Count the image scores in equal bins. The bins cover all scores and the threshold.

    Args:
        inspected: One test image or more.
        threshold: The image threshold.
    """
    scores = np.array([one.score for one in inspected])
    defective = np.array([one.is_defective for one in inspected])
    low, high = min(float(scores.min()), threshold), max(float(scores.max()), threshold)
    high = high if high > low else low + 1.0
    good, _ = np.histogram(scores[~defective], _BINS, (low, high))
    bad, _ = np.histogram(scores[defective], _BINS, (low, high))
    largest = int((good + bad).max())
    step = _PLOT_WIDTH / _BINS
    unit = _PLOT_HEIGHT / largest
    bars: list[Bar] = []
    for number, (below, above) in enumerate(zip(good.tolist(), bad.tolist(), strict=True)):
        top = _PLOT_HEIGHT
        for count, kind in ((below, "good"), (above, "bad")):
            if count:
                top -= count * unit
                bars.append(
                    Bar(round(number * step + 1, 1), round(top, 1), step - 2, round(count * unit, 1), kind)
                )
    return Histogram(
        width=_PLOT_WIDTH,
        height=_PLOT_HEIGHT,
        bars=tuple(bars),
        threshold_x=round((threshold - low) / (high - low) * _PLOT_WIDTH, 1),
        low=low,
        high=high,
        largest_count=largest,
    )


def _machine() -> str:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"FlowEdge {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{cpus} CPUs, {utc_now():%Y-%m-%d %H:%M} UTC"
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
