"""The first of several processes: it starts the others, replaces those that end, and speaks for all of them.

It owns the listening sockets and shares them with its workers, so connections that wait to be accepted survive the end
of any worker. A service, which it starts unless there is one already, computes for all workers in common batches. Its
end does no harm either: workers compute by themselves until the next one is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gpu_provider.addresses import format_address
from gpu_provider.config import ProviderConfig
from gpu_provider.errors import ConfigError
from gpu_provider.observe.admin import AdminServer
from gpu_provider.service.config import ServiceConfig
from gpu_provider.settings import to_builtins
from gpu_provider.supervised import Task
from gpu_provider.systemd import Systemd
from gpu_provider.tls import TicketKeys
from gpu_provider.tls.terminator.child import Child
from gpu_provider.tls.terminator.connection_log import KEPT_FAILURES
from gpu_provider.tls.terminator.lifecycle import EXIT_CLEAN, EXIT_FAILED, EXIT_FORCED, is_set_within
from gpu_provider.tls.terminator.listening import refuse_newcomers
from gpu_provider.tls.terminator.reports import Reports

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from gpu_provider.signals import SignalHandlers
    from gpu_provider.tls.terminator.config import TerminatorConfig
    from gpu_provider.tls.terminator.sockets import Sockets

__all__ = ["Master"]

_WORKER = "gpu_provider.tls.terminator.worker"
_SERVICE = "gpu_provider.service.child"
_SERVICE_NAME = "service"
_SETTLE_SECONDS = 0.25
"""After SIGTERM, for connections that the system has begun: time for a round trip to the client."""
_SECOND_SIGNAL_SECONDS = 1.0
_HANG_SECONDS = 10.0
"""How much longer than its connections a worker may take to end."""
_SERVICE_END_SECONDS = 5.0
_FAST_SECONDS = 5.0
"""What ends sooner than this after its start is started again only after a pause."""
_PAUSE_SECONDS = 1.0
_ANSWER_SECONDS = 3.0
_REPORT_SECONDS = 5.0
"""At most so much of what it counted is lost with a process that is killed."""
_PREFIX = "gpu_provider_terminator_"
_log = structlog.stdlib.get_logger(__name__)


class Master(Collector):
    """Call :meth:`serve` once, on asyncio's own event loop: uvloop starts no process in a group of its own."""

    def __init__(self, config: TerminatorConfig) -> None:
        self._config = config
        self._systemd = Systemd()
        self._children: dict[Child, asyncio.Task[None]] = {}
        """All that run, each with the task that waits for its end."""
        self._workers: dict[int, Child] = {}
        """The newest of each number. One that has been replaced may still have connections."""
        self._keepers: set[asyncio.Task[None]] = set()
        self._codes: set[int] = set()
        """With which workers have ended since the signal to end; or this process's own."""
        self._reports = Reports()
        self._replacements = 0
        self._service_restarts = 0

    async def serve(self, sockets: Sockets, signals: SignalHandlers) -> int:
        """Returns the exit code. Raises ConfigError if a process can't start."""
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stopped_at = self._reloaded_at = 0.0
        registry = CollectorRegistry()
        registry.register(self._reports)
        registry.register(self)
        admin = AdminServer(registry, self._is_ready, self._refresh, self._last_failures)
        signals.deliver_to(self._loop, self._on_signal)
        with contextlib.ExitStack() as stack:
            memory = os.memfd_create("gpu-provider-ticket-keys")
            stack.callback(os.close, memory)
            TicketKeys(memory=memory)  # makes the first key, which stays there
            service = self._config.service or stack.enter_context(_directory()) / "service"
            try:
                starting = self._start_all(service, [listener.fileno() for listener in sockets.listeners], memory)
                if await self._unless_stopping(starting):
                    await admin.start(sockets.admin)
                    _log.info(
                        "ready",
                        listen=[format_address(listener.getsockname()) for listener in sockets.listeners],
                        upstream=self._config.upstream,
                        admin=[format_address(listener.getsockname()) for listener in sockets.admin],
                        workers=len(self._workers),
                        service=str(service),
                    )
                    self._systemd.ready()
                    sockets.accepting(self._config.handover, self._stop)
                    self._keep(self._report_often())
                    self._keep(self._systemd.watch(itertools.count().__next__))
                    await self._stopping.wait()
                self._systemd.stopping()
                if sockets.kept:
                    await admin.close()  # a successor answers there
                elif self._config.drain_delay and not self._codes:
                    _log.info("still accepting connections", seconds=self._config.drain_delay)
                    await is_set_within(self._hurry, self._config.drain_delay)
                sockets.close()
                await self._drain(sockets)
            finally:
                for keeper in self._keepers:
                    keeper.cancel()
                await self._end_all()
                await admin.close()
        code = EXIT_FAILED if self._codes - {EXIT_CLEAN, EXIT_FORCED} else max(self._codes, default=EXIT_CLEAN)
        _log.info("stopped", clean=code == EXIT_CLEAN, workers=self._config.workers, replaced=self._replacements)
        return code

    # ---- starting and replacing ----

    async def _start_all(self, service: Path, listeners: list[int], ticket_keys: int) -> None:
        settings = {name: getattr(self._config, name) for name in ProviderConfig.__struct_fields__}
        for_service = ServiceConfig(
            socket=service, socket_mode="0600", admin="off", log_level=self._config.log_level, **settings
        )
        for_each = msgspec.structs.replace(
            self._config,
            workers=1,
            admin="off",
            handover=None,
            drain_delay=0.0,
            service=service,
            max_connections=-(-self._config.max_connections // self._config.workers),
        )
        descriptors: dict[str, Sequence[int]] = {"listen": listeners, "ticket_keys": [ticket_keys]}
        numbers = range(1, self._config.workers + 1)
        first = [self._first_worker(Task(to_builtins(for_each), number, descriptors)) for number in numbers]
        if self._config.service is None:
            first.append(self._first_service(Task(to_builtins(for_service))))
        await asyncio.gather(*first)

    async def _first_worker(self, task: Task) -> None:
        self._workers[task.number] = await self._start(f"worker {task.number}", _WORKER, task)
        self._keep(self._keep_worker(task))

    async def _first_service(self, task: Task) -> None:
        self._keep(self._keep_service(await self._start(_SERVICE_NAME, _SERVICE, task), task))

    async def _unless_stopping(self, work: Coroutine[None, None, None]) -> bool:
        """False: a signal to end has come first."""
        either = self._loop.create_task(work), self._loop.create_task(self._stopping.wait())
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        for one in either:
            one.cancel()
        if either[0].done():
            either[0].result()
        return not self._stopping.is_set()

    def _keep(self, keeper: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(keeper)
        self._keepers.add(task)
        task.add_done_callback(self._keeper_ended)

    def _keeper_ended(self, task: asyncio.Task[None]) -> None:
        """What looked after a process is gone: whoever started this one can restart all."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        reason = str(error) or type(error).__name__
        _log.error("ending, because this process can't go on", reason=reason, exc_info=error)
        self._codes.add(EXIT_FAILED)
        self._stopping.set()

    async def _start(self, name: str, module: str, task: Task) -> Child:
        """Returns when it is ready. Raises ConfigError if it does not become so."""
        try:
            child = await Child.start(name, module, task)
        except OSError as error:
            raise ConfigError(f"{name} can't be started: {os.strerror(error.errno or 0)}") from None
        self._children[child] = self._loop.create_task(self._await_end(child))
        either = [self._loop.create_task(event.wait()) for event in (child.ready, child.stopping)]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        for one in either:
            one.cancel()
        if not child.ready.is_set():
            raise ConfigError(f"{name} ended at its start; the lines before this one say why")
        if self._reloaded_at >= child.started_at:  # it may have read the files before
            child.send_signal(signal.SIGHUP)
        return child

    async def _await_end(self, child: Child) -> None:
        code = await child.wait()
        del self._children[child]
        if child.report.metrics is not None:
            self._reports.end(child.report.metrics)
        self._show_reports()
        if self._stopping.is_set() and child.name != _SERVICE_NAME and child.ready.is_set():
            self._codes.add(code)
        if code in {EXIT_CLEAN, EXIT_FORCED}:
            _log.info(f"{child.name} has ended", pid=child.pid, code=code)
        else:
            how = {"signal": signal.Signals(-code).name} if code < 0 else {"code": code}
            _log.error(f"{child.name} has ended, and should not have", pid=child.pid, **how)

    async def _keep_worker(self, task: Task) -> None:
        while True:
            await self._workers[task.number].stopping.wait()
            self._workers[task.number] = await self._restart(self._workers[task.number], _WORKER, task)
            self._replacements += 1

    async def _keep_service(self, service: Child, task: Task) -> None:
        while True:
            await service.stopping.wait()
            service = await self._restart(service, _SERVICE, task)
            self._service_restarts += 1

    async def _restart(self, child: Child, module: str, task: Task) -> Child:
        while True:
            if self._loop.time() - child.started_at < _FAST_SECONDS:
                await asyncio.sleep(_PAUSE_SECONDS)
            try:
                return await self._start(child.name, module, task)
            except ConfigError as error:
                _log.error("will be tried again", reason=str(error))
                await asyncio.sleep(_PAUSE_SECONDS)

    # ---- signals, and the end ----

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            self._reloaded_at = self._loop.time()
            for child in self._children:
                if child.ready.is_set() and child.name != _SERVICE_NAME:  # before, it would end
                    child.send_signal(number)
        elif not self._stopping.is_set():
            self._stop()
        elif self._loop.time() - self._stopped_at >= _SECOND_SIGNAL_SECONDS:
            self._hurry.set()
            # Those that were told a moment ago would take it for the same signal.
            self._loop.call_at(self._stopped_at + _SETTLE_SECONDS + 2 * _SECOND_SIGNAL_SECONDS, self._send, number)

    def _stop(self) -> None:
        self._stopped_at = self._loop.time()
        self._stopping.set()

    def _send(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.name != _SERVICE_NAME:
                child.send_signal(number)

    async def _drain(self, sockets: Sockets) -> None:
        _log.info("draining", workers=len(self._serving()), seconds=self._config.drain_timeout)
        for keeper in self._keepers:
            keeper.cancel()
        if not sockets.kept:
            settled = [refuse_newcomers(listener) for listener in sockets.listeners]
            await asyncio.sleep(_SETTLE_SECONDS if all(settled) else 0.0)
        self._send(signal.SIGTERM)
        for listener in sockets.listeners:
            listener.close()
        ends = [end for child, end in self._children.items() if child.name != _SERVICE_NAME]
        if ends:
            await asyncio.wait(ends, timeout=self._config.drain_timeout + _HANG_SECONDS)

    async def _end_all(self) -> None:
        """Whoever is left has had its time. The service comes last."""
        for number, seconds in ((signal.SIGTERM, _SERVICE_END_SECONDS), (signal.SIGKILL, None)):
            for child in self._children:
                child.send_signal(number)
            if self._children:
                await asyncio.wait(self._children.values(), timeout=seconds)

    # ---- what is seen ----

    def _is_ready(self) -> tuple[bool, str]:
        if self._stopping.is_set():
            return False, "draining"
        reports = {worker.name: worker.report for worker in self._serving()}
        ready = sum(report.is_ready for report in reports.values())
        state = f"ready, {ready} of {self._config.workers} workers" if ready else "no worker is ready"
        lines = (f"{name}: {report.readiness or 'has not answered yet'}" for name, report in reports.items())
        return ready > 0, "\n".join([state, *lines])

    def _serving(self) -> list[Child]:
        return [worker for _, worker in sorted(self._workers.items()) if not worker.stopping.is_set()]

    async def _refresh(self) -> None:
        asked = [self._loop.create_task(child.ask()) for child in self._children if child.ready.is_set()]
        if asked:
            await asyncio.wait(asked, timeout=_ANSWER_SECONDS)
        for one in asked:
            one.cancel()
        self._show_reports()

    def _show_reports(self) -> None:
        self._reports.live = [child.report.metrics for child in self._children if child.report.metrics is not None]

    def _last_failures(self) -> list[dict[str, Any]]:
        every = itertools.chain.from_iterable(child.report.failures for child in self._children)
        return sorted(every, key=lambda line: line["timestamp"])[-KEPT_FAILURES:]

    async def _report_often(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            await self._refresh()

    def describe(self) -> Iterator[Metric]:
        """The names without values, so that registering needs no scrape."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(_PREFIX + "workers", "Workers that accept connections", value=len(self._serving()))
        yield CounterMetricFamily(
            _PREFIX + "worker_replacements", "Workers that ended and were replaced", value=self._replacements
        )
        yield CounterMetricFamily(
            _PREFIX + "service_restarts",
            "Times that the service which this terminator has started ended, and was started again",
            value=self._service_restarts,
        )


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """For the socket of the service. Raises ConfigError."""
    try:
        directory = tempfile.TemporaryDirectory(prefix="gpu-provider-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigError(
            f"workers: no directory for the socket of their service can be made: {error.strerror}; set TMPDIR to one "
            "that can be written to, or name a service that runs already (--service PATH)"
        ) from None
    with directory as name:
        yield Path(name)
