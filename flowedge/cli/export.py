"""``flowedge export``: a checkpoint in, a bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowedge.cli.info import print_assumed
from flowedge.cli.output import MESSAGES, RESULTS, Json, print_json, size_from, steps
from flowedge.cli.packages import explain_missing
from flowedge.cli.verify import print_checks
from flowedge.errors import FlowEdgeError

NAME = "export"


def command(
    checkpoint: Annotated[Path, typer.Argument(help="The trained model's file.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The bundle's folder.", show_default="NAME.flowedge")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Add a half-precision graph.")] = False,
    image_size: Annotated[
        tuple[int, int] | None,
        typer.Option("--image-size", metavar="H W", help="The network's input, in pixels."),
    ] = None,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            "--backbone-weights", help="The feature extractor's state dict, where the checkpoint has none."
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A value that the checkpoint does not hold; repeatable."
        ),
    ] = None,
    nfa: Annotated[
        bool,
        typer.Option("--nfa", help="Add the outputs that a threshold by the number of false alarms needs."),
    ] = False,
    frame_size: Annotated[
        str | None,
        typer.Option(
            "--frame-size",
            metavar="HxW",
            help="Take frames of this size as they are; the graph preprocesses.",
        ),
    ] = None,
    opset: Annotated[int, typer.Option("--opset", min=17, max=21, help="ONNX opset.")] = 18,
    json: Json = False,
) -> None:
    """Export a trained checkpoint to a bundle, and check it against the original network."""
    with explain_missing("export"):
        from flowedge.export.pipeline import ExportOptions, default_target, export_bundle
    options = ExportOptions(
        fp16=fp16,
        image_size=image_size,
        backbone_weights=backbone_weights,
        settings=settings_from(assignments or []),
        nfa=nfa,
        frame_size=None if frame_size is None else size_from("--frame-size", frame_size),
        opset=opset,
    )
    target = output if output is not None else default_target(checkpoint)
    with steps() as on_step:
        result = export_bundle(checkpoint, target, options, on_step=on_step)
    manifest = result.bundle.manifest
    if json:
        print_json({"bundle": str(target), "manifest": manifest, "checks": result.checks})
        return
    print_assumed(manifest.assumed)
    for precision, checks in result.checks.items():
        print_checks(checks, f"{precision} against the reference")
    if manifest.licence_note:
        MESSAGES.print(manifest.licence_note)
    RESULTS.print(
        f"{target}: {manifest.family}, {manifest.backbone}, {manifest.image_size[0]}x{manifest.image_size[1]}"
    )


def settings_from(assignments: list[str]) -> dict[str, str]:
    """``name=value`` words as a mapping.

    Raises:
        FlowEdgeError: A word has no equals sign, or a name is given twice.
    """
    settings: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise FlowEdgeError(f"--set takes NAME=VALUE, got {assignment!r}.")
        if name in settings:
            raise FlowEdgeError(f"--set {name} is given twice.")
        settings[name] = value
    return settings
