"""Subjects of certificates, which end up in logs and at upstreams: a name must not pass for anything else."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from gpu_provider import tls
from gpu_provider.tls._ssl import lib
from gpu_provider.tls.subject import read_subject

COMMON_NAME, ORGANIZATION = x509.NameOID.COMMON_NAME, x509.NameOID.ORGANIZATION_NAME
BEGIN, END = datetime.datetime(2020, 1, 1), datetime.datetime(2999, 1, 1)


def subject_of(*attributes: tuple[x509.ObjectIdentifier, str]) -> tls.Subject:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(oid, text, _validate=False) for oid, text in attributes])
    certificate = x509.CertificateBuilder(name, name, key.public_key(), 1, BEGIN, END).sign(key, hashes.SHA256())
    context = tls.Context(tls.TLS_SERVER_METHOD)
    context.use_certificate(certificate)
    return read_subject(lib.SSL_CTX_get0_certificate(context.pointer))


@pytest.mark.filterwarnings("ignore:Attribute's length:UserWarning")
@pytest.mark.parametrize(
    ("attributes", "text", "common_name"),
    [
        ([(ORGANIZATION, "Example"), (COMMON_NAME, "alice")], "CN=alice,O=Example", "alice"),
        ([(COMMON_NAME, "first"), (COMMON_NAME, "second")], "CN=second,CN=first", "first"),
        ([(COMMON_NAME, "a,O=b")], r"CN=a\,O=b", "a,O=b"),
        ([(COMMON_NAME, "é")], r"CN=\C3\A9", "é"),
        ([(COMMON_NAME, "a\nb")], r"CN=a\0Ab", None),
        ([(COMMON_NAME, "a\0b")], r"CN=a\00b", None),
        ([(COMMON_NAME, "a\u202eb")], r"CN=a\E2\80\AEb", None),
        ([(COMMON_NAME, "x" * 256)], "CN=" + "x" * 256, "x" * 256),
        ([(COMMON_NAME, "x" * 257)], "CN=" + "x" * 257, None),
        ([(COMMON_NAME, "x" * 5000)], "", None),
        ([(ORGANIZATION, "Example")], "O=Example", None),
        ([], "", None),
    ],
)
def test_subject(attributes: list[tuple[x509.ObjectIdentifier, str]], text: str, common_name: str | None) -> None:
    subject = subject_of(*attributes)
    assert subject == (text, common_name)
