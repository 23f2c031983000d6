"""Check the keys that clients send."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Final

from flowedge.errors import SettingsError
from flowedge.runtime.serving.settings import ServerSettings
from flowedge.runtime.settings import secrets_of

_LEAST: Final = 16


class Keys:
    """The keys of one server, of which only digests are kept.

    A client sends its key as ``Authorization: Bearer KEY`` or as ``X-API-Key: KEY``.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        """Take the keys. Without keys everybody is allowed."""
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        """Return True where a key is needed."""
        return bool(self._digests)

    def allow(self, headers: Mapping[str, str]) -> bool:
        """Return True where the headers of a request hold one of the keys.

        The time of the comparison tells nothing about the keys, since all digests have one length and each is compared.
        """
        kind, _, sent = headers.get("authorization", "").partition(" ")
        key = sent.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(key.encode("latin-1", "replace"))
        found = [hmac.compare_digest(digest, one) for one in self._digests]
        return any(found) or not self._digests


def keys_of(settings: ServerSettings) -> Keys:
    """Read the keys that the settings name.

    Raises:
        SettingsError: The variable or the file cannot be read, or a key is short.
    """
    keys = [line.strip() for line in secrets_of(settings.key_env, settings.key_file) if line.strip()]
    for key in keys:
        if len(key) < _LEAST or not key.isascii():
            raise SettingsError(
                f"a key of the server has {len(key)} characters, and a key that nobody can guess has at least {_LEAST} "
                "ASCII characters. Make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(24))'"
            )
    return Keys(keys)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
