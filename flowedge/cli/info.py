"""``flowedge info``: what a checkpoint or a bundle is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from flowedge.bundle import open_bundle
from flowedge.cli.output import RESULTS, Json, print_json, table
from flowedge.cli.packages import explain_missing
from flowedge.manifest import Assumed, Manifest, NfaThreshold, Preprocessing, Threshold

if TYPE_CHECKING:
    from flowedge.export.checkpoints.record import Checkpoint

NAME = "info"


def command(
    source: Annotated[Path, typer.Argument(help="A checkpoint or a bundle.", show_default=False)],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="As for export; for a checkpoint.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what a checkpoint or a bundle is, what was assumed, and what is in it."""
    if source.is_dir():
        manifest = open_bundle(source).manifest
        if json:
            print_json(manifest)
        else:
            _print_bundle(manifest)
        return
    with explain_missing("export"):
        from flowedge.cli.export import settings_from
        from flowedge.export.checkpoints import read_checkpoint
    checkpoint = read_checkpoint(source, settings=settings_from(assignments or []))
    if json:
        print_json(_plain(checkpoint))
    else:
        _print_checkpoint(checkpoint)


def print_assumed(assumed: Sequence[Assumed]) -> None:
    """What the checkpoint does not hold."""
    if not assumed:
        return
    rows = table("assumed", "value", "by", "why", title="Values that the checkpoint does not hold")
    for one in assumed:
        rows.add_row(one.name, _shown(one.value), "you" if one.given else "default", one.why)
    RESULTS.print(rows)


def _print_bundle(manifest: Manifest) -> None:
    rows = table("", "")
    source = manifest.source
    rows.add_row("family", manifest.family)
    rows.add_row(
        "source", f"{source.repository} {source.generation}, {source.file}, sha256 {source.sha256[:12]}…"
    )
    rows.add_row("backbone", manifest.backbone)
    rows.add_row("input", "x".join(map(str, manifest.image_size)))
    rows.add_row("preprocessing", _preprocessing(manifest.preprocessing))
    rows.add_row("levels", ", ".join(f"{lv.channels}@{lv.height}x{lv.width}" for lv in manifest.levels))
    for graph in manifest.graphs:
        image, pixel = graph.thresholds.image, graph.thresholds.pixel
        score = graph.scoring.normalisation.replace("_", " ")
        rows.add_row(
            graph.precision,
            f"{graph.file}, opset {graph.opset}, score {score}, image threshold {_threshold(image)}, "
            f"pixel threshold {_threshold(pixel)}{_nfa(graph.thresholds.nfa)}",
        )
    if manifest.nfa is not None:
        rows.add_row("NFA outputs", f"window {manifest.nfa.window}, probability {manifest.nfa.probability:g}")
    rows.add_row("written", f"{manifest.created} by FlowEdge {manifest.flowedge_version}")
    rows.add_row(
        "size", f"{sum(file.size for file in manifest.files) / 1e6:.1f} MB in {len(manifest.files)} files"
    )
    RESULTS.print(rows)
    print_assumed(manifest.assumed)
    if manifest.licence_note:
        RESULTS.print(manifest.licence_note)


def _print_checkpoint(checkpoint: Checkpoint) -> None:
    rows = table("", "")
    rows.add_row("family", checkpoint.family)
    rows.add_row("source", f"{checkpoint.repository}, generation {checkpoint.generation}")
    for name, value in checkpoint.hyperparameters.items():
        rows.add_row(name, _shown(value))
    rows.add_row("preprocessing", _preprocessing(checkpoint.preprocessing))
    missing = (
        ""
        if any(name.startswith("backbone.") for name in checkpoint.tensors)
        else "missing: --backbone-weights"
    )
    rows.add_row("backbone's weights", missing or "in the file")
    rows.add_row("parameters", f"{sum(array.size for array in checkpoint.tensors.values()) / 1e6:.2f} M")
    RESULTS.print(rows)
    print_assumed(checkpoint.assumed)


def _plain(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "family": checkpoint.family,
        "repository": checkpoint.repository,
        "generation": checkpoint.generation,
        "hyperparameters": dict(checkpoint.hyperparameters),
        "assumed": checkpoint.assumed,
        "preprocessing": msgspec.to_builtins(checkpoint.preprocessing),
        "has_backbone_weights": any(name.startswith("backbone.") for name in checkpoint.tensors),
        "parameters": sum(array.size for array in checkpoint.tensors.values()),
        "file": checkpoint.file,
        "sha256": checkpoint.sha256,
    }


def _preprocessing(steps: Preprocessing) -> str:
    size = f"shorter side {steps.resize[0]}" if steps.keep_aspect else "x".join(map(str, steps.resize))
    crop = "" if steps.crop is None else f", centre crop {steps.crop[0]}x{steps.crop[1]}"
    return f"{steps.method} to {size}{crop}, mean {_shown(steps.mean)}, std {_shown(steps.std)}"


def _threshold(threshold: Threshold | None) -> str:
    if threshold is None:
        return "not fitted"
    parameter = "" if threshold.parameter is None else f" {threshold.parameter:g}"
    return f"{threshold.value:.6g} ({threshold.method}{parameter}, {threshold.images} images)"


def _nfa(threshold: NfaThreshold | None) -> str:
    return "" if threshold is None else f", decided by {threshold.form} log NFA < {threshold.log_nfa:g}"


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
