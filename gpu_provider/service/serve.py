"""Starts the service's parts, and ends with the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from typing import TYPE_CHECKING

import structlog

from gpu_provider.addresses import format_address
from gpu_provider.errors import ConfigError, GpuProviderError
from gpu_provider.listening import listen
from gpu_provider.observe.admin import AdminServer
from gpu_provider.observe.logs import configure_logging
from gpu_provider.provider import BatchingProvider
from gpu_provider.service.keys import ServiceKeys
from gpu_provider.service.metrics import ServiceMetrics
from gpu_provider.service.processes import Processes
from gpu_provider.signals import SignalHandlers
from gpu_provider.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gpu_provider.service.config import ServiceConfig

__all__ = ["run"]

EXIT_FAILED = 4
_LOOK_SECONDS = 1.0
_BACKLOG = 4096
_PROBE_SECONDS = 1.0
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
        with (
            BatchingProvider(config) as provider,
            _listening(config.socket, int(config.socket_mode, 8)) as listener,
            asyncio.Runner() as runner,
        ):
            admin_listeners = listen(config.admin_address, "admin") if config.admin_address is not None else []
            metrics = ServiceMetrics(config.max_processes, log)
            provider.registry.register(metrics)
            return runner.run(
                _serve(config, provider, listener, signals, parent, admin_listeners=admin_listeners, metrics=metrics)
            )
    except (GpuProviderError, OSError) as error:
        raise ConfigError(str(error)) from None


def _raise_descriptor_limit() -> None:
    """Each paused connection of a program is a descriptor here too."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def _listening(path: Path, mode: int) -> Iterator[socket.socket]:
    """Raises ConfigError. A socket that an earlier service left behind is replaced; one that is in use is not. At the
    end it is removed, unless another service has taken its place by then."""
    if _is_in_use(path):
        raise ConfigError(f"socket {str(path)!r}: another service listens there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            if path.is_socket():
                path.unlink()
            listener.bind(os.fspath(path))
            path.chmod(mode)  # before it listens, so that nobody comes through the door of another mode
            listener.listen(_BACKLOG)
            own = path.stat()
        except OSError as error:
            raise ConfigError(f"socket {str(path)!r}: {error.strerror or error}") from None
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == own.st_ino:
                    path.unlink()


def _is_in_use(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            raise ConfigError(f"socket {str(path)!r}: {error.strerror or error}") from None
    return True


async def _serve(
    config: ServiceConfig,
    provider: BatchingProvider,
    listener: socket.socket,
    signals: SignalHandlers,
    parent: socket.socket | None,
    *,
    admin_listeners: list[socket.socket],
    metrics: ServiceMetrics,
) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    processes = Processes(provider.client, config, _room(provider, config), metrics)
    keys = ServiceKeys(provider, config.service_key)
    keys.load(processes.name_key)

    def on_signal(number: signal.Signals) -> None:
        if number != signal.SIGHUP:
            stopping.set()
        elif config.service_key:
            _load_again(keys, processes)

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
        socket=str(config.socket),
        admin=[format_address(admin_listener.getsockname()) for admin_listener in admin_listeners],
        backend=provider.stats().backend,
    )
    if supervised is not None:
        supervised.tell("ready")
    failure: str | None = None
    while failure is None and not stopping.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _LOOK_SECONDS)
        failure = provider.failure
        processes.set_room(_room(provider, config))
    if failure is not None:
        _log.error("ending, because this process can't go on", reason=failure)
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
    return 0 if failure is None else EXIT_FAILED


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
