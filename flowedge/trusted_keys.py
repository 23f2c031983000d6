"""Read the public keys that a machine trusts, and check signatures with them.

The keys are in a file, or in a folder of files that end with ``.pub`` or ``.toml``. A file is TOML with a table
``[[keys]]`` for each key, a PEM file of an Ed25519 key as OpenSSL writes it, or the public key of minisign.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from flowedge.errors import SignatureError
from flowedge.files import read_at_most
from flowedge.manifest_bounds import Reason
from flowedge.packages import explain_missing
from flowedge.signed_text import SignedText, signed_bytes
from flowedge.text import printable
from flowedge.toml_text import toml_table

Subject: TypeAlias = Literal["bundles", "rollouts"]
KeyName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}\Z")]

_MOST_BYTES: Final = 1 << 18
_MOST_FILES: Final = 1000
_ENDINGS: Final = (".pub", ".toml")
_MINISIGN_COMMENT: Final = b"untrusted comment:"


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table ``[[keys]]`` of a file."""

    name: KeyName
    public: Annotated[str, msgspec.Meta(max_length=100)]
    expires: str | None = None
    revoked: Reason = ""
    signs: Annotated[tuple[Subject, ...], msgspec.Meta(min_length=1, max_length=2)] = ("bundles", "rollouts")


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a file of keys."""

    keys: Annotated[tuple[_Entry, ...], msgspec.Meta(min_length=1, max_length=1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A public key, with what it may sign and for how long.

    Attributes:
        name: The name by which people know the key.
        public: The 32 bytes of the Ed25519 key.
        expires: The moment from which on nothing that the key has signed is accepted. The value None means never.
        revoked: The reason why the key is not trusted any more. The text is empty for a key that is.
        signs: The subjects of the signatures that are accepted.
        minisign_id: The 8 bytes by which minisign names the key. The value is empty for a key that minisign did not
            make.
    """

    name: str
    public: bytes
    expires: datetime.datetime | None = None
    revoked: str = ""
    signs: tuple[Subject, ...] = ("bundles", "rollouts")
    minisign_id: bytes = b""

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the key, by which a signature names it."""
        return key_id(self.public)

    def problem(self, subject: Subject, now: datetime.datetime) -> str:
        """Return why the key accepts no signature at a moment, or an empty text. The text completes "the key "."""
        if self.revoked:
            return f"{self.name} ({self.id}) was revoked: {printable(self.revoked)}"
        if self.expires is not None and now >= self.expires:
            return f"{self.name} ({self.id}) expired on {self.expires.isoformat()}"
        if subject not in self.signs:
            return (
                f"{self.name} ({self.id}) may sign {' and '.join(self.signs) or 'nothing'}, and no {subject}"
            )
        return ""

    def check(self, signature: bytes, content: bytes) -> bool:
        """Return True where a signature over some bytes was made with this key."""
        with explain_missing("sign"):
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, content)
        except (InvalidSignature, ValueError):  # the second is the error of bytes that are no key
            return False
        return True


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """The keys of one file or folder.

    Attributes:
        place: The file or the folder.
        keys: The keys in the order of the files, each of which has another `TrustedKey.id`.
    """

    place: Path
    keys: tuple[TrustedKey, ...]

    def find(self, wanted: str) -> TrustedKey | None:
        """Return the key with an id, or None."""
        return next((key for key in self.keys if key.id == wanted), None)

    def signer(
        self, text: SignedText, kind: str, *, key: str, by: str, what: str, file: str, advice: tuple[str, str]
    ) -> TrustedKey:
        """Return the key that has signed a text, after a check of the signature. The key may have expired since.

        Args:
            text: The text with its signature.
            kind: The kind of the text, a media type.
            key: The id of the key that the text names.
            by: The name of the key that the text gives.
            what: The thing that the text is about, for messages.
            file: The name of the text's file, for messages.
            advice: The next step where no key is known, which may be empty, and where the signature is wrong.

        Raises:
            SignatureError: No key has this id, or the signature was not made with it over this text.
        """
        unknown, forged = advice
        found = self.find(key)
        if found is None:
            message = (
                f"{what} was signed with the key {by} ({key}), which {self.place} does not list. Trusted are "
            )
            raise SignatureError(f"{message}{self.words()}. {unknown}".rstrip())
        if not found.check(text.signature, signed_bytes(kind, text.body)):
            raise SignatureError(
                f"{file} is not what the key {found.name} has signed: it was changed or forged. {forged}"
            )
        return found

    def words(self) -> str:
        """Return the names and the ids of all keys, for a message."""
        return ", ".join(f"{key.name} ({key.id})" for key in self.keys)


def key_id(public: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a public key."""
    return hashlib.sha256(public).hexdigest()[:16]


def read_keys(place: str | os.PathLike[str]) -> TrustedKeys:
    """Read the keys of a file, or of all files in a folder that end with ``.pub`` or ``.toml``.

    A key that is there twice is revoked where one of its entries is, and ends at the earlier expiry.

    Raises:
        SignatureError: Nothing is there, a file cannot be read, or a file holds no public key.
    """
    path = Path(place)
    if path.is_dir():
        try:
            files = sorted(one for one in path.iterdir() if one.suffix in _ENDINGS and not one.is_dir())
        except OSError as error:
            raise SignatureError(
                f"{path} cannot be listed: {error.strerror}. Check its permissions."
            ) from error
        if not files or len(files) > _MOST_FILES:
            raise SignatureError(
                f"{path} has {len(files)} files that end with .pub or .toml, and a folder of trusted keys has 1 to "
                f"{_MOST_FILES}. Make a key with: flowedge keys new NAME"
            )
    else:
        files = [path]
    merged: dict[bytes, TrustedKey] = {}
    for file in files:
        for key in _keys_of(file):
            merged[key.public] = _merged(merged[key.public], key) if key.public in merged else key
    return TrustedKeys(path, tuple(merged.values()))


def moment_from(text: str) -> datetime.datetime:
    """Read a moment in ISO 8601, or a date, which means its end in UTC.

    Raises:
        ValueError: The text is neither.
    """
    try:
        if len(text) <= len("2026-11-30"):
            day = datetime.datetime.combine(
                datetime.date.fromisoformat(text), datetime.time(), datetime.timezone.utc
            )
            return day + datetime.timedelta(days=1)
        moment = datetime.datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith(("Z", "z")) else text)
        return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"expected a date such as 2027-11-30 or a moment such as 2027-11-30T12:00:00Z, got {text!r}"
        ) from error


def _merged(one: TrustedKey, other: TrustedKey) -> TrustedKey:
    """Return a key that two entries name, with the stricter of both."""
    ends = [key.expires for key in (one, other) if key.expires is not None]
    return TrustedKey(
        name=one.name,
        public=one.public,
        expires=min(ends, default=None),
        revoked=one.revoked or other.revoked,
        signs=tuple(subject for subject in one.signs if subject in other.signs),
        minisign_id=one.minisign_id or other.minisign_id,
    )


def _keys_of(file: Path) -> tuple[TrustedKey, ...]:
    """Read the keys of one file of any form."""
    content = read_at_most(
        file,
        _MOST_BYTES,
        kind="a file of keys",
        advice="Name a file or a folder of trusted public keys.",
        error=SignatureError,
    )
    if b"PRIVATE KEY-----" in content:
        raise SignatureError(
            f"{file} holds a private key, which belongs to the signer alone. Name the public key in its place."
        )
    try:
        if content.lstrip().startswith(b"-----BEGIN"):
            return (TrustedKey(name=file.stem, public=_pem_key(content)),)
        if content.startswith(_MINISIGN_COMMENT):
            return (_key_from(file.stem, content.decode().splitlines()[1]),)
        return _table_keys(content)
    except UnicodeDecodeError as error:
        raise SignatureError(
            f"{file} holds no public keys: it is not UTF-8 at byte {error.start}."
        ) from error
    except (ValueError, IndexError, RecursionError) as error:
        raise SignatureError(f"{file} holds no public keys: {printable(str(error))}.") from error


def _table_keys(content: bytes) -> tuple[TrustedKey, ...]:
    """Read the tables ``[[keys]]``.

    Raises:
        ValueError: The content is no TOML of keys.
    """
    # Dates and moments of TOML become text, as those that are written in quotation marks are.
    table: Any = msgspec.to_builtins(toml_table(content.decode()))
    entries = msgspec.convert(table, _File).keys  # msgspec's error is a ValueError
    keys = []
    for entry in entries:
        key = _key_from(entry.name, entry.public)
        expires = None if entry.expires is None else moment_from(entry.expires)
        keys.append(
            TrustedKey(
                name=entry.name,
                public=key.public,
                expires=expires,
                revoked=entry.revoked,
                signs=entry.signs,
                minisign_id=key.minisign_id,
            )
        )
    return tuple(keys)


def _key_from(name: str, text: str) -> TrustedKey:
    """Read the base64 of a key: its 32 bytes, or minisign's form, which has the algorithm and an id before them."""
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the public key of {name} is no base64") from error
    if len(raw) == 42 and raw[:2] == b"Ed":
        return TrustedKey(name=name, public=raw[10:], minisign_id=raw[2:10])
    if len(raw) != 32:
        raise ValueError(f"the public key of {name} has {len(raw)} bytes, and an Ed25519 key has 32")
    return TrustedKey(name=name, public=raw)


def _pem_key(content: bytes) -> bytes:
    """Return the 32 bytes of a key that OpenSSL has written."""
    with explain_missing("sign"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    try:
        key = load_pem_public_key(content)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(  # noqa: TRY004 - the type of a key is the content of the file
            "it is a key of another kind than Ed25519 (openssl genpkey -algorithm ed25519)"
        )
    return key.public_bytes_raw()
