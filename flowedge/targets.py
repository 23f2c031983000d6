"""Check the places that commands write to: what exists is replaced on request, and only where FlowEdge wrote it.

Every command has the same rule. A target that exists is refused. With ``--force`` it is replaced in one step where
FlowEdge wrote it, and refused where it did not, or where it cannot tell.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flowedge.bundle_files import MANIFEST, PACK_INDEX, read_manifest
from flowedge.errors import BundleError, FlowEdgeError
from flowedge.manifest import Manifest
from flowedge.pack import read_index
from flowedge.replacing import put_at_free_place, put_in_place, recover

PAGE_MARK: Final = b'name="generator" content="FlowEdge'
"""The bytes at the beginning of every HTML page of FlowEdge."""

DEMO_MARK: Final = ".flowedge-demo"
"""The name of the file that marks the folder of a demo."""

_BEGINNING: Final = 4096  # bytes
_SUFFIX: Final = ".flowedge"
_LONGEST_NAME: Final = 255  # bytes, of a file on Linux


def check_file_target(file: Path, *, force: bool, mark: bytes = PAGE_MARK) -> None:
    """Refuse a file that could not be written or must not be replaced, before any work is done for it.

    Args:
        file: The file to write. A pipe or a device is written to, and nothing of it is replaced.
        force: Replace a file that is there.
        mark: Bytes that the first 4096 bytes of a file have where FlowEdge wrote it.

    Raises:
        FlowEdgeError: The file exists and ``force`` is False, or FlowEdge did not write it, or it is a folder, or its
            folder does not exist, or its name is ``-``.
    """
    if str(file) == "-":
        raise FlowEdgeError("- is no name of a file. Name one, or /dev/stdout for standard output.")
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        if not file.parent.is_dir():
            raise FlowEdgeError(
                f"{file} cannot be written: {file.parent} is not a folder. Make it first, or name another file."
            ) from None
        if not os.access(file.parent, os.W_OK):
            raise FlowEdgeError(
                f"{file} cannot be written: {file.parent} is not writable. Name another file."
            ) from None
        return
    except OSError as error:
        raise FlowEdgeError(f"{file} cannot be written: {error.strerror}. Name another file.") from error
    if stat.S_ISDIR(mode):
        raise FlowEdgeError(f"{file} is a folder. Name a file to write, such as {file / 'report.html'}.")
    if not stat.S_ISREG(mode):
        return
    if not force:
        raise FlowEdgeError(f"{file} exists already. Replace it with --force, or name another file.")
    try:
        with file.open("rb") as opened:
            beginning = opened.read(_BEGINNING)
    except OSError as error:
        raise FlowEdgeError(f"{file} cannot be replaced: {error.strerror}. Name another file.") from error
    if beginning and mark not in beginning:
        raise FlowEdgeError(
            f"{file} was not written by FlowEdge, and --force replaces only what FlowEdge wrote. "
            "Name another file, or remove this one."
        )


def check_separate_targets(*files: Path | None) -> None:
    """Refuse one place for two files of a command, since the later one would replace the other.

    Args:
        *files: The files to write. A value of None stands for no file.

    Raises:
        FlowEdgeError: Two of the files are one.
    """
    seen: set[str] = set()
    for file in files:
        if file is None:
            continue
        place = os.path.realpath(file)
        if place in seen:
            raise FlowEdgeError(f"two options name {file}. Name another file for one of them.")
        seen.add(place)


def default_target(checkpoint: Path) -> Path:
    """Return a place in the current folder, named after the checkpoint as far as the longest name allows."""
    stem = checkpoint.stem
    while len(os.fsencode(stem + _SUFFIX)) > _LONGEST_NAME:
        stem = stem[:-1]
    return Path(stem + _SUFFIX)


def check_bundle_target(target: Path, *, force: bool) -> None:
    """Refuse a place where a new bundle could not be put or would replace something else, before any work is done.

    Args:
        target: The folder of the new bundle.
        force: Replace a bundle that is there.

    Raises:
        BundleError: The target exists and ``force`` is False, or the target is not a bundle and nothing else, or its
            parent is not a folder, or the system cannot have a folder of this name.
    """
    if _is_taken(target, force=force):
        _check_is_bundle_alone(target)


def check_pack_target(target: Path, *, force: bool) -> None:
    """Refuse a place where a new pack could not be put or would replace something else, before any work is done.

    Args:
        target: The folder of the new pack.
        force: Replace a pack that is there.

    Raises:
        BundleError: The target exists and ``force`` is False, or the target is not a pack and nothing else, or its
            parent is not a folder, or the system cannot have a folder of this name.
    """
    if _is_taken(target, force=force):
        real = Path(os.path.realpath(target))
        try:
            listed = [stored.path for stored in read_index(real).files]
        except BundleError as error:
            raise _not_ours(target, "a pack") from error
        _check_holds_only(target, [PACK_INDEX, *listed])


def check_demo_target(folder: Path, *, force: bool) -> None:
    """Refuse a folder that the demo could not write to or must not clear, before any work is done.

    Args:
        folder: The folder of the demo, which need not exist.
        force: Replace an earlier demo there.

    Raises:
        FlowEdgeError: The folder holds an earlier demo and ``force`` is False, or other files.
    """
    try:
        names = set(os.listdir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        raise FlowEdgeError(
            f"{folder} cannot be the folder of a demo: {error.strerror}. Name another folder with --out."
        ) from error
    if names and DEMO_MARK not in names:
        raise FlowEdgeError(
            f"{folder} holds files that no demo made, and the demo does not write among them. "
            "Name another folder with --out."
        )
    if names and not force:
        raise FlowEdgeError(
            f"{folder} holds an earlier demo. Replace it with --force, or name another folder with --out."
        )
    if names:
        _check_demo_alone(folder)


def put_bundle(draft: Path, target: Path, manifest: Manifest, *, force: bool) -> None:
    """Give a finished draft its place in one step.

    Args:
        draft: The new bundle's folder, on the target's file system.
        target: The place, which `check_bundle_target` has passed.
        manifest: The new bundle's manifest.
        force: Replace a bundle that is there.

    Raises:
        BundleError: The target was made or changed in the meantime.
        OSError: The system refuses.
    """
    if force and os.path.lexists(target):
        _check_is_bundle_alone(target)
        put_in_place(draft, Path(os.path.realpath(target)), manifest)
    else:
        put_at_free_place(draft, target)


def _check_demo_alone(folder: Path) -> None:
    """Raise a `FlowEdgeError` where a folder that the next demo clears has a file that no demo wrote."""
    try:
        written = set((folder / DEMO_MARK).read_text(encoding="utf-8").splitlines()[1:])
    except (OSError, UnicodeDecodeError) as error:
        raise FlowEdgeError(f"{folder / DEMO_MARK} cannot be read: {error}. Remove the folder.") from error
    # A demo that did not end has no list, and all that is in its folders is taken for its own.
    for inner in sorted({name.partition("/")[0] for name in written}):
        if (folder / inner / MANIFEST).is_file():
            _check_is_bundle_alone(folder / inner)
            continue
        for path in (folder / inner).rglob("*"):
            if str(path.relative_to(folder)) not in written:
                raise FlowEdgeError(
                    f"{folder} holds a file that no demo wrote, {path.relative_to(folder)}, and --force would delete "
                    "it. Move it away, or name another folder with --out."
                )


def _is_taken(target: Path, *, force: bool) -> bool:
    """Return True where something is at a place that ``force`` may replace, and False where the place is free.

    Raises:
        BundleError: The target exists and ``force`` is False, or its parent is not a folder, or the system cannot have
            a folder of this name.
    """
    try:
        target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        if not target.parent.is_dir():
            raise BundleError(
                f"{target.parent} is not a folder. Make it first or name another place with -o."
            ) from None
        return False
    except OSError as error:
        raise BundleError(
            f"{target} cannot be a bundle's place: {error.strerror}. Name another one with -o."
        ) from error
    if not force:
        raise BundleError(f"{target} exists already. Replace it with --force, or name another place with -o.")
    return True


def _check_is_bundle_alone(target: Path) -> None:
    """Raise a `BundleError` unless a folder is a bundle and has no file that the bundle's manifest does not list."""
    real = Path(os.path.realpath(target))
    recover(real)
    try:
        listed = [stored.path for stored in read_manifest(real).files]
    except BundleError as error:
        raise _not_ours(target, "a bundle") from error
    _check_holds_only(target, [MANIFEST, *listed])


def _check_holds_only(target: Path, listed: Sequence[str]) -> None:
    """Raise a `BundleError` where a folder has a file that is not listed, since its replacement would delete it."""
    real = Path(os.path.realpath(target))
    for folder, _, names in os.walk(real):
        for name in names:
            path = Path(folder, name).relative_to(real)
            if path.as_posix() not in listed:
                raise BundleError(
                    f"{target} holds a file that FlowEdge did not write, {path}, and --force would delete it. "
                    "Move it away, or name another place with -o."
                )


def _not_ours(target: Path, kind: str) -> BundleError:
    return BundleError(
        f"{target} is not {kind} that FlowEdge can read, and --force replaces only what FlowEdge wrote. "
        "Name another place with -o, or remove it."
    )
