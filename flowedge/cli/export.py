"""``flowedge export`` makes a bundle of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowedge.bundle import Bundle
from flowedge.cli.output import MESSAGES, RESULTS, Force, Json, print_json, size_from
from flowedge.cli.places import check_checkpoint, check_file, check_folder
from flowedge.cli.precision import (
    Bf16,
    CalibratorOption,
    Fp16,
    GateOption,
    Int8,
    LabelledOption,
    PruneOption,
    precision_request,
    print_fitted,
    print_reports,
    print_slow_precisions,
)
from flowedge.cli.progress import progress_bar
from flowedge.cli.settings import TransformFrom, print_assumed, settings_from
from flowedge.cli.verify import print_checks
from flowedge.errors import ExportError, FlowEdgeError
from flowedge.packages import explain_missing
from flowedge.targets import check_bundle_target, default_target

if TYPE_CHECKING:
    from flowedge.calibration.calibration_record import PrecisionReport
    from flowedge.calibration.precision import PrecisionRequest
    from flowedge.calibration.precision.half import HalfType

NAME = "export"


def command(
    checkpoint: Annotated[Path, typer.Argument(help="The file of the trained model.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The folder of the bundle.",
            show_default="NAME.flowedge",
        ),
    ] = None,
    fp16: Fp16 = False,
    bf16: Bf16 = False,
    int8: Int8 = False,
    prune: PruneOption = None,
    calib_data: Annotated[
        Path | None,
        typer.Option(
            "--calib-data",
            help="A folder of good images, or a dataset with train/good. Lower precisions are planned and judged on "
            "them, and the bundle is calibrated.",
        ),
    ] = None,
    calibrator: CalibratorOption = "auto",
    gate: GateOption = None,
    labelled: LabelledOption = None,
    image_size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            "--image-size", metavar="H W", help="Height and width of the network's input in pixels."
        ),
    ] = None,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            "--backbone-weights",
            help="A file with the state dict of the feature extractor, for a checkpoint that has none.",
        ),
    ] = None,
    transform_from: TransformFrom = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A value that the checkpoint does not hold. May be repeated."
        ),
    ] = None,
    nfa: Annotated[
        bool,
        typer.Option(
            "--nfa", help="Add the outputs that a threshold on the number of false alarms (NFA) needs."
        ),
    ] = False,
    frame_size: Annotated[
        str | None,
        typer.Option(
            "--frame-size",
            metavar="HxW",
            help="Put the preprocessing into the graph, which then takes frames of this height and width in pixels.",
        ),
    ] = None,
    opset: Annotated[int, typer.Option("--opset", min=17, max=21, help="The ONNX opset of the graph.")] = 18,
    force: Force = False,
    json: Json = False,
) -> None:
    """Export a trained checkpoint to a bundle, and check it against the original network."""
    settings = settings_from(assignments or [])
    size = None if frame_size is None else size_from("--frame-size", frame_size)
    target = output if output is not None else default_target(checkpoint)
    check_checkpoint(checkpoint, target)
    for file in (backbone_weights, transform_from):
        check_file(file)
    for folder in (calib_data, labelled):
        check_folder(folder)
    check_bundle_target(target, force=force)
    with explain_missing("export"):
        images, request = _images_and_request(  # before PyTorch, which takes seconds to import
            calib_data,
            int8=int8,
            fp16=fp16,
            bf16=bf16,
            prune=prune,
            calibrator=calibrator,
            gate=gate,
            labelled=labelled,
        )
        from flowedge.calibration.calibration_record import read_record
        from flowedge.calibration.precision import add_half_graphs, add_precisions
        from flowedge.calibration.threshold_history import ChangeOrigin
        from flowedge.export.pipeline import ExportOptions, export_bundle
    options = ExportOptions(
        image_size=image_size,
        backbone_weights=backbone_weights,
        transform_from=transform_from,
        settings=settings,
        nfa=nfa,
        frame_size=size,
        opset=opset,
    )
    halves: list[HalfType] = []
    if fp16:
        halves.append("fp16")
    if bf16:
        halves.append("bf16")
    if fp16 or bf16 or int8 or prune is not None:
        _check_opset(opset)
    print_slow_precisions(bf16=bf16, int8=int8)
    precisions: tuple[PrecisionReport, ...] = ()
    with progress_bar() as reports:

        def extend(bundle: Bundle) -> Bundle:
            nonlocal precisions
            if request is not None:
                from flowedge.runtime.device.device_cache import device_cache

                bundle, precisions = add_precisions(
                    bundle,
                    images,
                    request,
                    origin=ChangeOrigin(command="flowedge export"),
                    cache=device_cache(),
                    reports=reports,
                )
            elif halves:
                bundle = add_half_graphs(bundle, halves, reports=reports)
            return bundle

        result = export_bundle(checkpoint, target, options, extend=extend, force=force, reports=reports)
    manifest = result.bundle.manifest
    if json:
        print_json(
            {
                "bundle": str(target),
                "manifest": manifest,
                "checks": result.checks,
                "precisions": precisions,
            }
        )
        return
    print_assumed(manifest.assumed)
    for precision, checks in result.checks.items():
        print_checks(checks, f"{precision} against the reference network")
    print_reports(precisions)
    if precisions:
        fitted = read_record(result.bundle)
        assert fitted is not None, "what was judged was calibrated"
        print_fitted(fitted, target)
    if manifest.licence_note:
        MESSAGES.print(manifest.licence_note)
    RESULTS.print(
        f"{target}: {manifest.family}, {manifest.backbone}, {manifest.image_size[0]}x{manifest.image_size[1]}"
    )


def _check_opset(opset: int) -> None:
    """Refuse an opset whose conversion loses the names of the nodes. A lower precision is planned by these names."""
    from flowedge.export.graph.onnx_export import DEFAULT_OPSET

    if opset < DEFAULT_OPSET:
        raise ExportError(
            f"a lower precision needs --opset {DEFAULT_OPSET} or more, got {opset}: the conversion to an older opset "
            "loses the names of the nodes, by which the precision is planned."
        )


def _images_and_request(
    calib_data: Path | None,
    *,
    int8: bool,
    fp16: bool,
    bf16: bool,
    prune: str | None,
    calibrator: str,
    gate: list[str] | None,
    labelled: Path | None,
) -> tuple[tuple[Path, ...], PrecisionRequest | None]:
    """Return the good images and the precisions to plan and judge on them. Both are empty without ``--calib-data``.

    Raises:
        FlowEdgeError: An option that needs images came without them, or images came without a precision.
    """
    if calib_data is None:
        for option, is_given in (("--int8", int8), ("--prune", prune is not None)):
            if is_given:
                raise FlowEdgeError(
                    f"{option} needs images of good parts: name their folder with --calib-data."
                )
        if gate or labelled is not None:
            raise FlowEdgeError("--gate and --labelled judge on images: name a folder with --calib-data.")
        return (), None
    from flowedge.calibration.dataset import good_images

    request = precision_request(
        fp16=fp16, bf16=bf16, int8=int8, prune=prune, calibrator=calibrator, gate=gate, labelled=labelled
    )
    if request is None:
        raise FlowEdgeError(
            "--calib-data goes with --fp16, --bf16, --int8 or --prune. To calibrate an fp32 bundle, run "
            "flowedge calibrate."
        )
    return good_images(calib_data), request
