"""Compare a bundle with the checkpoint that it was made from, on real images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.errors import CheckpointError
from flowedge.export.pipeline import ExportOptions, ReadModel, read_model
from flowedge.export.reference.answers import reference_answers
from flowedge.manifest import level_outputs
from flowedge.progress import SILENT, Reports
from flowedge.runtime.aggregate import aggregate
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.preprocess import Preprocessor
from flowedge.runtime.opening.selftest import read_selftest
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.verify import (
    PARITY_LIMITS,
    Check,
    WorstDifference,
    check_of_output,
)

_FINALS: Final = ("anomaly_map", "score")


def compare_with_checkpoint(
    bundle: Bundle,
    checkpoint: Path,
    *,
    images: Sequence[Path] | None = None,
    engine: str | None = None,
    precision: str = "fp32",
    backbone_weights: Path | None = None,
    threads: int | None = None,
    reports: Reports = SILENT,
) -> tuple[Check, ...]:
    """Compare levels, maps and scores of a bundle with those of its checkpoint's reference network.

    Args:
        bundle: The bundle. The checkpoint is read with the values that were assumed in the bundle's export.
        checkpoint: The file that the bundle was made from.
        images: The images to compare on. By default they are the frames of the self-test.
        engine: The engine to run the bundle on, or None for the default choice.
        precision: The precision of the graph to run.
        backbone_weights: State dict of the feature extractor, for checkpoints that do not hold it.
        threads: CPU threads of one inference of the bundle, or None for the engine's own number.
        reports: Receives the progress, one unit for each image.

    Returns:
        One check for each level, energy and count, for the map and for the score.

    Raises:
        CheckpointError: The bundle was made from another checkpoint.
        ImageError: An image cannot be read, or cannot become the network's input.
    """
    reports.step("reading the checkpoint")
    manifest = bundle.manifest
    read = model_of_bundle(bundle, checkpoint, backbone_weights=backbone_weights)
    reference = read.reference_network()
    frames: Iterable[NDArray[np.uint8]]
    frames = (
        read_selftest(bundle).frames
        if images is None
        else (read_image(path, manifest.pixel_range) for path in images)
    )
    preprocess, graph_input = Preprocessor(manifest.preprocessing), GraphInput(manifest)
    scoring = manifest.graph(precision).scoring
    outputs = level_outputs(manifest.levels, manifest.nfa)
    worst = {name: WorstDifference() for name in (*outputs, *_FINALS)}
    count = 0
    session = open_unproven(engine, bundle, precision, threads=threads)
    try:
        reports.step("comparing with the checkpoint", None if images is None else len(images))
        for frame in frames:  # frames are read one by one, because all may not fit into memory
            network_input = graph_input([frame])  # refuses a frame that the network cannot take
            expected = reference_answers(reference, [preprocess(frame)], manifest.nfa)
            levels = [expected[f"level_{n}"] for n in range(len(manifest.levels))]
            wanted = aggregate(levels, scoring, manifest.family, manifest.image_size)
            expected |= {"anomaly_map": wanted.anomaly_map, "score": wanted.score}
            got = session.infer(network_input)
            for name, one in worst.items():
                one.add(got[name], expected[name])
            count += 1
            reports.advance()
    finally:
        session.close()
    against = f"the checkpoint, {count} images"
    limit = PARITY_LIMITS.get(precision, np.inf)
    return (
        *(check_of_output(manifest, precision, name, worst[name], against) for name in outputs),
        *(
            Check(name=f"{name} against {against}", value=worst[name].relative, limit=limit)
            for name in _FINALS
        ),
    )


def model_of_bundle(bundle: Bundle, checkpoint: Path, *, backbone_weights: Path | None) -> ReadModel:
    """Read the checkpoint that a bundle was made from, with the values that were assumed in the export.

    Raises:
        CheckpointError: The checkpoint cannot be read, or the bundle was made from another one.
    """
    manifest = bundle.manifest
    given = {one.name: _text(one.value) for one in manifest.assumed if one.given}
    given.pop("input_size", None)
    # The export may have read the preprocessing from another file, so it is taken from the manifest.
    preprocessing = manifest.preprocessing
    given |= {
        "resize_method": preprocessing.method,
        "mean": _text(preprocessing.mean),
        "std": _text(preprocessing.std),
    }
    options = ExportOptions(image_size=manifest.image_size, backbone_weights=backbone_weights, settings=given)
    read = read_model(checkpoint, options)
    if read.checkpoint.sha256 != manifest.source.sha256:
        raise CheckpointError(
            f"{checkpoint} is not the file that {bundle.path} was made from: its sha256 is "
            f"{read.checkpoint.sha256[:12]}…, and the bundle's manifest names {manifest.source.sha256[:12]}… "
            f"({manifest.source.file}). Name the file that the bundle was made from."
        )
    return read


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
