"""``flowedge threshold`` shows, sets and fits the thresholds of a bundle, and keeps a history of their changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowedge.bundle import open_bundle
from flowedge.cli import completion
from flowedge.cli.group import new_group
from flowedge.cli.output import PROBLEMS, RESULTS, EngineName, Json, Threads, print_json, table
from flowedge.cli.places import check_bundle, check_folder, print_left_out_subfolders, signature_noted
from flowedge.cli.progress import progress_bar
from flowedge.cli.threshold_options import (
    FITTED_RULES,
    By,
    ImageQuantile,
    ImageRate,
    OldImage,
    OldPixel,
    PixelQuantile,
    PixelRate,
    Reason,
    origin_of,
    threshold_request,
)
from flowedge.cli.threshold_text import (
    last_change_text,
    nfa_text,
    print_fitted_points,
    print_history,
    threshold_text,
    thresholds_text,
    with_graph_commands,
)
from flowedge.errors import FlowEdgeError
from flowedge.manifest import Manifest

NAME = "threshold"

app = new_group(
    NAME, help="Show, set or fit the thresholds of a bundle, which keeps a history of their changes."
)


@app.command("show")
def show(
    bundle: Annotated[Path, typer.Argument(help="The bundle.", show_default=False)],
    history: Annotated[
        bool, typer.Option("--history", help="Print every change with its old and its new values.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the thresholds of every precision, how they were chosen, and who changed them last.

    The JSON always has the whole history.
    """
    manifest = open_bundle(bundle).manifest
    if json:
        graphs = [{"precision": graph.precision, "thresholds": graph.thresholds} for graph in manifest.graphs]
        print_json({"graphs": graphs, "history": manifest.threshold_history})
        return
    rows = table("precision", "image threshold", "pixel threshold", "NFA", "decides")
    for graph in manifest.graphs:
        own = graph.thresholds
        decides = "the NFA" if own.nfa else "the thresholds" if own.image or own.pixel else "nothing yet"
        rows.add_row(
            graph.precision,
            threshold_text(own.image),
            threshold_text(own.pixel),
            nfa_text(own.nfa),
            decides,
        )
    RESULTS.print(rows)
    if not manifest.threshold_history:
        RESULTS.print("no history: the thresholds were never changed, or only by a FlowEdge that kept none")
    elif history:
        print_history(manifest.threshold_history)
    else:
        RESULTS.print(f"{last_change_text(manifest.threshold_history)} (--history shows all)", soft_wrap=True)


@app.command("set")
def set_values(
    bundle: Annotated[Path, typer.Argument(help="The bundle. It is updated in place.", show_default=False)],
    image: Annotated[
        float | None, typer.Option("--image", help="The image threshold, in units of the score.")
    ] = None,
    pixel: Annotated[
        float | None, typer.Option("--pixel", help="The pixel threshold, in units of the anomaly map.")
    ] = None,
    log_nfa: Annotated[
        float | None,
        typer.Option(
            "--log-nfa",
            help="The limit of log NFA: log10 of the false alarms that are expected in an image. It decides in place "
            "of image and pixel threshold.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--form", help="With --log-nfa: tree or block.", show_default="that of the bundle, or tree"
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            help="The graph that the value belongs to, or all. Scores differ by precision, so a bundle of several "
            "graphs needs it for --image and --pixel.",
            show_default="the only graph, and all graphs for --log-nfa",
            autocompletion=completion.graphs_and_all,
        ),
    ] = None,
    reason: Reason = "",
    by: By = None,
    json: Json = False,
) -> None:
    """Set thresholds by hand. --reason is needed, because nothing else explains such a value later."""
    check_bundle(bundle)
    from flowedge.calibration.threshold_changes import NewThresholds, set_thresholds

    if not reason.strip():
        raise FlowEdgeError(
            "a threshold that is set by hand needs a reason, for whoever asks later: add --reason TEXT."
        )
    if image is None and pixel is None and log_nfa is None:
        raise FlowEdgeError("nothing to set: give --image, --pixel or --log-nfa with a value.")
    if form not in (None, "tree", "block"):
        raise FlowEdgeError(f"--form is tree or block, got {form!r}.")
    if form is not None and log_nfa is None:
        raise FlowEdgeError("--form goes with --log-nfa.")
    values = NewThresholds(image=image, pixel=pixel, log_nfa=log_nfa, form=form)  # type: ignore[arg-type]
    with signature_noted(bundle):
        done = set_thresholds(
            bundle, values, reason=reason, precision=precision, by=by, command="flowedge threshold set"
        )
    _print_changed(bundle, done.manifest, json=json)


@app.command("fit")
def fit(
    bundle: Annotated[Path, typer.Argument(help="The bundle. It is updated in place.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="A folder of good images, or a dataset. f1 needs a dataset with labelled test images.",
            show_default=False,
        ),
    ],
    rule: Annotated[
        str, typer.Option("--threshold", help="The rule for the thresholds: quantile, target-fpr or f1.")
    ] = "quantile",
    image_quantile: ImageQuantile = None,
    pixel_quantile: PixelQuantile = None,
    image_rate: ImageRate = None,
    pixel_rate: PixelRate = None,
    old_image: OldImage = None,
    old_pixel: OldPixel = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="The graph to fit the thresholds of, or all.",
            autocompletion=completion.graphs_and_all,
        ),
    ] = "all",
    reason: Reason = "",
    by: By = None,
    engine: EngineName = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Fit the thresholds alone, as flowedge calibrate does. Score maxima and the frame check stay as they are."""
    check_bundle(bundle, data)
    check_folder(data)
    from flowedge.calibration.threshold_changes import fit_thresholds

    if rule not in FITTED_RULES:
        raise FlowEdgeError(f"--threshold is one of {', '.join(FITTED_RULES)}, got {rule!r}.")
    request = threshold_request(
        rule,
        image_quantile=image_quantile,
        pixel_quantile=pixel_quantile,
        image_rate=image_rate,
        pixel_rate=pixel_rate,
        old_image=old_image,
        old_pixel=old_pixel,
    )
    assert request is not None, "every rule of this command fits"
    print_left_out_subfolders(data)
    with signature_noted(bundle), progress_bar() as reports:
        done = fit_thresholds(
            bundle,
            data,
            request,
            precision=precision,
            origin=origin_of("threshold fit", by, reason),
            engine=engine,
            threads=threads,
            reports=reports,
        )
    if json:
        fitted = with_graph_commands(done.graphs, bundle)
        print_json(_json_of_change(done.bundle.manifest) | {"fitted": fitted, "images": done.images})
        return
    for graph in done.graphs:
        for note in graph.notes:
            PROBLEMS.print(f"warning: {graph.precision}: {note}", soft_wrap=True)
    print_fitted_points(done.graphs, bundle)
    _print_changed(bundle, done.bundle.manifest, json=False)


def _print_changed(bundle: Path, manifest: Manifest, *, json: bool) -> None:
    """Print the newest entry of the history."""
    if json:
        print_json(_json_of_change(manifest))
        return
    for change in manifest.threshold_history[-1].changes:
        RESULTS.print(
            f"{bundle}: {change.precision}: {thresholds_text(change.before)} → {thresholds_text(change.after)}",
            soft_wrap=True,
        )


def _json_of_change(manifest: Manifest) -> dict[str, object]:
    """Return the thresholds and the newest entry of the history for JSON."""
    graphs = [{"precision": graph.precision, "thresholds": graph.thresholds} for graph in manifest.graphs]
    return {"graphs": graphs, "change": manifest.threshold_history[-1]}
