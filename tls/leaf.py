"""A Context's own certificate as OpenSSL reads it. OpenSSL serves some certificates that other parsers refuse."""

from dataclasses import dataclass
from typing import Any

from gpu_provider.tls._ssl import ffi, lib
from gpu_provider.tls.context import Context
from gpu_provider.tls.errors import CertificateError

__all__ = ["Leaf", "read_leaf"]

_MOST_BYTES = 1 << 20
_GROUP_NAMES = {"prime256v1": "secp256r1"}
"""TLS's name by OpenSSL's."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate with an RSA or EC key."""

    names: tuple[str, ...]
    """The DNS names; if there are no subject alternative names, the common names. Unchanged."""
    key_type: str
    """Such as RSA-2048 or EC-secp256r1."""
    public_key_sha256: bytes
    sha256: bytes
    """Of the whole certificate."""
    not_after: float
    """Unix time."""


def read_leaf(context: Context) -> Leaf:
    """Reads the certificate that the context was given last. Raises CertificateError, which does not name the file."""
    certificate = lib.SSL_CTX_get0_certificate(context.pointer)
    if certificate == ffi.NULL:
        raise CertificateError("the context has none")
    names = ffi.new("char[]", _MOST_BYTES)
    size = lib.gp_leaf_names(certificate, names, _MOST_BYTES)
    if size < 0:
        raise CertificateError("its subject alternative names can't be read, or are there twice; issue it again")
    not_after = lib.gp_leaf_not_after(certificate)
    if not_after == -(1 << 63):
        raise CertificateError("the time it is valid for can't be read; issue it again")
    texts = ffi.buffer(names, size)[:].decode("utf-8", "replace").split("\0")[:-1]
    public_key, whole = ffi.new("unsigned char[32]"), ffi.new("unsigned char[32]")
    if not lib.gp_leaf_public_key(certificate, public_key) or not lib.gp_leaf_fingerprint(certificate, whole):
        raise CertificateError("its public key can't be read; issue it again")
    return Leaf(
        names=tuple(texts),
        key_type=_key_type(lib.X509_get0_pubkey(certificate)),
        public_key_sha256=bytes(ffi.buffer(public_key)),
        sha256=bytes(ffi.buffer(whole)),
        not_after=float(not_after),
    )


def _key_type(key: Any) -> str:
    if any(lib.EVP_PKEY_is_a(key, name) == 1 for name in (b"RSA", b"RSA-PSS")):
        return f"RSA-{lib.EVP_PKEY_get_bits(key)}"
    if lib.EVP_PKEY_is_a(key, b"EC") == 1:
        group = ffi.new("char[]", 80)
        lib.EVP_PKEY_get_group_name(key, group, len(group), ffi.NULL)
        name = ffi.string(group).decode()
        return f"EC-{_GROUP_NAMES.get(name, name)}"
    kind = ffi.string(lib.EVP_PKEY_get0_type_name(key)).decode()
    raise CertificateError(f"it has a key of type {kind}; a certificate with an RSA or EC key is needed")
