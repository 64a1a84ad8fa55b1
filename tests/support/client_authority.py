"""Authorities that issue and revoke clients' certificates."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from terminator_process import client_context

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def name_of(*common_names: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name, _validate=False) for name in common_names])


class Authority:
    """``directory``: where its files are, ``ca.pem``, ``crl.pem`` and two for each client."""

    def __init__(self, directory: Path, name: str = "Clients' authority", stem: str = "ca") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = name_of(name)
        self._revoked: list[x509.RevokedCertificate] = []
        builder = x509.CertificateBuilder(self._name, self._name, self._key.public_key(), 1, now() - DAY, now() + DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.file = directory / f"{stem}.pem"
        self.file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    def client(
        self,
        *common_names: str,
        end: datetime.datetime | None = None,
        context: ssl.SSLContext | None = None,
    ) -> tuple[ssl.SSLContext, x509.Certificate]:
        """A client with a new certificate, and else like ``context``: it verifies the terminator."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = x509.CertificateBuilder(
            self._name,
            name_of(*common_names),
            key.public_key(),
            x509.random_serial_number(),
            now() - 2 * DAY,
            end or now() + DAY,
        ).sign(self._key, hashes.SHA256())
        cert_file, key_file = self._directory / "client.pem", self._directory / "client.key"
        cert_file.write_bytes(certificate.public_bytes(PEM))
        key_file.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        context = context or client_context()
        context.load_cert_chain(cert_file, key_file)
        return context, certificate

    def write_crl(self, *revoked: x509.Certificate, end: datetime.datetime | None = None) -> Path:
        """A list of these and of those revoked before."""
        self._revoked += [x509.RevokedCertificateBuilder(one.serial_number, now() - DAY).build() for one in revoked]
        builder = x509.CertificateRevocationListBuilder(self._name, now() - 2 * DAY, end or now() + DAY)
        for one in self._revoked:
            builder = builder.add_revoked_certificate(one)
        file = self._directory / "crl.pem"
        file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(PEM))
        return file
