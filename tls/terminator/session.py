"""One client's connection, from the accepted socket to the last byte.

::

    HANDSHAKE ──▶ CONNECTING ──▶ RELAY ──▶ ENDED
        │             │            │         ▲
        └─────────────┴──▶ LINGER ◀┘         │
                              └──────────────┘

HANDSHAKE   do_handshake() until it is done. It stops for bytes from the client, for room towards it, or for the batch
            that holds its RSA operation; the notifier says when that one is done. The socket's events need no action
            meanwhile: whoever resumes the handshake goes on until the socket would block.
CONNECTING  to the upstream: connecting.py.
RELAY       both ways at once: relay.py.
LINGER      nothing more will be sent: after close_notify, after a fatal alert, or because the upstream was reset. What
            the client still sends is read and dropped until it closes. Closing at once would answer that data with a
            reset, which could destroy what we sent last.

The upstream sees the end of the client's stream only where the client has sent close_notify (relay.py). However else
the session ends, be it with this process, the upstream's connection is reset, so that it does not take a truncated
stream for a whole one. Such a reset discards what the kernel has not delivered yet.

All methods run on the event loop's thread. There are no asyncio transports or streams here: the sockets are
non-blocking, and their readiness comes edge-triggered from the poller.
"""

from __future__ import annotations

import errno
import os
import socket
from enum import Enum, auto
from time import monotonic
from typing import TYPE_CHECKING

from gpu_provider import tls
from gpu_provider.tls import constants
from gpu_provider.tls.terminator import proxy_protocol
from gpu_provider.tls.terminator.connecting import Connecting
from gpu_provider.tls.terminator.failures import OUT_OF_MEMORY, handshake_failure
from gpu_provider.tls.terminator.poller import GONE, READABLE, WRITABLE
from gpu_provider.tls.terminator.progress import Progress
from gpu_provider.tls.terminator.relay import Relay

if TYPE_CHECKING:
    from gpu_provider.tls.terminator.server import Server

__all__ = ["IDLE_LOOKS", "Session", "State"]

IDLE_LOOKS = 4
"""How often to look for progress within idle_timeout."""

_DROP_ROUNDS = 8
"""Buffers to read and drop before others get their turn."""


class State(Enum):
    HANDSHAKE = auto()
    CONNECTING = auto()
    RELAY = auto()
    LINGER = auto()
    ENDED = auto()


class _Borrowed:
    """The client's socket as the Connection sees it: closing it is the poller's business, at the end of a burst."""

    __slots__ = ("fileno",)

    def __init__(self, sock: socket.socket) -> None:
        self.fileno = sock.fileno

    def close(self) -> None:
        pass


class Session:
    """See the module. Made for an accepted, non-blocking socket, which it owns once :meth:`start` was called."""

    __slots__ = (
        "_accepted", "_connecting", "_header", "_progress", "_quiet_looks", "_reason", "_relay", "_result", "_server",
        "_waits_for", "client", "connection", "state", "upstream",
    )  # fmt: skip

    def __init__(self, server: Server, client: socket.socket) -> None:
        """Raises tls.Error if libssl has no memory for one more connection."""
        self.state = State.HANDSHAKE
        self.client = client
        self.upstream: socket.socket | None = None
        self.connection = tls.Connection(server.context, _Borrowed(client))
        self.connection.set_accept_state()
        self._server = server
        self._accepted = monotonic()  # uvloop's own clock counts whole milliseconds
        self._waits_for = READABLE  # the events that let the handshake go on
        self._header = b""  # what the upstream is to get before the client's bytes
        self._connecting: Connecting | None = None
        self._relay: Relay | None = None
        self._progress = Progress()
        self._quiet_looks = 0
        self._result = self._reason = ""  # how a lingering session ended; a failed handshake is counted already

    def start(self) -> None:
        server = self._server
        if server.proxy_version:
            # Now, since a client that is reset later has no address any more, but may have sent all that it wanted to.
            try:
                self._header = proxy_protocol.header(
                    server.proxy_version, self.client.family, self.client.getpeername(), self.client.getsockname()
                )
            except OSError as error:
                self._handshake_failed("client_gone", os.strerror(error.errno or 0))
                return
        server.notifier.attach(self.connection, self._resume_handshake)
        server.handshakes.start(self)
        server.poller.add(self.client, self._on_client)
        self._handshake()  # the client's first bytes are often here by now

    def has(self, descriptor: int) -> bool:
        """Whether one of its sockets has this descriptor."""
        sockets = [self.client, *([self.upstream] if self.upstream else ())]
        if self._connecting is not None:
            sockets += self._connecting.sockets
        return any(sock.fileno() == descriptor for sock in sockets)

    def expire(self) -> None:
        """The time of the present state is up."""
        match self.state:
            case State.HANDSHAKE:
                self._handshake_failed("timeout", "")
            case State.CONNECTING:
                self._upstream_failed(errno.ETIMEDOUT)
            case State.RELAY:
                self._look_for_progress()
            case State.LINGER:
                if self._progress.seen(self.client):
                    self._server.lingering.start(self)
                else:
                    self._end_linger()
            case State.ENDED:
                pass

    def abort(self, result: str = "forced") -> None:
        """Ends the session whatever it is doing, without a word to either side."""
        if self.state is State.HANDSHAKE:
            self._handshake_failed(result, "")
        elif self.state is State.LINGER:
            self._end_linger()
        else:
            self.end(result)

    def end(self, result: str, reason: str = "") -> None:
        """Closes both sides now. ``result`` says how the session ended, for the metric."""
        if self.state is not State.ENDED:
            if result:
                self._server.metrics.sessions[result] += 1
                self._server.log.debug("session ended", end=result, reason=reason)
            self._close()

    def moved(self) -> None:
        """Decrypted bytes came from or went to either side: idle_timeout begins again. A client's key updates and the
        like are no reason to keep its session."""
        self._quiet_looks = 0
        self._progress.forget()
        self._server.idle.start(self)

    def linger(self, result: str, reason: str = "") -> None:
        """Ends both directions, but lets the client read what was sent to it: close_notify, an alert, or bytes without
        either."""
        server = self._server
        server.deadlines[self.state].stop(self)
        self.state, self._result, self._reason = State.LINGER, result, reason
        self._progress.seen(self.client)
        self._drop_upstream()
        try:
            self.client.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone already
            self._end_linger()
            return
        server.lingering.start(self)
        server.poller.set_handler(self.client, self._drop_input)
        self._drop_input(READABLE)

    # ---- HANDSHAKE ----

    def _on_client(self, events: int) -> None:
        if self.state is State.HANDSHAKE:
            # After a reset too: what came before it may be all of a short stream.
            if events & self._waits_for:
                self._handshake()
            if events & GONE and self.state is State.HANDSHAKE:
                self._handshake_failed("client_gone", "the connection was reset")

    def _resume_handshake(self) -> None:
        if self.state is State.HANDSHAKE:
            self._handshake()

    def _handshake(self) -> None:
        try:
            self.connection.do_handshake()
        except tls.WantReadError:
            self._waits_for = READABLE
        except tls.WantAsyncError:
            self._waits_for = 0
        except tls.WantWriteError:
            self._waits_for = WRITABLE
        except tls.WantAsyncJobError:
            self._waits_for = 0
            self._server.notifier.when_job_ends(self._resume_handshake)
        except tls.SysCallError as error:
            self._handshake_failed("client_gone", str(error))
        except tls.Error as error:
            if handshake_failure(str(error)) == OUT_OF_MEMORY:
                self._server.run_out_of_memory()
            self._handshake_failed("failed", str(error))
        else:
            self._handshake_done()

    def _handshake_failed(self, result: str, reason: str) -> None:
        self._server.metrics.handshake_failed(result, handshake_failure(reason) if result == "failed" else result)
        self._server.log.debug("handshake failed", result=result, reason=reason)
        if result == "failed":
            self.linger("")  # the client is to read the alert
        else:
            self._close()

    def _handshake_done(self) -> None:
        server, connection = self._server, self.connection
        server.handshakes.stop(self)
        server.metrics.handshake_done(
            monotonic() - self._accepted,
            connection.get_protocol_version_name(),
            connection.get_async_status().name,
            resumed=connection.session_reused(),
        )
        # No private operation follows on this side: reads and writes need no job from here on.
        connection.clear_mode(constants.SSL_MODE_ASYNC)
        self.state = State.CONNECTING
        server.connects.start(self)
        self._connecting = Connecting(server, self._connected, self._upstream_failed)
        self._connecting.start()

    # ---- CONNECTING ----

    def _upstream_failed(self, error: int) -> None:
        """The client learns it by a proper end of the TLS connection, since nothing of an answer was lost."""
        self._server.upstream_failed(error)
        if error == errno.ECONNRESET:  # it was connected, so this is not known
            self.linger("upstream_reset")
            return
        try:
            self.connection.shutdown()
        except tls.Error as failure:
            self.end("upstream_unreachable", str(failure))
        else:
            self.linger("upstream_unreachable")

    def _connected(self, upstream: socket.socket, events: int) -> None:
        server = self._server
        server.connects.stop(self)
        self._connecting = None
        self.state, self.upstream = State.RELAY, upstream
        self._relay = relay = Relay(self, upstream, server, self._header)
        server.poller.set_handler(self.client, relay.on_client)
        server.poller.set_handler(upstream, relay.on_upstream)
        relay.start(events)

    # ---- RELAY ----

    def _look_for_progress(self) -> None:
        assert self.upstream is not None  # noqa: S101  the state says so
        self._quiet_looks = 0 if self._progress.seen(self.client, self.upstream) else self._quiet_looks + 1
        if self._quiet_looks < IDLE_LOOKS:
            self._server.idle.start(self)
        else:
            self.end("idle_timeout")

    # ---- LINGER and ENDED ----

    def _end_linger(self) -> None:
        self.end(self._result, self._reason)

    def _drop_input(self, events: int) -> None:
        if self.state is not State.LINGER:
            return
        try:
            for _ in range(_DROP_ROUNDS):
                if not self.client.recv_into(self._server.buffer):
                    self._end_linger()
                    return
        except BlockingIOError:
            return
        except OSError:
            self._end_linger()
            return
        self._server.poller.again(self._drop_more)

    def _drop_more(self) -> None:
        self._drop_input(READABLE)

    def _close(self) -> None:
        server = self._server
        server.deadlines[self.state].stop(self)
        self.state = State.ENDED
        self._drop_upstream()
        # Takes the SSL off the descriptor, and keeps it by itself if its job still waits for a batch.
        self.connection.close()
        server.poller.discard(self.client)
        server.session_ended(self)

    def _drop_upstream(self) -> None:
        if self._connecting is not None:
            self._connecting.stop()
            self._connecting = None
        if self._relay is not None:
            self._relay.stop()
            self._relay = None
        if self.upstream is not None:
            self._server.poller.discard(self.upstream)
            self.upstream = None
