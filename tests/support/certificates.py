"""Make an authority and certificates for servers in tests."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

import pytest


class Authority:
    """An authority in a folder, with the file ``ca.crt``."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        self.folder = folder
        self._x509: Any = pytest.importorskip("cryptography.x509", reason="certificates need cryptography")
        self.key, self.certificate = self._signed(name, None, is_authority=True)
        self.file = folder / "ca.crt"
        self.file.write_bytes(self._pem(self.certificate))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Issue a certificate for ``localhost`` and 127.0.0.1, and give its file and that of its key."""
        from cryptography.hazmat.primitives import serialization

        key, certificate = self._signed(name, self, is_authority=False)
        certificate_file, key_file = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        certificate_file.write_bytes(self._pem(certificate))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate_file, key_file

    def _signed(self, name: str, signer: Authority | None, *, is_authority: bool) -> tuple[Any, Any]:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        x509 = self._x509
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.timezone.utc)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if signer is None else signer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key if signer is None else signer.key, hashes.SHA256())
        )
        return key, made

    @staticmethod
    def _pem(certificate: Any) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding

        pem: bytes = certificate.public_bytes(Encoding.PEM)
        return pem
