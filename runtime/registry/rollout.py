"""Define the rollout file: a small signed text that names the version of a bundle for each station, and its beginning.

The file follows the ideas of The Update Framework (https://theupdateframework.io) in one file: a version that only
grows stops a return to an older file, an expiry stops an attacker who withholds newer files, and each version of a
bundle is named by the SHA-256 of its manifest.
"""

from __future__ import annotations

import datetime
import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from flowedge.clock import utc_now
from flowedge.errors import RegistryError, SignatureError
from flowedge.files import write_whole_file
from flowedge.manifest_bounds import Moment, Reason, Sha256
from flowedge.runtime.registry.http_client import Connection, HttpClient
from flowedge.runtime.registry.oci_client import OciRegistry
from flowedge.runtime.registry.references import OCI, oci_reference
from flowedge.runtime.registry.signing import SigningKey, toml_lines
from flowedge.runtime.registry.stores import FolderStore
from flowedge.signed_text import MOST_BYTES, split_signed_text
from flowedge.text import printable
from flowedge.toml_text import toml_table
from flowedge.trusted_keys import KeyName, TrustedKeys, moment_from

MEDIA_TYPE: Final = "application/vnd.flowedge.rollout.v1+toml"
FILE: Final = "rollout.toml"
DEFAULT_DAYS: Final = 14
_KEPT_OF_A_TARGET: Final = 2

_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table ``[[stages]]``: a version of a bundle, and where it is to run.

    Attributes:
        bundle: The reference of the bundle or the pack, as ``flowedge pull`` takes it.
        sha256: The SHA-256 of its manifest, or of ``pack.json``.
        product: The product of the stations that it is for. The text is empty for a station of one product.
        stations: Patterns of the names of stations, such as ``line-3-*``. Without stations and rings it is for all.
        rings: The rings that it is for, such as ``canary``.
        since: The moment from which on it runs.
        by: The person who decided it.
        why: The reason.
    """

    bundle: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    sha256: Sha256
    product: Annotated[str, msgspec.Meta(max_length=64)] = ""
    stations: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=100)] = ()
    rings: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=100)] = ()
    since: Moment
    by: Reason
    why: Reason

    @property
    def target(self) -> tuple[object, ...]:
        """The product, the stations and the rings."""
        return (self.product, self.stations, self.rings)

    def fits(self, station: str, rings: Sequence[str], product: str) -> bool:
        """Return True where the stage is for a product of a station."""
        if self.product != product:
            return False
        if not self.stations and not self.rings:
            return True
        named = any(fnmatch.fnmatchcase(station, pattern) for pattern in self.stations)
        return named or any(ring in self.rings for ring in rings)


class Rollout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a rollout file.

    Attributes:
        schema: The number of the format, which is 1.
        name: The name of the rollout. A station that has taken one takes no file of another name.
        version: The number of the file, which grows with every change.
        issued: The moment of signing.
        expires: The moment from which on no station changes its bundle by this file.
        key: The id of the key that signs.
        by: The name of the key when it was made.
        stages: The stages. The last one that fits a station and has begun is in force there.
    """

    schema: Literal[1]
    name: KeyName
    version: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    issued: Moment
    expires: Moment
    key: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
    by: KeyName
    stages: Annotated[tuple[Stage, ...], msgspec.Meta(max_length=500)] = ()

    def stage_for(
        self, station: str, rings: Sequence[str], product: str, now: datetime.datetime
    ) -> Stage | None:
        """Return the stage that is in force for a product of a station, or None."""
        fitting = [stage for stage in self.stages if stage.fits(station, rings, product)]
        return next((stage for stage in reversed(fitting) if moment_from(stage.since) <= now), None)

    def first_moment(self, station: str, rings: Sequence[str], product: str) -> str | None:
        """Return the moment at which the first stage for a product of a station begins, or None where none fits."""
        fitting = [stage.since for stage in self.stages if stage.fits(station, rings, product)]
        return min(fitting, key=moment_from, default=None)

    def is_expired(self, now: datetime.datetime) -> bool:
        """Return True where the file is too old to change a bundle by it."""
        return now >= moment_from(self.expires)


def read_rollout(content: bytes, keys: TrustedKeys, name: str) -> Rollout:
    """Check the signature of a rollout file and read it. An expired file is read as well.

    Args:
        content: The content of the file.
        keys: The trusted keys.
        name: The name of the file for messages.

    Raises:
        SignatureError: The file is no rollout file, or no trusted key has signed it.
    """
    where = printable(name)
    try:
        text = split_signed_text(content)
        rollout = _rollout_from(text.body)
    except ValueError as error:
        raise SignatureError(f"{where} {printable(str(error))}. Name a file of flowedge rollout.") from error
    key = keys.signer(
        text,
        MEDIA_TYPE,
        key=rollout.key,
        by=rollout.by,
        what=where,
        file=where,
        advice=("", "Change it with flowedge rollout set, which signs it."),
    )
    if problem := key.problem("rollouts", utc_now()):
        raise SignatureError(f"{where} was signed with a key that is not accepted: {problem}.")
    return rollout


def unchecked_rollout(content: bytes, name: str) -> Rollout:
    """Read a rollout file without a look at its signature, to show it.

    Raises:
        SignatureError: The file is no rollout file.
    """
    try:
        return _rollout_from(split_signed_text(content).body)
    except ValueError as error:
        raise SignatureError(
            f"{printable(name)} {printable(str(error))}. Name a file of flowedge rollout."
        ) from error


def next_rollout(
    before: Rollout | None,
    key: SigningKey,
    *,
    stage: Stage | None,
    name: str = "",
    days: float = DEFAULT_DAYS,
) -> tuple[Rollout, bytes]:
    """Make the next version of a rollout file.

    Args:
        before: The version before. The value is None for the first one.
        key: The key that signs.
        stage: The stage to add. With None, only the expiry is renewed.
        name: The name of the first version.
        days: The days until the file expires.

    Returns:
        The rollout, and the content of its file.

    Raises:
        SignatureError: The file would be too long.
    """
    now = utc_now()
    stages = () if before is None else before.stages
    if stage is not None:
        same = [one for one in stages if one.target == stage.target]
        # The one before stays as well, since the new one may begin later.
        dropped = same[: len(same) + 1 - _KEPT_OF_A_TARGET]
        stages = (*(one for one in stages if not any(one is other for other in dropped)), stage)
    rollout = Rollout(
        schema=1,
        name=name or "rollout" if before is None else before.name,
        version=1 if before is None else before.version + 1,
        issued=now.isoformat(),
        expires=(now + datetime.timedelta(days=days)).isoformat(timespec="seconds"),
        key=key.id,
        by=key.name,
        stages=stages,
    )
    body = toml_lines(msgspec.structs.replace(rollout, stages=()))
    for one in stages:
        body += b"\n[[stages]]\n" + toml_lines(one)
    return rollout, key.sign_text(MEDIA_TYPE, body)


def beginning(text: str | None) -> datetime.datetime:
    """Return the moment from which on a stage runs: now, the moment of a text, or the first one of a date in UTC.

    Raises:
        RegistryError: The text is neither a date nor a moment.
    """
    if text is None:
        return utc_now()
    try:
        return moment_from(f"{text}T00:00:00Z" if len(text) <= len("2026-11-30") else text)
    except ValueError as error:
        raise RegistryError(f"--since: {error}.") from error


def fetch_rollout(reference: str, connection: Connection = Connection()) -> bytes | None:  # noqa: B008 - frozen
    """Return the content of a rollout file, or None where there is none.

    Args:
        reference: A file, ``oci://…``, ``https://…`` or an address of fsspec.
        connection: The way to a server.

    Raises:
        RegistryError: The place cannot be read.
    """
    if reference.startswith(OCI):
        registry = OciRegistry(oci_reference(reference), connection)
        found = registry.artefact()
        if found is None:
            return None
        blob = found[0].files().get(FILE)
        if blob is None:
            raise RegistryError(f"{reference} is no rollout: it has no file {FILE}.")
        return registry.read_blob(blob, MOST_BYTES)
    if reference.startswith(("https://", "http://")):
        return HttpClient(connection).read(reference, MOST_BYTES)
    folder, file = _split(reference)
    return FolderStore(folder).read(file, MOST_BYTES)


def store_rollout(
    reference: str,
    content: bytes,
    connection: Connection = Connection(),  # noqa: B008 - frozen
) -> None:
    """Write a rollout file, so that whoever reads finds the old version or the new one.

    Raises:
        RegistryError: The place cannot be written.
    """
    if reference.startswith(OCI):
        registry = OciRegistry(oci_reference(reference), connection)
        registry.push({FILE: content}, {FILE: MEDIA_TYPE}, MEDIA_TYPE, {}, overwrite=True)
    elif reference.startswith(("https://", "http://")):
        raise RegistryError(
            f"{printable(reference)} can only be read. Write the file where the server takes it from."
        )
    elif "://" in reference:
        folder, file = _split(reference)
        FolderStore(folder).write(file, content)
    else:
        try:
            write_whole_file(Path(reference), content)
        except OSError as error:
            raise RegistryError(f"{reference} cannot be written: {error.strerror}.") from error


def _split(reference: str) -> tuple[str, str]:
    folder, slash, file = reference.rpartition("/")
    if not file:
        raise RegistryError(f"{printable(reference)} is a folder. Name the rollout file.")
    return folder or (slash or os.curdir), file


def _rollout_from(body: bytes) -> Rollout:
    """Read the text of a rollout file.

    Raises:
        ValueError: The text is none. The message completes "the file ".
    """
    try:
        # Dates of TOML become text, as those that are written in quotation marks are.
        table: Any = msgspec.to_builtins(toml_table(body.decode()))
        rollout = msgspec.convert(table, Rollout)
        for moment in (rollout.expires, *(stage.since for stage in rollout.stages)):
            moment_from(moment)
    except (ValueError, RecursionError) as error:  # of UTF-8, of TOML and of msgspec
        raise ValueError(f"is no rollout that this FlowEdge reads: {error}") from error
    return rollout
