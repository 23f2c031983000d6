"""Read and write the files of one bundle wherever it is kept: an OCI registry, a web server, or a place of fsspec."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from flowedge.bundle_files import MANIFEST, PACK_INDEX, SIGNATURE
from flowedge.errors import FlowEdgeError, MissingPackageError, RegistryError
from flowedge.files import open_regular_file
from flowedge.manifest import StoredFile
from flowedge.packages import explain_missing
from flowedge.runtime.registry.http_client import Connection, HttpClient
from flowedge.runtime.registry.oci_client import Artefact, OciRegistry
from flowedge.runtime.registry.references import OCI, oci_reference
from flowedge.text import printable

if TYPE_CHECKING:
    from flowedge.runtime.registry.oci_client import Descriptor

_CHUNK_BYTES: Final = 1 << 20
_DESCRIPTIONS: Final = (MANIFEST, PACK_INDEX)
_SIGNATURES: Final = (SIGNATURE, f"{MANIFEST}.minisig", f"{PACK_INDEX}.minisig")
# Some file systems of fsspec take a password in their address, which belongs into no message.
_PASSWORD: Final = re.compile(r"//[^/@\s]+@")
BUNDLE_TYPE: Final = "application/vnd.flowedge.bundle.v1"
PACK_TYPE: Final = "application/vnd.flowedge.pack.v1"


class Store(Protocol):
    """The place of one bundle or pack."""

    def read(self, name: str, most_bytes: int) -> bytes | None:
        """Return the content of a small file, or None where the place has none of this name.

        Raises:
            RegistryError: The place cannot be read, or the file is too long.
        """
        ...

    def download(self, stored: StoredFile, to: BinaryIO) -> None:
        """Write the content of a listed file into an empty file, and check its size and its hash on the way.

        Raises:
            RegistryError: The place cannot be read, or the content is another one.
        """
        ...

    @property
    def pinned(self) -> str:
        """The name by which this very version can be pulled, once something was read."""
        ...

    def push(self, files: Mapping[str, Path], facts: Mapping[str, str], *, overwrite: bool) -> str:
        """Write all files of a bundle or a pack. Whoever reads meanwhile finds no bundle, or the whole one.

        Args:
            files: The files by their names.
            facts: Facts about the bundle, for places that keep some.
            overwrite: Replace a bundle that is there.

        Returns:
            The name by which this version can be pulled.

        Raises:
            RegistryError: A bundle is there already, or the place cannot be written.
        """
        ...


def store_of(reference: str, connection: Connection = Connection()) -> Store:  # noqa: B008 - frozen
    """Return the place that a reference names. Nothing is read yet.

    Args:
        reference: ``oci://HOST/REPOSITORY:TAG``, ``https://…``, an address of fsspec such as ``s3://…``, or a folder.
        connection: The way to a server of OCI or HTTP.

    Raises:
        RegistryError: The reference is none.
    """
    if reference.startswith(OCI):
        return OciStore(OciRegistry(oci_reference(reference), connection))
    if reference.startswith(("https://", "http://")):
        return WebStore(reference, connection)
    return FolderStore(reference)


class OciStore:
    """A bundle in an OCI registry: an artefact with a blob for each file."""

    def __init__(self, registry: OciRegistry) -> None:
        """Take a repository of a registry."""
        self._registry = registry
        self._files: Mapping[str, Descriptor] | None = None
        self.digest = ""

    def read(self, name: str, most_bytes: int) -> bytes | None:
        """Return the content of a small file, see `Store`."""
        blob = self._found().get(name)
        return None if blob is None else self._registry.read_blob(blob, most_bytes)

    def download(self, stored: StoredFile, to: BinaryIO) -> None:
        """Write the content of a listed file, see `Store`."""
        blob = self._found().get(stored.path)
        if blob is None:
            raise RegistryError(
                f"{self._registry.reference} lacks {stored.path}, which its manifest lists. Push the bundle again."
            )
        if (blob.sha256, blob.size) != (stored.sha256, stored.size):
            raise RegistryError(
                f"{self._registry.reference} holds another {stored.path} than its manifest lists: {blob.size} bytes "
                f"with the SHA-256 {blob.sha256}. Do not use it, and push the bundle again."
            )
        self._registry.download(blob, to)

    def push(self, files: Mapping[str, Path], facts: Mapping[str, str], *, overwrite: bool) -> str:
        """Push all files as one artefact, see `Store`."""
        kind = PACK_TYPE if PACK_INDEX in files else BUNDLE_TYPE
        types = {name: _media_type(name) for name in files}
        self.digest = self._registry.push(dict(files), types, kind, facts, overwrite=overwrite)
        return self.pinned

    @property
    def pinned(self) -> str:
        """The reference with the digest of the artefact."""
        reference = self._registry.reference
        return f"{OCI}{reference.host}/{reference.repository}:{reference.tag}@{self.digest}"

    def _found(self) -> Mapping[str, Descriptor]:
        if self._files is None:
            found = self._registry.artefact()
            if found is None:
                raise RegistryError(
                    f"{self._registry.reference} is not in the registry. Check the name, or push it again: a push that "
                    "was interrupted leaves nothing of this name."
                )
            artefact, self.digest = found
            _check_kind(artefact, str(self._registry.reference))
            self._files = artefact.files()
        return self._files


class WebStore:
    """A folder of a web server, which can only be read."""

    def __init__(self, url: str, connection: Connection) -> None:
        """Take the address of the folder."""
        self._url = url.rstrip("/")
        self._http = HttpClient(connection)

    def read(self, name: str, most_bytes: int) -> bytes | None:
        """Return the content of a small file, see `Store`."""
        return self._http.read(self._address(name), most_bytes)

    def download(self, stored: StoredFile, to: BinaryIO) -> None:
        """Write the content of a listed file, see `Store`."""
        self._http.download(self._address(stored.path), stored.size, stored.sha256, to)

    @property
    def pinned(self) -> str:
        """The address."""
        return self._url

    def push(self, files: Mapping[str, Path], facts: Mapping[str, str], *, overwrite: bool) -> str:
        """Refuse, since a web server takes no files."""
        raise RegistryError(
            f"{printable(self._url)} can only be read. Push to oci://… or to a place of fsspec such as s3://…."
        )

    def _address(self, name: str) -> str:
        return f"{self._url}/{urllib.parse.quote(name)}"


class FolderStore:
    """A folder of any file system that fsspec knows, such as an object store or a share."""

    def __init__(self, url: str) -> None:
        """Take the address of the folder.

        Raises:
            RegistryError: fsspec knows no such address.
        """
        self._url = url.rstrip("/")
        self._shown = printable(_PASSWORD.sub("//", self._url))
        with explain_missing("registry"):
            from fsspec.core import url_to_fs
        with self._explained("opened"):
            self._system, self._root = url_to_fs(self._url)
            self._system.invalidate_cache()  # another process may have pushed since the last look

    def read(self, name: str, most_bytes: int) -> bytes | None:
        """Return the content of a small file, see `Store`."""
        with self._explained("read"):
            try:
                with self._system.open(self._place(name), "rb") as file:
                    content: bytes = file.read(most_bytes + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
        if len(content) > most_bytes:
            raise RegistryError(f"{self._shown}/{name} has more than {most_bytes} bytes.")
        return content

    def download(self, stored: StoredFile, to: BinaryIO) -> None:
        """Write the content of a listed file, see `Store`."""
        digest, size = hashlib.sha256(), 0
        with self._explained("read"):
            try:
                with self._system.open(self._place(stored.path), "rb") as file:
                    while size <= stored.size and (chunk := file.read(_CHUNK_BYTES)):
                        size += len(chunk)
                        digest.update(chunk)
                        to.write(chunk)
            except FileNotFoundError as error:
                raise RegistryError(
                    f"{self._shown} lacks {stored.path}, which its manifest lists. Push the bundle again."
                ) from error
        if (size, digest.hexdigest()) != (stored.size, stored.sha256):
            have = f"{size} bytes" if size <= stored.size else f"more than {stored.size} bytes"
            raise RegistryError(
                f"{self._shown}/{stored.path} is not the file that the manifest lists: it has {have} with the "
                f"SHA-256 {digest.hexdigest()}, and {stored.size} bytes with {stored.sha256} are listed. A push may "
                "have been interrupted, or somebody changed the file. Do not use it, and push the bundle again."
            )

    @property
    def pinned(self) -> str:
        """The address."""
        return self._url

    def push(self, files: Mapping[str, Path], facts: Mapping[str, str], *, overwrite: bool) -> str:
        """Write all files, the manifest last, see `Store`."""
        with self._explained("written"):
            there = [
                name for name in (*_DESCRIPTIONS, *_SIGNATURES) if self._system.exists(self._place(name))
            ]
            if there and not overwrite:
                raise RegistryError(
                    f"{self._shown} is there already. Name another place, or replace it with --force."
                )
            if any(map(self._is_same, files, files.values())):
                raise RegistryError(
                    f"{self._shown} is the bundle itself, or shares files with it, so it would be destroyed. "
                    "Name another place."
                )
            # Without its manifest the old version is gone, and whoever pulls now is told so.
            for name in there:
                self._system.rm_file(self._place(name))
            last = (*_SIGNATURES, *_DESCRIPTIONS)
            for name in (
                *(name for name in files if name not in last),
                *(name for name in last if name in files),
            ):
                place = self._place(name)
                self._system.makedirs(place.rpartition("/")[0], exist_ok=True)
                with open_regular_file(files[name]) as source, self._system.open(place, "wb") as target:
                    while chunk := source.read(_CHUNK_BYTES):
                        target.write(chunk)
        return self._url

    def write(self, name: str, content: bytes) -> None:
        """Write a small file.

        Raises:
            RegistryError: The place cannot be written.
        """
        with self._explained("written"):
            self._system.makedirs(str(self._root), exist_ok=True)
            self._system.pipe_file(self._place(name), content)

    def _place(self, name: str) -> str:
        return f"{str(self._root).rstrip('/')}/{name}"

    def _is_same(self, name: str, file: Path) -> bool:
        """Return True where a file of the folder and a file of this machine are one, also by a hard link."""
        from fsspec.implementations.local import LocalFileSystem

        if not isinstance(self._system, LocalFileSystem):
            return False
        place = self._place(name)
        return os.path.exists(place) and os.path.samefile(place, file)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turn every error of a file system, of which each has its own, into one of ours."""
        try:
            yield
        except FlowEdgeError:
            raise
        except ImportError as error:
            raise MissingPackageError(
                f"{self._shown} needs another package of fsspec: {printable(str(error))}."
            ) from error
        except Exception as error:
            words = printable(_PASSWORD.sub("//", str(error)))[:500] or type(error).__name__
            raise RegistryError(f"{self._shown} cannot be {verb}: {words}.") from error


def _check_kind(artefact: Artefact, name: str) -> None:
    if artefact.artifactType not in ("", BUNDLE_TYPE, PACK_TYPE):
        raise RegistryError(
            f"{name} is no bundle and no pack, but {printable(artefact.artifactType[:200])!r}. Name another artefact."
        )


def _media_type(name: str) -> str:
    """Return the kind of a file of a bundle or a pack."""
    kinds: Mapping[str, str] = {
        MANIFEST: "application/vnd.flowedge.manifest.v1+json",
        PACK_INDEX: "application/vnd.flowedge.pack-index.v1+json",
        SIGNATURE: "application/vnd.flowedge.signature.v1+toml",
    }
    other = (
        "application/vnd.flowedge.graph.v1+onnx"
        if name.endswith(".onnx")
        else "application/vnd.flowedge.file.v1"
    )
    return kinds.get(name, other)
