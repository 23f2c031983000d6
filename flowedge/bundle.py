"""The bundle on disk: a folder that is used only after every listed byte of it was checked.

Reading refuses, with the file's name and the reason, whatever is missing, damaged, of another schema, or
outside the folder. Files that the manifest does not list are left alone and never used.

Writing fills a hidden folder beside the target, makes it durable, and renames it, so that the target is
either the whole bundle or not there. Replacing exchanges the new folder with the old one in a single step of
the kernel (``RENAME_EXCHANGE``). File systems that cannot do that (NFS, some FUSE ones) get two renames: a
machine that dies between the two leaves the old bundle as ``.NAME.previous``, and the next ``open_bundle``
puts it back. A process that reads while another one replaces may see a hash that does not match; it gets a
``BundleError`` and may open the bundle again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from flowedge.errors import BundleError
from flowedge.manifest import SCHEMA, Manifest, StoredFile
from flowedge.manifest_json import MAX_BYTES, json_from_manifest, manifest_from_json

_MANIFEST: Final = "manifest.json"
_CHUNK_BYTES: Final = 1 << 20
# One allow-list keeps out "..", hidden names, absolute paths, backslashes, drive letters, NUL, look-alikes.
_SAFE_PATH: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_CANNOT_EXCHANGE: Final = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: at the time it was opened, every listed file had its listed size and hash."""

    path: Path
    manifest: Manifest

    def graph_path(self, precision: str) -> Path:
        """Where the graph of a precision is.

        Raises:
            BundleError: The bundle has no graph of this precision.
        """
        return self.path / self.manifest.graph(precision).file

    def read(self, path_in_bundle: str) -> bytes:
        """The content of one listed file, checked again against its hash.

        Raises:
            BundleError: The manifest does not list the file, or the file changed since the bundle was opened.
        """
        for stored in self.manifest.files:
            if stored.path == path_in_bundle:
                content = io.BytesIO()
                _verify(self.path, stored, copy_to=content)
                return content.getvalue()
        raise BundleError(
            f"{self.path} has no file {path_in_bundle!r}; it has "
            f"{', '.join(stored.path for stored in self.manifest.files)}."
        )


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and verify all of it: reads every byte once, about a second per gigabyte.

    Raises:
        BundleError: The folder is not there, the manifest is not valid or of an unknown schema, or a listed
            file is missing, is not a regular file inside the folder, or has another size or hash.
    """
    folder = Path(path)
    _recover(folder)
    if not os.path.isdir(folder):
        raise BundleError(f"{folder} is not a bundle: no such folder. Make one with: flowedge export CKPT.")
    manifest = _read_manifest(folder)
    for stored in manifest.files:
        _verify(folder, stored)
    return Bundle(folder, manifest)


def write_bundle(
    target: str | os.PathLike[str],
    manifest: Manifest,
    files: Mapping[str, Path | bytes],
    *,
    overwrite: bool = False,
) -> Bundle:
    """Write a new bundle, all of it or nothing.

    Args:
        target: The folder to make; its parent must exist.
        manifest: Its ``files`` are ignored: they are computed from ``files``.
        files: Path in the bundle (forward slashes) to content: bytes, or a file to copy from.
        overwrite: Replace ``target`` where it is a bundle already; never any other folder.

    Raises:
        BundleError: The target exists, a path is not safe, a graph of the manifest is not among the files, or
            the disk refuses (no parent folder, no permission, no space). Nothing is left behind.
    """
    place = Path(os.path.realpath(target))
    if os.path.lexists(place) and not (overwrite and (place / _MANIFEST).is_file()):
        advice = "Choose another name or move it away" if overwrite else "Choose another name or overwrite it"
        what = "exists and is not a bundle" if overwrite else "exists already"
        raise BundleError(f"{target} {what}. {advice}.")
    with _new_version(place) as folder:
        manifest = _fill(folder, manifest, files, kept=())
        _put_in_place(folder, place)
    return Bundle(Path(target), manifest)


def replace_in_bundle(
    bundle: Bundle,
    *,
    manifest: Manifest | None = None,
    files: Mapping[str, Path | bytes] | None = None,
) -> Bundle:
    """Give a bundle a new manifest, new files, or both; the new version takes the old one's place at once.

    Files that are not named are verified and hard-linked into the new version (copied where the file system
    has no hard links). Never write into a file of a bundle: its content may belong to two versions.

    Args:
        bundle: The version to start from; it must still be the one on disk.
        manifest: The new manifest, by default the old one. Its ``files`` are ignored: they are computed.
        files: Path in the bundle to the new content: bytes, or a file to copy from.

    Raises:
        BundleError: The bundle changed since it was opened, a path is not safe, or the disk refuses. The old
            version is then untouched.
    """
    place = Path(os.path.realpath(bundle.path))
    with _new_version(place) as folder:
        if _read_manifest(place) != bundle.manifest:
            raise BundleError(f"{bundle.path} changed since it was opened. Open it again and retry.")
        manifest = _fill_from(bundle, folder, manifest, files)
        _put_in_place(folder, place)
    return Bundle(bundle.path, manifest)


def clone_bundle(
    bundle: Bundle,
    target: Path,
    *,
    manifest: Manifest | None = None,
    files: Mapping[str, Path | bytes] | None = None,
) -> Bundle:
    """A new version of a bundle at another place, to be tried before the bundle itself is changed.

    Args:
        bundle: The bundle; it stays as it is.
        target: The folder to make, best on the bundle's own file system: files that stay are hard-linked there.
        manifest: As for `replace_in_bundle`.
        files: As for `replace_in_bundle`.

    Raises:
        BundleError: The bundle's files are not what its manifest says, a path is not safe, or the disk refuses.
    """
    with _new_version(target) as folder:
        manifest = _fill_from(bundle, folder, manifest, files)
        _put_in_place(folder, target)
    return Bundle(target, manifest)


def _fill_from(
    bundle: Bundle, folder: Path, manifest: Manifest | None, files: Mapping[str, Path | bytes] | None
) -> Manifest:
    """Fill the folder with the files of a bundle, but for those that are new; the kept ones are verified and linked."""
    place = Path(os.path.realpath(bundle.path))
    files = files or {}
    kept = tuple(stored for stored in bundle.manifest.files if stored.path not in files)
    for stored in kept:
        _verify(place, stored)
        _link(place / stored.path, folder / stored.path)
    return _fill(folder, manifest or bundle.manifest, files, kept)


# Reading and checking


def _read_manifest(folder: Path) -> Manifest:
    with _open_regular(folder, _MANIFEST) as file:
        data = file.read(MAX_BYTES + 1)
    try:
        manifest = manifest_from_json(data)
        _check_listing(manifest)
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from error
    return manifest


def _check_listing(manifest: Manifest) -> None:
    """Every path is safe and there once, and every graph is among the files."""
    paths = [stored.path for stored in manifest.files]
    _check_paths(paths)
    for graph in manifest.graphs:
        if graph.file not in paths:
            raise BundleError(
                f"the {graph.precision} graph {graph.file!r} is not among the bundle's files. "
                "Export the bundle again."
            )


def _check_paths(paths: Iterable[str]) -> None:
    seen = {_MANIFEST}
    for path in paths:
        if not _SAFE_PATH.fullmatch(path):
            raise BundleError(
                f"{path!r} is not a path that a bundle may hold: only relative paths of letters, digits, "
                "'.', '_' and '-', whose parts do not begin with a dot. Export the bundle again."
            )
        if path.casefold() in seen:
            raise BundleError(
                f"{path!r} is in the bundle twice (capitals do not count). Export the bundle again."
            )
        seen.add(path.casefold())


def _open_regular(folder: Path, path: str) -> BinaryIO:
    """Open a file for reading; refuses links on the way, and all that is not a regular file."""
    place = folder
    for part in path.split("/"):
        place = place / part
        if os.path.islink(place):
            raise BundleError(
                f"{place} is a symbolic link; a bundle holds its own files. Copy it with cp -L."
            )
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(
            f"{place} cannot be read: {error.strerror}. Copy or export the bundle again."
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{place} is not a regular file. Copy or export the bundle again.")
    return os.fdopen(descriptor, "rb")


def _verify(folder: Path, stored: StoredFile, *, copy_to: BinaryIO | None = None) -> None:
    place = folder / stored.path
    with _open_regular(folder, stored.path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            sha256 = _sha256(file, copy_to) if size == stored.size else None
        except OSError as error:
            raise BundleError(f"{place} cannot be read: {error.strerror}. Check the disk.") from error
    if sha256 is None:
        raise BundleError(
            f"{place} has {size} bytes, the manifest says {stored.size}. Copy or export the bundle again."
        )
    if sha256 != stored.sha256:
        raise BundleError(
            f"{place} is not the file that was written: its SHA-256 is {sha256}, "
            f"the manifest says {stored.sha256}. Copy or export the bundle again."
        )


def _sha256(file: BinaryIO, copy_to: BinaryIO | None = None) -> str:
    """The hash of what is left to read of a file, which is copied on the way where asked."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        if copy_to is not None:
            copy_to.write(chunk)
    return digest.hexdigest()


# Writing


@contextlib.contextmanager
def _new_version(place: Path) -> Iterator[Path]:
    """An empty hidden folder beside ``place``; whatever is in it at the end is removed."""
    folder = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        where = f" ({error.filename})" if error.filename is not None else ""
        raise BundleError(
            f"{place} cannot be written: {error.strerror}{where}. "
            f"Check that {place.parent} is a folder that you may write to, with enough space."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(
    folder: Path, manifest: Manifest, files: Mapping[str, Path | bytes], kept: tuple[StoredFile, ...]
) -> Manifest:
    """Write the files and then the manifest that lists them and the kept ones, durably."""
    _check_paths([*files, *(stored.path for stored in kept)])
    stored = [_store(folder, path, content) for path, content in files.items()]
    listing = sorted([*stored, *kept], key=lambda one: one.path)
    manifest = msgspec.structs.replace(manifest, schema=SCHEMA, files=tuple(listing))
    _check_listing(manifest)
    _store(folder, _MANIFEST, json_from_manifest(manifest))
    for inner, _, _ in os.walk(folder):
        _sync_folder(Path(inner))
    return manifest


def _store(folder: Path, path: str, content: Path | bytes) -> StoredFile:
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    source = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
    with source, place.open("xb") as file:
        sha256 = _sha256(source, copy_to=file)
        file.flush()
        os.fsync(file.fileno())
    return StoredFile(path=path, size=place.stat().st_size, sha256=sha256)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Taking the place of the old version


def _put_in_place(folder: Path, place: Path) -> None:
    """Rename ``folder`` to ``place``; an older version there ends up at ``folder``."""
    if not os.path.lexists(place):
        folder.rename(place)
    else:
        try:
            _exchange(folder, place)
        except OSError as error:
            if error.errno not in _CANNOT_EXCHANGE:
                raise
            _exchange_in_two_steps(folder, place)
    _sync_folder(place.parent)


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
    if previous.exists():
        shutil.rmtree(previous)
    place.rename(previous)
    try:
        folder.rename(place)
    except OSError:
        previous.rename(place)
        raise
    previous.rename(folder)


def _previous(place: Path) -> Path:
    return place.with_name(f".{place.name}.previous")


def _recover(folder: Path) -> None:
    """Undo a two-step exchange that was cut between its steps."""
    place = Path(os.path.realpath(folder))
    if not os.path.lexists(place):
        with contextlib.suppress(OSError):
            _previous(place).rename(place)
