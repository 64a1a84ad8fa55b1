"""Text for OpenSSL: a str, or bytes as pyOpenSSL accepts them."""

from collections.abc import Sequence

__all__ = ["alpn_wire", "c_string", "encoded"]


def encoded(text: str | bytes, what: str) -> bytes:
    """The text as bytes. Raises TypeError for any other type; ``what`` names the text."""
    if not isinstance(text, str | bytes):
        raise TypeError(f"the {what} must be str or bytes, not {type(text).__name__}")
    return text.encode() if isinstance(text, str) else text


def c_string(text: str | bytes, what: str) -> bytes:
    """The same, but raises ValueError for a NUL, at which OpenSSL would stop reading."""
    data = encoded(text, what)
    if b"\0" in data:
        raise ValueError(f"the {what} has a NUL in it: {text!r}")
    return data


def alpn_wire(protocols: Sequence[str | bytes]) -> bytes:
    """The wire form of a list of ALPN protocols. Raises ValueError for an empty list, and for a name that is empty or
    over 255 bytes."""
    if isinstance(protocols, str | bytes):
        raise TypeError(f"ALPN protocols must be a list of names, such as [{protocols!r}], not a single name")
    names = [encoded(name, "ALPN protocol") for name in protocols]
    if not names or not all(0 < len(name) <= 255 for name in names):
        raise ValueError(f"ALPN protocols must be names of 1 to 255 bytes, at least one of them, not {protocols!r}")
    return b"".join(bytes((len(name),)) + name for name in names)
