"""Whom a certificate names, in forms that are safe to log and to send on."""

from typing import Any, NamedTuple

from gpu_provider.tls._ssl import ffi, lib

__all__ = ["Subject", "read_subject"]

_MOST_BYTES = 4096
_MOST_COMMON_NAME_BYTES = 256


class Subject(NamedTuple):
    """The subject of a certificate."""

    text: str
    """As RFC 2253 writes it: ``CN=alice,O=Example``. Printable ASCII; whatever else is in it is escaped. Empty if it
    can't be read."""
    common_name: str | None
    """The first one; None if there is none, or one that is not printable or has more than 256 bytes."""


def read_subject(certificate: Any) -> Subject:
    """Reads an ``X509 *``."""
    text = ffi.new("char[]", _MOST_BYTES)
    size = lib.gp_leaf_subject(certificate, text, _MOST_BYTES)
    name = ffi.new("char[]", _MOST_COMMON_NAME_BYTES)
    name_size = lib.gp_leaf_common_name(certificate, name, _MOST_COMMON_NAME_BYTES)
    return Subject(
        ffi.buffer(text, max(size, 0))[:].decode("ascii"), _printable(ffi.buffer(name, max(name_size, 0))[:])
    )


def _printable(name: bytes) -> str | None:
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    return text if text and text.isprintable() else None
