"""Connects to one of the upstream's addresses, in the way of RFC 8305 ("Happy Eyeballs").

The addresses are tried in the order of upstreams.py, which hears how it went. The next attempt begins when one has
failed, or when none has got on for a quarter of a second; the first to connect is kept, and the others are dropped.
With TLS, an attempt has connected when its handshake is done. One timer, the session's, bounds all of them.

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

from gpu_provider import tls
from gpu_provider.tls.terminator.failures import UpstreamFailure
from gpu_provider.tls.terminator.poller import GONE, READABLE, WRITABLE
from gpu_provider.tls.terminator.shortage import SHORTAGES
from gpu_provider.tls.terminator.upstream_tls import EncryptedSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_provider.addresses import Resolved, SocketAddress
    from gpu_provider.tls.terminator.shared import Shared
    from gpu_provider.tls.terminator.upstream_tls import UpstreamTLS

__all__ = ["RESET_ON_CLOSE", "Connecting", "attempt_delay"]

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing the socket resets the connection, even if the end of this process closes it."""

_NON_BLOCKING_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_ATTEMPT_DELAY_SECONDS = 0.25
_MOST_ATTEMPTS = 2
_UNREACHABLE = UpstreamFailure.of(errno.EHOSTUNREACH)


def attempt_delay(connect_timeout: float) -> float:
    """Seconds without an answer after which the next address is tried too: as in RFC 8305, section 5, or less."""
    return min(_ATTEMPT_DELAY_SECONDS, connect_timeout / 4)


class _Attempt:
    __slots__ = ("address", "began", "socket")

    def __init__(self, sock: socket.socket, address: Resolved) -> None:
        self.socket: socket.socket | EncryptedSocket = sock
        self.address = address
        self.began = monotonic()  # to connect and then, with TLS, its handshake


class Connecting:
    """One session's attempts. Calls ``connected(socket, events)`` or ``failed(failure)`` once, unless :meth:`stop` is
    called first. ``header`` and ``alpn`` are for TLS: bytes to send before it, and the protocol to agree on."""

    __slots__ = (
        "_alpn", "_attempts", "_connected", "_failed", "_failure", "_header", "_left", "_share", "_shared", "address",
    )  # fmt: skip

    def __init__(
        self,
        shared: Shared,
        connected: Callable[[socket.socket | EncryptedSocket, int], None],
        failed: Callable[[UpstreamFailure], None],
        header: bytes,
        alpn: bytes,
    ) -> None:
        self._shared = shared
        self._connected = connected
        self._failed = failed
        self._header = header
        self._alpn = alpn
        self._left = deque(shared.upstreams.order())
        self._share = shared.connect_timeout / len(self._left)
        self._attempts: deque[_Attempt] = deque()
        """The oldest first."""
        self._failure = _UNREACHABLE
        self.address = self._left[0]
        """That has been connected to, or was tried last."""

    @property
    def sockets(self) -> list[socket.socket | EncryptedSocket]:
        """The sockets of the attempts that are under way."""
        return [attempt.socket for attempt in self._attempts]

    def start(self) -> None:
        self._begin_next()

    def stop(self) -> None:
        self._shared.attempts.stop(self)
        self._left.clear()
        while self._attempts:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        attempt = self._attempts.popleft()
        self._shared.poller.discard(attempt.socket)
        if monotonic() - attempt.began >= attempt_delay(self._shared.connect_timeout):
            self._shared.upstreams.failed(attempt.address)

    def expire(self) -> None:
        """Called when there was no answer for :func:`attempt_delay` seconds."""
        try:
            self._give_up_waiting()
        except MemoryError:  # a timer calls: nobody else knows whose memory it was
            self.stop()
            self._failed(UpstreamFailure.of(errno.ENOMEM))

    def _give_up_waiting(self) -> None:
        if not self._left:
            return
        if len(self._attempts) == _MOST_ATTEMPTS:
            if monotonic() - self._attempts[0].began < self._share:
                self._shared.attempts.start(self)
                return
            self._drop_oldest()
            self._failure = UpstreamFailure.of(errno.ETIMEDOUT)
        self._begin_next()

    def _begin_next(self) -> None:
        while self._left:
            self.address = address = self._left.popleft()
            try:
                attempt = _Attempt(_begin(address.family, address.address), address)
            except OSError as error:
                self._failure = UpstreamFailure.of(error.errno or errno.EIO)
                if self._attempts and self._failure.error in SHORTAGES:
                    # The attempt that is under way may fail, and free its descriptor for this address.
                    self._left.appendleft(address)
                    self._shared.attempts.start(self)
                    return
                if self._failure.error not in SHORTAGES:
                    self._shared.upstreams.failed(address)
                continue
            self._attempts.append(attempt)
            self._shared.poller.add(attempt.socket, functools.partial(self._on_event, attempt))
            if self._left:
                self._shared.attempts.start(self)
            return
        if not self._attempts:
            self.stop()
            self._failed(self._failure)

    def _on_event(self, attempt: _Attempt, events: int) -> None:
        sock = attempt.socket
        if isinstance(sock, EncryptedSocket):
            self._shake_hands(attempt, sock)
        elif error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(attempt, UpstreamFailure.of(error))
        elif events & WRITABLE and not events & GONE:
            if self._shared.upstream_tls is None:
                self._succeed(attempt, events)
            else:
                self._begin_tls(attempt, sock, self._shared.upstream_tls)

    def _begin_tls(self, attempt: _Attempt, sock: socket.socket, upstream_tls: UpstreamTLS) -> None:
        try:
            sent = sock.send(self._header)
            attempt.socket = encrypted = upstream_tls.encrypt(sock, attempt.address.host, self._alpn)
        except OSError as error:
            self._fail(attempt, UpstreamFailure.of(error.errno or errno.EIO))
        except tls.Error:
            self._fail(attempt, UpstreamFailure.of(errno.ENOMEM))
        else:
            if sent < len(self._header):  # a new socket has room for kilobytes
                self._fail(attempt, UpstreamFailure.of(errno.ENOBUFS))
                return
            attempt.began = monotonic()
            if self._left:
                self._shared.attempts.start(self)
            self._shake_hands(attempt, encrypted)

    def _shake_hands(self, attempt: _Attempt, encrypted: EncryptedSocket) -> None:
        try:
            done = encrypted.handshake()
        except tls.Error as error:
            self._fail(attempt, UpstreamFailure.of_handshake(error))
        else:
            if done:
                self._succeed(attempt, READABLE)  # bytes that came with the handshake's are in libssl

    def _fail(self, attempt: _Attempt, failure: UpstreamFailure) -> None:
        self._attempts.remove(attempt)
        self.address = attempt.address
        self._failure = failure
        self._shared.poller.discard(attempt.socket)
        self._shared.upstreams.failed(attempt.address)
        self._begin_next()

    def _succeed(self, attempt: _Attempt, events: int) -> None:
        self._attempts.remove(attempt)
        self.address = attempt.address
        self._shared.upstreams.answered(attempt.address)
        self.stop()
        self._connected(attempt.socket, events)


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
