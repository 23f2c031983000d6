"""Check the signature of a bundle or a pack: who vouches for its manifest, and so for every file that it lists.

The file ``signature.toml`` beside the manifest is a signed text (`flowedge.signed_text`). The text holds the SHA-256 of
the manifest's bytes, the id of the key, and when the signature was made and ends. The manifest holds the SHA-256 of
every other file. In place of ``signature.toml`` a signature that minisign has made over the manifest is accepted.

A signature belongs to one version: whatever changes a bundle, such as a calibration or a new threshold, makes another
version, which has to be signed again.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from flowedge.bundle_files import MANIFEST, PACK_INDEX, SIGNATURE, open_inside
from flowedge.clock import utc_now
from flowedge.errors import BundleError, SignatureError
from flowedge.manifest_bounds import Moment, Reason, Sha256
from flowedge.signed_text import MOST_BYTES, split_signed_text
from flowedge.text import printable
from flowedge.toml_text import toml_table
from flowedge.trusted_keys import KeyName, TrustedKey, TrustedKeys, moment_from, read_keys

MEDIA_TYPE: Final = "application/vnd.flowedge.signature.v1+toml"
"""The kind of the signed text over a bundle."""
ENVIRONMENT: Final = "FLOWEDGE_REQUIRE_SIGNATURE"
"""The environment variable that names the trusted keys of every opening in a process and in its children."""

# Two lines of base64, each with a comment before it. The first holds algorithm, key id and signature: 74 bytes.
_MINISIGN: Final = re.compile(
    rb"untrusted comment:[^\n]*\n(R[UW][A-Za-z0-9+/]{97}=)\ntrusted comment: ([^\n]*)\n([A-Za-z0-9+/]{86}==)\n?"
)

Required: TypeAlias = "str | os.PathLike[str] | Literal[False] | None"
"""The trusted keys of an opening. None takes those that the environment names, and False needs no signature."""


class Statement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The text of ``signature.toml``.

    Attributes:
        schema: The number of the format, which is 1.
        kind: The kind of folder that is signed.
        sha256: The SHA-256 of the bytes of the manifest, or of ``pack.json``.
        key: The id of the key that signs.
        by: The name of the key when it was made.
        signed: The moment of signing, by the signer's clock.
        expires: The moment from which on the signature is not accepted. The value None means never.
        comment: A sentence of the signer.
    """

    schema: Literal[1]
    kind: Literal["bundle", "pack"]
    sha256: Sha256
    key: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
    by: KeyName
    signed: Moment
    expires: Moment | None = None
    comment: Reason = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A signature that was checked and accepted.

    Attributes:
        key: The name of the key in the file of trusted keys.
        key_id: The id of the key.
        signed: The moment of signing. The text is empty where minisign has signed.
        expires: The moment from which on the signature is not accepted. The value None means never.
        comment: A sentence of the signer.
        ends: The earlier one of ``expires`` and the expiry of the key. The value None means never.
    """

    key: str
    key_id: str
    signed: str
    expires: str | None
    comment: str
    ends: datetime.datetime | None = None


def required_keys(require_signature: Required) -> Path | None:
    """Return the place of the trusted keys of an opening. The value is None where no signature is needed."""
    if require_signature is None:
        require_signature = os.environ.get(ENVIRONMENT) or False
    return None if require_signature is False else Path(require_signature)


def check_signature(folder: Path, content: bytes, require_signature: Required) -> Signature | None:
    """Check that a trusted key has signed a bundle or a pack, where this is required.

    Args:
        folder: The folder, for the file of the signature and for messages.
        content: The bytes of the manifest or of ``pack.json``, as they are used.
        require_signature: The trusted keys, see `Required`.

    Returns:
        The signature. The value is None where none is required.

    Raises:
        SignatureError: There is no signature, it does not fit the manifest, its key is not trusted, or the signature or
            the key has expired.
    """
    place = required_keys(require_signature)
    if place is None:
        return None
    keys = read_keys(place)
    mark = PACK_INDEX if os.path.lexists(folder / PACK_INDEX) else MANIFEST
    minisign = f"{mark}.minisig"
    if os.path.lexists(folder / SIGNATURE):
        return check_statement(folder, mark, content, _content(folder, SIGNATURE), keys)
    if os.path.lexists(folder / minisign):
        return _check_minisign(folder / minisign, mark, content, _content(folder, minisign), keys)
    raise SignatureError(
        f"{folder} is not signed, and only what a key of {keys.place} has signed is opened here. A calibration or a "
        "change of a threshold makes a new version, which has to be signed again. Whoever vouches for it runs flowedge "
        "sign BUNDLE --key FILE, and pushes it again where it comes from a registry."
    )


def check_statement(
    folder: Path, mark: str, content: bytes, signature: bytes, keys: TrustedKeys
) -> Signature:
    """Check the content of ``signature.toml`` against the manifest and the trusted keys.

    Args:
        folder: The folder, for messages.
        mark: The name of the manifest's file.
        content: The bytes of the manifest.
        signature: The content of ``signature.toml``.
        keys: The trusted keys.

    Raises:
        SignatureError: The signature is not accepted.
    """
    file = folder / SIGNATURE
    try:
        text = split_signed_text(signature)
        statement = read_statement(text.body)
    except ValueError as error:
        raise SignatureError(f"{file} {printable(str(error))}. Copy or sign the bundle again.") from error
    key = keys.signer(
        text,
        MEDIA_TYPE,
        key=statement.key,
        by=statement.by,
        what=str(folder),
        file=str(file),
        advice=(
            "Have it signed with one of these, or add the key if you trust its owner.",
            f"Do not use {folder}, and copy it again from its source.",
        ),
    )
    kind = "pack" if mark == PACK_INDEX else "bundle"
    if (sha256 := hashlib.sha256(content).hexdigest()) != statement.sha256 or statement.kind != kind:
        raise SignatureError(
            f"{folder / mark} was changed after {key.name} had signed it on {statement.signed}: its SHA-256 is "
            f"{sha256}, and the signature is for {statement.sha256}. A calibration or a change of a threshold does "
            f"this as well. Find out who changed it, and then sign it again with: flowedge sign BUNDLE --key FILE"
        )
    _check_usable(folder, key)
    now = utc_now()
    ends = None if statement.expires is None else moment_from(statement.expires)
    if ends is not None and now >= ends:
        raise SignatureError(
            f"the signature of {folder} by {key.name} expired on {statement.expires}, and now it is {now.isoformat()}. "
            "Have the bundle signed again, or set the clock."
        )
    return Signature(
        key=key.name,
        key_id=key.id,
        signed=statement.signed,
        expires=statement.expires,
        comment=statement.comment,
        ends=min((one for one in (ends, key.expires) if one is not None), default=None),
    )


def signature_words(folder: Path, accepted: Signature | None) -> str:
    """Return in words who has signed a bundle or a pack.

    Args:
        folder: The folder.
        accepted: The signature that the opening has accepted. Without one, the words of the file are repeated as
            they are, and nobody has checked them.
    """
    if accepted is not None:
        when = f" on {accepted.signed}" if accepted.signed else ""
        until = "" if accepted.expires is None else f", until {accepted.expires}"
        comment = f": {accepted.comment}" if accepted.comment else ""
        return printable(f"by {accepted.key} ({accepted.key_id}){when}{until}{comment}")
    mark = PACK_INDEX if os.path.lexists(folder / PACK_INDEX) else MANIFEST
    if not os.path.lexists(folder / SIGNATURE):
        return "by minisign, not checked" if os.path.lexists(folder / f"{mark}.minisig") else "none"
    try:
        statement = read_statement(split_signed_text(_content(folder, SIGNATURE)).body)
    except (ValueError, BundleError) as error:
        return printable(f"it cannot be read: it {error}")
    return printable(f"by {statement.by} ({statement.key}) on {statement.signed}, not checked")


def read_statement(body: bytes) -> Statement:
    """Read the text of a signature, which nobody has checked yet.

    Raises:
        ValueError: The text is no TOML or holds other fields or values. The message completes "the file ".
    """
    try:
        # Dates of TOML become text, as those that are written in quotation marks are.
        table: Any = msgspec.to_builtins(toml_table(body.decode()))
        statement = msgspec.convert(table, Statement)
        if statement.expires is not None:
            moment_from(statement.expires)
    except (ValueError, RecursionError) as error:  # of UTF-8, of TOML and of msgspec
        raise ValueError(f"holds no signature that this FlowEdge reads: {error}") from error
    return statement


def _check_minisign(file: Path, mark: str, content: bytes, signature: bytes, keys: TrustedKeys) -> Signature:
    """Check a signature that minisign has made over the manifest (https://jedisct1.github.io/minisign/)."""
    found = _MINISIGN.fullmatch(signature)
    if found is None:
        raise SignatureError(f"{file} is no signature of minisign. Copy or sign the bundle again.")
    raw, whole, comment = base64.b64decode(found[1]), base64.b64decode(found[3]), found[2]
    key = next((key for key in keys.keys if key.minisign_id == raw[2:10]), None)
    if key is None:
        number = int.from_bytes(raw[2:10], "little")
        raise SignatureError(
            f"{file} was made with the minisign key {number:016X}, which {keys.place} does not list. Trusted are "
            f"{keys.words()}. Have it signed with one of these, or add the key if you trust its owner."
        )
    # ED signs the hash of the file, and Ed, of older versions, the file itself.
    signed = hashlib.blake2b(content).digest() if raw[:2] == b"ED" else content
    if not (key.check(raw[10:], signed) and key.check(whole, raw[10:] + comment)):
        raise SignatureError(
            f"{file.parent / mark} is not what the key {key.name} has signed: the manifest or {file.name} was changed. "
            "A calibration or a change of a threshold does this as well. Find out who changed it, and sign it again."
        )
    _check_usable(file.parent, key)
    return Signature(
        key=key.name,
        key_id=key.id,
        signed="",
        expires=None,
        comment=comment.decode("utf-8", "replace"),
        ends=key.expires,
    )


def _check_usable(folder: Path, key: TrustedKey) -> None:
    if problem := key.problem("bundles", utc_now()):
        raise SignatureError(
            f"{folder} was signed with a key that is not accepted: {problem}. Have the bundle signed with another key."
        )


def _content(folder: Path, name: str) -> bytes:
    with open_inside(folder, name) as file:
        try:
            return file.read(MOST_BYTES + 1)
        except OSError as error:
            raise SignatureError(
                f"{folder / name} cannot be read: {error.strerror}. Check the disk."
            ) from error
