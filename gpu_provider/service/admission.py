"""Which programs may use the service, by the user and groups that the kernel vouches for."""

from __future__ import annotations

import errno
import grp
import pwd
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from gpu_provider.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_provider.service.config import ServiceConfig

__all__ = ["Admission", "Peer", "group_number"]

_CREDENTIALS = struct.Struct("iII")  # struct ucred
_SO_PEERGROUPS = 59  # Linux; Python has no name for it
_NO_NUMBER = 2**32 - 1
_GROUPS_SIZE = 1024  # what getsockopt of Python's takes: 256 groups


class Peer(NamedTuple):
    """The process at the other end, as it was when it connected."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        return cls(
            *_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        )


class Admission:
    """The rules of ``allow_users`` and ``allow_groups``. Raises ConfigError for a name that does not exist."""

    def __init__(self, config: ServiceConfig) -> None:
        self._users = {_user_number(name) for name in config.allow_users}
        self._groups = {group_number(name, "allow_groups") for name in config.allow_groups}

    def admits(self, connection: socket.socket, peer: Peer) -> bool:
        """Whom the socket's permissions have let in: everybody, if there are no rules."""
        if not self._users and not self._groups:
            return True
        return peer.uid in self._users or not self._groups.isdisjoint({peer.gid, *self._more_groups(connection)})

    def _more_groups(self, connection: socket.socket) -> tuple[int, ...]:
        if not self._groups:
            return ()
        try:
            numbers = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
        except OSError as error:
            if error.errno == errno.ERANGE:  # it is in more than 256
                return ()
            raise
        return struct.unpack(f"{len(numbers) // 4}I", numbers)


def group_number(name: str, setting: str) -> int:
    """Raises ConfigError."""
    return _number(name, f"{setting}: there is no group", lambda: grp.getgrnam(name).gr_gid)


def _user_number(name: str) -> int:
    return _number(name, "allow_users: there is no user", lambda: pwd.getpwnam(name).pw_uid)


def _number(name: str, otherwise: str, look_up: Callable[[], int]) -> int:
    if name.isdecimal() and int(name) < _NO_NUMBER:
        return int(name)
    try:
        return look_up()
    except KeyError:
        raise ConfigError(f"{otherwise} {name!r} here; give its name or its number") from None
