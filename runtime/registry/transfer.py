"""Push bundles and packs to a registry, and pull them so that nothing changes until everything is there and right."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from flowedge.bundle import check_free, folder_for_next_version, open_bundle
from flowedge.bundle_files import (
    MANIFEST,
    PACK_INDEX,
    SIGNATURE,
    is_whole,
    pack_around,
    parse_manifest,
    read_manifest,
)
from flowedge.errors import BundleError, RegistryError
from flowedge.manifest import StoredFile
from flowedge.manifest_json import MAX_BYTES
from flowedge.pack import PackIndex, open_pack, parse_index, put_pack_in_place, read_index
from flowedge.progress import SILENT, Reports
from flowedge.replacing import link_or_copy, put_in_place, sync_folder
from flowedge.runtime.registry.http_client import Connection
from flowedge.runtime.registry.stores import Store, store_of
from flowedge.signature import Required, Signature, check_signature
from flowedge.signed_text import MOST_BYTES
from flowedge.text import printable

MOST_BUNDLE_BYTES: Final = 64 << 30
_SPARE_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """A bundle or a pack in a registry.

    Attributes:
        reference: The name by which this very version can be pulled.
        sha256: The SHA-256 of its manifest, or of ``pack.json``.
        files: The number of files.
        size: The number of bytes.
        is_signed: True where a signature was pushed along.
    """

    reference: str
    sha256: str
    files: int
    size: int
    is_signed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A bundle or a pack that was pulled.

    Attributes:
        path: The folder.
        sha256: The SHA-256 of its manifest, or of ``pack.json``.
        signature: The accepted signature. The value is None where none was required.
        downloaded: The number of bytes that came over the network.
        kept: The number of bytes that the version before had already.
    """

    path: Path
    sha256: str
    signature: Signature | None
    downloaded: int
    kept: int


def push(
    folder: str | os.PathLike[str],
    reference: str,
    *,
    overwrite: bool = False,
    connection: Connection = Connection(),  # noqa: B008 - frozen
    require_signature: Required = None,
) -> Pushed:
    """Push a bundle or a pack, with its signature where it has one. All files are verified first.

    Args:
        folder: The bundle or the pack.
        reference: ``oci://HOST/REPOSITORY:TAG``, or an address of fsspec such as ``s3://BUCKET/NAME``, or a folder.
        overwrite: Replace what has this name.
        connection: The way to a server.
        require_signature: The trusted keys, as `flowedge.load` takes them.

    Raises:
        BundleError: The folder cannot be trusted as it is.
        RegistryError: The name is taken, or the registry does not answer or refuses.
    """
    path = Path(folder)
    around = pack_around(path)
    if around is not None and around[1]:
        raise RegistryError(f"{path} is a product of the pack {around[0]}. Push the pack as a whole.")
    facts: dict[str, str] = {}
    if around is None:
        manifest = open_bundle(path, require_signature=require_signature).manifest
        mark, stored, facts["dev.flowedge.family"] = MANIFEST, manifest.files, manifest.family
        created, version = manifest.created, manifest.flowedge_version
    else:
        index = open_pack(path, require_signature=require_signature).index
        mark, stored, facts["dev.flowedge.products"] = PACK_INDEX, index.files, " ".join(index.products)
        created, version = index.created, index.flowedge_version
    content = (path / mark).read_bytes()
    signatures = [name for name in (SIGNATURE, f"{mark}.minisig") if os.path.isfile(path / name)]
    files = {name: path / name for name in (mark, *(one.path for one in stored), *signatures)}
    sha256 = hashlib.sha256(content).hexdigest()
    facts |= {
        "org.opencontainers.image.title": path.absolute().name,
        "org.opencontainers.image.created": created,
        "dev.flowedge.version": version,
        "dev.flowedge.sha256": sha256,
    }
    name = store_of(reference, connection).push(files, facts, overwrite=overwrite)
    size = sum(file.stat().st_size for file in files.values())
    return Pushed(reference=name, sha256=sha256, files=len(files), size=size, is_signed=bool(signatures))


def pull(
    reference: str,
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    connection: Connection = Connection(),  # noqa: B008 - frozen
    require_signature: Required = None,
    sha256: str | None = None,
    reports: Reports = SILENT,
) -> Pulled:
    """Pull a bundle or a pack into a folder. Until all of it is there and right, nothing changes at the folder.

    The manifest and the signature come first, so that nothing else is downloaded of what is not accepted. Files that
    the version at the target has already are not downloaded again.

    Args:
        reference: ``oci://HOST/REPOSITORY:TAG``, ``https://…``, an address of fsspec, or a folder.
        target: The folder to make.
        overwrite: Replace the bundle or the pack at the target.
        connection: The way to a server.
        require_signature: The trusted keys, as `flowedge.load` takes them.
        sha256: The SHA-256 that the manifest must have.
        reports: Receives the progress, one unit for each megabyte.

    Raises:
        SignatureError: A signature is required, and there is none that is accepted.
        BundleError: What was pulled is no whole bundle, the target is taken, or it cannot be written.
        RegistryError: The registry does not answer, or what it gives is incomplete or something else.
    """
    store = store_of(reference, connection)
    mark, content = _description(store, reference)
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise RegistryError(
            f"{printable(reference)} is another version than the one that is wanted: its manifest has the SHA-256 "
            f"{found}, and {sha256} is wanted."
        )
    is_pack = mark == PACK_INDEX
    place = check_free(target, "a pack" if is_pack else "a bundle", mark, overwrite=overwrite)
    with folder_for_next_version(place) as draft:
        folder = draft / "pulled"
        folder.mkdir()
        _write_description(folder, store, mark, content)
        try:
            described = parse_index(folder, content) if is_pack else parse_manifest(folder, content)
            signature = check_signature(folder, content, require_signature)
        except BundleError as error:
            raise _told(error, folder, reference) from error
        downloaded, kept = _fill(folder, place, mark, described.files, store, reports)
        for inner, _, _ in os.walk(folder):
            sync_folder(Path(inner))
        try:
            if is_pack:
                open_pack(folder, require_signature=False)
            else:
                open_bundle(folder, require_signature=False)
        except BundleError as error:
            raise _told(error, folder, reference) from error
        if isinstance(described, PackIndex):
            put_pack_in_place(folder, place)
        else:
            put_in_place(folder, place, described)
    return Pulled(
        path=Path(target),
        sha256=found,
        signature=signature,
        downloaded=downloaded,
        kept=kept,
    )


class Version(NamedTuple):
    """One version of a bundle or a pack in a registry.

    Attributes:
        pinned: The reference of this very version.
        sha256: The SHA-256 of its manifest or of ``pack.json``.
        is_signed: True where a signature lies beside it, which may be one of a key that nobody trusts.
    """

    pinned: str
    sha256: str
    is_signed: bool


def version_of(
    reference: str,
    *,
    connection: Connection = Connection(),  # noqa: B008 - frozen
    require_signature: Required = None,
) -> Version:
    """Look at a bundle or a pack in a registry, without pulling it.

    Args:
        reference: ``oci://HOST/REPOSITORY:TAG``, ``https://…``, an address of fsspec, or a folder.
        connection: The way to a server.
        require_signature: The trusted keys, as `flowedge.load` takes them.

    Returns:
        The version.

    Raises:
        SignatureError: A signature is required, and there is none that is accepted.
        RegistryError: The registry does not answer, or has no such bundle.
    """
    store = store_of(reference, connection)
    mark, content = _description(store, reference)
    with tempfile.TemporaryDirectory() as folder:
        _write_description(Path(folder), store, mark, content)
        try:
            check_signature(Path(folder), content, require_signature)
        except BundleError as error:
            raise _told(error, Path(folder), reference) from error
        is_signed = any((Path(folder) / name).exists() for name in (SIGNATURE, f"{mark}.minisig"))
    return Version(store.pinned, hashlib.sha256(content).hexdigest(), is_signed)


def _write_description(folder: Path, store: Store, mark: str, content: bytes) -> None:
    """Write the manifest and the signatures that lie beside it."""
    _write(folder / mark, content)
    for name in (SIGNATURE, f"{mark}.minisig"):
        if (signed := store.read(name, MOST_BYTES)) is not None:
            _write(folder / name, signed)


def _description(store: Store, reference: str) -> tuple[str, bytes]:
    """Return the name and the content of the manifest or of ``pack.json``.

    Raises:
        RegistryError: There is neither.
    """
    for mark in (MANIFEST, PACK_INDEX):
        if (content := store.read(mark, MAX_BYTES)) is not None:
            return mark, content
    raise RegistryError(
        f"{printable(reference)} holds no bundle and no pack: it has neither {MANIFEST} nor {PACK_INDEX}, which are "
        "pushed last. Its push was interrupted or still runs, or the name is another one. Push it again, or check the "
        "name."
    )


def _fill(
    folder: Path, place: Path, mark: str, stored: tuple[StoredFile, ...], store: Store, reports: Reports
) -> tuple[int, int]:
    """Give a new version its files, and return the bytes that were downloaded and those that were there already."""
    size = sum(one.size for one in stored)
    free = shutil.disk_usage(folder).free
    if size > MOST_BUNDLE_BYTES or size + _SPARE_BYTES > free:
        raise RegistryError(
            f"the bundle has {size / 1e9:.1f} GB, and {min(free, MOST_BUNDLE_BYTES) / 1e9:.1f} GB is the most that "
            f"{place.parent} takes. Make room, or name another folder."
        )
    known = _files_at(place, mark)
    reports.step("pulling", -(-size // 1_000_000))
    downloaded = kept = 0
    for one in stored:
        target = folder / one.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if known.get(one.path) == one and is_whole(place, one):
            link_or_copy(place / one.path, target)
            kept += one.size
        else:
            with target.open("xb") as file:
                store.download(one, file)
                file.flush()
                os.fsync(file.fileno())
            downloaded += one.size
        reports.advance(round((downloaded + kept) / 1e6) - round((downloaded + kept - one.size) / 1e6))
    return downloaded, kept


def _files_at(place: Path, mark: str) -> dict[str, StoredFile]:
    """Return the files of the version that is at the target, if one is."""
    try:
        if not os.path.lexists(place / mark):
            return {}
        listed = read_index(place).files if mark == PACK_INDEX else read_manifest(place).files
    except BundleError:
        return {}
    return {one.path: one for one in listed}


def _write(file: Path, content: bytes) -> None:
    with file.open("xb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def _told(error: BundleError, folder: Path, reference: str) -> BundleError:
    """Return an error with the reference in place of the draft, whose name means nothing to anybody."""
    return type(error)(str(error).replace(str(folder), printable(reference)))
