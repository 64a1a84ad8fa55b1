"""What programs with the module have counted: the files of ``native/queue/counts.c`` in ``counts_directory``."""

from __future__ import annotations

import fcntl
import operator
import os
import re
import stat
import struct
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from gpu_provider.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Counts", "Program", "read_counts"]

_HEADER = struct.Struct("=QIIQQ")
_OF_A_CLASS = struct.Struct("=6Q")
_MAGIC = 0x73746E756F437067
_VERSION = 2
_MOST_CLASSES = 64
_LEAST_BITS, _CLASS_BITS = 2048, 512


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one key size. Sizes in between count as the next larger one."""

    singles: int
    """Operations computed by themselves, by OpenSSL."""
    groups: int
    """Groups computed together."""
    grouped: int
    """Operations in those."""
    waits: int
    """Operations that waited for others."""
    waits_in_vain: int
    """Groups that were smaller than was hoped for when their time came."""
    served: int
    """Operations that the service computed."""

    @property
    def operations(self) -> int:
        return self.singles + self.grouped + self.served

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*map(operator.sub, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class Program:
    """A process that loaded the module, and all that it has forked."""

    file: Path
    process: int
    """Its number where it was started, such as in a container."""
    started: float
    """When it loaded the module, in seconds since 1970."""
    counts: dict[int, Counts]
    """By key size, in bits."""


def read_counts(directory: Path, *, ended: bool = False) -> list[Program]:
    """Reads the files of the programs that run, with ``ended`` also of others whose files are still there. What is not
    ours or vanishes meanwhile is passed over. Raises ConfigError if the directory can't be read."""
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise ConfigError(f"counts_directory {directory} can't be read: {error.strerror}") from error
    return [program for path in paths if re.fullmatch(r"\d+-\d+", path.name) and (program := _read(path, ended))]


def _read(path: Path, ended: bool) -> Program | None:
    try:
        # Others may write into the directory: neither a link nor a pipe without a writer must lead astray.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        contents = os.read(descriptor, _HEADER.size + _MOST_CLASSES * _OF_A_CLASS.size)
        if not _is_complete(contents) or not (ended or _is_locked(descriptor)):
            return None
    except OSError:
        return None
    finally:
        os.close(descriptor)
    *_, started_ns, process = _HEADER.unpack_from(contents)
    counts = {
        _LEAST_BITS + _CLASS_BITS * index: Counts(*values)
        for index, values in enumerate(_OF_A_CLASS.iter_unpack(contents[_HEADER.size :]))
    }
    return Program(path, process, started_ns / 1e9, counts)


def _is_complete(contents: bytes) -> bool:
    if len(contents) < _HEADER.size:
        return False
    magic, version, classes, *_ = _HEADER.unpack_from(contents)
    return (magic, version) == (_MAGIC, _VERSION) and len(contents) == _HEADER.size + classes * _OF_A_CLASS.size


def _is_locked(descriptor: int) -> bool:
    """Asked of a complete file alone: a program that is about to lock its new one must not find it locked by us."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
