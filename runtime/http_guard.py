"""Check the sender of an HTTP request."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit


def allowed_names(address: str, hosts: Iterable[str]) -> frozenset[str]:
    """Return the names of hosts under which a server may be reached, in lower case.

    Args:
        address: The address that the server listens on.
        hosts: The names of the settings.
    """
    own = {"localhost", socket.gethostname(), address, *hosts}
    return frozenset(name.lower().rstrip(".") for name in own)


def knows_host(host: str, names: frozenset[str]) -> bool:
    """Return True where the value of a Host header is a numeric address or one of the allowed names.

    A check of the name protects against DNS rebinding. Numeric addresses are always allowed, since a name that is bound
    anew cannot become one.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if "@" in host or "/" in host or "\\" in host:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower().rstrip(".") in names
    return True


def is_same_origin(headers: Mapping[str, str], host: str) -> bool:
    """Return True unless the browser tells that a page of another origin sends this request."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == host
