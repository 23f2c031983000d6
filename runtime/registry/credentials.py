"""Find the user and the password of a registry, where Docker and Podman keep them, and read its challenges."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from flowedge.errors import RegistryError
from flowedge.files import open_regular_file
from flowedge.text import printable

USER: Final = "FLOWEDGE_REGISTRY_USER"
PASSWORD: Final = "FLOWEDGE_REGISTRY_PASSWORD"
_MOST_BYTES: Final = 1 << 20
_PARAMETER: Final = re.compile(r'([A-Za-z_-]+)="([^"]*)"')


class Challenge(NamedTuple):
    """The demand of a registry for a password (RFC 9110, 11.6.1).

    Attributes:
        scheme: The word ``basic`` or ``bearer``.
        parameters: The parameters, such as ``realm``, ``service`` and ``scope``.
    """

    scheme: str
    parameters: dict[str, str]


def challenge_of(header: str) -> Challenge:
    """Read the header ``WWW-Authenticate``.

    Raises:
        RegistryError: The demand is neither for a password nor for a token.
    """
    scheme, _, rest = header.partition(" ")
    if scheme.lower() not in ("basic", "bearer"):
        raise RegistryError(
            f"the registry asks for a log-in by {printable(header[:100]) or 'nothing'!r}, not Basic or Bearer."
        )
    return Challenge(scheme.lower(), dict(_PARAMETER.findall(rest[:4096])))


def basic_of(host: str) -> str | None:
    """Return the value of the header ``Authorization`` for a registry, or None where no password is known.

    The environment variables ``FLOWEDGE_REGISTRY_USER`` and ``FLOWEDGE_REGISTRY_PASSWORD`` come first, then the files
    that ``docker login`` and ``podman login`` write.

    Args:
        host: The host with its port, as the reference names it.

    Raises:
        RegistryError: A file cannot be read, or keeps the password in a program.
    """
    user, password = os.environ.get(USER), os.environ.get(PASSWORD)
    if user and password:
        return _basic(f"{user}:{password}".encode())
    helper = ""
    for file in _files():
        content = _content(file)
        auths = content.get("auths")
        entry = auths.get(host) or auths.get(f"https://{host}") if isinstance(auths, dict) else None
        if isinstance(entry, dict) and isinstance(entry.get("auth"), str):
            try:
                return _basic(base64.b64decode(entry["auth"], validate=True))
            except (binascii.Error, ValueError) as error:
                raise RegistryError(f"{file} has a log-in of {printable(host)} that is no base64.") from error
        helpers = content.get("credHelpers")
        if content.get("credsStore") or (isinstance(helpers, dict) and host in helpers):
            helper = str(file)
    if helper:
        raise RegistryError(
            f"{helper} keeps the password of {printable(host)} in a program, which FlowEdge does not start. Set {USER} "
            f"and {PASSWORD}."
        )
    return None


def _basic(user_and_password: bytes) -> str:
    return f"Basic {base64.b64encode(user_and_password).decode()}"


def _files() -> Iterator[Path]:
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    docker = os.environ.get("DOCKER_CONFIG")
    home = os.environ.get("HOME")
    if docker or home:
        yield (Path(docker) if docker else Path(str(home)) / ".docker") / "config.json"
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"


def _content(file: Path) -> dict[str, Any]:
    """Return the content of a file of log-ins. It is empty where there is no file."""
    try:
        with open_regular_file(file) as opened:
            content = json.loads(opened.read(_MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise RegistryError(f"{file} cannot be read as a file of log-ins: {error}.") from error
    return content if isinstance(content, dict) else {}
