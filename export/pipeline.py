"""Export a checkpoint to a verified bundle with one fp32 graph."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from flowedge.bundle import Bundle, write_bundle
from flowedge.clock import utc_now
from flowedge.drafts import draft_folder
from flowedge.errors import BundleError, CheckpointError, ExportError
from flowedge.export.backbones import backbone_from_checkpoint, feature_shapes, module_from_backbone
from flowedge.export.checkpoints import read_checkpoint
from flowedge.export.checkpoints.backbone import with_backbone
from flowedge.export.checkpoints.budget import check_image_size
from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.checkpoints.safe_load import naming_file
from flowedge.export.checkpoints.settings import PIXEL_RANGE, given_value
from flowedge.export.families import FAMILIES, LICENCES
from flowedge.export.graph import ir
from flowedge.export.graph.counts import lower_and_describe
from flowedge.export.graph.frame_graph import check_frame_size
from flowedge.export.graph.onnx_export import DEFAULT_OPSET, OPSETS, FrameInput, onnx_from_model
from flowedge.export.reference.answers import ReferenceNetwork, reference_answers
from flowedge.export.stack_room import with_stack_room
from flowedge.families import TRAITS
from flowedge.lowering import LOWERING, Lowering, json_from_lowering
from flowedge.manifest import (
    SCHEMA,
    Family,
    GraphFile,
    LevelInfo,
    Manifest,
    NfaOutputs,
    Preprocessing,
    Source,
)
from flowedge.manifest_json import json_from_manifest
from flowedge.progress import SILENT, Reports
from flowedge.runtime.frames.pixel_range import with_pixel_range
from flowedge.runtime.frames.preprocess import Preprocessor
from flowedge.runtime.opening.engine import JUDGE
from flowedge.runtime.opening.selftest import files_of_selftest, synthetic_frames
from flowedge.runtime.verify import Check, verify_bundle
from flowedge.targets import check_bundle_target, put_bundle
from flowedge.text import printable
from flowedge.version import __version__

_BLOCK_TEST: Final = (5, 0.9)  # window in pixels and probability in the official U-Flow


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The options of an export.

    Attributes:
        image_size: ``(height, width)`` of the network's input in pixels, or None for the checkpoint's.
        backbone_weights: State dict of the feature extractor, for checkpoints that do not hold it.
        transform_from: Another file of the same training that holds the input transform, such as its ``model.pt``.
        settings: The values of ``--set name=value``, by name.
        nfa: True to add the outputs for the number of false alarms: counts, and energies where the levels are
            likelihoods.
        frame_size: ``(height, width)`` in pixels of the frames that the graph takes and preprocesses, or None for a
            graph that takes the network's input.
        opset: ONNX opset, 17 to 21.
    """

    image_size: tuple[int, int] | None = None
    backbone_weights: Path | None = None
    transform_from: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    nfa: bool = False
    frame_size: tuple[int, int] | None = None
    opset: int = DEFAULT_OPSET

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise ValueError(f"opset must be {OPSETS.start} to {OPSETS.stop - 1}, got {self.opset}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadModel:
    """A checkpoint with everything that an export or a comparison needs.

    Attributes:
        checkpoint: The tensors and settings of the file.
        model: The IR before any pass.
        backbone: The feature extractor with its weights.
        shapes: ``(channels, height, width)`` of the backbone's features, from fine to coarse.
        preprocessing: The steps from a frame to the network's input.
    """

    checkpoint: Checkpoint
    model: ir.FlowModel = field(repr=False)
    backbone: nn.Module = field(repr=False)
    shapes: tuple[tuple[int, int, int], ...]
    preprocessing: Preprocessing

    def reference_network(self) -> ReferenceNetwork:
        """Build the network from image to levels in real FrEIA and timm modules, without any pass."""
        family = FAMILIES[self.checkpoint.family]
        return family.reference_network(self.checkpoint, self.backbone, self.shapes).eval()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExportResult:
    """The result of an export.

    Attributes:
        bundle: The verified bundle.
        checks: By precision, the comparison with the expected answers of the bundle's self-test. The graph in
            bfloat16 has none, because ONNX Runtime's CPU does not run bfloat16.
    """

    bundle: Bundle
    checks: Mapping[str, tuple[Check, ...]]


def read_model(path: Path, options: ExportOptions) -> ReadModel:
    """Read a checkpoint and build its IR.

    Raises:
        CheckpointError: The file cannot be read, is of no known model, or lacks a tensor or a setting.
    """
    settings = dict(options.settings)
    if options.image_size is not None:
        settings["input_size"] = "x".join(str(side) for side in options.image_size)
    checkpoint = read_checkpoint(path, settings=settings, transform_from=options.transform_from)
    checkpoint = with_backbone(checkpoint, options.backbone_weights)
    family = FAMILIES[checkpoint.family]
    image_size = _input_size(checkpoint)
    # A size that the user gave may exceed the limit on pixels, which protects from a damaged file.
    given = any(value.name == "input_size" and value.given for value in checkpoint.assumed)
    with naming_file(path):
        backbone = backbone_from_checkpoint(checkpoint)
        module = module_from_backbone(backbone)
        check_image_size(image_size, given=given)
        shapes = feature_shapes(module, image_size)
        model = family.flow_model(checkpoint, backbone, shapes, image_size)
    return ReadModel(
        checkpoint=checkpoint,
        model=model,
        backbone=module,
        shapes=tuple(shapes),
        preprocessing=checkpoint.preprocessing,
    )


@with_stack_room
def export_bundle(
    path: str | PathLike[str],
    target: str | PathLike[str],
    options: ExportOptions,
    *,
    extend: Callable[[Bundle], Bundle] = lambda bundle: bundle,
    force: bool = False,
    reports: Reports = SILENT,
) -> ExportResult:
    """Export a checkpoint to a bundle with an fp32 graph, verified on ONNX Runtime's CPU engine.

    Args:
        path: The checkpoint.
        target: The bundle's folder. The parent folder must exist.
        options: The options of the export.
        extend: A function that adds to the new bundle before it is verified and put in place, such as graphs of lower
            precision. The function gets the bundle in a folder of its own and returns the bundle's next version there.
        force: Replace a bundle at the target in one step. Anything else there is refused.
        reports: The display that each step is reported to.

    Raises:
        CheckpointError: The checkpoint cannot be read, or lacks a tensor or a setting.
        ExportError: The graph could not be made, or differs from the reference network.
        BundleError: The bundle cannot be written there.
    """
    path, target = Path(path), Path(target)
    check_bundle_target(target, force=force)
    try:
        with draft_folder(target.parent) as draft:
            folder = draft / "graphs"
            folder.mkdir()
            traced = _trace(path, folder / "model.onnx", options, reports)
            _return_memory()
            reports.step("writing the bundle and replaying its self-test")
            files: dict[str, Path | bytes] = {file.name: file for file in sorted(folder.iterdir())}
            staged = write_bundle(
                draft / "bundle",
                traced.draft,
                {**files, **traced.selftest, LOWERING: json_from_lowering(traced.lowering)},
            )
            # Lower precisions are added and verified in the draft, so that a failure leaves nothing at the target.
            staged = extend(staged)
            checks: dict[str, tuple[Check, ...]] = {
                g.precision: verify_bundle(staged, engine=JUDGE, precision=g.precision)
                for g in staged.manifest.graphs
                if g.precision != "bf16"
            }
            _gate(checks)
            put_bundle(staged.path, target, staged.manifest, force=force)
    except OSError as error:
        raise BundleError(
            f"{target} cannot be written: {error.strerror or error}. Check that {target.parent} is a folder that you "
            "may write to, with enough space, or name another place with -o."
        ) from error
    return ExportResult(bundle=Bundle(target, staged.manifest), checks=checks)


def nfa_outputs_of(repository: str, family: Family) -> NfaOutputs:
    """Return the outputs for the number of false alarms, with the windowed test of the checkpoint's repository.

    A U-Flow of anomalib gets anomalib's window and probability. All others get those of the official U-Flow.
    """
    traits = TRAITS[family]
    own = traits.anomalib_block_test if repository == "anomalib" else None
    window, probability = own or _BLOCK_TEST
    return NfaOutputs(
        energies=traits.level_statistic != "mean_square", window=window, probability=probability
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Traced:
    """The facts of an export that are needed once its graph is on disk. No field holds weights.

    Attributes:
        draft: The manifest with the fp32 graph, without files.
        selftest: The two files of the self-test, by path.
        lowering: The record of the passes.
    """

    draft: Manifest
    selftest: Mapping[str, bytes]
    lowering: Lowering


def _trace(path: Path, graph: Path, options: ExportOptions, reports: Reports) -> _Traced:
    """Write the fp32 graph.

    The file, the reference network, the lowered flow and the tracer each have a copy of the weights. So the function
    frees each copy as soon as the next one is made.
    """
    reports.step("reading the checkpoint")
    read = read_model(path, options)
    nfa = nfa_outputs_of(read.checkpoint.repository, read.checkpoint.family) if options.nfa else None
    fp32 = GraphFile(precision="fp32", file=graph.name, opset=options.opset, scoring=read.model.scoring)
    frame_input = None
    if options.frame_size is not None:
        check_frame_size(read.preprocessing, options.frame_size, read.model.image_size)
        frame_input = FrameInput(size=options.frame_size, preprocessing=read.preprocessing)
    pixel_range = given_value(PIXEL_RANGE, options.settings)
    draft = with_pixel_range(_manifest(read, fp32, nfa, options.frame_size), pixel_range)
    json_from_manifest(draft)  # a manifest that cannot be written is refused before the work
    reports.step("computing the expected answers")
    frames = synthetic_frames(read.preprocessing, options.frame_size)
    selftest = files_of_selftest(frames, _expected_answers(read, frames, nfa))
    reports.step("lowering")
    # Deleting ``read`` frees the tensors of the file before the passes copy the weights.
    model, backbone = read.model, read.backbone
    del read
    _return_memory()
    model, lowering = lower_and_describe(model, keep_latents=options.nfa)
    _return_memory()
    reports.step("tracing the graph")
    onnx_from_model(model, backbone, graph, nfa=nfa, frames=frame_input, opset=options.opset)
    return _Traced(draft=draft, selftest=selftest, lowering=lowering)


def _return_memory() -> None:
    """Return freed memory to the system.

    The modules of torch refer to each other in circles, and glibc keeps freed arrays.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _input_size(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return ``(height, width)`` of the network's input in pixels."""
    size = checkpoint.hyperparameters["input_size"]
    assert isinstance(size, (tuple, list))
    return int(size[0]), int(size[1])


def _expected_answers(
    read: ReadModel, frames: tuple[NDArray[np.uint8], ...], nfa: NfaOutputs | None
) -> dict[str, NDArray[np.float32]]:
    """Compute the expected answers of the self-test, by the name of the graph's output."""
    preprocess = Preprocessor(read.preprocessing)
    answers = reference_answers(read.reference_network(), (preprocess(frame) for frame in frames), nfa)
    if not all(np.isfinite(answer).all() for answer in answers.values()):
        raise CheckpointError(
            f"{read.checkpoint.file}: the trained network itself answers NaN or infinity on an ordinary image. "
            "Its training diverged. Train it again."
        )
    return answers


def _manifest(
    read: ReadModel, graph: GraphFile, nfa: NfaOutputs | None, frame_size: tuple[int, int] | None
) -> Manifest:
    """Build the manifest of a bundle with one graph, without its list of files."""
    checkpoint, model = read.checkpoint, read.model
    transform_file, transform_sha256 = checkpoint.transform_file or (None, None)
    return Manifest(
        schema=SCHEMA,
        flowedge_version=__version__,
        created=utc_now().isoformat(),
        family=checkpoint.family,
        source=Source(
            repository=checkpoint.repository,
            generation=checkpoint.generation,
            file=printable(checkpoint.file),
            sha256=checkpoint.sha256,
            transform_file=transform_file,
            transform_sha256=transform_sha256,
        ),
        backbone=model.backbone.network,
        image_size=model.image_size,
        levels=tuple(
            LevelInfo(channels=lv.channels, height=lv.height, width=lv.width) for lv in model.levels
        ),
        preprocessing=read.preprocessing,
        graphs=(graph,),
        assumed=checkpoint.assumed,
        source_scale=checkpoint.source_scale,
        nfa=nfa,
        frame_size=frame_size,
        licence_note=LICENCES.get(checkpoint.repository, ""),
    )


def _gate(checks: Mapping[str, tuple[Check, ...]]) -> None:
    """Refuse the export where a check failed."""
    failed = [
        (precision, check) for precision, found in checks.items() for check in found if not check.passed
    ]
    if failed:
        listed = "; ".join(f"{p}: {c.name}: {c.value:.2g} (limit {c.limit:.0e})" for p, c in failed)
        raise ExportError(
            f"the exported graph differs from the reference network, and nothing was written: {listed}."
        )
