"""One client's connection, from the accepted socket to the last byte.

::

    HANDSHAKE ──▶ CONNECTING ──▶ RELAY ──▶ ENDED
        │             │            │         ▲
        └─────────────┴──▶ LINGER ◀┘         │
                              └──────────────┘

HANDSHAKE   Calls do_handshake() until it is done. It stops for bytes from the client, for room towards it, or for the
            batch that holds its RSA operation; the notifier says when the batch is done. The socket's events need no
            action meanwhile: whoever resumes the handshake goes on until the socket would block.
            Deadline: handshake_timeout.
CONNECTING  Connects to the upstream, with TLS if so set: connecting.py. Deadline: connect_timeout.
RELAY       Relays both ways at once: relay.py. Deadline: a quarter of idle_timeout, after which it looks for progress;
            the fourth look in a row that sees none ends the session.
LINGER      Sends nothing more: after close_notify, after a fatal alert, or because the upstream was reset. What the
            client still sends is read and dropped until it closes. Closing at once would answer that data with a
            reset, which could destroy what we sent last. Deadline: 2 seconds without progress.
ENDED       Both sockets are closed. Every state leads here when a side is lost.

The upstream sees the end of the client's stream only if the client has sent close_notify (relay.py). However else the
session ends, even if this process dies, the upstream's connection is reset, so that the upstream does not take a
truncated stream for a whole one. Such a reset discards what the kernel has not delivered yet.

All methods run on the event loop's thread. There are no asyncio transports or streams here: the sockets are
non-blocking, and the poller reports their readiness edge-triggered.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any

from gpu_provider import tls
from gpu_provider.tls import constants
from gpu_provider.tls.terminator import proxy_protocol
from gpu_provider.tls.terminator.client_facts import client_facts
from gpu_provider.tls.terminator.connecting import Connecting
from gpu_provider.tls.terminator.failures import OUT_OF_MEMORY, UpstreamFailure, handshake_failure
from gpu_provider.tls.terminator.poller import GONE, READABLE, WRITABLE
from gpu_provider.tls.terminator.progress import Progress
from gpu_provider.tls.terminator.relay import Relay
from gpu_provider.tls.terminator.upstream_tls import EncryptedSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpu_provider.tls.connection import Socket
    from gpu_provider.tls.terminator.config import TerminatorConfig
    from gpu_provider.tls.terminator.shared import Shared
    from gpu_provider.tls.terminator.trace import Trace

__all__ = ["STATE_SECONDS", "Session", "State"]

_IDLE_LOOKS = 4
"""How often to look for progress within idle_timeout."""

_LINGER_SECONDS = 2.0
_DROP_ROUNDS = 8
"""Buffers to read and drop before others get their turn."""


class State(IntEnum):
    """Ints, because each connection looks them up in a dict, and the hash of any other Enum is computed in Python."""

    HANDSHAKE = auto()
    CONNECTING = auto()
    RELAY = auto()
    LINGER = auto()
    ENDED = auto()


STATE_SECONDS: Mapping[State, Callable[[TerminatorConfig], float]] = {
    State.HANDSHAKE: lambda config: config.handshake_timeout,
    State.CONNECTING: lambda config: config.connect_timeout,
    State.RELAY: lambda config: config.idle_timeout / _IDLE_LOOKS,
    State.LINGER: lambda _: _LINGER_SECONDS,
    State.ENDED: lambda _: 0,
}
"""The deadline of each state: seconds after which :meth:`Session.expire` is called; 0: never."""


class _Borrowed:
    """The client's socket as the Connection sees it. The poller closes the socket itself, at the end of a burst."""

    __slots__ = ("fileno",)

    def __init__(self, sock: socket.socket) -> None:
        self.fileno = sock.fileno

    def close(self) -> None:
        pass


class Session:
    """See the top of this module. It owns its accepted, non-blocking socket from :meth:`start` on."""

    __slots__ = (
        "_connecting", "_deadline", "_header", "_own_address", "_progress", "_quiet_looks", "_reason", "_relay",
        "_result", "_shared", "_waits_for", "client", "connection", "state", "trace", "upstream",
    )  # fmt: skip

    def __init__(self, shared: Shared, client: socket.socket, trace: Trace) -> None:
        """Raises tls.Error if libssl has no memory for one more connection."""
        self.state = State.HANDSHAKE
        self._deadline = shared.deadlines[State.HANDSHAKE]
        self.client = client
        self.upstream: socket.socket | EncryptedSocket | None = None
        self.connection = tls.Connection(shared.context, _Borrowed(client))
        self.connection.set_accept_state()
        self._shared = shared
        self.trace = trace
        self._waits_for = READABLE  # the events that let the handshake go on
        self._own_address: Any = None  # which the client has connected to
        self._header = b""  # what the upstream is to get before the client's bytes
        self._connecting: Connecting | None = None
        self._relay: Relay | None = None
        self._progress = Progress()
        self._quiet_looks = 0
        self._result = self._reason = ""  # how a lingering session ended; a failed handshake is counted already

    def start(self) -> None:
        shared = self._shared
        if shared.proxy_version:
            # Now: a client that is reset later has no address any more, but may have sent all that it wanted to.
            try:
                self._own_address = self.client.getsockname()
            except OSError as error:
                self._handshake_failed("client_gone", os.strerror(error.errno or 0))
                return
        shared.notifier.attach(self.connection, self._resume)
        self._enter(State.HANDSHAKE)
        shared.poller.add(self.client, self._on_client)
        self._handshake()  # the client's first bytes are often here by now
        if self.state is State.HANDSHAKE and self._waits_for == READABLE and not self.connection.bytes_read():
            self.trace.heard_nothing()

    def _enter(self, state: State) -> None:
        """The only place where the state changes, and with it the deadline."""
        self._deadline.stop(self)
        if self.state is State.HANDSHAKE and state is not State.HANDSHAKE:
            self._shared.metrics.in_handshake -= 1
            self._shared.newcomers.ended(self.trace.client)
        self.state = state
        self._deadline = self._shared.deadlines[state]
        self._deadline.start(self)

    def has(self, descriptor: int) -> bool:
        """Whether one of its sockets has this descriptor."""
        sockets: list[Socket] = [self.client, *([self.upstream] if self.upstream else ())]
        if self._connecting is not None:
            sockets += self._connecting.sockets
        return any(sock.fileno() == descriptor for sock in sockets)

    def do(self, action: Callable[[], None]) -> None:
        """Does a part of this session's work that is no handler of the poller's. Without memory for it, this session
        ends, and no other is harmed."""
        try:
            action()
        except MemoryError:
            self._shared.out_of_memory()
            self.abort("out_of_memory")

    def again(self, action: Callable[[], None]) -> None:
        """Does it in the loop's next turn, so that others get their turn first."""
        self._shared.poller.again(functools.partial(self.do, action))

    def expire(self) -> None:
        """The deadline of the present state has passed."""
        self.do(self._expire)

    def _expire(self) -> None:
        match self.state:
            case State.HANDSHAKE:
                waits = "the RSA operation" if self.trace.paused else "the client"
                self._handshake_failed("timeout", f"waited for {waits}")
            case State.CONNECTING:
                self._upstream_failed(UpstreamFailure.of(errno.ETIMEDOUT))
            case State.RELAY:
                self._look_for_progress()
            case State.LINGER:
                if self._progress.seen(self.client):
                    self._deadline.start(self)
                else:
                    self._end_linger()

    def abort(self, result: str = "forced") -> None:
        """Ends the session whatever it is doing, without telling either side."""
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
                self._shared.metrics.sessions[result] += 1
                self._shared.log.ended(self.trace, self.connection, result, reason)
            self._close()

    def moved(self) -> None:
        """Decrypted bytes came from or went to either side: restarts idle_timeout. A client's key updates and the like
        are no reason to keep its session."""
        self._quiet_looks = 0
        self._progress.forget()
        self._deadline.start(self)

    def linger(self, result: str, reason: str = "") -> None:
        """Ends both directions, but lets the client read what was sent to it: close_notify, an alert, or data."""
        self._enter(State.LINGER)
        self._result, self._reason = result, reason
        self._progress.seen(self.client)
        self._drop_upstream()
        try:
            self.client.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone already
            self._end_linger()
            return
        self._shared.poller.set_handler(self.client, self._drop_input)
        self._drop_input()

    # ---- HANDSHAKE ----

    def _resume(self) -> None:
        self.do(self._handshake)

    def _on_client(self, events: int) -> None:
        if self.state is State.HANDSHAKE:
            if events & READABLE:
                self.trace.hears()
            # After a reset too: what came before it may be all of a short stream.
            if events & self._waits_for:
                self._handshake()
            if events & GONE and self.state is State.HANDSHAKE:
                self._handshake_failed("client_gone", "the connection was reset")

    def _handshake(self) -> None:
        if self.state is not State.HANDSHAKE:
            return
        self.trace.resume()
        try:
            with self._shared.notifier.turn:
                self.connection.do_handshake()
        except tls.WantReadError:
            self._waits_for = READABLE
            self._computed()
        except tls.WantAsyncError:
            self._waits_for = 0
            self.trace.pause(len(self._shared.notifier.waiting))
        except tls.WantWriteError:
            self._waits_for = WRITABLE
        except tls.WantAsyncJobError:
            self._waits_for = 0
            self._shared.notifier.when_job_ends(self._resume)
        except tls.SysCallError as error:
            self._handshake_failed("client_gone", str(error))
        except tls.Error as error:
            if handshake_failure(str(error)) == OUT_OF_MEMORY:
                self._shared.out_of_memory()
            self._handshake_failed("failed", str(error))
        else:
            self._computed()
            self._handshake_done()

    def _computed(self) -> None:
        """The handshake has gone on, after its private operation if that was the last that it waited for."""
        if self.trace.waited_with:
            self._shared.overload.computed(self.trace.waited_with, self.trace.rsa_seconds)
            self.trace.waited_with = 0

    def _handshake_failed(self, result: str, reason: str) -> None:
        self.trace.resume()
        label = handshake_failure(reason) if result == "failed" else result
        seconds = self.trace.seconds if self.connection.bytes_read() else None
        self._shared.metrics.handshake_failed(result, label, seconds)
        self._shared.log.ended(self.trace, self.connection, label, reason)
        if result == "failed":
            self.linger("")  # the client is to read the alert
        else:
            self._close()

    def _handshake_done(self) -> None:
        connection = self.connection
        resumed = connection.session_reused()
        self._shared.metrics.handshake_done(
            self.trace.finish_handshake(),
            connection.get_protocol_version_name(),
            None if resumed else connection.get_async_status(),
        )
        if self._shared.proxy_version or self._shared.verifies_clients:
            self._introduce_client()
        # No private operation follows on this side: reads and writes need no job from here on.
        connection.clear_mode(constants.SSL_MODE_ASYNC)
        self._enter(State.CONNECTING)
        alpn = b"" if self._shared.upstream_tls is None else connection.get_alpn_proto_negotiated()
        self._connecting = Connecting(self._shared, self._connected, self._upstream_failed, self._header, alpn)
        self._connecting.start()

    def _introduce_client(self) -> None:
        facts, version = client_facts(self.connection), self._shared.proxy_version
        if version:
            addresses = self.trace.client, self._own_address
            self._header = proxy_protocol.header(version, self.client.family, *addresses, facts)
        if version != 2 and facts.subject is not None:  # else the upstream is told
            self._shared.log.client_certificate(self.trace, facts)

    # ---- CONNECTING ----

    def _upstream_failed(self, failure: UpstreamFailure) -> None:
        """Tells the client by a proper end of the TLS connection, since no part of an answer was lost."""
        assert self._connecting is not None  # noqa: S101  it has failed, or was too slow
        self.trace.upstream = self._connecting.address
        self._shared.upstream_failed(failure)
        reason = failure.reason
        if failure.error == errno.ECONNRESET:  # it was connected, so part of an answer may be lost
            self.linger("upstream_reset", reason)
            return
        try:
            self.connection.shutdown()
        except tls.Error:  # the client is gone already
            self.end("upstream_unreachable", reason)
        else:
            self.linger("upstream_unreachable", reason)

    def _connected(self, upstream: socket.socket | EncryptedSocket, events: int) -> None:
        assert self._connecting is not None  # noqa: S101  it calls
        self.trace.connect(self._connecting.address)
        self._connecting, self.upstream = None, upstream
        self._enter(State.RELAY)
        first = b"" if isinstance(upstream, EncryptedSocket) else self._header  # it was sent before the handshake
        self._relay = relay = Relay(self, upstream, self._shared, first)
        self._shared.poller.set_handler(self.client, relay.on_client)
        self._shared.poller.set_handler(upstream, relay.on_upstream)
        relay.start(events)

    # ---- RELAY ----

    def _look_for_progress(self) -> None:
        assert self.upstream is not None  # noqa: S101  the state says so
        self._quiet_looks = 0 if self._progress.seen(self.client, self.upstream) else self._quiet_looks + 1
        if self._quiet_looks < _IDLE_LOOKS:
            self._deadline.start(self)
        else:
            self.end("idle_timeout")

    # ---- LINGER and ENDED ----

    def _end_linger(self) -> None:
        self.end(self._result, self._reason)

    def _drop_input(self, _events: int = 0) -> None:
        if self.state is not State.LINGER:
            return
        try:
            for _ in range(_DROP_ROUNDS):
                if not self.client.recv_into(self._shared.buffer):
                    self._end_linger()
                    return
        except BlockingIOError:
            return
        except OSError:
            self._end_linger()
            return
        self.again(self._drop_input)

    def _close(self) -> None:
        self._enter(State.ENDED)
        self._drop_upstream()
        # Takes the SSL off the descriptor, and keeps it by itself if its job still waits for a batch.
        self.connection.close()
        self._shared.poller.discard(self.client)
        self._shared.ended(self)

    def _drop_upstream(self) -> None:
        if self._connecting is not None:
            self._connecting.stop()
            self._connecting = None
        if self._relay is not None:
            self._relay.stop()
            self._relay = None
        if self.upstream is not None:
            self._shared.poller.discard(self.upstream)
            self.upstream = None
