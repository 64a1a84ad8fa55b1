"""Relays bytes both ways between a TLS connection and its upstream, with back-pressure and half-close.

Each direction keeps what its receiver did not accept (at most one buffer) and reads no more until that is gone. Each
ends separately: the client's close_notify becomes the end of the stream towards the upstream, and the upstream's end
becomes our close_notify. With TLS to the upstream, its end and ours are a close_notify too (upstream_tls.py). Any other
end is passed on as an abrupt one, so that neither side takes a truncated stream for a whole one. When the client is
reset, ends without close_notify, sends something other than TLS records, or times out, the upstream's connection is
reset. When the upstream is reset, the client's connection ends without close_notify.

Bytes before an abrupt end may be lost: those that are kept here, and those that the kernel has not delivered to the
upstream yet.

Readiness is edge-triggered: a flag remembers that there may be something to read until a read says otherwise. A
connection says so itself (``want_read``): it may have stopped early, or hold an error back behind the bytes that it
returned. A read from the upstream that does not fill the buffer has emptied the socket, so the read that would only say
so is left out; unless the upstream's end was already seen, because no further event comes for it, or TLS holds more.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

from gpu_provider import tls
from gpu_provider.tls.terminator.poller import GONE, PEER_ENDED, READABLE, WRITABLE
from gpu_provider.tls.terminator.upstream_tls import EncryptedSocket

if TYPE_CHECKING:
    from gpu_provider.tls.terminator.session import Session
    from gpu_provider.tls.terminator.shared import Shared

__all__ = ["Relay"]

_END_ON_CLOSE = struct.pack("ii", 0, 0)
"""For SO_LINGER: undoes connecting.py's setting."""

_ROUNDS = 8
"""Buffers that one direction may move before others get their turn."""


class Relay:
    """Relays until both directions have ended, and then ends the session."""

    __slots__ = (
        "_client_ended",
        "_client_readable",
        "_close_notify_due",
        "_end_due",
        "_for_client",
        "_for_upstream",
        "_over",
        "_session",
        "_shared",
        "_tls",
        "_trace",
        "_upstream",
        "_upstream_ended",
        "_upstream_read_on",
        "_upstream_readable",
        "_upstream_refuses",
        "_upstream_was_reset",
    )  # fmt: skip

    def __init__(
        self, session: Session, upstream: socket.socket | EncryptedSocket, shared: Shared, first: bytes
    ) -> None:
        """``first`` is sent to the upstream before the client's bytes."""
        self._session = session
        self._shared = shared
        self._tls = session.connection
        self._trace = session.trace
        self._upstream = upstream
        self._over = False
        # Towards the upstream.
        self._client_readable = True  # the handshake may have read the client's first bytes
        self._client_ended = False  # by close_notify, or because the upstream accepts nothing more
        self._for_upstream = memoryview(first)  # what it has not accepted yet
        self._end_due = False  # the client has ended, and the upstream has not been told yet
        self._upstream_refuses = False  # it accepts no more, but what it has sent may still be unread
        # Towards the client.
        self._upstream_readable = False
        self._upstream_read_on = isinstance(upstream, EncryptedSocket)  # until a read says that there is nothing
        self._upstream_ended = False
        self._upstream_was_reset = False  # a write said so
        self._for_client = memoryview(b"")
        self._close_notify_due = False

    def start(self, upstream_events: int) -> None:
        """``upstream_events`` are those that reported the connection; its first bytes may have come with it."""
        self._to_upstream()
        self.on_upstream(upstream_events)

    def stop(self) -> None:
        """The session is over: events that are on their way must be ignored."""
        self._over = True

    # ---- events ----

    def on_client(self, events: int) -> None:
        if events & GONE:  # a reset: we have not closed our direction
            self._on_client_reset()
            return
        if events & (READABLE | PEER_ENDED):
            self._client_readable = True
        if events & WRITABLE and (self._for_client or self._close_notify_due):
            self._to_client()
        if self._client_readable:
            self._to_upstream()

    def _on_client_reset(self) -> None:
        """Reads what came before the reset: it may be all of a stream, with close_notify at its end."""
        had_ended = self._client_ended
        self._client_readable = True
        if not had_ended:
            self._to_upstream()
        nobody_waits = had_ended or self._for_client or self._close_notify_due or self._upstream_ended
        if not self._over and self._client_ended and nobody_waits:
            self._client_is_gone("client_reset", "")

    def on_upstream(self, events: int) -> None:
        if events & PEER_ENDED:
            self._upstream_read_on = True
        if events & WRITABLE and self._for_upstream:
            self._to_upstream()
        elif events & WRITABLE and self._end_due:
            self._end_upstream()
        if events & (READABLE | PEER_ENDED):
            self._upstream_readable = True
        if self._upstream_readable:
            self._to_client()

    # ---- client to upstream ----

    def _to_upstream(self) -> None:
        if self._over:
            return
        buffer = self._shared.buffer
        for _ in range(_ROUNDS):
            if self._for_upstream:
                sent = self._send_upstream(self._for_upstream)
                self._for_upstream = self._for_upstream[sent:]
                if sent and not self._over:
                    self._session.moved()
            if self._for_upstream or self._client_ended or not self._client_readable:
                return
            count = self._read_client(buffer)
            if count == 0:
                return
            sent = self._send_upstream(buffer[:count])
            if sent < count:
                self._for_upstream = memoryview(bytes(buffer[sent:count]))
                failure = self._tls.failure
                if failure is not None and not isinstance(failure, tls.SysCallError):
                    self._client_failed(failure)  # it broke the protocol, so its bytes need not be delivered
                return
        self._session.again(self._to_upstream)

    def _read_client(self, buffer: memoryview) -> int:
        """Returns how many bytes came; 0: none now, or none ever."""
        connection = self._tls
        try:
            count = connection.recv_into(buffer)
        except tls.WantReadError:
            self._client_readable = False
            return 0
        except tls.WantWriteError:  # no room for the answer to a key update: goes on when there is some
            return 0
        except tls.ZeroReturnError:
            self._client_is_done()
            return 0
        except tls.Error as error:
            self._client_failed(error)
            return 0
        self._session.moved()
        self._shared.metrics.bytes_to_upstream += count
        self._trace.to_upstream += count
        if connection.want_read():
            self._client_readable = False
        return count

    def _send_upstream(self, data: memoryview) -> int:
        """How many bytes are dealt with."""
        try:
            return self._upstream.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            # It may have answered before it closed. So read that first; what the client sends is of no use now.
            self._upstream_refuses = self._client_ended = True
            # The kernel reports a reset once: the reads that follow end as if the stream were whole. With EPIPE it is
            # whole, because the upstream's end came before the reset.
            self._upstream_was_reset = error.errno != errno.EPIPE
            if self._upstream_ended:
                self._both_ended()
            else:
                self._upstream_readable = self._upstream_read_on = True
                self._session.again(self._to_client)
            return len(data)

    def _client_is_done(self) -> None:
        self._client_ended = self._end_due = True
        self._end_upstream()

    def _end_upstream(self) -> None:
        try:
            self._upstream.shutdown(socket.SHUT_WR)
            self._upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _END_ON_CLOSE)
        except BlockingIOError:  # no room for close_notify
            return
        except OSError:  # it was reset: reading from it will say so
            self._upstream_refuses = True
        self._end_due = False
        if self._upstream_ended and not self._close_notify_due:
            self._both_ended()

    def _client_failed(self, error: tls.Error) -> None:
        if isinstance(error, tls.SysCallError):
            self._client_is_gone("client_eof" if error.args[0] == -1 else "client_reset", str(error))
        elif isinstance(error, tls.FloodError):
            self._end("client_flood", str(error))
        else:
            self._cut("tls_error", str(error))

    def _client_is_gone(self, result: str, reason: str) -> None:
        """Ends a session without the client's close_notify. Many clients leave like this when they have their
        answer."""
        everything_sent = self._upstream_ended and not self._for_client and not self._close_notify_due
        self._end("closed" if everything_sent else result, reason)

    # ---- upstream to client ----

    def _to_client(self) -> None:
        if self._over:
            return
        buffer = self._shared.buffer
        for _ in range(_ROUNDS):
            if self._for_client:
                sent = self._send_client(self._for_client)
                self._for_client = self._for_client[sent:]
                if sent and not self._over:
                    self._session.moved()
            elif self._close_notify_due:
                self._send_close_notify()
            if self._over or self._for_client or self._upstream_ended or not self._upstream_readable:
                return
            count = self._read_upstream(buffer)
            if count == 0:
                return
            sent = self._send_client(buffer[:count])
            if sent < count:
                self._for_client = memoryview(bytes(buffer[sent:count]))
                return
        self._session.again(self._to_client)

    def _read_upstream(self, buffer: memoryview) -> int:
        """Returns how many bytes came; 0: none now, or none ever."""
        try:
            count = self._upstream.recv_into(buffer)
        except BlockingIOError:
            self._upstream_readable = False
            return 0
        except tls.WantWriteError:  # no room for the answer to a key update: goes on when there is some
            return 0
        except OSError as error:
            self._cut("upstream_reset", str(error))
            return 0
        if count == 0 and self._upstream_was_reset:
            self._cut("upstream_reset")
            return 0
        if count == 0:
            self._upstream_ended = self._close_notify_due = True
            self._send_close_notify()
            return 0
        self._session.moved()
        self._shared.metrics.bytes_to_client += count
        self._trace.to_client += count
        if count < len(buffer) and not self._upstream_read_on:
            self._upstream_readable = False
        return count

    def _send_client(self, data: memoryview) -> int:
        """How many bytes are dealt with."""
        try:
            sent = self._tls.send(data)
        except tls.WantWriteError:
            return 0
        except tls.Error as error:
            self._client_failed(error)
            return len(data)
        if self._tls.failure is not None:
            self._client_failed(self._tls.failure)
        return sent

    def _send_close_notify(self) -> None:
        try:
            self._tls.shutdown()
        except tls.WantWriteError:
            return
        except tls.Error as error:
            self._client_failed(error)
            return
        self._close_notify_due = False
        if self._client_ended and not self._end_due:
            self._both_ended()

    # ---- the end ----

    def _both_ended(self) -> None:
        self._over = True
        if self._upstream_refuses:
            self._session.linger("closed")
        else:
            self._session.end("closed")

    def _cut(self, result: str, reason: str = "") -> None:
        """Ends abruptly, but leaves the client time to read what was sent to it."""
        self._over = True
        self._session.linger(result, reason)

    def _end(self, result: str, reason: str) -> None:
        self._over = True
        self._session.end(result, reason)
