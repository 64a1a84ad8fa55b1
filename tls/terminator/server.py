"""The data port: accepts connections, caps their number, and knows all of them until the last has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import structlog

from gpu_provider import tls
from gpu_provider.addresses import format_address
from gpu_provider.observe.repeated import RepeatedWarnings
from gpu_provider.tls.terminator.connecting import Connecting, attempt_delay
from gpu_provider.tls.terminator.connection_log import ConnectionLog
from gpu_provider.tls.terminator.deadlines import Deadlines
from gpu_provider.tls.terminator.listening import arrival_of, defer_accept, refuse_newcomers
from gpu_provider.tls.terminator.newcomers import Newcomers
from gpu_provider.tls.terminator.overload import Overload
from gpu_provider.tls.terminator.poller import Poller
from gpu_provider.tls.terminator.session import STATE_SECONDS, Session, State
from gpu_provider.tls.terminator.shared import Shared
from gpu_provider.tls.terminator.shortage import OUT_OF_MEMORY, SHORTAGES, Shortage
from gpu_provider.tls.terminator.trace import Trace

if TYPE_CHECKING:
    import socket

    from gpu_provider.addresses import SocketAddress
    from gpu_provider.tls.terminator.certificates import Certificates
    from gpu_provider.tls.terminator.config import TerminatorConfig
    from gpu_provider.tls.terminator.failures import UpstreamFailure
    from gpu_provider.tls.terminator.metrics import TerminatorMetrics
    from gpu_provider.tls.terminator.upstreams import Upstreams

__all__ = ["Server"]

_ACCEPT_BURST = 64
_ACCEPT_BURST_OF_WORKER = 4
"""The others are to have their share."""

_BUFFER_SIZE = 65536
"""Bytes per read; also the most that each direction of a connection holds back if its receiver is slow."""
_SETTLE_SECONDS = 0.25
"""After SIGTERM, for connections that the system has begun: time for a round trip to the client."""

_SHORTAGE_PAUSE_SECONDS = 0.1
_OVERLOAD_PAUSE_SECONDS = 0.01
_OVERLOADED = "handshakes come faster than they can be done"
_REFUSALS = {
    "overload": f"{_OVERLOADED}, and these have waited for long, or their clients have left",
    "address": "handshakes_per_address are in progress",
}
_PROXY_VERSIONS = {"off": 0, "v1": 1, "v2": 2}


class Server:
    """Serves listening sockets on the running loop."""

    def __init__(
        self,
        config: TerminatorConfig,
        certificates: Certificates,
        upstreams: Upstreams,
        metrics: TerminatorMetrics,
        *,
        is_alone: bool = True,
    ) -> None:
        """``is_alone``: no other process accepts connections at the same sockets."""
        self._is_alone = is_alone
        self._loop = loop = asyncio.get_running_loop()
        self._log = structlog.stdlib.get_logger(__name__)
        self._metrics = metrics
        self._warnings = RepeatedWarnings()
        self._shared = Shared(
            log=ConnectionLog(config.access_log, loop),
            metrics=metrics,
            poller=Poller(loop, self._out_of_memory_at),
            notifier=tls.LoopNotifier.of(loop),
            buffer=memoryview(bytearray(_BUFFER_SIZE)),
            proxy_version=_PROXY_VERSIONS[config.proxy_protocol],
            verifies_clients=config.verify_client != "off",
            deadlines={
                state: Deadlines(loop, seconds(config), Session.expire) for state, seconds in STATE_SECONDS.items()
            },
            attempts=Deadlines(loop, attempt_delay(config.connect_timeout), Connecting.expire),
            connect_timeout=config.connect_timeout,
            overload=Overload(loop.time, config.handshake_timeout),
            newcomers=Newcomers(config.handshakes_per_address),
            ended=self._session_ended,
            upstream_failed=self._upstream_failed,
            out_of_memory=self.run_out_of_memory,
            context=certificates.context,
            upstreams=upstreams,
            upstream_tls=certificates.upstream_tls,
        )
        self._config = config
        self._max_connections = 0
        self._sessions: set[Session] = set()
        self._all_ended = asyncio.Event()
        self._listeners: list[socket.socket] = []
        self._accepting = False
        self.shortage = Shortage(loop, metrics.shortages)
        self._pause: asyncio.TimerHandle | None = None
        self._last_call = False
        """Close the listening sockets as soon as nobody waits there."""
        self.use_certificates(certificates)

    def use_certificates(self, certificates: Certificates) -> None:
        """Uses these for connections accepted from now on. Earlier ones keep theirs."""
        self._shared.context = certificates.context
        self._shared.upstream_tls = certificates.upstream_tls
        self._metrics.certificates = certificates.all
        self._metrics.client_crl_end = certificates.client_crl_end
        # Connections may still use earlier ones.
        self._shared.log.certificate_files |= {one.sha256: one.path for one in certificates.all}

    def last_failures(self) -> list[dict[str, Any]]:
        """The log's lines about the last connections that failed."""
        return list(self._shared.log.last_failures)

    # ---- accepting ----

    def start(self, listeners: list[socket.socket], max_connections: int) -> None:
        self._max_connections = self._metrics.max_connections = max_connections
        self._listeners = listeners
        for listener in listeners:
            defer_accept(listener)
        self._set_accepting(True)

    def _set_accepting(self, accepting: bool) -> None:
        if accepting != self._accepting:
            self._accepting = accepting
            for listener in self._listeners:
                if accepting:
                    self._loop.add_reader(listener.fileno(), self._accept, listener)
                else:
                    self._loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_BURST if self._is_alone else _ACCEPT_BURST_OF_WORKER):
            if len(self._sessions) >= self._max_connections:
                self._shared.overload.no_backlog()
                self._metrics.limit_reached += 1
                self._warnings.warn("new connections wait", reason=self._cap_reached)
                self._set_accepting(False)
            elif not self._shared.overload.has_room(len(self._shared.notifier.waiting)):
                self._metrics.overloads += 1
                self._warnings.warn("new connections wait", reason=_OVERLOADED)
                self._pause_accepting(_OVERLOAD_PAUSE_SECONDS)
            if not self._accepting:
                return
            try:
                client, address = listener.accept()
            except BlockingIOError:
                self._shared.overload.no_backlog()
                if self._last_call:
                    self._close_listener(listener)
                return
            except ConnectionAbortedError:
                continue
            except MemoryError:
                self.run_out_of_memory()
                return
            except OSError as error:
                self._run_short(os.strerror(error.errno or 0))
                return
            client.setblocking(False)
            arrival = arrival_of(client)
            self._metrics.accepted += 1
            self._metrics.accept_queue.observe(arrival.waited)
            if self._shared.overload.turns_away(arrival):
                self._refuse(client, address, "overload")
            elif not self._shared.newcomers.has_room(address):
                self._refuse(client, address, "address")
            else:
                self._serve(client, address, arrival.waited)

    def _refuse(self, client: socket.socket, address: SocketAddress, reason: str) -> None:
        """Closes it. What the client has sent is still unread, so the system resets the connection."""
        self._metrics.refused[reason] += 1
        self._warnings.warn("connections refused", reason=_REFUSALS[reason], last_client=format_address(address))
        client.close()

    def _serve(self, client: socket.socket, address: SocketAddress, waited: float) -> None:
        try:
            session = Session(self._shared, client, Trace(self._metrics.accepted, address, waited))
        except (tls.Error, MemoryError):
            self.run_out_of_memory()
            client.close()
            return
        self._sessions.add(session)
        self._shared.newcomers.began(address)
        self._metrics.open += 1
        self._metrics.in_handshake += 1
        try:
            session.start()
        except (tls.Error, MemoryError):
            self.run_out_of_memory()
            session.abort("out_of_memory")

    def _run_short(self, reason: str) -> None:
        """Something has run out. Open connections may give it back; until then no other is accepted."""
        self.shortage.notice(reason, len(self._sessions))
        self._shared.overload.no_backlog()
        self._pause_accepting(_SHORTAGE_PAUSE_SECONDS)

    def _pause_accepting(self, seconds: float) -> None:
        self._set_accepting(False)
        if self._pause is None:
            self._pause = self._loop.call_later(seconds, self._end_pause)

    def run_out_of_memory(self) -> None:
        self._run_short(OUT_OF_MEMORY)

    def _end_pause(self) -> None:
        self._pause = None
        self._accept_again()

    def _out_of_memory_at(self, descriptor: int) -> None:
        """A socket's handler ran out of memory. Its connection has lost that event, so it ends."""
        self.run_out_of_memory()
        for session in self._sessions:
            if session.has(descriptor):
                session.abort("out_of_memory")
                return

    def _accept_again(self) -> None:
        if self._listeners and self._pause is None and len(self._sessions) < self._max_connections:
            self._set_accepting(True)
            if self._last_call:  # a socket where nobody waits does not become readable, and would not be closed
                self._loop.call_soon(self._make_last_call)

    @property
    def why_connections_wait(self) -> str | None:
        """Why connections are not accepted at once now, if so."""
        if len(self._sessions) >= self._max_connections:
            return self._cap_reached
        return _OVERLOADED if self._shared.overload.present else None

    @property
    def _cap_reached(self) -> str:
        return f"{self._max_connections} are open, max_connections"

    # ---- for the sessions ----

    def _session_ended(self, session: Session) -> None:
        self._sessions.discard(session)
        self._metrics.open -= 1
        if not self._accepting:
            self._accept_again()
        self._look_for_end()

    def _upstream_failed(self, failure: UpstreamFailure) -> None:
        """No address of the upstream took the connection."""
        self._metrics.upstream_failures[failure.label] += 1
        if failure.error in SHORTAGES:
            self._run_short(failure.reason)

    # ---- the end ----

    def stop_accepting(self, *, for_others: bool = False) -> None:
        """Accepts only the connections that the system has begun, and then closes the listening sockets: at once or,
        with ``max_connections`` open, as soon as there is room. ``for_others``: leaves those connections to whoever has
        the sockets too."""
        if for_others:
            for listener in tuple(self._listeners):
                self._close_listener(listener)
            return
        settled = [self._is_alone and refuse_newcomers(listener) for listener in self._listeners]
        self._loop.call_later(_SETTLE_SECONDS if all(settled) else 0.0, self._make_last_call)

    def _make_last_call(self) -> None:
        self._last_call = True
        for listener in tuple(self._listeners):
            self._accept(listener)

    def _close_listener(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)
            if self._accepting:
                self._loop.remove_reader(listener.fileno())
            listener.close()
            self._look_for_end()

    def _look_for_end(self) -> None:
        if not self._sessions and not self._listeners:
            self._all_ended.set()

    async def drain(self, seconds: float, hurry: asyncio.Event) -> bool:
        """Waits, after :meth:`stop_accepting`, until every connection has ended. Those that are left after ``seconds``,
        or when ``hurry`` is set, are cut off; it then returns False."""
        either = [self._loop.create_task(event.wait()) for event in (self._all_ended, hurry)]
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in either:
            task.cancel()
        # A client that lingers has got everything.
        left = sum(session.state is not State.LINGER for session in self._sessions) + self._turn_away()
        for session in tuple(self._sessions):
            session.abort()
        if left:
            self._log.warning("connections cut off", connections=left)
        return not left

    def _turn_away(self) -> int:
        """Closes the listening sockets that are still open. Returns how many connections were waiting there."""
        waiting = 0
        for listener in tuple(self._listeners):
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    waiting += 1
            self._close_listener(listener)
        return waiting

    def close(self) -> None:
        """Call it after :meth:`stop_accepting` and :meth:`drain`."""
        self._shared.upstreams.close()
        if self._pause is not None:
            self._pause.cancel()
        self._shared.log.close()
        self._shared.attempts.close()
        for deadlines in self._shared.deadlines.values():
            deadlines.close()
        self._shared.poller.close()
        self._shared.notifier.close()
