"""Sees whether bytes still move on a connection although no event says so.

The kernel reports a socket as writable again when a good part of its buffer is free. With a large buffer and a slow
reader that takes many seconds, in which bytes leave steadily. So when a timer is up, it counts the bytes that are
unsent or unacknowledged: fewer than the last time means that the peer goes on reading. (What the peer reads of the
bytes that its own system already holds is out of sight.)
"""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_provider.tls.connection import Socket

__all__ = ["Progress"]


class Progress:
    """Looks at the send queues of a session's sockets."""

    __slots__ = ("_unsent",)

    def __init__(self) -> None:
        self._unsent: tuple[int, ...] = ()

    def forget(self) -> None:
        """Starts afresh: the next look has nothing to compare with."""
        self._unsent = ()

    def seen(self, *sockets: Socket) -> bool:
        """Whether a peer has acknowledged bytes since the last look at the same sockets."""
        before, self._unsent = self._unsent, tuple(_unsent_bytes(sock) for sock in sockets)
        return any(now < then for now, then in zip(self._unsent, before, strict=False))


def _unsent_bytes(sock: Socket) -> int:
    """TIOCOUTQ has the same number as SIOCOUTQ, which tcp(7) describes."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return int(count)
