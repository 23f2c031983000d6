"""Read and write artefacts of an OCI registry by its distribution protocol, version 1.1.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md. Every blob is named by its SHA-256,
which is checked while the bytes come.
"""

from __future__ import annotations

import hashlib
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec

from flowedge.errors import RegistryError
from flowedge.files import open_regular_file
from flowedge.runtime.registry.credentials import basic_of, challenge_of
from flowedge.runtime.registry.http_client import (
    BROKEN,
    Connection,
    HttpClient,
    check_status,
    is_this_machine,
    origin_of,
    read_limited,
    unreachable,
)
from flowedge.runtime.registry.references import OciReference
from flowedge.text import printable

IMAGE_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_EMPTY: Final = b"{}"
TITLE: Final = "org.opencontainers.image.title"
_MOST_MANIFEST_BYTES: Final = 4 << 20
_MOST_TOKEN_BYTES: Final = 1 << 16

_Text = Annotated[str, msgspec.Meta(max_length=10_000)]


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """The name of a blob in an artefact.

    Attributes:
        mediaType: The kind of the content.
        digest: The SHA-256 with the word ``sha256:`` before it.
        size: The number of bytes.
        annotations: The facts about it, such as the name of its file.
    """

    mediaType: _Text  # noqa: N815 - the name in the format
    digest: Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
    annotations: dict[str, _Text] = {}

    @property
    def sha256(self) -> str:
        """The SHA-256 in hexadecimal digits."""
        return self.digest.removeprefix("sha256:")


class Artefact(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of an artefact. Fields that are not used are left alone."""

    mediaType: _Text  # noqa: N815 - the name in the format
    artifactType: _Text = ""  # noqa: N815 - the name in the format
    layers: Annotated[tuple[Descriptor, ...], msgspec.Meta(max_length=10_010)]
    annotations: dict[str, _Text] = {}

    def files(self) -> dict[str, Descriptor]:
        """Return the blobs by the names of their files. Blobs without a name are left out.

        Raises:
            RegistryError: A name is there twice.
        """
        found: dict[str, Descriptor] = {}
        for layer in self.layers:
            name = layer.annotations.get(TITLE, "")
            if name in found:
                raise RegistryError(
                    f"the artefact has the file {printable(name[:200])!r} twice. Push it again."
                )
            if name:
                found[name] = layer
        return found


class OciRegistry:
    """One repository of a registry."""

    def __init__(self, reference: OciReference, connection: Connection) -> None:
        """Prepare to speak with a registry. A registry on this machine is spoken with by http, unless a CA is named.

        Args:
            reference: The name of the artefact.
            connection: The way to the registry.
        """
        self.reference = reference
        self._http = HttpClient(connection)
        host = urllib.parse.urlsplit(f"//{reference.host}").hostname or ""
        is_plain = connection.plain_http or (is_this_machine(host) and connection.ca_file is None)
        self._base = f"{'http' if is_plain else 'https'}://{reference.host}/v2/{reference.repository}"
        self._is_logged_in = False

    def artefact(self) -> tuple[Artefact, str] | None:
        """Return the artefact's manifest and its digest, or None where the registry has no such artefact.

        Raises:
            RegistryError: The registry does not answer, or its answer is no manifest or another one than was asked for.
        """
        self._log_in("pull")
        url = f"{self._base}/manifests/{self.reference.name}"
        content = self._http.read(url, _MOST_MANIFEST_BYTES, {"Accept": IMAGE_MANIFEST})
        if content is None:
            return None
        digest = digest_of(content)
        if self.reference.digest and digest != self.reference.digest:
            raise RegistryError(
                f"{self.reference} is another artefact: its digest is {digest}. Do not use it."
            )
        try:
            artefact = msgspec.json.decode(content, type=Artefact)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RegistryError(
                f"{self.reference} is no artefact of FlowEdge: {printable(str(error))}."
            ) from error
        if artefact.mediaType != IMAGE_MANIFEST:
            raise RegistryError(
                f"{self.reference} is no artefact of FlowEdge, but {printable(artefact.mediaType[:200])!r}."
            )
        return artefact, digest

    def read_blob(self, blob: Descriptor, most_bytes: int) -> bytes:
        """Return the content of a small blob, after a check of its digest.

        Raises:
            RegistryError: The registry does not answer, or the content is too long or another one.
        """
        if blob.size > most_bytes:
            name = blob.annotations.get(TITLE, blob.digest)
            raise RegistryError(f"{self.reference}: {printable(name)} has more than {most_bytes} bytes.")
        content = self._http.read(self._blob(blob.digest), most_bytes)
        if content is None or digest_of(content) != blob.digest:
            what = "is not there" if content is None else f"has the digest {digest_of(content)}"
            raise RegistryError(
                f"{self.reference}: the blob {blob.digest} {what}, so the artefact is damaged. Push it again."
            )
        return content

    def download(self, blob: Descriptor, to: BinaryIO) -> None:
        """Download a blob, and check its size and its digest on the way.

        Raises:
            RegistryError: The registry does not answer, or the content is another one.
        """
        self._http.download(self._blob(blob.digest), blob.size, blob.sha256, to)

    def push(
        self,
        files: Mapping[str, Path | bytes],
        media_types: Mapping[str, str],
        artifact_type: str,
        annotations: Mapping[str, str],
        *,
        overwrite: bool,
    ) -> str:
        """Push files as one artefact. The manifest is pushed last, so that a broken push leaves no artefact.

        Args:
            files: The content of each file by its name.
            media_types: The kind of each file by its name.
            artifact_type: The kind of the artefact.
            annotations: The facts about the artefact.
            overwrite: Give a tag that is there already to the new artefact.

        Returns:
            The digest of the artefact.

        Raises:
            RegistryError: The tag is there already, or the registry does not answer or refuses.
        """
        if self.reference.digest:
            raise RegistryError(f"{self.reference} names a digest, and a push makes one. Name a tag.")
        self._log_in("pull,push")
        layers = [
            {**_described(content), "mediaType": media_types[name], "annotations": {TITLE: name}}
            for name, content in files.items()
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "artifactType": artifact_type,
            "config": {"mediaType": _EMPTY_TYPE, **_described(_EMPTY)},
            "layers": layers,
            "annotations": dict(annotations),
        }
        content = json.dumps(manifest, indent=1).encode()
        if not overwrite and (known := self.artefact()) is not None:
            if known[1] == digest_of(content):
                return known[1]
            raise RegistryError(
                f"{self.reference} is there already, and holds something else. Name another tag, or give this one to "
                "the new version with --force."
            )
        for one in (_EMPTY, *files.values()):
            self._push_blob(one)
        url = f"{self._base}/manifests/{self.reference.tag}"
        self._send("PUT", url, content, {"Content-Type": IMAGE_MANIFEST})
        return digest_of(content)

    def _push_blob(self, content: Path | bytes) -> None:
        described = _described(content)
        digest, size = str(described["digest"]), int(str(described["size"]))
        if self._has(digest):
            return
        location = self._send("POST", f"{self._base}/blobs/uploads/", b"")
        target = urllib.parse.urljoin(f"{self._base}/blobs/uploads/", location)
        if origin_of(target) != origin_of(self._base):
            raise RegistryError(
                f"{self.reference} wants uploads at another server, {printable(origin_of(target))}."
            )
        target += f"{'&' if '?' in target else '?'}digest={urllib.parse.quote(digest)}"
        if isinstance(content, bytes):
            self._send("PUT", target, content)
            return
        with open_regular_file(content) as file:
            self._send("PUT", target, file, size=size)

    def _has(self, digest: str) -> bool:
        url = self._blob(digest)
        try:
            with self._http.open("HEAD", url) as answer:
                if answer.status != 404:
                    check_status(answer, url)
                return bool(answer.status != 404)
        except BROKEN as error:
            raise unreachable(url, error) from error

    def _send(
        self,
        method: str,
        url: str,
        body: BinaryIO | bytes,
        headers: Mapping[str, str] | None = None,
        *,
        size: int | None = None,
    ) -> str:
        """Send a body, and return the header ``Location`` of the answer."""
        try:
            with self._http.open(method, url, headers, body, size=size) as answer:
                check_status(answer, url)
                return str(answer.headers.get("Location", ""))
        except BROKEN as error:
            raise unreachable(url, error) from error

    def _blob(self, digest: str) -> str:
        return f"{self._base}/blobs/{digest}"

    def _log_in(self, actions: Sequence[str] | str) -> None:
        """Ask the registry whether it wants a password, and get a token where it wants one.

        Raises:
            RegistryError: The registry does not answer, no password is known, or it is not accepted.
        """
        if self._is_logged_in:
            return
        url = f"{origin_of(self._base)}/v2/"
        try:
            with self._http.open("GET", url) as answer:
                status, header = answer.status, str(answer.headers.get("WWW-Authenticate", ""))
                if status != 401:
                    check_status(answer, url)
        except BROKEN as error:
            raise unreachable(url, error) from error
        if status == 401:
            challenge = challenge_of(header)
            basic = basic_of(self.reference.host)
            if challenge.scheme == "bearer":
                self._http.authorization[origin_of(url)] = (
                    f"Bearer {self._token(challenge.parameters, basic, str(actions))}"
                )
            elif basic is None:
                raise RegistryError(
                    f"{self.reference.host} wants a user and a password, and none is known. Log in with docker login, "
                    "or set FLOWEDGE_REGISTRY_USER and FLOWEDGE_REGISTRY_PASSWORD."
                )
            else:
                self._http.authorization[origin_of(url)] = basic
        self._is_logged_in = True

    def _token(self, parameters: Mapping[str, str], basic: str | None, actions: str) -> str:
        """Get a token of the server that the registry names (distribution's "token authentication")."""
        asked = {"scope": f"repository:{self.reference.repository}:{actions}"}
        if "service" in parameters:
            asked["service"] = parameters["service"]
        realm = parameters.get("realm", "")
        url = f"{realm}{'&' if '?' in realm else '?'}{urllib.parse.urlencode(asked)}"
        headers = {} if basic is None else {"Authorization": basic}
        try:
            with self._http.open("GET", url, headers) as answer:
                check_status(answer, url)
                answered = read_limited(answer, _MOST_TOKEN_BYTES, url)
        except BROKEN as error:
            raise unreachable(url, error) from error
        try:
            content = json.loads(answered)
        except (ValueError, RecursionError) as error:
            raise RegistryError(f"{printable(realm)} gives no token: {error}.") from error
        token = content.get("token") or content.get("access_token") if isinstance(content, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryError(f"{printable(realm)} gives no token.")
        return token


def digest_of(content: bytes) -> str:
    """Return the digest of some bytes, as a registry names it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _described(content: Path | bytes) -> dict[str, object]:
    """Return the digest and the size of a blob."""
    if isinstance(content, bytes):
        return {"digest": digest_of(content), "size": len(content)}
    digest = hashlib.sha256()
    size = 0
    with open_regular_file(content) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return {"digest": f"sha256:{digest.hexdigest()}", "size": size}
