"""Listen on an address for HTTP, and check the certificate of TLS."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
from pathlib import Path

from flowedge.errors import FlowEdgeError, SettingsError


def is_local(address: str) -> bool:
    """Return True where no other computer can reach an address."""
    if address == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return False


def listen(address: str, port: int, *, owner: str, table: str) -> socket.socket:
    """Listen on an address.

    Args:
        address: The name or the number of the address.
        port: The port. With 0 the system chooses a free one.
        owner: The words for what listens, for the message.
        table: The words for the place of the settings, for the message.

    Raises:
        FlowEdgeError: The address cannot be listened on.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server((place[0], port), family=family, backlog=64)
    except OSError as error:
        raise FlowEdgeError(
            f"{owner} cannot listen on {address}, port {port}: {error.strerror}. Choose another address or port in "
            f"{table}, or stop the program that has it."
        ) from error


def url_of(address: str, port: int, *, has_tls: bool) -> str:
    """Return the URL of an address for a program on this computer."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"{'https' if has_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"


def check_certificate(certificate: Path | None, key: Path | None, *, table: str) -> bool:
    """Check the certificate of a server and its key, and return True where there are some.

    Args:
        certificate: The file of the certificate chain, PEM.
        key: The file of the private key, PEM.
        table: The table of the settings, for the message.

    Raises:
        SettingsError: Only one of the two is named, or they cannot be read or do not belong together.
    """
    if certificate is None and key is None:
        return False
    if certificate is None or key is None:
        raise SettingsError(f"{table} tls_certificate and tls_key belong together. Name both or neither.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"the certificate {certificate} or its key {key} cannot be used: {error}."
        ) from error
    return True
