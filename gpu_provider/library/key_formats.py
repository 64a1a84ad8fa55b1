"""Reads the formats that private keys come in, and says what is wrong with a file that holds none of them."""

from __future__ import annotations

import os
import re
import typing

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from gpu_provider.errors import KeyLoadError

__all__ = ["KeySource", "is_encrypted", "to_unencrypted", "what_it_is"]

KeySource: typing.TypeAlias = "bytes | bytearray | memoryview | str | PrivateKeyTypes"

_PRIVATE_KEY_TYPES = typing.get_args(PrivateKeyTypes)
_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_PKCS12 = re.compile(rb"\x30(\x80|[\x00-\x7f]|\x81.|\x82..|\x83...|\x84....)\x02\x01\x03", re.DOTALL)
_PUBLIC_SSH_KEY = re.compile(rb"(ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]+ [A-Za-z0-9+/]")
_PASSWORD_FOR_PLAIN_KEY = "a password was given, but the private key is not encrypted"  # noqa: S105 (no password)


def to_unencrypted(source: KeySource, password: bytes | str | None) -> bytes:
    """PEM or DER of one private key, as far as that can be told without reading it. Raises KeyLoadError."""
    if password is not None and not isinstance(password, bytes | str):
        raise KeyLoadError(f"the password must be bytes or str, not {type(password).__name__}")
    secret = password.encode() if isinstance(password, str) else password or None
    if isinstance(source, _PRIVATE_KEY_TYPES):
        if secret:
            raise KeyLoadError(_PASSWORD_FOR_PLAIN_KEY)
        return _to_der(source)
    if isinstance(source, os.PathLike):
        raise KeyLoadError("a private key is given as what its file holds, not as a path: load_key(path.read_bytes())")
    if isinstance(source, str):
        source = source.encode(errors="replace")
    if not isinstance(source, bytes | bytearray | memoryview):
        raise KeyLoadError(
            f"a private key is given as PEM or DER (bytes or str) or as an RSA private key of the cryptography "
            f"package, not as {type(source).__name__}"
        )
    data = bytes(source)
    if not data.strip():
        raise KeyLoadError("the private key is empty")
    data = _private_block(data)
    if b"-----BEGIN OPENSSH PRIVATE KEY-----" in data or secret or is_encrypted(data):
        return _to_der(_read(data, secret))
    return data


def _private_block(data: bytes) -> bytes:
    """The block with the private key, if PEM has several, such as a key with its certificates."""
    blocks = list(_PEM_BLOCK.finditer(data))
    private = [block[0] for block in blocks if block[1].endswith(b"PRIVATE KEY")]
    if len(private) > 1:
        raise KeyLoadError(f"there are {len(private)} private keys in it; give one of them")
    if blocks and not private:
        raise KeyLoadError(f"{_label_in_words(blocks[0][1].decode())}; the private key is needed")
    return private[0] if len(blocks) > 1 else data


def _label_in_words(label: str) -> str:
    if label.endswith("CERTIFICATE"):
        return "a certificate"
    if label.endswith("PUBLIC KEY"):
        return "a public key"
    return f"PEM of the kind {label}"


def is_encrypted(data: bytes) -> bool:
    if b"-----BEGIN" in data:
        return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data or b"Proc-Type: 4,ENCRYPTED" in data
    try:
        serialization.load_der_private_key(data, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:  # cryptography's way to say that a password is needed
        return True
    except (ValueError, UnsupportedAlgorithm):
        return False  # loading it will say what is wrong
    return False


def _read(data: bytes, password: bytes | None) -> PrivateKeyTypes:
    """Reads encrypted keys and OpenSSH's own format, with the cryptography package. The key is validated later."""
    ssh = b"-----BEGIN OPENSSH PRIVATE KEY-----" in data
    load = serialization.load_der_private_key
    if b"-----BEGIN" in data:
        load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        return load(data, password, unsafe_skip_rsa_key_validation=True)
    except TypeError:  # a password is missing, or there is one for a key that is not encrypted
        text = "the private key is encrypted; give its password" if password is None else _PASSWORD_FOR_PLAIN_KEY
    except UnsupportedAlgorithm as error:
        text = f"the private key can't be read: {error}"
        if "bcrypt" in str(error):
            text = "an encrypted OpenSSH key; install the package bcrypt, or convert it: ssh-keygen -p -m PEM -f FILE"
    except ValueError:
        text = "the OpenSSH private key is damaged"
        if password is not None:
            text = "the private key can't be decrypted: wrong password, or a damaged file"
    raise KeyLoadError(text) from None


def _to_der(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def what_it_is(data: bytes) -> str:
    """Describes data that is not a private key, so that the caller finds out what went wrong. Never shows any of it."""
    from cryptography import x509  # noqa: PLC0415 (heavy, for this alone)

    if _PKCS12.match(data):
        return "a PKCS#12 file; take the private key out of it: openssl pkcs12 -in FILE -nocerts -noenc"
    if data.startswith(b"PuTTY-User-Key-File"):
        return "a PuTTY key; convert it: puttygen FILE -O private-openssh -o NEW"
    if _PUBLIC_SSH_KEY.match(data):
        return "an OpenSSH public key; the private key is needed"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text in UTF-16; PEM is ASCII"
    for load, what in (
        (x509.load_der_x509_certificate, "certificate"),
        (x509.load_der_x509_csr, "certificate request"),
    ):
        try:
            load(data)
        except ValueError:
            continue
        return f"a {what}; the private key is needed"
    text = "neither PEM nor DER of a private key"
    if data.isascii() and b"\n" not in data.strip():
        text += "; if it is the path of a file, give what the file holds: pathlib.Path(path).read_bytes()"
    return text
