"""Text for OpenSSL: a str, or bytes as pyOpenSSL accepts them."""

__all__ = ["c_string", "encoded"]


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
