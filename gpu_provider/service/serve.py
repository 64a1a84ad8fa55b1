"""Starts the service's parts, and ends with the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import ProcessCollector

from gpu_provider.addresses import format_address
from gpu_provider.errors import ConfigError, GpuProviderError
from gpu_provider.listening import listen
from gpu_provider.observe.admin import AdminServer
from gpu_provider.observe.logs import configure_logging
from gpu_provider.provider import BatchingProvider
from gpu_provider.service.keys import ServiceKeys
from gpu_provider.service.listening import listening
from gpu_provider.service.metrics import ServiceMetrics
from gpu_provider.service.processes import Processes
from gpu_provider.signals import SignalHandlers
from gpu_provider.supervised import Supervised
from gpu_provider.systemd import Systemd

if TYPE_CHECKING:
    import socket

    from gpu_provider.service.config import ServiceConfig

__all__ = ["run"]

EXIT_FAILED = 4
_LAST_LINES_SECONDS = 1.0
_OUT_OF_MEMORY = "out of memory"
_ROOM_WITHOUT_GPU = 64
"""Requests that are in the batching provider's queue at a time. More would only make a program wait behind another
that has many; the rest stay in the programs' own queues, which take turns."""
_log = structlog.stdlib.get_logger(__name__)


def run(config: ServiceConfig, parent: socket.socket | None = None) -> int:
    """Serves until a signal ends it. Returns the exit code. Raises ConfigError if it can't start. ``parent``: the
    connection with it, of a :class:`gpu_provider.supervised.Supervised`."""
    signals = SignalHandlers()
    try:
        return _run(config, signals, parent)
    finally:
        signals.ignore_all()


def _run(config: ServiceConfig, signals: SignalHandlers, parent: socket.socket | None) -> int:
    log = configure_logging(config.log_level)
    # Private keys are in this process's memory, and must not end up in a file on disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _raise_descriptor_limit()
    try:
        systemd = Systemd()
        with (
            BatchingProvider(config) as provider,
            listening(config) as listener,
            asyncio.Runner() as runner,
        ):
            admin_listeners = listen(config.admin_address, "admin") if config.admin_address is not None else []
            metrics = ServiceMetrics(config.max_processes, log)
            provider.registry.register(metrics)
            ProcessCollector(registry=provider.registry)
            serving = _serve(
                config,
                provider,
                listener,
                signals,
                parent,
                systemd=systemd,
                admin_listeners=admin_listeners,
                metrics=metrics,
            )
            try:
                code = runner.run(serving)
            except MemoryError:
                _log.error("ending, because this process can't go on", reason=_OUT_OF_MEMORY)
                code = EXIT_FAILED
            if code == EXIT_FAILED:
                # Its threads may be in any state, so don't wait for them.
                log.wait_written(_LAST_LINES_SECONDS)
                os._exit(code)
            return code
    except (GpuProviderError, OSError) as error:
        raise ConfigError(str(error)) from None
    except MemoryError:
        raise ConfigError("there is not enough memory to start; raise its limit (ulimit -v)") from None


def _raise_descriptor_limit() -> None:
    """Each paused connection of a program is a descriptor here too."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(
    config: ServiceConfig,
    provider: BatchingProvider,
    listener: socket.socket,
    signals: SignalHandlers,
    parent: socket.socket | None,
    *,
    systemd: Systemd,
    admin_listeners: list[socket.socket],
    metrics: ServiceMetrics,
) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    processes = Processes(provider.client, config, _room(provider, config), metrics)
    keys = ServiceKeys(provider, config.service_key)
    keys.load(processes.name_key)
    failures: list[str] = []

    def on_signal(number: signal.Signals) -> None:
        if number != signal.SIGHUP:
            stopping.set()
        elif config.service_key:
            _load_again(keys, processes)

    def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), MemoryError):  # of no program: what it left undone is unknown
            failures.append(_OUT_OF_MEMORY)
            stopping.set()
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(on_loop_error)
    signals.deliver_to(loop, on_signal)

    def is_ready() -> tuple[bool, str]:
        failure = provider.failure
        return failure is None, failure or f"ready, computing with {provider.stats().backend}"

    admin = AdminServer(provider.registry, is_ready)
    await admin.start(admin_listeners)
    supervised = Supervised(parent, provider.registry, is_ready) if parent is not None else None
    if supervised is not None:
        await supervised.start()
    processes.start(listener)
    _log.info(
        "ready" if supervised is None else "service is ready",
        socket=listener.getsockname(),
        admin=[format_address(admin_listener.getsockname()) for admin_listener in admin_listeners],
        backend=provider.stats().backend,
    )
    if supervised is not None:
        supervised.tell("ready")
    systemd.ready()
    while not failures and not stopping.is_set():
        systemd.alive(provider.pulse)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), systemd.look_seconds)
        if provider.failure is not None:
            failures.append(provider.failure)
        processes.set_room(_room(provider, config))
    systemd.stopping()
    if failures:
        _log.error("ending, because this process can't go on", reason=failures[0])
    processes.close()
    await admin.close()
    stats = provider.stats()
    _log.info(
        "stopped" if supervised is None else "service has stopped",
        batches=stats.batches,
        mean_batch=round(stats.mean_batch, 2),
    )
    if supervised is not None:
        await supervised.close()
    return EXIT_FAILED if failures else 0


def _load_again(keys: ServiceKeys, processes: Processes) -> None:
    try:
        changed = keys.load(processes.name_key)
    except ConfigError as error:
        _log.error("keys not loaded again; programs have the former ones", reason=str(error))
    else:
        _log.info("keys loaded again", changed=changed)


def _room(provider: BatchingProvider, config: ServiceConfig) -> int:
    """The queue needs twice as many slots."""
    on_gpu = provider.stats().backend.startswith("cuda")
    return max(1, min(config.queue_depth // 2, config.queue_depth if on_gpu else _ROOM_WITHOUT_GPU))
