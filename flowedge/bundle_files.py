"""Read the files of a bundle: only regular files inside its folder, and only with the content that is listed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from flowedge.errors import BundleError
from flowedge.files import open_regular_file
from flowedge.manifest import Manifest, StoredFile
from flowedge.manifest_json import MAX_BYTES, manifest_from_json

MANIFEST: Final = "manifest.json"
PACK_INDEX: Final = "pack.json"
SIGNATURE: Final = "signature.toml"
"""The file beside the manifest of a bundle, or beside the index of a pack, that `flowedge.signature` reads."""
SIGNATURES: Final = (SIGNATURE, f"{MANIFEST}.minisig")
"""The files beside the manifest of a bundle that hold a signature of it. A new version takes none of the old one."""
PRODUCTS: Final = "products"
"""The folder of a pack that holds a folder for each product."""
_CHUNK_BYTES: Final = 1 << 20
# One allow-list keeps out "..", hidden names, absolute paths, backslashes, drive letters, NUL, look-alikes.
_SAFE_PATH: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest in a folder.

    Raises:
        BundleError: The manifest is not there, is not valid, or lists paths that no bundle may hold.
    """
    return parse_manifest(folder, description_bytes(folder, MANIFEST))


def description_bytes(folder: Path, name: str) -> bytes:
    """Return the bytes of a manifest or of the index of a pack, up to one more than such a file may have.

    Raises:
        BundleError: The file cannot be read.
    """
    with open_inside(folder, name) as file:
        try:
            return file.read(MAX_BYTES + 1)
        except OSError as error:
            raise BundleError(f"{folder / name} cannot be read: {error.strerror}. Check the disk.") from error


def parse_manifest(folder: Path, data: bytes) -> Manifest:
    """Check the bytes of a manifest.

    Args:
        folder: The bundle's folder, for messages.
        data: The bytes of ``manifest.json``.

    Raises:
        BundleError: The manifest is not valid, or lists paths that no bundle may hold.
    """
    try:
        manifest = manifest_from_json(data)
        check_listing(manifest)
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from error
    return manifest


def pack_around(folder: Path) -> tuple[Path, str] | None:
    """Return the pack that a folder is or is in, and the product that the folder is. The value is None elsewhere.

    The name of the product is empty where the folder is the pack itself.
    """
    if os.path.lexists(folder / PACK_INDEX):
        return folder, ""
    try:
        place = Path(os.path.realpath(folder))  # the folder may be ".", or a link to a product
    except FileNotFoundError:
        # The folder is ".", and a new version of the bundle took its place. Products of packs are never replaced.
        return None
    pack = place.parent.parent
    if place.parent.name == PRODUCTS and os.path.lexists(pack / PACK_INDEX):
        return pack, place.name
    return None


def check_listing(manifest: Manifest) -> None:
    """Check that every listed path is safe and listed once, and that every graph is among the files.

    Raises:
        BundleError: A path is not safe or is listed twice, or a graph is not listed.
    """
    paths = [stored.path for stored in manifest.files]
    check_paths(paths)
    for graph in manifest.graphs:
        if graph.file not in paths:
            raise BundleError(
                f"the {graph.precision} graph {graph.file!r} is not among the bundle's files. "
                "Export the bundle again."
            )


def check_paths(paths: Iterable[str]) -> None:
    """Check that paths stay inside a bundle's folder on every file system, and differ where capitals do not count.

    Raises:
        BundleError: A path leads outside, or two paths are the same but for capitals.
    """
    seen = {MANIFEST, *SIGNATURES}
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


def verify(folder: Path, stored: StoredFile, *, copy_to: BinaryIO | None = None) -> None:
    """Check the size and the hash of a file, and copy its content where ``copy_to`` is given.

    Raises:
        BundleError: The file is missing, is no regular file inside the folder, or has another size or hash.
    """
    place = folder / stored.path
    with open_inside(folder, stored.path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            sha256 = hash_of(file, copy_to) if size == stored.size else None
        except OSError as error:
            raise BundleError(f"{place} cannot be read: {error.strerror}. Check the disk.") from error
    if sha256 is None:
        raise BundleError(
            f"{place} has {size} bytes, and the manifest lists {stored.size}. Copy or export the bundle again."
        )
    if sha256 != stored.sha256:
        raise BundleError(
            f"{place} is not the file that was written: its SHA-256 is {sha256}, "
            f"and the manifest lists {stored.sha256}. Copy or export the bundle again."
        )


def is_whole(folder: Path, stored: StoredFile) -> bool:
    """Return True where a file of a bundle is there, as a plain file with the listed size and hash."""
    try:
        verify(folder, stored)
    except BundleError:
        return False
    return True


def hash_of(file: BinaryIO, copy_to: BinaryIO | None = None) -> str:
    """Return the SHA-256 of the rest of a file, and copy that rest where ``copy_to`` is given."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        if copy_to is not None:
            copy_to.write(chunk)
    return digest.hexdigest()


def hash_of_bundle(folder: Path) -> str:
    """Return the SHA-256 of a bundle's manifest, which has the hashes of all other files.

    Raises:
        BundleError: The manifest cannot be read.
    """
    with open_inside(folder, MANIFEST) as file:
        return hash_of(file)


def open_inside(folder: Path, path: str) -> BinaryIO:
    """Open a file for reading. Links on the way and all that is not a regular file are refused."""
    place = folder
    for part in path.split("/"):
        place = place / part
        if place.is_symlink():
            raise BundleError(
                f"{place} is a symbolic link, and a bundle holds its own files. Copy the bundle with cp -L."
            )
    try:
        return open_regular_file(place, follow_links=False)
    except OSError as error:
        raise BundleError(
            f"{place} cannot be read: {error.strerror}. Copy or export the bundle again."
        ) from error
