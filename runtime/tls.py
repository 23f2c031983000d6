"""Make the TLS contexts by which a station checks the other side of a connection."""

from __future__ import annotations

import ssl
from pathlib import Path

from flowedge.errors import SettingsError


class _ClosingSocket(ssl.SSLSocket):
    """A socket that closes itself where the handshake fails. paho-mqtt leaves it open."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (OSError, ValueError):
            self.close()
            raise


def client_context(
    ca_file: Path | None, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext:
    """Make a context that checks the server's certificate and name.

    Args:
        ca_file: The certificates to trust in place of the system's.
        cert_file: The client's own certificate.
        key_file: The private key of ``cert_file``.

    Raises:
        SettingsError: A file cannot be read or holds no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise SettingsError(
            f"{ca_file} cannot be read as certificates: {error.strerror or error}."
        ) from error
    context.sslsocket_class = _ClosingSocket
    if cert_file is not None:
        try:
            # An encrypted key would ask for its password on a terminal that a service does not have.
            context.load_cert_chain(cert_file, key_file, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{cert_file} and {key_file} cannot be read as a certificate and its key: {error}."
            ) from error
    return context


def tls_words(error: Exception) -> str:
    """Return why a connection failed, in one clause."""
    if isinstance(error, ssl.SSLCertVerificationError):
        words = f"its certificate is not accepted: {error.verify_message}"
    elif isinstance(error, OSError) and error.strerror:
        words = error.strerror
    else:
        words = str(error) or type(error).__name__
    # The message about a wrong name ends with a full stop, and so does the sentence around this clause.
    return words.rstrip(".")
