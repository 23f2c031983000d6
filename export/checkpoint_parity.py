"""The bundle against the checkpoint it was made from, on real images."""

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
from flowedge.runtime.aggregate import aggregate
from flowedge.runtime.graph_input import GraphInput
from flowedge.runtime.images import read_image
from flowedge.runtime.preprocess import Preprocessor
from flowedge.runtime.selftest import read_selftest
from flowedge.runtime.unproven import open_unproven
from flowedge.runtime.verify import (
    PARITY_LIMITS,
    Check,
    Worst,
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
) -> tuple[Check, ...]:
    """Levels, maps and scores of the bundle against the checkpoint in real FrEIA and timm modules.

    Args:
        bundle: The bundle; the values that were assumed when it was exported are used again.
        checkpoint: The file it was made from.
        images: What to compare on; the self-test's frames by default.
        engine: The engine to run the bundle on.
        precision: Which of its graphs.
        backbone_weights: As for the export.
        threads: CPU threads of one inference of the bundle; None leaves it to the engine.

    Raises:
        CheckpointError: The checkpoint is another one than the bundle was made from.
        ImageError: An image cannot be read, or does not become the network's input.
    """
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
    worst = {name: Worst() for name in (*outputs, *_FINALS)}
    count = 0
    session = open_unproven(engine, bundle, precision, threads=threads)
    try:
        for frame in frames:  # one at a time: there may be more than fit into memory
            network_input = graph_input([frame])  # refuses a frame that the network cannot take
            expected = reference_answers(reference, [preprocess(frame)], manifest.nfa)
            levels = [expected[f"level_{n}"] for n in range(len(manifest.levels))]
            wanted = aggregate(levels, scoring, manifest.family, manifest.image_size)
            expected |= {"anomaly_map": wanted.anomaly_map, "score": wanted.score}
            got = session.infer(network_input)
            for name, one in worst.items():
                one.add(got[name], expected[name])
            count += 1
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
    """The checkpoint that a bundle was made from, with the values that were assumed then.

    Raises:
        CheckpointError: It cannot be read, or is another one.
    """
    manifest = bundle.manifest
    given = {one.name: _text(one.value) for one in manifest.assumed if one.given}
    given.pop("input_size", None)
    # The bundle says how frames are preprocessed, whichever file that was read from.
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
            f"{read.checkpoint.sha256[:12]}…, the bundle says {manifest.source.sha256[:12]}… ({manifest.source.file})."
        )
    return read


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
