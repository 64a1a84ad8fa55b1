"""The terminator's life on its event loop: serve, react to signals, reload, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from gpu_provider.addresses import format_address
from gpu_provider.errors import GpuProviderError
from gpu_provider.observe.admin import AdminServer
from gpu_provider.service.provider import ServiceProvider
from gpu_provider.supervised import Supervised
from gpu_provider.systemd import Systemd
from gpu_provider.tls import TicketKeys
from gpu_provider.tls.terminator.background import in_background
from gpu_provider.tls.terminator.certificate_checks import date
from gpu_provider.tls.terminator.certificates import load_certificates
from gpu_provider.tls.terminator.computing import backend_name, failure_of, pulse_of, totals
from gpu_provider.tls.terminator.listening import connections_allowed
from gpu_provider.tls.terminator.server import Server
from gpu_provider.tls.terminator.upstreams import Upstreams
from gpu_provider.tls.terminator.watching import look_at_files, watch

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from prometheus_client import CollectorRegistry

    from gpu_provider.addresses import Resolved
    from gpu_provider.signals import SignalHandlers
    from gpu_provider.tls.terminator.certificates import Certificate, Certificates
    from gpu_provider.tls.terminator.computing import Computing
    from gpu_provider.tls.terminator.config import TerminatorConfig
    from gpu_provider.tls.terminator.metrics import TerminatorMetrics
    from gpu_provider.tls.terminator.sockets import Sockets

__all__ = ["EXIT_CLEAN", "EXIT_FAILED", "EXIT_FORCED", "Terminator", "Worker", "is_set_within"]

EXIT_CLEAN = 0
EXIT_FORCED = 3
"""Connections had to be cut off at the end."""
EXIT_FAILED = 4
"""It ended by itself, because it could not go on."""

_SECOND_SIGNAL_SECONDS = 1.0
"""Signals that come together, as from a supervisor to the process and to its group, count as one."""
_END_SECONDS = 5.0
"""For a process that has not even enough memory to end in order."""
_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Worker:
    """What one of several processes has from the master that started it."""

    number: int
    connection: socket.socket
    """With the master."""
    ticket_keys: int
    """The descriptor of the memory where all have the keys of session tickets."""


class Terminator:
    """Puts the data port, the admin port and the signals together."""

    def __init__(
        self,
        config: TerminatorConfig,
        computing: Computing,
        upstream: Sequence[tuple[Resolved, ...]],
        *,
        registry: CollectorRegistry,
        metrics: TerminatorMetrics,
        worker: Worker | None = None,
    ) -> None:
        self._config = config
        self._computing = computing
        self._worker = worker
        self._systemd = Systemd()
        self._upstream = upstream
        self._registry = registry
        self._ticket_keys = TicketKeys(memory=worker.ticket_keys if worker is not None else None)
        self._metrics = metrics
        self._stopped_at = 0.0
        self._failure: str | None = None
        self.has_started = False
        registry.register(metrics)

    async def serve(self, sockets: Sockets, signals: SignalHandlers) -> int:
        """Raises ConfigError if it can't start."""
        self._loop = loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[None]] = set()
        files = look_at_files(self._config)
        upstreams = Upstreams(self._config.upstream_addresses, self._upstream)
        self._metrics.upstreams = upstreams.paused
        # Only the server keeps the certificates, so that a reload frees the keys that it replaces.
        self._server = server = Server(
            self._config, self._load_certificates(), upstreams, self._metrics, is_alone=self._worker is None
        )
        seen = self._registry, self._is_ready
        admin = AdminServer(*seen, failures=server.last_failures)
        supervised = Supervised(self._worker.connection, *seen, server.last_failures) if self._worker else None
        loop.set_exception_handler(self._on_loop_error)
        signals.deliver_to(loop, self._on_signal)
        if isinstance(self._computing, ServiceProvider):
            self._computing.fire_callbacks_on(loop)
        await admin.start(sockets.admin)
        if supervised is not None:
            await supervised.start()
        server.start(sockets.listeners, _connections_allowed(self._config))
        # What start-up created stays until the end: garbage collections need not walk it again and again.
        gc.collect()
        gc.freeze()
        _report_certificates(self._metrics.certificates)
        _log.info(
            "ready" if self._worker is None else "worker is ready",
            listen=[format_address(listener.getsockname()) for listener in sockets.listeners],
            upstream=self._config.upstream,
            admin=[format_address(listener.getsockname()) for listener in sockets.admin],
            backend=backend_name(self._computing),
            event_loop=type(loop).__module__.partition(".")[0],
        )
        self.has_started = True
        watching = loop.create_task(watch(self._config, files, self._start_reload))
        pulse = pulse_of(self._computing)
        if supervised is not None:
            supervised.tell("ready")
        self._systemd.ready()
        sockets.accepting(self._config.handover, self._stop)
        while not await is_set_within(self._stopping, self._systemd.look_seconds):
            self._systemd.alive(pulse)
            self._look_for_failure()
        self._systemd.stopping()
        if supervised is not None:
            supervised.tell("stopping")
        await self._stop_accepting(sockets, admin)
        _log.info("draining", connections=self._metrics.open, seconds=self._config.drain_timeout)
        clean = await server.drain(self._config.drain_timeout, self._hurry)
        for reload in (watching, *self._reloads):
            reload.cancel()
        await asyncio.gather(watching, *self._reloads, return_exceptions=True)
        await admin.close()
        server.close()
        _log.info(
            "stopped" if self._worker is None else "worker has stopped",
            clean=clean,
            backend=backend_name(self._computing),
            **totals(self._computing),
        )
        if supervised is not None:
            await supervised.close()
        if self._failure is not None:
            return EXIT_FAILED
        return EXIT_CLEAN if clean else EXIT_FORCED

    async def _stop_accepting(self, sockets: Sockets, admin: AdminServer) -> None:
        if sockets.kept:
            await admin.close()  # a successor answers there
        elif self._config.drain_delay and self._failure is None:
            _log.info("still accepting connections", seconds=self._config.drain_delay)
            await is_set_within(self._hurry, self._config.drain_delay)
        sockets.close()
        self._server.stop_accepting(for_others=sockets.kept)

    def _is_ready(self) -> tuple[bool, str]:
        not_ready = self._failure or failure_of(self._computing) or self._server.shortage.present
        if not_ready is None and self._stopping.is_set():
            not_ready = "draining"
        if not_ready is not None:
            return False, not_ready
        ready = f"ready, computing with {backend_name(self._computing)}"
        waiting = self._server.why_connections_wait
        return True, ready if waiting is None else f"{ready}; new connections wait: {waiting}"

    # ---- signals ----

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            self._start_reload()
        elif not self._stopping.is_set():
            self._stop()
        elif self._loop.time() - self._stopped_at >= _SECOND_SIGNAL_SECONDS:
            _log.warning("cutting connections off", signal=number.name)
            self._hurry.set()

    def _stop(self) -> None:
        self._stopped_at = self._loop.time()
        self._stopping.set()

    # ---- failures that end it ----

    def _look_for_failure(self) -> None:
        if (failure := failure_of(self._computing)) is not None:
            self._fail(failure)
        elif self._server.shortage.hopeless:
            self._fail("out of memory, and it does not pass")

    def _fail(self, reason: str) -> None:
        """Ends as on a signal: whoever started this process can restart it."""
        if self._failure is None:
            self._failure = reason
            _log.error("ending, because this process can't go on", reason=reason)
        if not self._stopping.is_set():
            self._stop()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback of the loop raised an exception."""
        if not isinstance(context.get("exception"), MemoryError):
            loop.default_exception_handler(context)
            return
        # It belongs to no connection, or to an unknown one: what it left undone is unknown.
        self._server.run_out_of_memory()
        self._fail("out of memory")
        ending_for = loop.time() - self._stopped_at
        if ending_for > _SECOND_SIGNAL_SECONDS:
            self._hurry.set()
        if ending_for > _END_SECONDS:
            os._exit(EXIT_FAILED)

    # ---- certificates ----

    def _start_reload(self) -> None:
        if len(self._reloads) > 1:  # the one that waits will read the files later
            return
        task = self._loop.create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reload_ended)

    def _reload_ended(self, task: asyncio.Task[None]) -> None:
        self._reloads.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._metrics.reloads["failed"] += 1
        expected = isinstance(error, (GpuProviderError, MemoryError, OSError))
        _log.error(
            "certificates not reloaded, the old ones stay in use",
            reason=str(error) or type(error).__name__,
            exc_info=None if expected else error,
        )

    def _load_certificates(self) -> Certificates:
        """Raises ConfigError."""
        certificates = load_certificates(self._config, self._computing, self._ticket_keys)
        for warning in certificates.warnings:
            _log.warning(warning)
        return certificates

    async def _reload(self) -> None:
        async with self._reloading:
            certificates = await in_background(self._load_certificates)
            self._server.use_certificates(certificates)
            self._metrics.reloads["ok"] += 1
            _report_certificates(certificates.all)
            _log.info("certificates reloaded", certificates=len(certificates.all))


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Waits so long for it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _report_certificates(certificates: tuple[Certificate, ...]) -> None:
    for certificate in certificates:
        expired = certificate.not_after < time.time()
        log = _log.warning if expired else _log.info
        log(
            "certificate has expired" if expired else "certificate",
            file=str(certificate.path),
            names=list(certificate.names),
            key_type=certificate.key_type,
            expires=date(certificate.not_after),
        )


def _connections_allowed(config: TerminatorConfig) -> int:
    allowed = connections_allowed(config.max_connections)
    if allowed < config.max_connections:
        _log.warning(
            "max_connections is lowered to what the limit of open files allows; raise it to have more (ulimit -n)",
            max_connections=config.max_connections,
            lowered_to=allowed,
        )
    return allowed
