"""Read a checkpoint with the first reader in the table of sources that recognises it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints import (
    anomalib,
    cflow_official,
    csflow_official,
    fastflow_official,
    msflow_official,
    tv,
    uflow_official,
)
from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.checkpoints.contents import Contents, contents_of
from flowedge.export.checkpoints.safe_load import file_sha256, load_untrusted, naming_file
from flowedge.export.checkpoints.settings import FAMILY_SETTINGS, PIXEL_RANGE, WEIGHTS, given_value
from flowedge.manifest import Assumed
from flowedge.text import printable, shown

_Recognises: TypeAlias = Callable[[Contents], bool]
_Reads: TypeAlias = Callable[[Contents, Mapping[str, str]], Checkpoint]

# The first reader that recognises a file reads it.
READERS: Final[tuple[tuple[_Recognises, _Reads], ...]] = (
    (cflow_official.recognises, cflow_official.read),
    (msflow_official.recognises, msflow_official.read),
    (csflow_official.recognises, csflow_official.read),
    (fastflow_official.recognises, fastflow_official.read),
    (uflow_official.recognises, uflow_official.read),
    (tv.recognises, tv.read),
    (anomalib.recognises, anomalib.read),
)
_AVERAGED_PLACE: Final = "The averaged weights are in the place from which the trainer loads."
_NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})


def read_checkpoint(
    path: Path, *, settings: Mapping[str, str] = _NO_SETTINGS, transform_from: Path | None = None
) -> Checkpoint:
    """Read a detector's checkpoint of any known repository and generation without running anything in it.

    Args:
        path: The file as the repository wrote it, a state dict alone, or one under ``state_dict``,
            ``model_state_dict`` or ``model``.
        settings: The user's values (``--set name=value``) for what the file does not hold. The names depend on the
            family. An unknown name is an error that lists them.
        transform_from: Another file of the same training that holds the input transform where the checkpoint does
            not, such as the ``model.pt`` of anomalib's "torch" export.

    Returns:
        The checkpoint as data. The tensors may be views of the file, which is mapped copy on write.

    Raises:
        UnsafeCheckpointError: The file asks for a class or a function that no checkpoint needs.
        CheckpointError: The file cannot be read, is of no known model, lacks a tensor or a value, or has a tensor that
            is misshapen or not finite. A setting is unknown or misspelt. The file for the transform is of another model
            or holds none.
    """
    weights = given_value(WEIGHTS, settings)
    given_value(PIXEL_RANGE, settings)  # only a bundle holds it, and it is refused here all the same
    root, sha256 = load_untrusted(path), file_sha256(path)
    other = None if transform_from is None else _contents(transform_from)
    with naming_file(path):
        contents = contents_of(root, file=printable(path.name), sha256=sha256, weights=weights)
        contents = dataclasses.replace(contents, transform_from=other)
        for recognises, read in READERS:
            if recognises(contents):
                if other is not None and read is not anomalib.read:
                    raise CheckpointError(
                        "--transform-from is for models of anomalib; this one's transform is fixed in its repository's "
                        "code. Leave it out."
                    )
                return _with_account(read(contents, settings), contents, given=weights is not None)
    keys = list(contents.state) or list(contents.root if isinstance(contents.root, dict) else [])
    found = (
        f"its keys begin with {', '.join(map(shown, keys[:5]))}" if keys else "it holds no tensors by name"
    )
    raise CheckpointError(
        f"{printable(str(path))} is no checkpoint of a known model: {found}. FlowEdge reads "
        f"{', '.join(FAMILY_SETTINGS)}, as anomalib or the official repositories save them. If a detector is a part of "
        "what was saved, save that part's state_dict() alone."
    )


def _contents(path: Path) -> Contents:
    root, sha256 = load_untrusted(path), file_sha256(path)
    with naming_file(path):
        return contents_of(root, file=printable(path.name), sha256=sha256)


def _with_account(checkpoint: Checkpoint, contents: Contents, *, given: bool) -> Checkpoint:
    """Add to a checkpoint the record of the weights that were taken from its file, and of those that were left."""
    other = (
        f"The file holds others under {printable(contents.copy)}."
        if contents.copy
        else "The file holds no others."
    )
    assumed = checkpoint.assumed
    if given or contents.weights == "ema":
        why = f"{_AVERAGED_PLACE} {other}" if contents.weights == "ema" and not given else other
        assumed = (Assumed(name=WEIGHTS.name, value=contents.weights, given=given, why=why), *assumed)
    return dataclasses.replace(
        checkpoint,
        assumed=assumed,
        weights=contents.weights,
        other_weights=contents.copy,
        stand_ins=contents.stand_ins,
        transform_file=None
        if contents.transform_from is None
        else (contents.transform_from.file, contents.transform_from.sha256),
    )
