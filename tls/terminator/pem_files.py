"""Reads files that an operator has named, or says in one line why not."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from gpu_provider.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_file", "read_file"]

_MOST_BYTES = 1 << 20


def check_file(path: Path, most_bytes: int = _MOST_BYTES) -> None:
    """Checks before reading: reading a pipe could wait for ever. Raises ConfigError."""
    try:
        status = path.stat()
    except OSError:
        return  # reading it will say why
    except ValueError as error:
        raise ConfigError(f"{str(path)!r} can't be the name of a file: {error}") from None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{str(path)!r} is no regular file; give one")
    if status.st_size > most_bytes:
        raise ConfigError(f"{str(path)!r} has {status.st_size} bytes; such a file has at most {most_bytes}")


def read_file(setting: str, path: Path, most_bytes: int = _MOST_BYTES) -> bytes:
    """The contents of the file that this setting names. Raises ConfigError."""
    check_file(path, most_bytes)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting} = {str(path)!r} can't be read: {error.strerror}") from None
