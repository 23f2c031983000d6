"""Read and write bundles on disk. A bundle is used only after every listed byte of it was checked.

Reading refuses a file that is missing, damaged, of another schema or outside the folder, and the message names the file
and the reason. Files that the manifest does not list are left alone and never used.

Writing fills a draft (`flowedge.drafts`), makes it durable, and gives it the bundle's place (`flowedge.replacing`), so
that the target is either the whole bundle or not there. A process that reads while another one replaces may see a
hash that does not match. The reading process gets a ``BundleError`` and may open the bundle again.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from flowedge.bundle_files import (
    MANIFEST,
    PACK_INDEX,
    check_listing,
    check_paths,
    description_bytes,
    hash_of,
    pack_around,
    parse_manifest,
    read_manifest,
    verify,
)
from flowedge.drafts import draft_folder
from flowedge.errors import BundleChangedError, BundleError
from flowedge.manifest import SCHEMA, Manifest, StoredFile
from flowedge.manifest_json import json_from_manifest
from flowedge.replacing import (
    folder_for_draft,
    link_or_copy,
    put_in_place,
    recover,
    remove_leftovers,
    sync_folder,
)
from flowedge.signature import Required, Signature, check_signature

_LOG: Final = logging.getLogger(__name__)

_CHECKPOINTS: Final = (".ckpt", ".pth", ".pt", ".safetensors")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle. When it was opened, every listed file had its listed size and hash.

    Attributes:
        path: The bundle's folder.
        manifest: The manifest.
        signature: The accepted signature. The value is None where the opening required none.
    """

    path: Path
    manifest: Manifest
    signature: Signature | None = None

    def graph_path(self, precision: str) -> Path:
        """Return the path of the graph of a precision.

        Raises:
            BundleError: The bundle has no graph of this precision.
        """
        return self.path / self.manifest.graph(precision).file

    def check_again(self, path_in_bundle: str) -> None:
        """Check one listed file again against its hash, before its content goes into another file.

        Raises:
            BundleError: The manifest does not list the file, or the file changed since the bundle was opened.
        """
        verify(self.path, self._stored(path_in_bundle))

    def read(self, path_in_bundle: str) -> bytes:
        """Return the content of one listed file, checked again against its hash.

        Raises:
            BundleError: The manifest does not list the file, or the file changed since the bundle was opened.
        """
        content = io.BytesIO()
        verify(self.path, self._stored(path_in_bundle), copy_to=content)
        return content.getvalue()

    def _stored(self, path_in_bundle: str) -> StoredFile:
        """Return a file's entry in the manifest."""
        for stored in self.manifest.files:
            if stored.path == path_in_bundle:
                return stored
        raise BundleError(
            f"{self.path} has no file {path_in_bundle!r}; it has "
            f"{', '.join(stored.path for stored in self.manifest.files)}."
        )


def open_bundle(path: str | os.PathLike[str], *, require_signature: Required = None) -> Bundle:
    """Open a bundle and verify all of it. This reads every byte once and takes about a second per gigabyte.

    Args:
        path: The folder.
        require_signature: A file or a folder of trusted public keys, one of which must have signed the bundle. By
            default it is the one that the environment variable ``FLOWEDGE_REQUIRE_SIGNATURE`` names, if it is set.
            False needs no signature.

    Raises:
        SignatureError: A signature is required, and there is none that is accepted.
        BundleError: The folder is not there, the manifest is not valid or of an unknown schema, or a listed
            file is missing, is not a regular file inside the folder, or has another size or hash.
    """
    begun = time.monotonic()
    folder = Path(path)
    refuse_pack(folder)
    _recover(folder)
    # The signature is checked over the very bytes that are parsed, so that no other manifest comes between.
    data = description_bytes(folder, MANIFEST)
    manifest = parse_manifest(folder, data)
    signature = check_signature(folder, data, require_signature)
    for stored in manifest.files:
        verify(folder, stored)
    size = sum(stored.size for stored in manifest.files) / 1e6
    _LOG.info(
        "read and verified %s: %.1f MB in %d files, %.2f s",
        *(folder, size, len(manifest.files), time.monotonic() - begun),
    )
    return Bundle(folder, manifest, signature)


def peek_bundle(folder: Path) -> Manifest:
    """Read the manifest of a bundle without verifying the files that it lists.

    Raises:
        BundleError: The folder is not there, or the manifest is not valid or of an unknown schema.
    """
    _recover(folder)
    return read_manifest(folder)


def _recover(folder: Path) -> None:
    """Finish an interrupted replacement of a bundle, and check that the folder is a bundle.

    Raises:
        BundleError: The folder is not there, or has no manifest.
    """
    recover(Path(os.path.realpath(folder)))
    try:
        is_bundle = os.path.isdir(folder) and bool(os.lstat(folder / MANIFEST))
    except FileNotFoundError:
        is_bundle = False
    except OSError:
        is_bundle = True  # Reading the manifest, next, tells what the system refuses.
    if not is_bundle:
        raise _no_bundle(folder)


def refuse_pack(folder: Path) -> None:
    """Refuse a pack, or a product in one, where a bundle with its own graphs is needed.

    Raises:
        BundleError: The folder is a pack or a product in a pack.
    """
    around = pack_around(folder)
    if around is not None:
        pack, product = around
        what = f"is a product of the pack {pack}" if product else "is a pack"
        raise BundleError(
            f"{folder} {what}, and this works on a bundle. Work on the bundle that was packed, and pack it again with: "
            f"flowedge pack BUNDLE... -o {pack} --force"
        )


def _no_bundle(path: Path) -> BundleError:
    """Return the error of a path that is missing, a file or another folder, with the command that makes a bundle."""
    named = shlex.quote(str(path))
    made = shlex.quote(f"{path.parent / path.stem}.flowedge")
    if os.path.isdir(path):
        inside = sorted(one.parent for one in path.glob(f"*/{MANIFEST}"))
        advice = (
            f"Did you mean {inside[0]}?"
            if inside
            else "Name the folder that flowedge export made, or copy the bundle again."
        )
        return BundleError(f"{path} is a folder, and no bundle: it has no {MANIFEST}. {advice}")
    if not os.path.lexists(path):
        return BundleError(
            f"{path} is not a bundle: no such folder. Make one with: flowedge export CKPT -o {named}"
        )
    if os.path.isfile(path.parent / MANIFEST):
        return BundleError(
            f"{path} is a file of the bundle {path.parent}. Name the bundle, which is the folder."
        )
    if os.path.isfile(path.parent / PACK_INDEX):
        return BundleError(f"{path} is a file of the pack {path.parent}. Name the pack, which is the folder.")
    if path.suffix in _CHECKPOINTS:
        return BundleError(
            f"{path} is a checkpoint, and no bundle. Make a bundle of it with: flowedge export {named} -o {made}"
        )
    if path.suffix == ".onnx":
        return BundleError(
            f"{path} is an ONNX file, and no bundle. Make a bundle of the checkpoint that it was made of with: "
            f"flowedge export CKPT -o {made}"
        )
    return BundleError(
        f"{path} is a file, and a bundle is a folder. Make a bundle of a checkpoint with: flowedge export CKPT"
    )


def write_bundle(
    target: str | os.PathLike[str],
    manifest: Manifest,
    files: Mapping[str, Path | bytes],
    *,
    overwrite: bool = False,
) -> Bundle:
    """Write a new bundle, all of it or nothing.

    Args:
        target: The folder to make. The parent folder must exist.
        manifest: The manifest, whose field ``files`` is ignored and computed from the argument ``files``.
        files: The content of each file by its path in the bundle (forward slashes): bytes, or a file to copy from.
        overwrite: Replace ``target`` where it is a bundle already. Another folder is never replaced.

    Raises:
        BundleError: The target exists, a path is not safe, a graph of the manifest is not among the files, or
            the system refuses (no parent folder, no permission, no space). Nothing is left behind.
    """
    place = check_free(target, "a bundle", MANIFEST, overwrite=overwrite)
    with _new_version(place) as folder:
        manifest = _fill(folder, manifest, files, kept=())
        put_in_place(folder, place, manifest)
    return Bundle(Path(target), manifest)


def check_free(target: str | os.PathLike[str], kind: str, mark: str, *, overwrite: bool) -> Path:
    """Check that a new folder can be written to a place, and return the place without symbolic links.

    Args:
        target: The place.
        kind: The name of what is written, for the message: ``a bundle`` or ``a pack``.
        mark: The file that a folder of this kind holds.
        overwrite: Allow a folder of this kind at the place.

    Raises:
        BundleError: Something is there that may not be replaced.
    """
    place = Path(os.path.realpath(target))
    if os.path.lexists(place) and not (overwrite and (place / mark).is_file()):
        advice = (
            "Choose another name or move it away"
            if overwrite
            else "Replace it with --force, or choose another name"
        )
        what = f"exists and is not {kind}" if overwrite else "exists already"
        raise BundleError(f"{target} {what}. {advice}.")
    return place


def replace_in_bundle(
    bundle: Bundle,
    *,
    manifest: Manifest | None = None,
    files: Mapping[str, Path | bytes] | None = None,
) -> Bundle:
    """Give a bundle a new manifest, new files, or both. The new version takes the old one's place in one step.

    Files that are not named are verified and hard-linked into the new version (copied where the file system
    has no hard links). Never write into a file of a bundle: its content may belong to two versions.

    Args:
        bundle: The version to start from, which must still be the one on disk.
        manifest: The new manifest, by default the old one. The manifest's field ``files`` is ignored and computed.
        files: The new content of each file by its path in the bundle: bytes, or a file to copy from.

    Raises:
        BundleChangedError: The bundle changed since it was opened.
        BundleError: A path is not safe, or the system refuses. After any error the version on disk is untouched.
    """
    place = Path(os.path.realpath(bundle.path))
    with _new_version(place) as folder:
        if read_manifest(place) != bundle.manifest:  # before the work, and again when the place is locked
            raise BundleChangedError(f"{bundle.path} changed since it was opened. Open it again and retry.")
        manifest = _fill_from(bundle, folder, manifest, files)
        put_in_place(folder, place, manifest, replaced=bundle.manifest)
    return Bundle(bundle.path, manifest)


def clone_bundle(
    bundle: Bundle,
    target: Path,
    *,
    manifest: Manifest | None = None,
    files: Mapping[str, Path | bytes] | None = None,
) -> Bundle:
    """Write a new version of a bundle at another place, where it can be tried before the bundle itself is changed.

    Args:
        bundle: The bundle, which is not changed.
        target: The folder to make. On the bundle's own file system, files that do not change are hard-linked.
        manifest: The new manifest, by default the old one. The manifest's field ``files`` is ignored and computed.
        files: The new content of each file by its path in the bundle: bytes, or a file to copy from.

    Raises:
        BundleError: The bundle's files are not what its manifest says, a path is not safe, or the system refuses.
    """
    with _new_version(target) as folder:
        manifest = _fill_from(bundle, folder, manifest, files)
        put_in_place(folder, target, manifest)
    return Bundle(target, manifest)


def check_replaceable(bundle: Bundle) -> None:
    """Check, before any work, that the next version of a bundle can take its place.

    Raises:
        BundleError: The bundle cannot be replaced.
    """
    folder_for_draft(Path(os.path.realpath(bundle.path)))


@contextlib.contextmanager
def folder_for_next_version(place: Path) -> Iterator[Path]:
    """Make a folder for the work on a bundle's next version, and remove it at the end.

    The folder is on the bundle's own file system: beside the bundle where the bundle can be renamed, else inside it.

    Args:
        place: The bundle's folder. A bundle that is not there yet is made beside its place.

    Raises:
        BundleError: The bundle cannot be replaced or written there, or the system refused something in the block.
    """
    real = Path(os.path.realpath(place))
    written_to = place.parent
    try:
        remove_leftovers(real)
        parent = folder_for_draft(real)
        written_to = place if parent == real else place.parent
        with draft_folder(parent) as draft:
            yield draft
    except OSError as error:
        where = f" ({error.filename})" if error.filename is not None else ""
        raise BundleError(
            f"{place} cannot be written: {error.strerror}{where}. "
            f"Check that {written_to} is a folder that you may write to, with enough space."
        ) from error


@contextlib.contextmanager
def _new_version(place: Path) -> Iterator[Path]:
    """Make an empty folder for a new version. The folder is removed at the end unless it took the bundle's place."""
    with folder_for_next_version(place) as draft:
        folder = draft / "bundle"
        folder.mkdir()
        yield folder


def _fill_from(
    bundle: Bundle, folder: Path, manifest: Manifest | None, files: Mapping[str, Path | bytes] | None
) -> Manifest:
    """Fill a folder with new files and with the kept files of a bundle, which are verified and linked."""
    place = Path(os.path.realpath(bundle.path))
    files = files or {}
    kept = tuple(stored for stored in bundle.manifest.files if stored.path not in files)
    for stored in kept:
        verify(place, stored)
        link_or_copy(place / stored.path, folder / stored.path)
    return _fill(folder, manifest or bundle.manifest, files, kept)


def _fill(
    folder: Path, manifest: Manifest, files: Mapping[str, Path | bytes], kept: tuple[StoredFile, ...]
) -> Manifest:
    """Write the files and then the manifest that lists them and the kept ones, durably."""
    check_paths([*files, *(stored.path for stored in kept)])
    stored = [store_file(folder, path, content) for path, content in files.items()]
    listing = sorted([*stored, *kept], key=lambda one: one.path)
    manifest = msgspec.structs.replace(manifest, schema=SCHEMA, files=tuple(listing))
    check_listing(manifest)
    store_file(folder, MANIFEST, json_from_manifest(manifest))
    for inner, _, _ in os.walk(folder):
        sync_folder(Path(inner))
    return manifest


def store_file(folder: Path, path: str, content: Path | bytes) -> StoredFile:
    """Write one file into a new version, durably, and return its entry for the listing."""
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    source = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
    with source, place.open("xb") as file:
        sha256 = hash_of(source, copy_to=file)
        file.flush()
        os.fsync(file.fileno())
    return StoredFile(path=path, size=place.stat().st_size, sha256=sha256)
