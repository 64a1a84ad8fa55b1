"""Text for OpenSSL: str, or bytes as pyOpenSSL takes it."""

__all__ = ["encoded"]


def encoded(text: str | bytes, what: str, *, binary: bool = False) -> bytes:
    """TypeError for another type, ValueError for a NUL, at which OpenSSL would stop reading; ``what`` names it.
    ``binary``: OpenSSL is told the length, so a NUL is a byte like others."""
    if not isinstance(text, str | bytes):
        raise TypeError(f"the {what} must be str or bytes, not {type(text).__name__}")
    data = text.encode() if isinstance(text, str) else text
    if b"\0" in data and not binary:
        raise ValueError(f"the {what} has a NUL in it: {text!r}")
    return data
