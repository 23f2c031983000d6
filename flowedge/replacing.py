"""Give a finished draft the place of a bundle, so that a reader finds the old version or the new one, whole.

There are three ways, the first that the system allows:

1. One exchange of the two folders' names (``RENAME_EXCHANGE``).
2. Two renames, where the file system has no exchange (NFS, some FUSE ones). A machine that dies between the two leaves
   the old version as ``.NAME.previous``, and the next opening puts it back.
3. File by file inside the folder, where the folder itself cannot be renamed: it is a mount point, its parent cannot be
   written, or it lies in a lower layer of a container. The new files are collected in the folder ``.flowedge-commit``,
   which gets this name in one step when all of them are on the disk. This step is the moment of the replacement. The
   files are then moved to their places, the manifest last. The first process that opens the bundle after a crash moves
   the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flowedge.bundle_files import MANIFEST, SIGNATURES, is_whole, read_manifest, verify
from flowedge.drafts import PREFIX, draft_folder, remove_abandoned_drafts
from flowedge.errors import BundleChangedError, BundleError
from flowedge.manifest import Manifest, StoredFile

_LOG: Final = logging.getLogger(__name__)

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_CANNOT_EXCHANGE: Final = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
# EXDEV: a lower layer or another file system. EBUSY: a mount point. The others: the parent folder refuses this user.
_CANNOT_RENAME: Final = {errno.EXDEV, errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS}
_COMMIT: Final = ".flowedge-commit"
_MOUNTS: Final = Path("/proc/self/mountinfo")


def folder_for_draft(place: Path) -> Path:
    """Return the folder in which the draft of a bundle's next version belongs.

    Args:
        place: The bundle's folder, without symbolic links. A bundle that is not there yet is made beside its place.

    Returns:
        The parent folder where the bundle can be renamed, else the bundle's folder itself.

    Raises:
        BundleError: The bundle cannot be replaced at all.
    """
    if not os.path.lexists(place):
        return place.parent
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        raise BundleError(
            f"{place} cannot be replaced: this user may not write to the folder, or its file system is read-only. "
            "Make it writable or work on a copy."
        )
    mounts = [mount for mount in _mount_points() if mount.is_relative_to(place)]
    inside = next((mount for mount in mounts if mount != place), None)
    if inside is not None:
        raise BundleError(
            f"{place} cannot be replaced: {inside} in it is a mount point. Unmount it or work on a copy."
        )
    return place if mounts or not _may_rename(place) else place.parent


def put_in_place(draft: Path, place: Path, manifest: Manifest, *, replaced: Manifest | None = None) -> None:
    """Give a finished draft its place.

    Args:
        draft: The new version's folder. An older version is moved there or removed.
        place: The bundle's folder, without symbolic links.
        manifest: The new version's.
        replaced: The manifest that the version at the place must still have. The value is None to replace any version.

    Raises:
        BundleChangedError: The version at the place has another manifest.
        BundleError: Another process made something at a place that was free.
        OSError: The system refuses.
    """
    if not os.path.lexists(place):
        put_at_free_place(draft, place)
        return
    # Of two processes that replace one version, the second waits here and then finds that the version has changed.
    with _locked(place):
        if replaced is not None and read_manifest(place) != replaced:
            raise BundleChangedError(f"{place} changed since it was opened. Open it again and retry.")
        if draft.is_relative_to(place):
            _replace_inside(draft, place, manifest)
            return
        _keep_unlisted(place, draft)
        try:
            swap(draft, place)
        except OSError as error:
            if error.errno not in _CANNOT_RENAME:
                raise
            _replace_inside(draft, place, manifest)
        else:
            sync_folder(place.parent)
        _LOG.info("replaced %s", place)


def put_at_free_place(draft: Path, place: Path) -> None:
    """Rename a finished draft to a place where nothing was.

    Raises:
        BundleError: Another process made something there in the meantime.
        OSError: The system refuses.
    """
    try:
        draft.rename(place)
    except OSError as error:
        if not os.path.lexists(place):
            raise
        raise BundleError(
            f"{place} was written by another process in the meantime. It is left as it is. "
            "Name another place, or remove it and try again."
        ) from error
    sync_folder(place.parent)
    _LOG.info("wrote %s", place)


def recover(place: Path) -> None:
    """Finish or undo a replacement that was cut off.

    Raises:
        BundleError: The replacement cannot be finished.
    """
    if not os.path.lexists(place):
        with contextlib.suppress(OSError):
            _previous(place).rename(place)
    commit = place / _COMMIT
    if os.path.lexists(commit / MANIFEST):
        try:
            with _locked(place):
                if os.path.lexists(commit / MANIFEST):  # the process that holds the lock may finish it itself
                    _finish(place, _checked_moves(commit, place))
        except (OSError, BundleError) as error:
            if not os.path.lexists(commit / MANIFEST):
                return  # finished by another process, on a file system without locks
            if isinstance(error, BundleError):
                raise
            raise BundleError(
                f"the replacement of {place} was interrupted and cannot be finished: {error.strerror} "
                f"({error.filename}). Open it once as a user who may write there: flowedge info {place}."
            ) from error


def remove_leftovers(place: Path) -> None:
    """Finish a replacement that was cut off, and remove the old files that a killed process left after one."""
    recover(place)
    if os.path.lexists(place):
        shutil.rmtree(_previous(place), ignore_errors=True)
        remove_abandoned_drafts(place)
        if not os.path.lexists(place / _COMMIT / MANIFEST):
            shutil.rmtree(place / _COMMIT, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links. Folders are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


# Renaming folders


def _keep_unlisted(place: Path, draft: Path) -> None:
    """Give the files that somebody else put into a bundle a second name in the next version, which replaces its folder.

    Symbolic links stay links. Drafts and what an interrupted replacement left are no such files. A signature belongs to
    the old version alone.
    """
    listed = {MANIFEST, *SIGNATURES, *_listed(place)}
    for folder, inner, names in os.walk(place):
        inner[:] = [name for name in inner if name != _COMMIT and not name.startswith(PREFIX)]
        links = [name for name in inner if Path(folder, name).is_symlink()]
        for name in (*names, *links):
            path = Path(folder, name).relative_to(place)
            target = draft / path
            if path.as_posix() in listed or os.path.lexists(target):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(place / path, target, follow_symlinks=False)
            except OSError:
                shutil.copy2(place / path, target, follow_symlinks=False)


def _may_rename(place: Path) -> bool:
    """Tell whether this user may give a folder another name."""
    parent = place.parent
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        return False
    status = parent.stat()
    # In a sticky folder, such as /tmp, only the owner of an entry or of the folder may rename the entry.
    is_sticky = bool(status.st_mode & stat.S_ISVTX)
    return not is_sticky or os.geteuid() in (0, status.st_uid, place.stat().st_uid)


def _mount_points() -> list[Path]:
    """Return the mount points that this process sees. There are none where the kernel does not tell."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return []
    # The fifth word of a line is the mount point, with spaces and backslashes in octal.
    points = [line.split(b" ")[4] for line in lines if line.count(b" ") > 4]
    unescaped = (re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), point) for point in points)
    return [Path(os.fsdecode(point)) for point in unescaped]


def swap(draft: Path, place: Path) -> None:
    """Exchange a finished draft and the folder at its place, in one step where the system can.

    Raises:
        OSError: The folders cannot be renamed.
    """
    try:
        _exchange(draft, place)
    except OSError as error:
        if error.errno not in _CANNOT_EXCHANGE:
            raise
        _exchange_in_two_steps(draft, place)


def _exchange(one: Path, other: Path) -> None:
    """Exchange the names of two folders in one step (Linux 3.15 and later, see rename(2))."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))


def _exchange_in_two_steps(folder: Path, place: Path) -> None:
    previous = _previous(place)
    place.rename(previous)
    try:
        folder.rename(place)
    except BaseException:
        previous.rename(place)
        raise
    with contextlib.suppress(FileNotFoundError):  # the next process may have removed it as a leftover
        previous.rename(folder)


def _previous(place: Path) -> Path:
    """Return the old version's place between the two renames. A name that is too long is replaced by its hash."""
    name = os.fsencode(place.name)
    stem = place.name if len(name) < 240 else hashlib.sha256(name).hexdigest()[:32]
    return place.with_name(f".{stem}.previous")


# File by file


def _replace_inside(draft: Path, place: Path, manifest: Manifest) -> None:
    """Collect the new files in a folder inside the bundle, give it the name that commits it, and finish."""
    with draft_folder(place) as inner:
        collected = inner / "commit"
        collected.mkdir()
        for stored in manifest.files:
            if not is_whole(place, stored):
                link_or_copy(draft / stored.path, collected / stored.path)
        link_or_copy(draft / MANIFEST, collected / MANIFEST)
        for name in SIGNATURES:
            if os.path.lexists(draft / name):
                link_or_copy(draft / name, collected / name)
        for folder, _, _ in os.walk(collected):
            sync_folder(Path(folder))
        moves = _checked_moves(collected, place)
        # Fails where another process has committed a version that is not finished yet.
        collected.rename(place / _COMMIT)
        sync_folder(place)
        _finish(place, moves)


def _checked_moves(commit: Path, place: Path) -> list[StoredFile]:
    """Return the files to move to their places, after a check that the resulting version is whole.

    A bundle is untrusted, so nothing is moved through a symbolic link.

    Raises:
        BundleError: The resulting version would not be whole.
    """
    if commit.is_symlink():
        raise BundleError(f"{commit} is a symbolic link. Remove it.")
    manifest = read_manifest(commit)
    moves = [stored for stored in manifest.files if os.path.lexists(commit / stored.path)]
    for stored in manifest.files:
        verify(commit if stored in moves else place, stored)
    for stored in moves:
        if (link := _link_on_the_way(place, stored.path)) is not None:
            raise BundleError(f"{link} is a symbolic link, and a bundle holds its own files. Remove it.")
    return moves


def _finish(place: Path, moves: list[StoredFile]) -> None:
    """Move the committed files to their places, the manifest last, and remove the files of the old version alone."""
    commit = place / _COMMIT
    kept = {stored.path for stored in read_manifest(commit).files}
    for stored in moves:
        target = place / stored.path
        target.parent.mkdir(parents=True, exist_ok=True)
        (commit / stored.path).replace(target)
    for folder in {place, *((place / stored.path).parent for stored in moves)}:
        sync_folder(folder)
    # The old manifest is still there and lists the old version's files.
    for path in _listed(place):
        if path not in kept and _link_on_the_way(place, path) is None:
            (place / path).unlink(missing_ok=True)
    # The signature keeps its name in the commit as well, so that a second try after a crash finds it again.
    for name in SIGNATURES:
        (place / name).unlink(missing_ok=True)
        if os.path.lexists(commit / name):
            link_or_copy(commit / name, place / name)
    (commit / MANIFEST).replace(place / MANIFEST)
    sync_folder(place)
    shutil.rmtree(commit, ignore_errors=True)


def _listed(place: Path) -> list[str]:
    """Return the paths of the old version's files. There are none where its manifest cannot be read."""
    try:
        return [stored.path for stored in read_manifest(place).files]
    except BundleError:
        return []


def _link_on_the_way(place: Path, path: str) -> Path | None:
    """Return the first folder of a path inside a bundle that is a symbolic link."""
    folders = [place / folder for folder in reversed(Path(path).parents)]
    return next((folder for folder in folders if folder != place and folder.is_symlink()), None)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Keep other processes from replacing the same version, where the file system can lock a folder."""
    while True:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The process that held the lock may have put another folder at this place.
            if os.path.samestat(os.fstat(descriptor), os.stat(place)):
                yield
                return
        finally:
            os.close(descriptor)
