"""Compiled kernels on disk. A cubin is code that runs with the keys, so the cache uses nothing that another user could
have written."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_provider.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CubinCache", "UnsafeCacheError", "default_directory"]

_MAGIC = b"gpu-provider cubin 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size


class UnsafeCacheError(OSError):
    """The cache's directory belongs to another user, or others may write to it."""


def default_directory(environ: Mapping[str, str]) -> Path:
    """``$XDG_CACHE_HOME/gpu-provider/cubins``, or under ``~/.cache`` if the variable is unset or not absolute (XDG Base
    Directory Specification). Raises BackendError if there is no home either."""
    for base in (Path(environ.get("XDG_CACHE_HOME", "")), Path(environ.get("HOME", "")) / ".cache"):
        if base.is_absolute():
            return base / "gpu-provider" / "cubins"
    raise BackendError("neither XDG_CACHE_HOME nor HOME says where to keep compiled kernels: set one of them")


class CubinCache:
    """Cubins by name in one directory, which is created with mode 0700 when the first is written.

    An existing directory may be readable by others (a container image's, filled by root), but must belong to this user
    or root. Any number of processes and threads may read and write at once: a file appears whole, and the last of two
    writers of one name wins. A file that is not what was written under its name counts as absent.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def read(self, name: str) -> bytes | None:
        """The cubin, or None if it is missing or damaged. Raises UnsafeCacheError, or OSError if an existing file can't
        be read."""
        try:
            self._check_owner(self.directory.stat())
            descriptor = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            self._check_owner(os.fstat(descriptor))
            content = file.read()
        cubin = content[len(_MAGIC) + _DIGEST_BYTES :]
        return cubin if content == _sealed(name, cubin) else None

    def write(self, name: str, cubin: bytes) -> None:
        """Writes a cubin. Raises OSError, including UnsafeCacheError."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self._check_owner(self.directory.stat())
        descriptor, path = tempfile.mkstemp(dir=self.directory, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_sealed(name, cubin))
                file.flush()
                os.fchmod(descriptor, 0o644)  # the directory says who may read
                os.fsync(descriptor)
            os.rename(path, self.directory / name)
        except OSError:
            os.unlink(path)
            raise

    def _check_owner(self, status: os.stat_result) -> None:
        if status.st_uid not in {0, os.geteuid()}:
            raise UnsafeCacheError(f"the kernel cache {self.directory} belongs to user {status.st_uid}; use another")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UnsafeCacheError(f"others may write to the kernel cache {self.directory}; chmod go-w it")


def _sealed(name: str, cubin: bytes) -> bytes:
    """The file's contents. The digest reveals a file that was damaged or renamed."""
    return _MAGIC + hashlib.sha256(name.encode() + b"\n" + cubin).digest() + cubin
