"""Make keys, and sign bundles, packs and other texts with them."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import msgspec

from flowedge.bundle import open_bundle
from flowedge.bundle_files import MANIFEST, PACK_INDEX, SIGNATURE, description_bytes, pack_around
from flowedge.clock import utc_now
from flowedge.errors import BundleChangedError, SignatureError
from flowedge.files import open_regular_file, write_whole_file
from flowedge.manifest import StoredFile
from flowedge.onnx_constants import external_files
from flowedge.pack import open_pack
from flowedge.packages import explain_missing
from flowedge.signature import MEDIA_TYPE, Statement
from flowedge.signed_text import MOST_BYTES, join_signed_text, signed_bytes
from flowedge.text import printable
from flowedge.trusted_keys import key_id, moment_from

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PASSWORD: Final = "FLOWEDGE_KEY_PASSWORD"
"""The environment variable with the password of private keys. A key without one is not encrypted."""
_MOST_KEY_BYTES: Final = 1 << 14
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and its name.

    Attributes:
        name: The name of the file without its ending, which a signature holds for people to read.
        private: The key.
    """

    name: str
    private: Ed25519PrivateKey

    @property
    def id(self) -> str:
        """The id of the public key."""
        return key_id(self.private.public_key().public_bytes_raw())

    def sign_text(self, kind: str, body: bytes) -> bytes:
        """Return the content of a file of signed text.

        Args:
            kind: The kind of the text, a media type.
            body: The text in UTF-8, which ends with a line break.

        Raises:
            SignatureError: The text is too long.
        """
        content = join_signed_text(body, self.private.sign(signed_bytes(kind, body)))
        if len(content) > MOST_BYTES:
            raise SignatureError(
                f"a signed text has {MOST_BYTES} bytes at most, and this one has {len(content)}."
            )
        return content


def new_key(folder: Path, name: str, *, expires: str | None = None) -> tuple[Path, Path]:
    """Make a key pair: ``NAME.key`` for the signer alone, and ``NAME.pub`` for every machine that is to trust it.

    Args:
        folder: The folder of both files, which must exist.
        name: The name of the key: letters, digits, dots, dashes, underscores and @.
        expires: The date or the moment in ISO 8601 from which on nothing that the key has signed is accepted.

    Returns:
        The files of the private and of the public key. The private one is encrypted where the environment variable
        ``FLOWEDGE_KEY_PASSWORD`` is set.

    Raises:
        SignatureError: The name or the date is none, a file is there already, or a file cannot be written.
    """
    with explain_missing("sign"):
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    if _NAME.fullmatch(name) is None:
        raise SignatureError(
            f"{name!r} is no name of a key. A name has 1 to 100 letters, digits, dots, dashes, underscores and @."
        )
    until = None if expires is None else _moment(expires)
    private = Ed25519PrivateKey.generate()
    password = os.environ.get(PASSWORD, "").encode()
    content = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
    )
    files = folder / f"{name}.key", folder / f"{name}.pub"
    if files[1].exists():
        raise SignatureError(f"{files[1]} exists already. Choose another name.")
    try:
        with os.fdopen(os.open(files[0], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        write_whole_file(files[1], public_text(name, private.public_key().public_bytes_raw(), until).encode())
    except FileExistsError as error:
        raise SignatureError(
            f"{files[0]} exists already, and no key is overwritten. Choose another name."
        ) from error
    except OSError as error:
        raise SignatureError(f"{folder} cannot be written: {error.strerror}. Name another folder.") from error
    return files


def public_text(name: str, public: bytes, expires: datetime.datetime | None = None) -> str:
    """Return the content of a file with one public key, which is a file of trusted keys by itself."""
    end = "" if expires is None else f'expires = "{expires.isoformat()}"\n'
    return (
        f"# The public key {name} ({key_id(public)}), for --require-signature. A key that must not be trusted any more "
        'gets a line such as:\n# revoked = "the laptop was stolen"\n'
        f'[[keys]]\nname = "{name}"\npublic = "{base64.b64encode(public).decode()}"\n{end}'
    )


def read_signing_key(file: str | os.PathLike[str]) -> SigningKey:
    """Read a private key: PEM as ``flowedge keys new`` and ``openssl genpkey -algorithm ed25519`` write it.

    The password of an encrypted key is the value of the environment variable ``FLOWEDGE_KEY_PASSWORD``.

    Raises:
        SignatureError: The file cannot be read, holds no Ed25519 key, or the password is wrong.
    """
    with explain_missing("sign"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    path = Path(file)
    try:
        with open_regular_file(path) as opened:
            content = opened.read(_MOST_KEY_BYTES)
    except OSError as error:
        raise SignatureError(f"{path} cannot be read: {error.strerror}. Name the private key.") from error
    password = os.environ.get(PASSWORD, "").encode() or None
    if b"PUBLIC KEY" in content or b"[[keys]]" in content:
        raise SignatureError(f"{path} is a public key, and signing takes the private one.")
    is_encrypted = b"ENCRYPTED" in content
    try:
        key = load_pem_private_key(content, password if is_encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        advice = (
            f"Set the environment variable {PASSWORD} to its password."
            if is_encrypted
            else "Make a key with: flowedge keys new NAME"
        )
        raise SignatureError(f"{path} cannot be used as a private key: {error}. {advice}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(
            f"{path} is a key of another kind than Ed25519. Make one with: flowedge keys new NAME"
        )
    stem = path.stem if _NAME.fullmatch(path.stem) else "key"
    return SigningKey(stem, key)


def sign_folder(
    folder: str | os.PathLike[str], key: SigningKey, *, expires: str | None = None, comment: str = ""
) -> Statement:
    """Sign a bundle or a pack. All of its files are verified first. An older signature is replaced.

    Args:
        folder: The bundle or the pack.
        key: The private key.
        expires: The date or the moment in ISO 8601 from which on the signature is not accepted. A date means its end in
            UTC.
        comment: A sentence that is signed as well.

    Raises:
        BundleError: The folder cannot be trusted as it is, is a product of a pack, or cannot be written. A graph takes
            weights from a file that is not listed.
        SignatureError: The date is none, or the comment is too long.
    """
    path = Path(folder)
    around = pack_around(path)
    if around is not None and around[1]:
        raise SignatureError(f"{path} is a product of the pack {around[0]}. Sign the pack as a whole.")
    mark = MANIFEST if around is None else PACK_INDEX
    content = description_bytes(path, mark) if os.path.lexists(path / mark) else b""
    if around is None:
        manifest = open_bundle(path, require_signature=False).manifest
        _check_graphs(path, manifest.files, [graph.file for graph in manifest.graphs])
    else:
        _check_graphs(path, open_pack(path, require_signature=False).index.files)
    if description_bytes(path, mark) != content:
        raise BundleChangedError(
            f"{path} was changed while it was verified, so it is not signed. Sign it again."
        )
    if len(comment) > 1000:
        raise SignatureError(f"a comment has 1000 characters at most, and this one has {len(comment)}.")
    statement = Statement(
        schema=1,
        kind="bundle" if around is None else "pack",
        sha256=hashlib.sha256(content).hexdigest(),
        key=key.id,
        by=key.name,
        signed=utc_now().isoformat(),
        expires=None if expires is None else _moment(expires).isoformat(),
        comment=comment,
    )
    signed = key.sign_text(MEDIA_TYPE, toml_lines(statement))
    try:
        write_whole_file(path / SIGNATURE, signed)
    except OSError as error:
        raise SignatureError(f"{path / SIGNATURE} cannot be written: {error.strerror}.") from error
    return statement


def _check_graphs(folder: Path, files: Sequence[StoredFile], graphs: Sequence[str] = ()) -> None:
    """Refuse a graph whose weights are in a file that is not listed, since no signature would cover that file."""
    listed = {stored.path for stored in files}
    for path in sorted({one for one in listed if one.endswith(".onnx")}.union(graphs)):
        for location in sorted(external_files(folder / path)):
            if (PurePosixPath(path).parent / location).as_posix() not in listed:
                raise SignatureError(
                    f"{folder / path} takes weights from {printable(location[:200])!r}, which the manifest does not "
                    "list, so no signature would cover them. Export the bundle again."
                )


def toml_lines(record: msgspec.Struct) -> bytes:
    """Return a flat record as lines of TOML in UTF-8. Fields without a value are left out."""
    fields = msgspec.to_builtins(record)
    # A string of JSON in ASCII is one of TOML, but for surrogate pairs, so other characters stay as they are.
    lines = [
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n"
        for name, value in fields.items()
        if value not in (None, "", (), [])
    ]
    return "".join(lines).replace("\x7f", "\\u007f").encode()


def _moment(text: str) -> datetime.datetime:
    """Read the end of a key or of a signature.

    Raises:
        SignatureError: The text is no date, or the date is past.
    """
    try:
        moment = moment_from(text)
    except ValueError as error:
        raise SignatureError(f"--expires: {error}.") from error
    if moment <= utc_now():
        raise SignatureError(f"--expires {text} is past: now it is {utc_now().isoformat()}.")
    return moment
