"""Compares our dictionary of a certificate with the one that Python's ``ssl`` makes."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from typing import TYPE_CHECKING, Any

import cryptography_vectors
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AuthorityInformationAccessOID as Access
from cryptography.x509.oid import NameOID, ObjectIdentifier

from gpu_provider.tls import Error
from gpu_provider.tls.ssl_object import decode_certificate

if TYPE_CHECKING:
    from pathlib import Path

KEY = ec.generate_private_key(ec.SECP256R1())


def name(*parts: tuple[ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(*part) for part in parts])


def certificate(subject: x509.Name, *extensions: x509.ExtensionType, serial: int = 1) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(name((NameOID.ORGANIZATION_NAME, "Größe"), (NameOID.COUNTRY_NAME, "DE")))
        .public_key(KEY.public_key())
        .serial_number(serial)
        .not_valid_before(datetime.datetime(2026, 1, 5, 3, 4, 5))
        .not_valid_after(datetime.datetime(2051, 12, 25, 13, 14, 15))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def point(*names: x509.GeneralName) -> x509.DistributionPoint:
    return x509.DistributionPoint(list(names), None, None, None)


WWW = x509.UniformResourceIdentifier("http://ca.example/list")
CASES = {
    "plain": certificate(name((NameOID.COMMON_NAME, "www.example"))),
    "empty subject": certificate(x509.Name([])),
    "names": certificate(
        name(
            (NameOID.COUNTRY_NAME, "DE"),
            (NameOID.STATE_OR_PROVINCE_NAME, "x"),
            (NameOID.EMAIL_ADDRESS, "a@example"),
            (NameOID.DOMAIN_COMPONENT, "example"),
            (NameOID.USER_ID, "me"),
            (NameOID.JURISDICTION_COUNTRY_NAME, "DE"),
            (ObjectIdentifier("1.2.3.4.5"), "unknown"),
        )
    ),
    "several in one": certificate(
        x509.Name(
            [
                x509.RelativeDistinguishedName(
                    [x509.NameAttribute(NameOID.COMMON_NAME, "a"), x509.NameAttribute(NameOID.USER_ID, "b")]
                )
            ]
        )
    ),
    "odd serial": certificate(name((NameOID.COMMON_NAME, "a")), serial=0xABC),
    "long serial": certificate(name((NameOID.COMMON_NAME, "a")), serial=2**158 + 0xF),
    "alternative names": certificate(
        name((NameOID.COMMON_NAME, "a")),
        x509.SubjectAlternativeName(
            [
                x509.DNSName("www.example"),
                x509.DNSName("*.example"),
                x509.RFC822Name("me@example"),
                x509.UniformResourceIdentifier("https://example/a"),
                x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
                x509.IPAddress(ipaddress.ip_address("2001:db8::a0:1")),
                x509.DirectoryName(name((NameOID.COMMON_NAME, "dir"))),
                x509.RegisteredID(ObjectIdentifier("1.2.3.4.5")),
            ]
        ),
    ),
    "access": certificate(
        name((NameOID.COMMON_NAME, "a")),
        x509.AuthorityInformationAccess(
            [
                x509.AccessDescription(Access.OCSP, x509.UniformResourceIdentifier("http://ocsp.example")),
                x509.AccessDescription(Access.CA_ISSUERS, x509.UniformResourceIdentifier("http://ca.example")),
                x509.AccessDescription(Access.OCSP, x509.UniformResourceIdentifier("http://ocsp2.example")),
            ]
        ),
        x509.CRLDistributionPoints([point(WWW), point(WWW, x509.DirectoryName(name((NameOID.COMMON_NAME, "d"))))]),
    ),
}


@pytest.mark.parametrize("der", CASES.values(), ids=CASES.keys())
def test_the_dictionary_is_pythons(der: bytes, tmp_path: Path) -> None:
    assert decode_certificate(der) == pythons(der, tmp_path)


OTHERS = """
cryptography.io.pem v1_cert.pem wildcard_san.pem unique_identifier.pem utf8-dnsname.pem custom/all_supported_names.pem
custom/san_email_dns_ip_dirname_uri.pem custom/san_other_name.pem custom/san_registered_id.pem custom/san_idna_names.pem
custom/cdp_fullname_reasons_crl_issuer.pem custom/cdp_empty_hostname.pem custom/utf8_common_name.pem
"""


@pytest.mark.parametrize("path", OTHERS.split())
def test_certificates_of_others(path: str, tmp_path: Path) -> None:
    with cryptography_vectors.open_vector_file(f"x509/{path}", "rb") as file:
        der = x509.load_pem_x509_certificate(file.read()).public_bytes(serialization.Encoding.DER)
    assert decode_certificate(der) == pythons(der, tmp_path)


@pytest.mark.parametrize(
    "path", ["san_x400address.der", "custom/two_basic_constraints.pem", "custom/invalid_version.pem"]
)
def test_what_cannot_be_decoded_is_an_error_of_ours(path: str) -> None:
    with cryptography_vectors.open_vector_file(f"x509/{path}", "rb") as file:
        der = file.read()
    if path.endswith(".pem"):
        der = ssl.PEM_cert_to_DER_cert(der.decode()[der.index(b"-----BEGIN") :])
    with pytest.raises(Error, match="can't be shown as a dictionary"):
        decode_certificate(der)


def pythons(der: bytes, tmp_path: Path) -> Any:
    path = tmp_path / "certificate.pem"
    path.write_text(ssl.DER_cert_to_PEM_cert(der))
    return ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]
