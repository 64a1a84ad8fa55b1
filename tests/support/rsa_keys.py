"""RSA keys for tests, each made once per session: making them is slow, and none is kept in the repository."""

from __future__ import annotations

import functools
import subprocess
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)


@functools.cache
def private_key(bits: int, e: Literal[3, 65537] = 65537) -> rsa.RSAPrivateKey:
    if bits % 2 == 0:
        return rsa.generate_private_key(e, bits)
    # OpenSSL makes keys of even sizes only. Its primes have their two highest bits set, so this is `bits` long.
    p = private_key(bits + 1, e).private_numbers().p
    q = private_key(bits - 1, e).private_numbers().q
    d = pow(e, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(e, p * q)
    crt = (rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q))
    return rsa.RSAPrivateNumbers(p, q, d, *crt, public).private_key()


@functools.cache
def program_key(algorithm: str, *arguments: str) -> bytes:
    """PEM of a key from ``openssl genpkey``, for what ``cryptography`` does not make."""
    command = ["openssl", "genpkey", "-algorithm", algorithm, *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def private_der(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def private_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_der(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def from_pem(pem: bytes) -> rsa.RSAPrivateKey:
    key = load_pem_private_key(pem, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key
