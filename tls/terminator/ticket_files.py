"""Reads keys for session tickets from files, as several instances share them and as HAProxy and nginx have them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gpu_provider import tls
from gpu_provider.errors import ConfigError
from gpu_provider.tls.terminator.pem_files import check_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["read_ticket_keys"]

_MOST_BYTES = 1 << 16
_RAW_SIZES = (48, 80)
_MAKE_ONE = "make a key with `openssl rand 80 | openssl base64 -A`"


def read_ticket_keys(paths: Sequence[Path]) -> tls.TicketKeys:
    """From one file of keys in base64, oldest first, of which the last three count and the last but one encrypts; or
    from up to three files of one key each, of which the first encrypts. Raises ConfigError."""
    buffers = [_read(path) for path in paths]
    try:
        return tls.TicketKeys.given(_in_order([_keys(buffer) for buffer in buffers]))
    except ValueError as error:
        names = ", ".join(repr(str(path)) for path in paths)
        raise ConfigError(f"ticket_keys = {names}: {error}; {_MAKE_ONE}") from None
    finally:
        for buffer in buffers:
            buffer[:] = bytes(len(buffer))


def _in_order(files: list[list[memoryview]]) -> list[memoryview]:
    """The one that encrypts first. Raises ValueError."""
    if len(files) == 1:
        keys = files[0][-tls.TicketKeys.MOST :]
        return keys[-2:-1] + keys[:-2] + keys[-1:]
    if any(len(keys) != 1 for keys in files):
        raise ValueError("each of several files must have one key")
    return [key for keys in files for key in keys]


def _read(path: Path) -> bytearray:
    """Into memory that can be wiped."""
    check_file(path, _MOST_BYTES)
    buffer = bytearray(_MOST_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            del buffer[file.readinto(buffer) or 0 :]
    except OSError as error:
        raise ConfigError(f"ticket_keys = {str(path)!r} can't be read: {error.strerror}") from None
    return buffer


def _keys(buffer: bytearray) -> list[memoryview]:
    """Without copies of them."""
    whole = memoryview(buffer)
    if len(buffer) in _RAW_SIZES:
        return [whole]
    return [whole[found.start() : found.end()] for found in re.finditer(rb"\S+", buffer)]
