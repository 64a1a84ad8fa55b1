"""The data port: accepts connections, keeps their number under the cap, and knows them all until the last has ended."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import structlog

from gpu_provider import tls
from gpu_provider.errors import ConfigError
from gpu_provider.tls.terminator.addresses import Resolved, resolve
from gpu_provider.tls.terminator.connecting import Connecting, attempt_delay
from gpu_provider.tls.terminator.deadlines import Deadlines
from gpu_provider.tls.terminator.listening import seconds_since_input
from gpu_provider.tls.terminator.poller import Poller
from gpu_provider.tls.terminator.session import IDLE_LOOKS, Session, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpu_provider.tls.terminator.certificates import Certificates
    from gpu_provider.tls.terminator.config import TerminatorConfig
    from gpu_provider.tls.terminator.metrics import TerminatorMetrics

__all__ = ["Server"]

_ACCEPT_BURST = 64
_BUFFER_SIZE = 65536
"""Bytes per read. Also what each direction of a connection can hold back at most, when its receiver is slow."""
_DEFER_ACCEPT_SECONDS = 1
_LINGER_SECONDS = 2.0
_RESOLVE_AGAIN_SECONDS = 1.0
_NO_DESCRIPTOR_PAUSE_SECONDS = 0.1
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PROXY_VERSIONS = {"off": 0, "v1": 1, "v2": 2}


class Server:
    """Serves listening sockets on the running loop. ``upstream``: the addresses to relay to, tried in order."""

    def __init__(
        self,
        config: TerminatorConfig,
        certificates: Certificates,
        upstream: Sequence[Resolved],
        metrics: TerminatorMetrics,
    ) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self.log = structlog.stdlib.get_logger(__name__)
        self.metrics = metrics
        self.notifier = tls.LoopNotifier.of(loop)
        self.poller = Poller(loop)
        self.buffer = memoryview(bytearray(_BUFFER_SIZE))
        """Every read of every connection goes here: it is empty again before another handler runs."""
        self.upstream = upstream
        self.proxy_version = _PROXY_VERSIONS[config.proxy_protocol]
        self.handshakes = Deadlines(loop, config.handshake_timeout, Session.expire)
        self.connects = Deadlines(loop, config.connect_timeout, Session.expire)
        self.connect_timeout = config.connect_timeout
        self.attempts = Deadlines(loop, attempt_delay(config.connect_timeout), Connecting.expire)
        self.idle = Deadlines(loop, config.idle_timeout / IDLE_LOOKS, Session.expire)
        self.lingering = Deadlines(loop, _LINGER_SECONDS, Session.expire)
        self.deadlines = {
            State.HANDSHAKE: self.handshakes,
            State.CONNECTING: self.connects,
            State.RELAY: self.idle,
            State.LINGER: self.lingering,
        }
        self._config = config
        self._max_connections = metrics.max_connections = config.max_connections
        self._sessions: set[Session] = set()
        self._all_ended: asyncio.Future[None] | None = None
        self._listeners: list[socket.socket] = []
        self._accepting = False
        self._resolved_at = loop.time()
        self._resolving: asyncio.Task[None] | None = None
        self.use_certificates(certificates)

    def use_certificates(self, certificates: Certificates) -> None:
        """For connections accepted from now on. Earlier ones keep theirs."""
        self.context = certificates.context
        self.metrics.certificates = certificates.all

    # ---- accepting ----

    def start(self, listeners: list[socket.socket]) -> None:
        self._listeners = listeners
        for listener in listeners:
            # A TLS client speaks first, so the system may keep a connection until its first bytes are here. One that is
            # silent for longer than this is accepted all the same, and the handshake timeout ends it.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_ACCEPT_SECONDS)
        self._set_accepting(True)

    def _set_accepting(self, accepting: bool) -> None:
        if accepting != self._accepting:
            self._accepting = accepting
            for listener in self._listeners:
                if accepting:
                    self.loop.add_reader(listener.fileno(), self._accept, listener)
                else:
                    self.loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_BURST):
            if len(self._sessions) >= self._max_connections:
                self.metrics.limit_reached += 1
                self._set_accepting(False)
                return
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR:
                    raise
                self.log.warning("can't accept", reason=os.strerror(error.errno), open_connections=len(self._sessions))
                self._set_accepting(False)
                self.loop.call_later(_NO_DESCRIPTOR_PAUSE_SECONDS, self._accept_again)
                return
            client.setblocking(False)
            self.metrics.accepted += 1
            self.metrics.accept_queue.observe(seconds_since_input(client))
            try:
                session = Session(self, client)
            except tls.Error as error:
                self.log.warning("can't serve a connection", reason=str(error))
                client.close()
                continue
            self._sessions.add(session)
            self.metrics.open += 1
            session.start()

    def _accept_again(self) -> None:
        if self._listeners and len(self._sessions) < self._max_connections:
            self._set_accepting(True)

    # ---- for the sessions ----

    def session_ended(self, session: Session) -> None:
        self._sessions.discard(session)
        self.metrics.open -= 1
        if not self._accepting:
            self._accept_again()
        if self._all_ended is not None and not self._sessions and not self._all_ended.done():
            self._all_ended.set_result(None)

    def upstream_failed(self, error: int) -> None:
        """No address of the upstream took the connection. Its name may stand for others by now."""
        reason = errno.errorcode.get(error, str(error))
        self.metrics.upstream_failures[reason] += 1
        self.log.debug("upstream unreachable", upstream=self._config.upstream, reason=os.strerror(error))
        now = self.loop.time()
        if now - self._resolved_at >= _RESOLVE_AGAIN_SECONDS and (self._resolving is None or self._resolving.done()):
            self._resolved_at = now
            self._resolving = self.loop.create_task(self._resolve_again())

    async def _resolve_again(self) -> None:
        try:
            self.upstream = await asyncio.to_thread(resolve, self._config.upstream_address, to_listen=False)
        except ConfigError as error:
            self.log.warning("upstream name can't be resolved now", reason=str(error))

    # ---- the end ----

    def stop_accepting(self) -> None:
        """Closes the listening sockets, but serves those that are in their backlogs: their clients are connected."""
        for listener in self._listeners:
            if self._accepting:
                self._accept(listener)
        self._set_accepting(False)
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    async def drain(self, seconds: float, hurry: asyncio.Event) -> bool:
        """Waits until every connection has ended. Those that are left after ``seconds``, or when ``hurry`` is set, are
        cut off; False then."""
        if self._sessions:
            self._all_ended = self.loop.create_future()
            hurrying = self.loop.create_task(hurry.wait())
            either: set[asyncio.Future[Any]] = {self._all_ended, hurrying}
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            hurrying.cancel()
        left = len(self._sessions)
        for session in tuple(self._sessions):
            session.abort()
        if left:
            self.log.warning("connections cut off", connections=left)
        return not left

    def close(self) -> None:
        """After :meth:`stop_accepting` and :meth:`drain`."""
        if self._resolving is not None:
            self._resolving.cancel()
        self.attempts.close()
        for deadlines in self.deadlines.values():
            deadlines.close()
        self.poller.close()
        self.notifier.close()
