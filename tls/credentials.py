"""Reading certificates and private keys into a Context, with errors that name the file and the remedy."""

import math
import os
from typing import Any, get_args

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from gpu_provider.tls._ssl import ffi, lib
from gpu_provider.tls.errors import CertificateError, PrivateKeyError, why
from gpu_provider.tls.public_part import public_part

_PRIVATE_KEY_TYPES = get_args(PrivateKeyTypes)
KEY_TYPES = ("RSA", "RSA-PSS", "EC")


def _cause(error: OSError) -> str:
    return error.strerror or type(error).__name__


def use_certificate_chain_file(ctx: Any, libctx: Any, path: str) -> None:
    try:
        pem = public_part(path)
    except OSError as error:
        raise CertificateError(f"certificate file {path!r} can't be read: {_cause(error)}") from error
    _use_certificates(ctx, libctx, pem, f"certificate file {path!r}")


def use_certificate(ctx: Any, libctx: Any, certificate: str | bytes | x509.Certificate) -> None:
    if isinstance(certificate, x509.Certificate):
        certificate = certificate.public_bytes(serialization.Encoding.PEM)
    elif isinstance(certificate, str):
        certificate = certificate.encode(errors="replace")
    elif not isinstance(certificate, bytes):
        raise CertificateError(f"a certificate is PEM or one of cryptography's, not {type(certificate).__name__}")
    _use_certificates(ctx, libctx, certificate, "certificate")


def _use_certificates(ctx: Any, libctx: Any, pem: bytes, what: str) -> None:
    if b"-----BEGIN " not in pem:
        raise CertificateError(
            f"{what}: no PEM certificate in it (a line -----BEGIN CERTIFICATE-----); is it the private key alone?"
        )
    if lib.gp_credentials_use_certificates(ctx, libctx, pem, len(pem)) < 1:
        text = why()
        if "no start line" in text:
            text = "PEM, but no certificate in it; is it the private key?"
        raise CertificateError(f"{what} can't be used: {text}")


def load_crls(ctx: Any, libctx: Any, path: str) -> float:
    end = ffi.new("int64_t *")
    if lib.gp_credentials_add_crls(ctx, libctx, os.fsencode(path), end) < 1:
        text = why()
        if "no start line" in text:
            text = "no revocation list in it (PEM: -----BEGIN X509 CRL-----)"
        raise CertificateError(f"revocation lists can't be read from {path!r}: {text}")
    return math.inf if end[0] == (1 << 63) - 1 else float(end[0])


def use_privatekey_file(ctx: Any, libctx: Any, path: str, filetype: int, password: str | bytes | None) -> None:
    try:
        with open(path, "rb") as file:  # only to check that it can be read: OpenSSL reads the key
            file.read(1)
    except OSError as error:
        raise PrivateKeyError(f"private key file {path!r} can't be read: {_cause(error)}") from error
    der = filetype == lib.SSL_FILETYPE_ASN1
    _use_key(ctx, libctx, os.fsencode(path), b"", password, what=f"private key file {path!r}", der=der)


def use_privatekey(ctx: Any, libctx: Any, key: str | bytes | PrivateKeyTypes, password: str | bytes | None) -> None:
    if isinstance(key, str):
        data = key.encode(errors="replace")
    elif isinstance(key, bytes):
        data = key
    elif isinstance(key, _PRIVATE_KEY_TYPES):
        data = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    else:
        raise PrivateKeyError(f"a private key is PEM, DER or one of cryptography's, not {type(key).__name__}")
    _use_key(ctx, libctx, ffi.NULL, data, password, what="private key", der=b"-----BEGIN " not in data)


def _use_key(
    ctx: Any, libctx: Any, path: Any, data: bytes, password: str | bytes | None, *, what: str, der: bool
) -> None:
    asked = ffi.new("int *")
    given = ffi.NULL if password is None else password.encode() if isinstance(password, str) else password
    key = lib.gp_credentials_load_key(libctx, path, data, len(data), der, given, asked)
    if key == ffi.NULL:
        text = why("no private key in it")
        if asked[0] and password is None:
            raise PrivateKeyError(
                f"{what} is encrypted and no password was given; decrypt it with `openssl pkey -in FILE -out PLAIN`"
            )
        if asked[0]:
            raise PrivateKeyError(f"{what} can't be decrypted: the password is wrong, or the file damaged")
        if "no start line" in text or text == "no private key in it" or "unsupported" in text:
            text = "no private key in it that OpenSSL can read" + ("" if der else " (PEM: -----BEGIN PRIVATE KEY-----)")
        raise PrivateKeyError(f"{what} can't be used: {text}")
    try:
        if not any(lib.EVP_PKEY_is_a(key, name.encode()) == 1 for name in KEY_TYPES):
            name = ffi.string(lib.EVP_PKEY_get0_type_name(key)).decode()
            raise PrivateKeyError(f"{what} is of type {name}; RSA and EC keys can be used")
        if lib.SSL_CTX_use_PrivateKey(ctx, key) != 1:
            raise PrivateKeyError(_mismatch(what, why()))
    finally:
        lib.EVP_PKEY_free(key)


def check_privatekey(ctx: Any) -> None:
    lib.ERR_clear_error()
    if lib.SSL_CTX_check_private_key(ctx) != 1:
        raise PrivateKeyError(_mismatch("private key", why()))


def _mismatch(what: str, text: str) -> str:
    if "mismatch" in text or "no private key assigned" in text:
        return f"{what} does not belong to the certificate ({text})"
    return f"{what} can't be used: {text}"
