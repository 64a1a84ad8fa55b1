"""The terminator's life: start, serve, react to signals, drain, end."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import time
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry

from gpu_provider import BatchingProvider
from gpu_provider.errors import ConfigError
from gpu_provider.tls import TicketKeys
from gpu_provider.tls.terminator.addresses import Resolved, format_address, resolve
from gpu_provider.tls.terminator.admin import AdminServer
from gpu_provider.tls.terminator.certificate_checks import date
from gpu_provider.tls.terminator.certificates import load_certificates
from gpu_provider.tls.terminator.checks import check_settings
from gpu_provider.tls.terminator.listening import listen, raise_descriptor_limit
from gpu_provider.tls.terminator.logs import configure_logging
from gpu_provider.tls.terminator.metrics import TerminatorMetrics
from gpu_provider.tls.terminator.server import Server

if TYPE_CHECKING:
    import socket

    from gpu_provider.tls.terminator.certificates import Certificate, Certificates
    from gpu_provider.tls.terminator.config import TerminatorConfig

__all__ = ["EXIT_CLEAN", "EXIT_FORCED", "check", "run"]

EXIT_CLEAN = 0
EXIT_FORCED = 3
"""Connections had to be cut off at the end."""

_OTHER_DESCRIPTORS = 128
_log = structlog.stdlib.get_logger(__name__)


def check(config: TerminatorConfig) -> list[str]:
    """Everything that can be checked without listening: files, keys, names, and how they fit together. Returns what is
    surely not meant, although it works. Raises ConfigError for what can't work."""
    certificates = load_certificates(config, None)
    expired = (
        f"certificate file {str(one.path)!r} has expired: it was valid until {date(one.not_after)}"
        for one in certificates.all
        if one.not_after < time.time()
    )
    return [*check_settings(config, _resolve_upstream(config)), *expired, *certificates.warnings]


def run(config: TerminatorConfig) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit code. Raises ConfigError if it can't start."""
    configure_logging(config.log_level)
    # Private keys are in this process's memory, and do not belong into a file on disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _check_descriptors(config)
    upstream = _resolve_upstream(config)
    for warning in check_settings(config, upstream):
        _log.warning(warning)
    listeners = listen(config.listen_address, "listen")
    admin_listeners = listen(config.admin_address, "admin") if config.admin_address is not None else []
    registry = CollectorRegistry()
    with BatchingProvider(config, registry=registry) as provider:
        terminator = Terminator(config, provider, upstream, registry)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(terminator.serve(listeners, admin_listeners))


class Terminator:
    """Puts the data port, the admin port and the signals together."""

    def __init__(
        self,
        config: TerminatorConfig,
        provider: BatchingProvider,
        upstream: tuple[Resolved, ...],
        registry: CollectorRegistry,
    ) -> None:
        self._config = config
        self._provider = provider
        self._upstream = upstream
        self._registry = registry
        self._ticket_keys = TicketKeys()
        self._metrics = TerminatorMetrics()
        registry.register(self._metrics)

    async def serve(self, listeners: list[socket.socket], admin_listeners: list[socket.socket]) -> int:
        """Raises ConfigError if it can't start."""
        loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[None]] = set()
        # The server alone keeps the certificates, so that a reload lets go of the keys that it replaces.
        server = Server(self._config, self._load_certificates(), self._upstream, self._metrics)
        admin = AdminServer(self._registry, self._is_ready)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._start_reload, server)
        await admin.start(admin_listeners)
        server.start(listeners)
        # What start-up made stays until the end: collections need not walk it again and again.
        gc.collect()
        gc.freeze()
        _report_certificates(self._metrics.certificates)
        _log.info(
            "ready",
            listen=[format_address(listener.getsockname()) for listener in listeners],
            upstream=self._config.upstream,
            admin=[format_address(listener.getsockname()) for listener in admin_listeners],
            backend=self._provider.stats().backend,
            event_loop=type(loop).__module__.partition(".")[0],
        )
        await self._stopping.wait()
        server.stop_accepting()
        _log.info("draining", connections=self._metrics.open, seconds=self._config.drain_timeout)
        clean = await server.drain(self._config.drain_timeout, self._hurry)
        for reload in self._reloads:
            reload.cancel()
        await asyncio.gather(*self._reloads, return_exceptions=True)
        await admin.close()
        server.close()
        stats = self._provider.stats()
        _log.info(
            "stopped",
            clean=clean,
            backend=stats.backend,
            requests=stats.submitted,
            batches=stats.batches,
            mean_batch=round(stats.mean_batch, 2),
            largest_batch=stats.largest_batch,
            retries=stats.retries,
            failed=stats.failed,
        )
        return EXIT_CLEAN if clean else EXIT_FORCED

    def _is_ready(self) -> tuple[bool, str]:
        if self._stopping.is_set():
            return False, "draining"
        return True, f"ready, computing with {self._provider.stats().backend}"

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            _log.warning("cutting connections off", signal=number.name)
            self._hurry.set()
        self._stopping.set()

    def _start_reload(self, server: Server) -> None:
        task = asyncio.get_running_loop().create_task(self._reload(server))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    def _load_certificates(self) -> Certificates:
        """Raises ConfigError."""
        certificates = load_certificates(self._config, self._provider, self._ticket_keys)
        for warning in certificates.warnings:
            _log.warning(warning)
        return certificates

    async def _reload(self, server: Server) -> None:
        async with self._reloading:
            try:
                certificates = await asyncio.to_thread(self._load_certificates)
            except ConfigError as error:
                self._metrics.reloads["failed"] += 1
                _log.error("certificates not reloaded, the old ones stay in use", reason=str(error))
                return
            server.use_certificates(certificates)
            self._metrics.reloads["ok"] += 1
            _report_certificates(certificates.all)
            _log.info("certificates reloaded", certificates=len(certificates.all))


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


def _resolve_upstream(config: TerminatorConfig) -> tuple[Resolved, ...]:
    try:
        return resolve(config.upstream_address, to_listen=False)
    except ConfigError as error:
        raise ConfigError(f"upstream: {error}") from None


def _check_descriptors(config: TerminatorConfig) -> None:
    wanted = 2 * config.max_connections + _OTHER_DESCRIPTORS
    limit = raise_descriptor_limit(wanted)
    if limit < wanted:
        _log.warning(
            "the limit of open files is too low for max_connections; raise it (ulimit -n), or lower max_connections",
            limit=limit,
            max_connections=config.max_connections,
            wanted=wanted,
        )


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    factory: type[asyncio.AbstractEventLoop] = uvloop.Loop
    return factory
