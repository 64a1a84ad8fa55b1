"""Reads a PEM file without the private keys in it."""

import os
import re

__all__ = ["public_part"]

_MOST_BYTES_OF_A_PIPE = 1 << 20
_PRIVATE = re.compile(rb"-----BEGIN ([A-Z0-9 ]*)PRIVATE KEY-----.*?(-----END \1PRIVATE KEY-----|\Z)", re.DOTALL)


def public_part(path: str | os.PathLike[str]) -> bytes:
    """The file, with empty lines in place of private keys: a certificate's file may have its key too, and no copy of it
    is to stay in Python's memory. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(os.fstat(file.fileno()).st_size or _MOST_BYTES_OF_A_PIPE)
        size = 0
        while count := file.readinto(memoryview(buffer)[size:]):
            size += count
    for begin, end in [found.span() for found in _PRIVATE.finditer(buffer)]:
        buffer[begin:end] = b"\n" * (end - begin)
    return bytes(memoryview(buffer)[:size])
