"""Write the models of a bundle or a pack into a model repository of NVIDIA Triton Inference Server."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from flowedge.errors import FlowEdgeError
from flowedge.runtime.serving.triton_config import MARK
from flowedge.runtime.serving.triton_files import Files, ModelFiles, TritonSettings
from flowedge.runtime.settings import checked


def write_repository(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    settings: TritonSettings | None = None,
    *,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write the models of a bundle or a pack into a model repository, beside those that are there.

    Args:
        path: The folder of a bundle, of a pack, or of one product in a pack.
        target: The folder of the repository, which is made where it is missing.
        settings: The choices.
        overwrite: True replaces models of the same names that this function has written.

    Returns:
        The names of the models. The last one is the one that clients call.

    Raises:
        BundleError: The bundle cannot be trusted, or has no graph of this precision.
        FlowEdgeError: A model of the name is there already, a choice does not suit the backend, or the repository
            cannot be written.
    """
    source, repository = Path(path), Path(target)
    chosen = settings or TritonSettings()
    if chosen.name is None:
        name = source.absolute().name.removesuffix(".flowedgepack").removesuffix(".flowedge")
        chosen = msgspec.structs.replace(chosen, name=name)
    models = ModelFiles(source, checked(chosen)).all()
    for model in models:
        _check_free(repository / model, overwrite=overwrite)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        # Triton may look at the repository at any time, so a model gets its place when it is whole.
        with tempfile.TemporaryDirectory(prefix=".flowedge-", dir=repository.absolute().parent) as draft:
            for model, files in models.items():
                _fill(Path(draft) / model, files)
            for model in models:
                if (repository / model).exists():
                    (repository / model).rename(Path(draft) / f".old-{model}")
                (Path(draft) / model).rename(repository / model)
    except OSError as error:
        raise FlowEdgeError(
            f"{repository} cannot be written: {error.strerror} ({error.filename}). Name another folder, or make room."
        ) from error
    return tuple(models)


def _check_free(model: Path, *, overwrite: bool) -> None:
    """Refuse the place of a model where something is that must not be replaced.

    Raises:
        FlowEdgeError: Something is there.
    """
    if not os.path.lexists(model):
        return
    try:
        with (model / "config.pbtxt").open("rb") as file:
            is_ours = not model.is_symlink() and file.read(len(MARK)) == MARK.encode()
    except OSError:
        is_ours = False
    if not is_ours:
        raise FlowEdgeError(
            f"{model} exists and was not written by flowedge triton. Name another model with --name."
        )
    if not overwrite:
        raise FlowEdgeError(f"{model} exists. Replace it with --force, or name another model with --name.")


def _fill(folder: Path, files: Files) -> None:
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        elif content.is_dir():
            shutil.copytree(content, place)
        else:
            shutil.copyfile(content, place)
