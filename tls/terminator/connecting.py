"""Connects to one of the upstream's addresses, in the way of RFC 8305 ("Happy Eyeballs").

The addresses are tried in the order of upstreams.py, which hears how it went. The next attempt begins when one has
failed, or when none has succeeded for a quarter of a second; the first to connect is kept, and the others are dropped.
One timer, the session's, bounds all of them.

At most two attempts run at a time, so that a session needs only one more descriptor than it will keep. If there are
more addresses, the older attempt makes room for the next one after its share of the connect timeout.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from gpu_provider.tls.terminator.poller import GONE, WRITABLE
from gpu_provider.tls.terminator.shortage import SHORTAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_provider.addresses import Resolved, SocketAddress
    from gpu_provider.tls.terminator.shared import Shared

__all__ = ["RESET_ON_CLOSE", "Connecting", "attempt_delay"]

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing the socket resets the connection, even if the end of this process closes it."""

_NON_BLOCKING_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_ATTEMPT_DELAY_SECONDS = 0.25
_MOST_ATTEMPTS = 2


def attempt_delay(connect_timeout: float) -> float:
    """Seconds without an answer after which the next address is tried too: as in RFC 8305, section 5, or less."""
    return min(_ATTEMPT_DELAY_SECONDS, connect_timeout / 4)


class Connecting:
    """One session's attempts. Calls ``connected(socket, events)`` or ``failed(errno)`` once, unless :meth:`stop` is
    called first."""

    __slots__ = ("_attempts", "_connected", "_error", "_failed", "_left", "_share", "_shared", "address")

    def __init__(
        self, shared: Shared, connected: Callable[[socket.socket, int], None], failed: Callable[[int], None]
    ) -> None:
        self._shared = shared
        self._connected = connected
        self._failed = failed
        self._left = deque(shared.upstreams.order())
        self._share = shared.connect_timeout / len(self._left)
        self._attempts: deque[tuple[socket.socket, Resolved, float]] = deque()
        """The oldest first, each with the time at which it began."""
        self._error = errno.EHOSTUNREACH
        self.address = self._left[0]
        """That has been connected to, or was tried last."""

    @property
    def sockets(self) -> list[socket.socket]:
        """The sockets of the attempts that are under way."""
        return [attempt for attempt, _, _ in self._attempts]

    def start(self) -> None:
        self._begin_next()

    def stop(self) -> None:
        self._shared.attempts.stop(self)
        self._left.clear()
        while self._attempts:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        attempt, address, began = self._attempts.popleft()
        self._shared.poller.discard(attempt)
        if monotonic() - began >= attempt_delay(self._shared.connect_timeout):
            self._shared.upstreams.failed(address)

    def expire(self) -> None:
        """Called when there was no answer for :func:`attempt_delay` seconds."""
        try:
            self._give_up_waiting()
        except MemoryError:  # a timer calls: nobody else knows whose memory it was
            self.stop()
            self._failed(errno.ENOMEM)

    def _give_up_waiting(self) -> None:
        if not self._left:
            return
        if len(self._attempts) == _MOST_ATTEMPTS:
            if monotonic() - self._attempts[0][2] < self._share:
                self._shared.attempts.start(self)
                return
            self._drop_oldest()
            self._error = errno.ETIMEDOUT
        self._begin_next()

    def _begin_next(self) -> None:
        while self._left:
            self.address = address = self._left.popleft()
            try:
                attempt = _begin(*address)
            except OSError as failure:
                self._error = failure.errno or errno.EIO
                if self._attempts and self._error in SHORTAGES:
                    # The attempt that is under way may fail, and free its descriptor for this address.
                    self._left.appendleft(address)
                    self._shared.attempts.start(self)
                    return
                if self._error not in SHORTAGES:
                    self._shared.upstreams.failed(address)
                continue
            self._attempts.append((attempt, address, monotonic()))
            self._shared.poller.add(attempt, functools.partial(self._on_event, attempt, address))
            if self._left:
                self._shared.attempts.start(self)
            return
        if not self._attempts:
            self.stop()
            self._failed(self._error)

    def _on_event(self, attempt: socket.socket, address: Resolved, events: int) -> None:
        error = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not error and not (events & WRITABLE and not events & GONE):
            return
        self._attempts = deque(one for one in self._attempts if one[0] is not attempt)
        self.address = address
        if error:
            self._shared.poller.discard(attempt)
            self._error = error
            self._shared.upstreams.failed(address)
            self._begin_next()
        else:
            self._shared.upstreams.answered(address)
            self.stop()
            self._connected(attempt, events)


def _begin(family: int, address: SocketAddress | str) -> socket.socket:
    """Raises OSError if it fails at once, for example without a free descriptor or the family on this machine."""
    attempt = socket.socket(family, _NON_BLOCKING_STREAM)
    try:
        if family != socket.AF_UNIX:
            attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Until the client has ended its stream (relay.py), the upstream must see any close as a reset.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        error = attempt.connect_ex(address)
    except OSError:
        attempt.close()
        raise
    if error in {0, errno.EINPROGRESS}:
        return attempt
    attempt.close()
    raise OSError(error, os.strerror(error))
