"""``flowedge info`` shows what a checkpoint or a bundle is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from flowedge.bundle import Bundle, open_bundle
from flowedge.bundle_files import pack_around
from flowedge.cli.output import RESULTS, Json, listed, print_json, table
from flowedge.cli.places import check_file
from flowedge.cli.settings import TransformFrom, print_assumed, settings_from
from flowedge.cli.threshold_text import last_change_text, nfa_text, threshold_text, thresholds_text
from flowedge.errors import BundleError
from flowedge.lowering import Lowering, read_lowering
from flowedge.manifest import (
    FrameCheck,
    FrameStep,
    GraphFile,
    Manifest,
    NfaThreshold,
    Preprocessing,
    SourceScale,
)
from flowedge.pack import open_pack
from flowedge.packages import explain_missing
from flowedge.signature import signature_words
from flowedge.text import images_words, printable

if TYPE_CHECKING:
    from rich.table import Table

    from flowedge.export.checkpoints.checkpoint import Checkpoint

NAME = "info"


def command(
    source: Annotated[Path, typer.Argument(help="A checkpoint, a bundle or a pack.", show_default=False)],
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A value that the checkpoint does not hold, as for flowedge export. May be repeated.",
        ),
    ] = None,
    transform_from: TransformFrom = None,
    graph: Annotated[
        bool,
        typer.Option(
            "--graph",
            help="Show what each pass of the export did to the flow of a bundle.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show what a checkpoint or a bundle is, which values were assumed, and what is in it."""
    if os.path.isdir(source):  # false for a name that no file can have, where Path.is_dir raises
        if assignments or transform_from is not None:
            raise BundleError(
                f"{source} is a bundle. --set and --transform-from are for a checkpoint: leave them out."
            )
        if pack_around(source) is not None and not graph:
            _print_pack(source, json=json)
            return
        bundle = open_bundle(source)
        result = read_lowering(bundle) if graph else bundle.manifest
        if json:
            print_json(result)
        elif isinstance(result, Lowering):
            _print_lowering(result)
        else:
            _print_bundle(result, signature_words(source, bundle.signature), _calibrators(bundle))
        return
    if graph and os.path.lexists(source):
        raise BundleError(
            f"{source} is not a bundle, and --graph shows how the graph of a bundle was simplified. "
            f"Make one with: flowedge export {source}."
        )
    check_file(source)
    check_file(transform_from)
    with explain_missing("export"):
        from flowedge.export.checkpoints import read_checkpoint
    checkpoint = read_checkpoint(
        source, settings=settings_from(assignments or []), transform_from=transform_from
    )
    if json:
        print_json(_json_of_checkpoint(checkpoint))
    else:
        _print_checkpoint(checkpoint)


def _print_pack(folder: Path, *, json: bool) -> None:
    """Print the facts of a pack, or those of one of its products."""
    around = pack_around(folder)
    assert around is not None
    pack, product = open_pack(around[0]), around[1]
    if product:
        manifest = pack.product(product).manifest
        if json:
            print_json(manifest)
        else:
            _print_bundle(manifest, signature_words(pack.path, pack.signature), {})
        return
    manifests = {name: bundle.manifest for name, bundle in pack.products.items()}
    if json:
        print_json({"pack": pack.index, "products": manifests})
        return
    first = next(iter(manifests.values()))
    facts = table("", "")
    facts.add_row("backbone", first.backbone)
    facts.add_row("input", "x".join(map(str, first.image_size)))
    facts.add_row("preprocessing", _preprocessing_text(first.preprocessing))
    for backbone in pack.index.backbones:
        shapes = ", ".join(f"{one.channels}@{one.height}x{one.width}" for one in backbone.features)
        facts.add_row(backbone.precision, f"features {shapes}, digest {backbone.digest[:12]}…")
    facts.add_row("written", f"{pack.index.created} by FlowEdge {pack.index.flowedge_version}")
    facts.add_row("signature", signature_words(pack.path, pack.signature))
    size = sum(file.size for file in pack.index.files)
    facts.add_row("size", f"{size / 1e6:.1f} MB in {len(pack.index.files)} files")
    RESULTS.print(facts)
    products = table("product", "family", "checkpoint", "precision", "thresholds")
    for name, manifest in manifests.items():
        for graph in manifest.graphs:
            limits = thresholds_text(graph.thresholds)
            products.add_row(name, manifest.family, manifest.source.file, graph.precision, limits)
    RESULTS.print(products)


class _Int8Ranges(msgspec.Struct):
    """The method that chose the ranges of one graph, as ``calibration.json`` names it."""

    precision: str
    calibrator: str | None = None


class _Planned(msgspec.Struct):
    """The part of ``calibration.json`` on the graphs of lower precision, which needs no NumPy to be read."""

    typed: tuple[_Int8Ranges, ...] = ()


def _calibrators(bundle: Bundle) -> Mapping[str, str]:
    """Return the method that chose the ranges of each INT8 graph, by precision, where ``calibration.json`` names it."""
    if "calibration.json" not in {stored.path for stored in bundle.manifest.files}:
        return {}
    try:
        planned = msgspec.json.decode(bundle.read("calibration.json"), type=_Planned)
    except (BundleError, msgspec.MsgspecError):  # The manifest is worth showing without this file too.
        return {}
    return {one.precision: one.calibrator for one in planned.typed if one.calibrator is not None}


def _print_bundle(manifest: Manifest, signature: str, calibrators: Mapping[str, str]) -> None:
    """Print the facts of a bundle as a table, in words who has signed it, and how INT8 ranges were chosen."""
    rows = table("", "")
    source = manifest.source
    rows.add_row("family", manifest.family)
    rows.add_row(
        "source", f"{source.repository} {source.generation}, {source.file}, sha256 {source.sha256[:12]}…"
    )
    if source.transform_file is not None:
        rows.add_row("transform", f"read from {printable(source.transform_file)}")
    rows.add_row("backbone", manifest.backbone)
    rows.add_row("input", "x".join(map(str, manifest.image_size)))
    rows.add_row("preprocessing", _preprocessing_text(manifest.preprocessing))
    if manifest.frame_size is not None:
        rows.add_row("frames", f"{'x'.join(map(str, manifest.frame_size))}, preprocessed in the graph")
    rows.add_row("levels", ", ".join(f"{lv.channels}@{lv.height}x{lv.width}" for lv in manifest.levels))
    for graph in manifest.graphs:
        image, pixel = graph.thresholds.image, graph.thresholds.pixel
        score = graph.scoring.normalisation.replace("_", " ")
        rows.add_row(
            graph.precision,
            f"{graph.file}, opset {graph.opset}, score {score}, image threshold {threshold_text(image)}, "
            f"pixel threshold {threshold_text(pixel)}{_nfa_text(graph.thresholds.nfa)}{_precision_text(graph)}"
            + (f", ranges by {calibrators[graph.precision]}" if graph.precision in calibrators else ""),
        )
    if manifest.source_scale is not None:
        _add_source_scale(rows, manifest.source_scale)
    if manifest.nfa is not None:
        rows.add_row("NFA outputs", f"window {manifest.nfa.window}, probability {manifest.nfa.probability:g}")
    if manifest.frame_check is not None:
        check = manifest.frame_check
        rows.add_row("frame check", f"{check.rate:.3g} of good frames outside, {images_words(check.images)}")
    if manifest.threshold_history:
        rows.add_row(
            "thresholds", f"{last_change_text(manifest.threshold_history)} (flowedge threshold show)"
        )
    rows.add_row("written", f"{manifest.created} by FlowEdge {manifest.flowedge_version}")
    rows.add_row("signature", signature)
    rows.add_row(
        "size", f"{sum(file.size for file in manifest.files) / 1e6:.1f} MB in {len(manifest.files)} files"
    )
    RESULTS.print(rows)
    if manifest.frame_check is not None:
        _print_frame_check(manifest.frame_check)
    print_assumed(manifest.assumed)
    if manifest.licence_note:
        RESULTS.print(manifest.licence_note)


def _print_frame_check(check: FrameCheck) -> None:
    """Print the ranges that a frame must lie in to be inspected."""
    rows = table("quantity", ">from", ">to", title="Frames to inspect")
    for one in check.ranges:
        rows.add_row(one.quantity, f"{one.low:.3g}", f"{one.high:.3g}")
    RESULTS.print(rows)


def _precision_text(graph: GraphFile) -> str:
    """List pruned units, blocks in INT8, reverted blocks and nodes kept in fp32, as the end of a graph's row."""
    parts = []
    if graph.pruned:
        units, kept = (sum(one.units for one in graph.pruned), sum(one.kept for one in graph.pruned))
        parts.append(f"pruned to {kept} of {units} hidden units ({kept / units:.0%})")
    if graph.int8:
        parts.append(f"{len(graph.int8)} blocks in INT8")
    if graph.given_back:
        parts.append(f"{len(graph.given_back)} reverted")
    if graph.fp32_islands:
        parts.append(f"{len(graph.fp32_islands)} nodes kept in fp32")
    return "".join(f", {part}" for part in parts)


def _print_lowering(lowering: Lowering) -> None:
    """Print the effect of each pass on the flow."""
    passes = table(
        "pass", "exactness", ">steps", ">parameters", ">MMAC per image", title="What each pass did"
    )
    for one in lowering.passes:
        before, after = one.before, one.after
        passes.add_row(
            one.name.replace("_", " "),
            one.exactness,
            _change(f"{before.steps}", f"{after.steps}"),
            _change(f"{before.parameters:,}", f"{after.parameters:,}"),
            _change(_millions(before.macs), _millions(after.macs)),
        )
    RESULTS.print(passes)


def _change(before: str, after: str) -> str:
    """Return both numbers with an arrow between them, or one where they are equal."""
    return before if before == after else f"{before} → {after}"


def _millions(macs: int) -> str:
    """Return a count in millions."""
    return f"{macs / 1e6:,.2f}"


def _print_checkpoint(checkpoint: Checkpoint) -> None:
    """Print the facts of a checkpoint as a table."""
    rows = table("", "")
    rows.add_row("family", checkpoint.family)
    rows.add_row("source", f"{checkpoint.repository}, generation {checkpoint.generation}")
    for name, value in checkpoint.hyperparameters.items():
        rows.add_row(name, listed(value))
    rows.add_row("preprocessing", _preprocessing_text(checkpoint.preprocessing))
    if checkpoint.transform_file is not None:
        rows.add_row("transform", f"read from {checkpoint.transform_file[0]}")
    is_whole = any(name.startswith("backbone.") for name in checkpoint.tensors)
    network = checkpoint.hyperparameters["backbone"]
    rows.add_row(
        "backbone's weights",
        "in the file" if is_whole else f"missing: give {network}'s with --backbone-weights FILE",
    )
    if checkpoint.other_weights:
        other = "trained" if checkpoint.weights == "ema" else "ema"
        rows.add_row(
            "weights",
            f"{checkpoint.weights}; {printable(checkpoint.other_weights)} holds the others: --set weights={other}",
        )
    if checkpoint.stand_ins:
        rows.add_row("code that was not run", printable(", ".join(checkpoint.stand_ins)))
    if checkpoint.source_scale is not None:
        _add_source_scale(rows, checkpoint.source_scale)
    rows.add_row("parameters", f"{sum(array.size for array in checkpoint.tensors.values()) / 1e6:.2f} M")
    RESULTS.print(rows)
    print_assumed(checkpoint.assumed)


def _json_of_checkpoint(checkpoint: Checkpoint) -> dict[str, object]:
    """Return the facts of a checkpoint for JSON, without its tensors."""
    return {
        "family": checkpoint.family,
        "repository": checkpoint.repository,
        "generation": checkpoint.generation,
        "hyperparameters": dict(checkpoint.hyperparameters),
        "assumed": checkpoint.assumed,
        "preprocessing": msgspec.to_builtins(checkpoint.preprocessing),
        "source_scale": checkpoint.source_scale,
        "weights": checkpoint.weights,
        "other_weights": checkpoint.other_weights,
        "stand_ins": checkpoint.stand_ins,
        "transform_file": checkpoint.transform_file,
        "has_backbone_weights": any(name.startswith("backbone.") for name in checkpoint.tensors),
        "parameters": sum(array.size for array in checkpoint.tensors.values()),
        "file": checkpoint.file,
        "sha256": checkpoint.sha256,
    }


def _add_source_scale(rows: Table, scale: SourceScale) -> None:
    """Add the thresholds and ranges that anomalib fitted: one row for the image score and one for the map."""
    for name, part in (("image", scale.image), ("pixel", scale.pixel)):
        held = ((field, value) for field, value in msgspec.structs.asdict(part).items() if value is not None)
        shown = ", ".join(f"{field.replace('_', ' ')} {value:.6g}" for field, value in held)
        rows.add_row(f"source's {name} scale", f"anomalib {scale.rule}: {shown or 'nothing fitted'}")


def _preprocessing_text(steps: Preprocessing) -> str:
    """Return the steps from a frame to the network's input in words."""
    size = f"shorter side {steps.resize[0]}" if steps.keep_aspect else "x".join(map(str, steps.resize))
    crop = "" if steps.crop is None else f", centre crop {steps.crop[0]}x{steps.crop[1]}"
    before = "".join(f"{_frame_step_text(step)}, " for step in steps.frame_steps)
    grey = ", grey" if steps.grayscale else ""
    return f"{before}{steps.method} to {size}{crop}{grey}, mean {listed(steps.mean)}, std {listed(steps.std)}"


def _frame_step_text(step: FrameStep) -> str:
    """Return one change of a frame's borders in words."""
    words = step.kind.replace("_", " ")
    if step.size is not None:
        return f"{words} {step.size[0]}x{step.size[1]}"
    border = f" {listed(step.border)}" if step.kind == "pad" else ""
    fill = f" of {listed(step.fill)}" if step.mode == "constant" else ""
    return f"{words}{border} {step.mode}{fill}"


def _nfa_text(threshold: NfaThreshold | None) -> str:
    """Return the limit of log NFA as the end of a graph's row, or an empty string where no limit is set."""
    return "" if threshold is None else f", decided by {nfa_text(threshold)}"
