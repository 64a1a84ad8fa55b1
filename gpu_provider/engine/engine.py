"""The batching thread: wakes when requests come in or a worker is done, asks the scheduler, and hands out batches.

    gp_consumer_wait → scheduler.decide → gp_consumer_take → a worker computes and verifies → gp_consumer_complete

What a backend fails is computed again on libcrypto's workers. Per batch this costs tens of microseconds of Python, per
request nothing.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING

from gpu_provider.engine.call_queue import CallQueue
from gpu_provider.engine.class_rules import ClassRules
from gpu_provider.engine.company import Company
from gpu_provider.engine.health import BackendState
from gpu_provider.engine.jobs import Buffers, refuse_waiting
from gpu_provider.engine.launcher import Launcher
from gpu_provider.engine.pool import Pool
from gpu_provider.engine.results import Results
from gpu_provider.engine.scheduler import Limits
from gpu_provider.engine.watchdog import Watchdog
from gpu_provider.errors import MORE_THREADS, BackendError, OperationError, ProviderClosedError
from gpu_provider.kinds import REQUESTS
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gpu_provider.backends.base import Backend
    from gpu_provider.backends.libcrypto import LibcryptoBackend
    from gpu_provider.client import Client
    from gpu_provider.config import ProviderConfig
    from gpu_provider.engine.calls import Call
    from gpu_provider.engine.results import Futures, Return
    from gpu_provider.engine.workers import BackendWorkers
    from gpu_provider.kinds import Kind
    from gpu_provider.observe.stats import Statistics

__all__ = ["Engine"]

_log = logging.getLogger(__name__)
_FAILED_AT_ONCE = 64
_CLOSING_SECONDS = 0.5
"""How long calls over many rows may go on after close()."""
_LAST_STEPS_SECONDS = 1.0
"""For the batching thread to return, after it has said that all is done."""


class Engine:
    """The threads of one provider. It does not know the provider, so that can be collected while they run."""

    def __init__(
        self,
        *,
        config: ProviderConfig,
        client: Client,
        backends: Sequence[Backend],
        inline: Backend,
        libcrypto: LibcryptoBackend,
        open_more: Callable[[Client], Sequence[Backend]] | None = None,
        futures: Futures,
        statistics: Statistics,
    ) -> None:
        """``backends``: in order of preference. ``libcrypto``: the last resort; may be one of them. ``inline``: the
        backend in whose place the batching thread computes small batches itself. ``open_more``: finds and opens further
        backends when the engine is started, which are preferred to ``backends``."""
        self.failure: str | None = None
        """Why the threads have ended although nobody closed the engine."""
        self.turns = 0
        """How often the batching thread has gone around."""
        self._client = client
        self._futures = futures
        self._statistics = statistics
        self._limits = Limits(min(config.max_batch, config.queue_depth), config.max_delay)
        self._pool = Pool(backends, libcrypto, config.backend_retry)
        self._open_more = open_more
        self._watchdog = Watchdog(config.backend_timeout)
        self._results = Results(client, futures, statistics, self._pool.last_resort, config.max_delay)
        of_pool = (backend for backend in self._pool.backends if backend.backend is inline)
        inline_workers = next(of_pool, self._pool.last_resort)
        self._rules = ClassRules(inline_workers)
        statistics.price = inline_workers.price
        self._for_failed = Buffers(_FAILED_AT_ONCE)  # allocated now: there may be no memory for it later
        # No lock between the applications' threads and these: a signal handler, or what the garbage collector runs, may
        # call close() while its thread is in the middle of submit().
        self._closing = False
        self._close_calls_at_ns = 0
        self._ended = False  # the batching thread takes nothing more
        self._wait_for_end: deque[SimpleQueue[None]] = deque()
        self._calls = CallQueue()
        self._company = Company(self._pool, self._limits, statistics)
        self._workers_free = True  # while there are none, a submission need not wake the thread: a worker will
        self._launcher = Launcher(
            client=client,
            pool=self._pool,
            calls=self._calls,
            company=self._company,
            results=self._results,
            watchdog=self._watchdog,
            statistics=statistics,
            limits=self._limits,
        )
        self._removed_keys = 0
        self._thread = threading.Thread(target=self._run, name="gpu-provider-batching", daemon=True)

    # ---- any thread ----

    def start(self) -> None:
        """Raises BackendError; nothing is left open or running then."""
        with self._pool.start(self._client, self._open_more, self._limits.max_batch, self._results.finished) as undo:
            try:
                self._thread.start()
            except RuntimeError as error:
                raise BackendError(f"the batching thread can't be started: {error}; {MORE_THREADS}") from error
            # What was submitted is completed at the interpreter's exit too, before the daemon threads are frozen.
            atexit.register(self.close)
            undo.pop_all()
        for backend in self._pool.all():
            self._statistics.backend_state(backend.name, in_use=True)

    def submit(self, calls: Iterable[Call]) -> None:
        """Leaves out calls that have ended already. After close() all end with ProviderClosedError."""
        self.enqueue(calls)
        self.wake()

    def enqueue(self, calls: Iterable[Call]) -> None:
        """The same, but the calls may wait until :meth:`wake`."""
        for call in calls:
            if self._closing:
                call.fail(ProviderClosedError("the provider is closed"))
            elif not call.rows:
                call.end_without_rows()
            elif not call.ended:
                self._calls.submit(call)
        if self._ended:
            self._calls.fail_submitted()

    def wake(self) -> None:
        """Has what was enqueued looked at."""
        if self._workers_free:
            self._client.wake()

    def rows_at_a_time(self, backend: Backend, kind: Kind, units_per_row: int, most: int) -> int:
        """How many rows of a call, at most ``most``, a backend computes within ``max_delay``; at least 1."""
        costs = next(workers.costs for workers in self._pool.backends if workers.backend is backend)
        return max(1, min(most, costs[kind].largest(self._limits.max_delay) // units_per_row))

    @property
    def closing(self) -> bool:
        """Whether close() or begin_close() was called."""
        return self._closing

    def begin_close(self) -> None:
        """Has the threads complete what was submitted and end; does not wait for them. May be called again, by a signal
        handler, and by the garbage collector on any thread, whatever locks that holds."""
        if not self._client.in_own_process:
            return
        lib.gp_client_close(self._client.pointer)
        if not self._closing:
            self._close_calls_at_ns = time.monotonic_ns() + int(_CLOSING_SECONDS * 1e9)
            self._closing = True
        self._client.wake()

    def close(self) -> None:
        """The same, and waits for the threads, unless this is one of them. A worker whose backend hangs is left
        behind."""
        self.begin_close()
        if not self._client.in_own_process or self._thread.ident is None or self.owns_current_thread():
            return
        # Not by join() alone: when a signal handler raises in it, CPython 3.11 takes the thread for dead; and a handler
        # that calls it inside another join() may wait for that for ever.
        end: SimpleQueue[None] = SimpleQueue()
        self._wait_for_end.append(end)
        if not self._ended:
            end.get()
        self._thread.join(_LAST_STEPS_SECONDS)

    def owns_current_thread(self) -> bool:
        """Whether this is a thread of the provider, which runs a future's callback: it must never wait for the
        provider, because that would be for ever."""
        current = threading.current_thread()
        return current is self._thread or self._pool.owns(current)

    def in_use(self) -> str:
        """The name of the backend that gets the next batch."""
        return self._pool.in_use()[0].name

    def backends(self) -> list[Backend]:
        """The preferred one first."""
        return [workers.backend for workers in self._pool.backends]

    def gpus(self) -> dict[str, str]:
        """The GPUs' PCI bus ids, by the name of the backend that computes there."""
        return self._pool.gpus()

    # ---- the batching thread ----

    def _run(self) -> None:
        try:
            try:
                self._serve()
            except BaseException as error:  # noqa: BLE001 (whatever it is, connections wait for this thread)
                self.failure = f"the batching thread failed: {type(error).__name__}: {error}"
                self._fail_waiting()
                _log.exception("the batching thread failed; from now on OpenSSL computes every operation at once")
            self._futures.deliver()
            self._futures.fail_all()
        finally:
            self._company.end()
            self._ended = True
            self._calls.fail_submitted()
            atexit.unregister(self.close)
            while self._wait_for_end:
                self._wait_for_end.popleft().put(None)

    def _serve(self) -> None:
        while True:
            self.turns += 1
            # Read before the wait, so that everything that was submitted before the client was closed is seen by it.
            closing = self._closing
            if closing:
                self._company.end()
            missed_call = self._workers_free and self._calls.any_submitted
            timeout_ns = 0 if missed_call or (closing and self._idle()) else self._timeout_until_ns()
            # While no worker is free a submission can't be served: it need not wake this thread, the worker will.
            idle = not (self._launcher.computing or self._results.again or self._calls)
            removed_keys = lib.gp_consumer_wait(
                self._client.consumer,
                timeout_ns,
                self._workers_free,
                self._rules.update(self._pool, self._company.patience, idle=idle),
                self._launcher.waiting,
                self._launcher.oldest_ns,
            )
            if idle:
                for batch in self._statistics.take_small_batches():
                    kind = REQUESTS[batch.class_index]
                    self._company.launched(kind, batch.requests, batch.newest_ns, batch.held_ns, batch.crowd)
            if removed_keys != self._removed_keys:
                self._removed_keys = removed_keys
                self._pool.announce_removed_keys()
            while self._results.returned:
                self._take_back(self._results.returned.popleft())
            self._claim_from_hung()
            self._launcher.launch_again()
            self._take_in_calls()
            self._pool.end_pauses(time.monotonic())
            self._workers_free = self._launcher.launch_new()
            if closing and self._idle():
                break
            if self._closing:
                self._futures.deliver()  # those that were in the wait queue
        self._pool.close(self._watchdog.timeout)

    def _take_in_calls(self) -> None:
        self._calls.take_in()
        if self._closing and time.monotonic_ns() >= self._close_calls_at_ns:
            for call in self._calls.clear():
                call.fail(ProviderClosedError("the provider was closed before the call could be completed"))

    def _fail_waiting(self) -> None:
        """After a bug, or without memory: better ERR for what waits than connections that wait for ever."""
        self.begin_close()
        for call in self._calls.clear():
            call.fail(OperationError("the batching thread failed"))
        lib.gp_consumer_wait(self._client.consumer, 0, 0, ffi.NULL, self._launcher.waiting, self._launcher.oldest_ns)
        for kind in REQUESTS:
            refuse_waiting(self._client, kind, self._for_failed)
        self._pool.close(self._watchdog.timeout)
        for job in self._results.again:
            job.finish()

    def _idle(self) -> bool:
        return not (
            self._launcher.computing
            or self._calls
            or self._calls.any_submitted
            or self._results.again
            or self._results.returned
        )

    def _take_back(self, done: Return) -> None:
        worker, owner = done.worker, done.worker.owner
        self._launcher.computing -= not worker.hung
        self._watchdog.forget(worker)
        worker.take_back()
        self._rules.outdated = True
        if done.late:
            return
        if done.broken is None:
            owner.observe(done.job, done.seconds)
        if owner.health is None:
            if done.broken:
                _log.error("libcrypto failed a batch: %s", done.broken)
        elif done.broken is None:
            owner.health.succeeded()
            self._statistics.backend_state(owner.name, in_use=owner.health.state is not BackendState.OUT)
        else:
            self._out_of_use(owner, done.broken)

    def _out_of_use(self, backend: BackendWorkers, reason: str) -> None:
        self._rules.outdated = True
        if backend.health is not None:
            backend.health.failed(reason, time.monotonic())
            self._statistics.backend_state(backend.name, in_use=False)

    def _timeout_until_ns(self) -> int:
        """Until the watchdog has to look, or the scheduler has to think again about what it left waiting."""
        deadlines = []
        if (deadline_ns := self._watchdog.next_deadline_ns) is not None:
            deadlines.append(deadline_ns)
        if self._closing and self._calls:
            deadlines.append(self._close_calls_at_ns)
        if self._launcher.decide_again_ns:
            deadlines.append(self._launcher.decide_again_ns)
        return max(0, min(deadlines) - time.monotonic_ns()) if deadlines else -1

    def _claim_from_hung(self) -> None:
        for worker, job in self._watchdog.claim_from_hung():
            backend = worker.owner
            self._launcher.computing -= 1
            self._statistics.fallback(backend.name, "timeout", job.count)
            self._results.compute_again(job, whole=True)
            self._out_of_use(backend, f"no result within {self._watchdog.timeout:g} s")
