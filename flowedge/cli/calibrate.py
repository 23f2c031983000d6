"""``flowedge calibrate``: fit the reference and the thresholds on images of good parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowedge.bundle import open_bundle
from flowedge.cli.output import (
    MESSAGES,
    RESULTS,
    EngineName,
    Json,
    Threads,
    number,
    print_json,
    progress,
    table,
)
from flowedge.errors import FlowEdgeError

NAME = "calibrate"

_DEFAULTS = {"quantile": (0.99, 0.9995), "target-fpr": (0.01, 0.0005), "f1": (None, None)}


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle; it is updated in place.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="A folder of good images, or a dataset with train/good.", show_default=False
        ),
    ],
    reference: Annotated[
        bool,
        typer.Option(
            "--reference/--no-reference", help="Fit the fixed reference of CFLOW's and MSFlow's score."
        ),
    ] = True,
    threshold: Annotated[
        str, typer.Option("--threshold", help="quantile, target-fpr, f1 (labelled dataset) or none.")
    ] = "quantile",
    image: Annotated[
        float | None,
        typer.Option(
            "--image", help="The quantile or rate of images.", show_default="quantile 0.99, rate 0.01"
        ),
    ] = None,
    pixel: Annotated[
        float | None,
        typer.Option(
            "--pixel", help="The quantile or rate of pixels.", show_default="quantile 0.9995, rate 0.0005"
        ),
    ] = None,
    engine: EngineName = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Fit the reference maxima and the thresholds of every precision, and store them in the bundle."""
    from flowedge.calibration.calibrate import ThresholdRequest, calibrate_bundle
    from flowedge.calibration.dataset import good_images, read_dataset

    if threshold not in (*_DEFAULTS, "none"):
        raise FlowEdgeError(f"--threshold is one of {', '.join(_DEFAULTS)} or none, got {threshold!r}.")
    request = None
    if threshold != "none":
        if threshold == "f1" and (image is not None or pixel is not None):
            raise FlowEdgeError("--threshold f1 takes no --image and no --pixel.")
        image_default, pixel_default = _DEFAULTS[threshold]
        for name, value in (("--image", image), ("--pixel", pixel)):
            if value is not None and not 0 < value < 1:
                raise FlowEdgeError(f"{name} must lie between 0 and 1, got {value}.")
        request = ThresholdRequest(
            method=threshold,  # type: ignore[arg-type]
            image=image_default if image is None else image,
            pixel=pixel_default if pixel is None else pixel,
        )
    opened = open_bundle(bundle)
    images = good_images(data)
    labelled = read_dataset(data) if threshold == "f1" else None
    with progress("calibrating") as on_progress:
        result = calibrate_bundle(
            opened,
            images,
            reference=reference,
            request=request,
            labelled=labelled,
            engine=engine,
            threads=threads,
            on_progress=on_progress,
        )
    if json:
        print_json(result.record)
        return
    rows = table("precision", "reference maxima", ">image threshold", ">pixel threshold")
    for graph in result.record.graphs:
        maxima = "-"
        if graph.reference is not None:
            maxima = ", ".join(
                f"{value:.4f}" for value in (*graph.reference.level_max, graph.reference.map_max)
            )
        limits = [None if t is None else t.value for t in (graph.thresholds.image, graph.thresholds.pixel)]
        rows.add_row(graph.precision, maxima, *(number(limit) for limit in limits))
        for note in graph.notes:
            MESSAGES.print(f"{graph.precision}: {note}")
    RESULTS.print(rows)
    RESULTS.print(f"{bundle}: fitted on {result.record.images} good images")
