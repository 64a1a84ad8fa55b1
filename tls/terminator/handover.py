"""The listening sockets go from the terminator that runs to the one that follows it, over a Unix socket.

Both have the same sockets then, so no connection is refused or reset between the two: what waits to be accepted waits
for either. ::

    successor    connects
    predecessor  how many descriptors are for what, and the descriptors
    successor    "ready", when it accepts connections
    predecessor  accepts no more, and drains

If the successor ends before it is ready, nothing has happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from gpu_provider.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["HandedOver", "Offer", "take_over"]

_READY = b"ready"
_MOST_BYTES = 1024
_MOST_DESCRIPTORS = 253
"""In one message: SCM_MAX_FD of Linux."""
_ANSWER_SECONDS = 5.0
_CREDENTIALS = struct.Struct("3i")
_log = structlog.stdlib.get_logger(__name__)


class _Counts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the descriptors of a message are for."""

    listen: int
    """So many come first."""
    admin: int


class HandedOver(NamedTuple):
    listeners: list[socket.socket]
    admin: list[socket.socket]
    predecessor: socket.socket
    """To be told when this process accepts connections."""

    def accepting(self) -> None:
        """From now on the predecessor accepts no more."""
        with contextlib.suppress(OSError), self.predecessor:
            self.predecessor.send(_READY)


def take_over(path: Path) -> HandedOver | None:
    """None if nobody has anything to hand over there. Raises ConfigError."""
    with contextlib.ExitStack() as on_error:
        predecessor = on_error.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        predecessor.settimeout(_ANSWER_SECONDS)
        try:
            predecessor.connect(os.fspath(path))
            text, descriptors, _, _ = socket.recv_fds(predecessor, _MOST_BYTES, _MOST_DESCRIPTORS)
            sockets = [on_error.enter_context(socket.socket(fileno=descriptor)) for descriptor in descriptors]
            counts = msgspec.json.decode(text, type=_Counts)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"handover = {str(path)!r}: nothing is handed over there: {error}") from None
        if counts.listen + counts.admin != len(sockets):
            raise ConfigError(
                f"handover = {str(path)!r}: only {len(sockets)} of {counts.listen + counts.admin} sockets have come; "
                "raise the limit of open files (ulimit -n)"
            )
        on_error.pop_all()
        return HandedOver(sockets[: counts.listen], sockets[counts.listen :], predecessor)


class Offer:
    """Hands the sockets to whoever asks, and is the same user or root. On the running loop."""

    def __init__(
        self,
        path: Path,
        listeners: Sequence[socket.socket],
        admin: Sequence[socket.socket],
        taken: Callable[[], None],
    ) -> None:
        """Takes the place of the predecessor at ``path``. ``taken``: called once, when a successor accepts connections.
        Raises ConfigError."""
        self._path = path
        self._descriptors = [each.fileno() for each in (*listeners, *admin)]
        self._counts = msgspec.json.encode(_Counts(len(listeners), len(admin)))
        self._taken = taken
        self._loop = asyncio.get_running_loop()
        self._successors: set[socket.socket] = set()
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        before_renaming = f"{path}.{os.getpid()}"
        try:
            self._door.bind(before_renaming)
            os.chmod(before_renaming, 0o600)
            self._door.listen()
            self._inode = os.stat(before_renaming).st_ino
            os.rename(before_renaming, path)
        except OSError as error:
            self._door.close()
            with contextlib.suppress(OSError):
                os.unlink(before_renaming)
            raise ConfigError(f"handover = {str(path)!r}: {error.strerror or error}") from None
        self._loop.add_reader(self._door.fileno(), self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self._door.fileno())
        self._door.close()
        for successor in tuple(self._successors):
            self._forget(successor)
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # no successor has taken its place
                self._path.unlink()

    def _accept(self) -> None:
        try:
            successor, _ = self._door.accept()
        except OSError:
            return
        successor.setblocking(False)
        _, user, _ = _CREDENTIALS.unpack(successor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        try:
            if user not in {0, os.geteuid()}:
                raise PermissionError(f"user {user} is not the one that this process runs as")
            socket.send_fds(successor, [self._counts], self._descriptors)
        except OSError as error:
            _log.warning("sockets not handed over", reason=str(error))
            successor.close()
            return
        self._successors.add(successor)
        self._loop.add_reader(successor.fileno(), self._read, successor)

    def _read(self, successor: socket.socket) -> None:
        try:
            ready = successor.recv(_MOST_BYTES) == _READY
        except BlockingIOError:
            return
        except OSError:
            ready = False
        self._forget(successor)
        if ready:
            self._taken()

    def _forget(self, successor: socket.socket) -> None:
        self._loop.remove_reader(successor.fileno())
        self._successors.discard(successor)
        successor.close()
