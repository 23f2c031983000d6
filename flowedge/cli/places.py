"""Check the paths that a user names before anything large is imported, and recognise swapped arguments."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from flowedge.bundle import peek_bundle, refuse_pack
from flowedge.bundle_files import MANIFEST, SIGNATURE, pack_around
from flowedge.cli.output import MESSAGES
from flowedge.errors import CheckpointError, DataError, FlowEdgeError
from flowedge.files import open_regular_file, why_unreadable
from flowedge.text import printable

_NAMED_FOLDERS: Final = 5

_OPTION_OF_SECOND: Final[Mapping[str, str]] = {"export": "-o", "calibrate": "--data", "verify": "--against"}
"""The option that takes the second path of a command that has one argument."""


def check_bundle(bundle: Path, *others: str | Path | None) -> None:
    """Refuse a path that is no bundle, and tell where another path of the command is one.

    Args:
        bundle: The path at the bundle's place in the command.
        others: The paths at other places.

    Raises:
        BundleError: The path is not a bundle.
        FlowEdgeError: The path is not a bundle, and another path of the command is.
    """
    if not _is_bundle(bundle):
        for other in others:
            if other is not None and _is_bundle(Path(other)):
                raise _swapped(bundle, other, "a bundle")
    around = pack_around(bundle)
    if around is not None and not around[1]:
        refuse_pack(bundle)
    peek_bundle(bundle)


@contextlib.contextmanager
def signature_noted(bundle: Path) -> Iterator[None]:
    """Print a note where a change in the block has made a version of a signed bundle that nobody has signed."""
    signature = bundle / SIGNATURE
    was_signed = os.path.lexists(signature)
    yield
    if was_signed and not os.path.lexists(signature):
        MESSAGES.print(
            f"{printable(str(bundle))} was signed, and its new version is not. Sign it again with: flowedge sign "
            f"{printable(shlex.quote(str(bundle)))} --key FILE",
            soft_wrap=True,
        )


def check_checkpoint(checkpoint: Path, target: Path) -> None:
    """Refuse a checkpoint that is no file, and tell where the target of the export is one.

    Raises:
        CheckpointError: The checkpoint is no readable file.
        FlowEdgeError: The checkpoint is no file, and the target is one.
    """
    if not os.path.isfile(checkpoint) and os.path.isfile(target):
        raise _swapped(checkpoint, target, "a file")
    check_file(checkpoint)


def check_file(file: Path | None) -> None:
    """Refuse a path that is no readable file. A path of None is accepted.

    Raises:
        CheckpointError: The path is missing, is no regular file, or may not be read.
    """
    if file is None:
        return
    try:
        open_regular_file(file).close()
    except OSError as error:
        raise CheckpointError(f"{printable(str(file))}: {why_unreadable(file, error)}") from error


def check_folder(folder: Path | None) -> None:
    """Refuse a path that is no folder. A path of None is accepted.

    Raises:
        DataError: The path is missing or is no folder.
    """
    if folder is not None and not os.path.isdir(folder):
        what = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise DataError(f"{folder} {what}. Name a folder of images.")


def print_left_out_subfolders(data: Path | None) -> None:
    """Name the subfolders of a folder of good images on standard error, since a fit takes none of their images."""
    if data is None:
        return
    train = data / "train" / "good"
    chosen = train if train.is_dir() else data
    inner: list[str] = []
    with contextlib.suppress(OSError):  # The fit refuses a folder that cannot be listed.
        inner = sorted(
            path.name for path in chosen.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    if inner:
        more = f" and {len(inner) - _NAMED_FOLDERS} more" if len(inner) > _NAMED_FOLDERS else ""
        names = ", ".join(map(printable, inner[:_NAMED_FOLDERS]))
        MESSAGES.print(
            f"left out, since subfolders of {printable(str(chosen))} are not searched: {names}{more}",
            soft_wrap=True,
        )


def check_output_folder(folder: Path) -> None:
    """Refuse a place for a folder that is a file or lies below one.

    Raises:
        DataError: The place is a file, or lies below a file.
    """
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not os.path.isdir(nearest):
        raise DataError(f"{folder} cannot be a folder: {nearest} is a file. Name another --out.")


def check_images(source: str | Path | None) -> None:
    """Refuse a word that stands for no file, no folder and no pattern. A path of None is accepted.

    Raises:
        DataError: Nothing is there.
    """
    if source is not None and not os.path.lexists(source) and not glob.has_magic(os.fspath(source)):
        raise DataError(
            f"{source} does not exist. Name an image, a folder of images or a pattern such as 'photos/*.png'."
        )


def meant_by_extra(error: Any) -> str:
    """Return a sentence with the command that was perhaps meant by one argument too many, or an empty string.

    Args:
        error: The parser's error. Its context holds the arguments that were understood.
    """
    context = getattr(error, "ctx", None)
    found = re.search(
        r"unexpected extra argument(?:\(s\))? \((.+)\)", str(getattr(error, "message", "")), re.DOTALL
    )
    name = str(getattr(context, "info_name", None))
    if context is None or found is None or name not in _OPTION_OF_SECOND:
        return ""
    first, second = str(context.params.get("bundle") or context.params.get("checkpoint")), found[1]
    belongs_first = os.path.isfile if name == "export" else lambda path: _is_bundle(Path(path))
    if belongs_first(second) and not belongs_first(first):
        first, second = second, first
    option = _OPTION_OF_SECOND[name]
    if name == "verify" and os.path.isdir(second):
        option = "--data"
    words = ["flowedge", name, first, option, second]
    return f"Did you mean: {printable(shlex.join(words))}"


def _is_bundle(path: Path) -> bool:
    return os.path.isfile(path / MANIFEST)


def _swapped(one: str | Path, other: str | Path, kind: str) -> FlowEdgeError:
    """Return the error for two paths at each other's place, with the command that has them right."""
    places = {str(one): str(other), str(other): str(one)}
    words = [places.get(word, word) for word in sys.argv[1:]]
    return FlowEdgeError(
        f"{one} and {other} look swapped, since {other} is {kind} and {one} is not. "
        f"The command is: {shlex.join(['flowedge', *words])}"
    )
