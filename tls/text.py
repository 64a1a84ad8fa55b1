"""Text for OpenSSL: str, or bytes as pyOpenSSL takes it."""

__all__ = ["encoded"]


def encoded(text: str | bytes, what: str) -> bytes:
    """TypeError for another type, ValueError for a NUL, at which OpenSSL would stop reading; ``what`` names it."""
    if not isinstance(text, str | bytes):
        raise TypeError(f"the {what} must be str or bytes, not {type(text).__name__}")
    data = text.encode() if isinstance(text, str) else text
    if b"\0" in data:
        raise ValueError(f"the {what} has a NUL in it: {text!r}")
    return data
