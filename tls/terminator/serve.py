"""Checks the settings, starts the process's parts, and ends with the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from gpu_provider import BatchingProvider
from gpu_provider.errors import ConfigError, GpuProviderError
from gpu_provider.observe.logs import configure_logging
from gpu_provider.service.provider import ServiceProvider
from gpu_provider.signals import SignalHandlers
from gpu_provider.tls.terminator.certificate_checks import date
from gpu_provider.tls.terminator.certificates import load_certificates
from gpu_provider.tls.terminator.checks import check_settings
from gpu_provider.tls.terminator.lifecycle import EXIT_FAILED, Terminator
from gpu_provider.tls.terminator.listening import raise_descriptor_limit
from gpu_provider.tls.terminator.master import Master
from gpu_provider.tls.terminator.metrics import TerminatorMetrics
from gpu_provider.tls.terminator.sockets import LISTEN_IS_MISSING, Sockets
from gpu_provider.tls.terminator.upstreams import resolve_upstreams

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from gpu_provider.addresses import Resolved
    from gpu_provider.observe.logs import BackgroundWriter
    from gpu_provider.tls.terminator.computing import Computing
    from gpu_provider.tls.terminator.config import TerminatorConfig
    from gpu_provider.tls.terminator.lifecycle import Worker

__all__ = ["check", "run", "run_worker"]

_LAST_LINES_SECONDS = 1.0
_log = structlog.stdlib.get_logger(__name__)


@contextlib.contextmanager
def _start_errors() -> Iterator[None]:
    """Turns whatever keeps it from starting into a ConfigError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except (GpuProviderError, OSError) as error:
        raise ConfigError(str(error)) from None
    except MemoryError:
        raise ConfigError("there is not enough memory to start; raise its limit (ulimit -v)") from None


@_start_errors()
def check(config: TerminatorConfig) -> list[str]:
    """Checks everything that needs no listening: files, keys, names, and how they fit together. Returns warnings about
    what works but is surely a mistake. Raises ConfigError for what can't work."""
    if not config.listen:
        raise ConfigError(LISTEN_IS_MISSING)
    certificates = load_certificates(config, None)
    expired = (
        f"certificate file {str(one.path)!r} has expired: it was valid until {date(one.not_after)}"
        for one in certificates.all
        if one.not_after < time.time()
    )
    upstream = resolve_upstreams(config.upstream_addresses)
    return [*check_settings(config, upstream), *expired, *certificates.warnings]


def run(config: TerminatorConfig) -> int:
    """Serves until a signal ends it. Returns the exit code. Raises ConfigError if it can't start."""
    signals = SignalHandlers()
    try:
        return _run(config, signals)
    finally:
        signals.ignore_all()


@_start_errors()
def _run(config: TerminatorConfig, signals: SignalHandlers) -> int:
    log = _prepare(config)
    upstream = resolve_upstreams(config.upstream_addresses)
    for warning in check_settings(config, upstream):
        _log.warning(warning)
    sockets = Sockets.open(config)
    if config.workers > 1:
        load_certificates(config, None)  # what is wrong is said once, and here
        master = Master(config)
        with asyncio.Runner() as runner:
            code = runner.run(master.serve(sockets, signals))
            signals.ignore_all()
            return code
    return _serve(config, upstream, log, signals, sockets=sockets)


def run_worker(config: TerminatorConfig, listeners: list[socket.socket], worker: Worker) -> int:
    """Like :func:`run`, for one of several processes."""
    signals = SignalHandlers()
    try:
        with _start_errors():
            log = _prepare(config, worker=worker.number)
            upstream = resolve_upstreams(config.upstream_addresses)
            return _serve(config, upstream, log, signals, sockets=Sockets(listeners, []), worker=worker)
    finally:
        signals.ignore_all()


def _prepare(config: TerminatorConfig, **of_each_line: object) -> BackgroundWriter:
    log = configure_logging(config.log_level, **of_each_line)
    # Private keys are in this process's memory, and must not end up in a file on disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    raise_descriptor_limit(config.max_connections)
    return log


def _serve(
    config: TerminatorConfig,
    upstream: Sequence[tuple[Resolved, ...]],
    log: BackgroundWriter,
    signals: SignalHandlers,
    *,
    sockets: Sockets,
    worker: Worker | None = None,
) -> int:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    with contextlib.ExitStack() as stack:
        computing: Computing
        if config.service is not None:
            computing = ServiceProvider(config.service)
        else:
            computing = stack.enter_context(BatchingProvider(config, registry=registry))
        metrics = TerminatorMetrics(log)
        terminator = Terminator(config, computing, upstream, registry=registry, metrics=metrics, worker=worker)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            try:
                code = runner.run(terminator.serve(sockets, signals))
            except MemoryError:
                if not terminator.has_started:
                    raise
                _log.error("ending, because this process can't go on", reason="out of memory")
                code = EXIT_FAILED
            signals.ignore_all()
            if code == EXIT_FAILED:
                # Its threads may be in any state, so don't wait for them.
                log.wait_written(_LAST_LINES_SECONDS)
                os._exit(code)
            return code


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop's loop, if it is installed."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    factory: type[asyncio.AbstractEventLoop] = uvloop.Loop
    return factory
