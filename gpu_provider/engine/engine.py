"""The batching thread: wakes when requests come in or a worker is done, asks the scheduler, and hands out batches.

    gp_consumer_wait → scheduler.decide → gp_consumer_take → a worker computes and verifies → gp_consumer_complete

What a backend fails is computed again on libcrypto's workers. Per batch this costs tens of microseconds of Python, per
request nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from gpu_provider.backends.base import KeyHolder, OnGpu
from gpu_provider.client import CLASSES
from gpu_provider.engine.health import BackendState, Health
from gpu_provider.engine.jobs import Buffers, RsaJob, refuse_waiting
from gpu_provider.engine.scheduler import Limits, Waiting, Workers, decide
from gpu_provider.engine.workers import BackendWorkers, Worker
from gpu_provider.errors import MORE_THREADS, BackendError, OperationError, ProviderClosedError
from gpu_provider.library.calls import CallQueue
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from _cffi_backend import FFI

    from gpu_provider.backends.base import Backend
    from gpu_provider.backends.libcrypto import LibcryptoBackend
    from gpu_provider.client import Client
    from gpu_provider.config import ProviderConfig
    from gpu_provider.engine.jobs import Job
    from gpu_provider.library.calls import Call, ChunkJob
    from gpu_provider.library.futures import PendingFutures
    from gpu_provider.observe.stats import Statistics

__all__ = ["Engine"]

_log = logging.getLogger(__name__)
_FAILED_AT_ONCE = 64

_DECIDE_AGAIN_NS = 1_000_000
_CLOSING_SECONDS = 0.5
"""How long calls over many rows may go on after close()."""
_LAST_STEPS_SECONDS = 1.0
"""For the batching thread to return, after it has told that all is done."""
_SMALL_BATCH_SECONDS = 0.001
"""Handing requests to a worker and taking it back costs about 0.1 ms of processor time, and as much latency. What
comes while the batching thread computes waits for half of this on average, at worst for all of it."""


class _Return(NamedTuple):
    """A worker can take another job; what is left to do for ``job`` is done on its thread before that, unless the
    watchdog has claimed it (``late``)."""

    worker: Worker
    job: Job
    seconds: float
    broken: str | None = None
    """Why the backend is to be taken out of use."""
    late: bool = False


def _describe(outcome: BaseException | int) -> str | None:
    if isinstance(outcome, BaseException):
        return f"{type(outcome).__name__}: {outcome}"
    return f"{outcome} wrong results" if outcome else None


class Engine:
    """The threads of one provider. It does not know the provider, which can so be collected while they run."""

    def __init__(
        self,
        *,
        config: ProviderConfig,
        client: Client,
        backends: Sequence[Backend],
        inline: Backend,
        libcrypto: LibcryptoBackend,
        open_more: Callable[[Client], Sequence[Backend]] | None = None,
        futures: PendingFutures,
        statistics: Statistics,
    ) -> None:
        """``libcrypto`` is the last resort, and may be one of ``backends``, which are in order of preference.
        ``inline``: in whose place the batching thread computes small batches itself. ``open_more``: finds and opens
        further backends, which are preferred to ``backends``, when the engine is started."""
        self._client = client
        self._futures = futures
        self._statistics = statistics
        self._timeout_ns = int(config.backend_timeout * 1e9)
        self._limits = Limits(min(config.max_batch, config.queue_depth), config.max_delay)
        self._first_pause = config.backend_retry
        self._last_resort = BackendWorkers(libcrypto, None)
        self._backends = [self._workers_of(backend) for backend in backends]
        self._inline = next((backend for backend in self._backends if backend.backend is inline), self._last_resort)
        self._open_more = open_more
        self._removed_keys = 0
        self.failure: str | None = None
        """Why the threads have ended although nobody closed the engine."""
        self._for_failed = Buffers(_FAILED_AT_ONCE)  # made in time: there may be no memory for it later
        # No lock between the applications' threads and these: a signal handler, or what the garbage collector runs, may
        # call close() while its thread is in the middle of submit().
        self._closing = False
        self._close_calls_at_ns = 0
        self._ended = False  # the batching thread takes nothing more
        self._wait_for_end: deque[SimpleQueue[None]] = deque()
        self._submitted: deque[Call] = deque()  # appended to by any thread
        self._calls = CallQueue()
        self._workers_free = (
            True  # else nobody can serve a call that is submitted: the next worker to return wakes the thread
        )
        self._again: deque[Job] = deque()  # failed elsewhere, for the last resort; also appended to by workers
        self._returned: deque[_Return] = deque()  # appended to by workers
        self._waiting = ffi.new("uint32_t[]", CLASSES)
        self._oldest_ns = ffi.new("uint64_t[]", CLASSES)
        self._computing = 0  # workers with a job, but for those that hang
        self._decide_again_ns = 0  # 0: not before something changes
        self._small = ffi.new("uint32_t[]", CLASSES)
        self._small_outdated = True  # since a cost curve or a backend's health has changed
        self._thread = threading.Thread(target=self._run, name="gpu-provider-batching", daemon=True)

    # ---- any thread ----

    def start(self) -> None:
        """Raises BackendError; nothing is left open or running then."""
        with contextlib.ExitStack() as undo:
            for backend in self._all():
                backend.backend.open(self._client)
                undo.callback(backend.backend.close)
            more = self._open_more(self._client) if self._open_more is not None else []
            for opened in more:
                undo.callback(opened.close)
            undo.callback(setattr, self, "_backends", self._backends)
            self._backends = [*map(self._workers_of, more), *self._backends]
            for backend in self._all():
                undo.callback(backend.stop)
                backend.start(self._limits.max_batch, self._worker_finished)
            try:
                self._thread.start()
            except RuntimeError as error:
                raise BackendError(f"the batching thread can't be started: {error}; {MORE_THREADS}") from error
            # What was submitted is completed at the interpreter's exit too, before the daemon threads are frozen.
            atexit.register(self.close)
            undo.pop_all()
        for backend in self._all():
            self._statistics.backend_state(backend.name, in_use=True)

    def submit(self, calls: Iterable[Call]) -> None:
        """Those that have ended already are left out. After close() all end with ProviderClosedError."""
        for call in calls:
            if self._closing:
                call.fail(ProviderClosedError("the provider is closed"))
            elif not call.rows:
                call.end_without_rows()
            elif not call.ended:
                self._submitted.append(call)
        if self._ended:
            self._fail_submitted()
        if self._workers_free:
            self._client.wake()

    def rows_at_a_time(self, backend: Backend, kind: int, units_per_row: int, most: int) -> int:
        """So many rows of a call, at most ``most``, take a backend no longer than ``max_delay``; at least 1."""
        costs = next(workers.costs for workers in self._backends if workers.backend is backend)
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
        """Whether this is a thread of the provider, which runs a future's callback: to wait for the provider in it
        would be for ever."""
        current = threading.current_thread()
        workers = (worker for backend in self._all() for worker in backend.workers)
        return current is self._thread or any(current is worker.thread for worker in workers)

    def _workers_of(self, backend: Backend) -> BackendWorkers:
        if backend is self._last_resort.backend:
            return self._last_resort
        return BackendWorkers(backend, Health(backend.name, self._first_pause, self._last_resort.name))

    def in_use(self) -> str:
        """The name of the backend that gets the next batch."""
        return self._preferred().name

    def backends(self) -> list[Backend]:
        """The preferred one first."""
        return [workers.backend for workers in self._backends]

    def gpus(self) -> dict[str, str]:
        """The GPUs' PCI bus ids, by the name of the backend that computes there."""
        backends = [backend.backend for backend in self._backends]
        return {
            backend.name: backend.pci_bus_id
            for backend in backends
            if isinstance(backend, OnGpu) and backend.pci_bus_id is not None
        }

    def _preferred(self) -> BackendWorkers:
        return next((backend for backend in self._backends if backend.in_use), self._last_resort)

    def _all(self) -> list[BackendWorkers]:
        return self._backends if self._last_resort in self._backends else [*self._backends, self._last_resort]

    # ---- worker threads ----

    def _worker_finished(self, worker: Worker, job: Job, outcome: BaseException | int) -> None:
        """Delivers the results. No lock is held: completing runs the applications' callbacks."""
        seconds = (time.monotonic_ns() - job.started_ns) / 1e9
        if not job.claim():
            self._return(_Return(worker, job, seconds, late=True))
            return
        buffers, succeeded = job.buffers, job.succeeded()
        last_resort = worker.owner.health is None
        self._statistics.batch(worker.owner.name, job.kind, job.count, succeeded, seconds, last_resort=last_resort)
        if succeeded == job.count:
            # First, so that the batching thread takes the next batch while this thread delivers.
            self._return(_Return(worker, job, seconds))
            job.finish()
        else:
            try:
                self._deliver_failed(worker.owner, job, succeeded, outcome)
            except MemoryError:  # for the arrays of a second attempt
                job.finish()
            self._return(_Return(worker, job, seconds, broken=_describe(outcome)))
        with contextlib.suppress(MemoryError):  # then the next batch's thread delivers them
            self._futures.deliver()
        if buffers is not None:
            worker.recycle(buffers)

    def _deliver_failed(self, owner: BackendWorkers, job: Job, succeeded: int, outcome: BaseException | int) -> None:
        if owner.health is None:
            job.finish()
            return
        reason = "error" if isinstance(outcome, BaseException) else "wrong_result" if outcome else "refused"
        self._statistics.fallback(owner.name, reason, job.count - succeeded)
        self._compute_again(job, whole=False)

    def _return(self, done: _Return) -> None:
        self._returned.append(done)
        self._client.wake()

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
            self._ended = True
            self._fail_submitted()
            atexit.unregister(self.close)
            while self._wait_for_end:
                self._wait_for_end.popleft().put(None)

    def _serve(self) -> None:
        while True:
            # Read before the wait, so that everything that was submitted before the client was closed is seen by it.
            closing = self._closing
            missed_call = self._workers_free and self._submitted
            timeout_ns = 0 if missed_call or (closing and self._idle()) else self._timeout_until_ns()
            # While no worker is free a submission can't be served: it need not wake this thread, the worker will.
            small = self._small_batches()
            removed_keys = lib.gp_consumer_wait(
                self._client.consumer,
                timeout_ns,
                self._workers_free,
                small,
                self._waiting,
                self._oldest_ns,
            )
            if small != ffi.NULL:
                self._statistics.take_small_batches()
            if removed_keys != self._removed_keys:
                self._removed_keys = removed_keys
                self._announce_removed_keys()
            while self._returned:
                self._take_back(self._returned.popleft())
            self._claim_from_hung()
            self._launch_again()
            self._take_in_calls()
            free = self._free_workers(time.monotonic())
            self._launch_new(free)
            self._workers_free = any(workers for _, workers in free)
            if closing and self._idle():
                break
            if self._closing:
                self._futures.deliver()  # those that were in line
        self._end_workers()

    def _take_in_calls(self) -> None:
        while self._submitted:
            self._calls.add(self._submitted.popleft())
        for call in self._calls.remove(lambda call: call.given_up):
            call.fail(OperationError("nobody waits for the call"))
        if self._closing and time.monotonic_ns() >= self._close_calls_at_ns:
            for call in self._calls.clear():
                call.fail(ProviderClosedError("the provider was closed before the call could be completed"))

    def _fail_submitted(self) -> None:
        while self._submitted:
            with contextlib.suppress(IndexError):  # another thread was faster
                self._submitted.popleft().fail(ProviderClosedError("the provider is closed"))

    def _announce_removed_keys(self) -> None:
        for backend in self._backends:
            if isinstance(backend.backend, KeyHolder):
                backend.backend.keys_removed()

    def _small_batches(self) -> FFI.CData:
        """The largest batch of each size class that may be computed by this thread, inside the wait: none, unless
        nothing else is computed now, and the processor's backend would get it."""
        if self._computing or self._again or self._calls:
            return ffi.NULL
        if self._small_outdated:
            self._small_outdated = False
            self._limit_small_batches()
        return self._small

    def _limit_small_batches(self) -> None:
        in_use = [backend for backend in self._backends if backend.in_use] or [self._last_resort]
        for kind in range(CLASSES):
            cost = self._inline.costs[kind]
            others = [backend.costs[kind].seconds(1) for backend in in_use if backend is not self._inline]
            longest = min([_SMALL_BATCH_SECONDS, *others])
            allowed = self._inline in in_use and cost.seconds(1) <= longest
            self._small[kind] = cost.largest(longest) if allowed else 0

    def _fail_waiting(self) -> None:
        """After a bug, or without memory: rather ERR for what waits than connections that wait for ever."""
        self.begin_close()
        for call in self._calls.clear():
            call.fail(OperationError("the batching thread failed"))
        lib.gp_consumer_wait(self._client.consumer, 0, 0, ffi.NULL, self._waiting, self._oldest_ns)
        for kind in range(CLASSES):
            refuse_waiting(self._client, kind, self._for_failed)
        self._end_workers()
        for again in self._again:
            again.finish()

    def _idle(self) -> bool:
        return not (self._computing or self._submitted or self._calls or self._again or self._returned)

    def _take_back(self, done: _Return) -> None:
        worker, owner = done.worker, done.worker.owner
        self._computing -= not worker.hung
        worker.take_back()
        self._small_outdated = True
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
        self._small_outdated = True
        if backend.health is not None:
            backend.health.failed(reason, time.monotonic())
            self._statistics.backend_state(backend.name, in_use=False)

    def _timeout_until_ns(self) -> int:
        """Until the watchdog has to look, or the scheduler has to think again about what it left waiting."""
        deadlines = [
            worker.deadline_ns for backend in self._backends for worker in backend.workers if worker.deadline_ns
        ]
        if self._closing and self._calls:
            deadlines.append(self._close_calls_at_ns)
        if self._decide_again_ns:
            deadlines.append(self._decide_again_ns)
        return max(0, min(deadlines) - time.monotonic_ns()) if deadlines else -1

    def _claim_from_hung(self) -> None:
        now = time.monotonic_ns()
        for backend in self._backends:
            for worker in backend.workers:
                if not worker.deadline_ns or now < worker.deadline_ns:
                    continue
                job = worker.job
                worker.deadline_ns = 0
                if job is None or not job.claim():  # it returned just now
                    continue
                worker.give_up()
                self._computing -= 1
                self._statistics.fallback(backend.name, "timeout", job.count)
                self._compute_again(job, whole=True)
                self._out_of_use(backend, f"no result within {self._timeout_ns / 1e9:g} s")

    def _compute_again(self, job: Job, whole: bool) -> None:
        bound = self._last_resort.costs[job.kind].largest(self._limits.max_delay)
        self._again.extend(job.split_off_failed(bound, whole))

    def _launch_again(self) -> None:
        """What failed on another backend is the oldest there is, so it goes first."""
        if not self._again:
            return
        for worker in self._last_resort.free_workers(time.monotonic()):
            while self._again and not self._again[0].wanted():
                self._again.popleft().finish()
            if self._again:
                self._computing += 1
                worker.launch(self._again.popleft(), 0)

    def _free_workers(self, now: float) -> list[tuple[BackendWorkers, list[Worker]]]:
        """Who may take new work, the preferred one first. libcrypto stands in while no other backend is in use."""
        free = [(backend, backend.free_workers(now)) for backend in self._backends]
        if not any(backend.in_use for backend in self._backends):
            free.append((self._last_resort, self._last_resort.free_workers(now)))
        return [(backend, workers) for backend, workers in free if workers or backend.in_use]

    def _launch_new(self, free: list[tuple[BackendWorkers, list[Worker]]]) -> None:
        """Takes the workers that it uses out of ``free``."""
        # A backend on trial is not compared with the others: it gets the first batch, and they the rest.
        on_trial = [entry for entry in free if not entry[0].in_use]
        if on_trial:
            self._launch(on_trial)
        self._launch([entry for entry in free if entry[0].in_use])

    def _launch(self, free: list[tuple[BackendWorkers, list[Worker]]]) -> None:
        self._decide_again_ns = 0
        waiting = [
            Waiting(kind, self._waiting[kind], self._oldest_ns[kind]) for kind in range(CLASSES) if self._waiting[kind]
        ]
        waiting += self._calls.waiting()
        if not waiting or not any(workers for _, workers in free):
            return
        now_ns = time.monotonic_ns()
        views = [
            Workers(index, len(workers), backend.costs, busy, backend.backend.pipelined)
            for index, (backend, workers) in enumerate(free)
            if (busy := backend.busy(now_ns)) or workers
        ]
        for launch in decide(waiting, views, self._limits):
            backend, workers = free[launch.backend]
            worker = workers[-1]
            if launch.kind >= CLASSES:
                job: Job | None = self._next_chunk(backend, launch.kind, launch.count)
            else:
                job = self._next_batch(launch.kind, launch.count, worker)
                self._waiting[launch.kind] -= launch.count
            if job is not None:
                self._computing += 1
                worker.launch(job, 0 if backend.health is None else self._timeout_ns)
                workers.pop()
        if any(workers for _, workers in free) and (self._calls or any(self._waiting)):
            # Beside a free worker, something waits for a busy one: that may be late.
            busy = [seconds for view in views for seconds in view.busy]
            self._decide_again_ns = now_ns + max(_DECIDE_AGAIN_NS, int(min(busy, default=0.0) * 1e9))

    def _next_batch(self, kind: int, count: int, worker: Worker) -> RsaJob | None:
        buffers = worker.buffers()
        job = RsaJob.take(self._client, kind, count, buffers)
        if job is None:
            worker.recycle(buffers)
        else:
            self._statistics.launched(kind, job.oldest_submitted_ns)
        return job

    def _next_chunk(self, backend: BackendWorkers, work: int, count: int) -> ChunkJob | None:
        """At most ``count`` rows of the next calls; fewer if their rows cost more than the scheduler knew."""
        call = self._calls.next(work)
        if call is None:
            return None
        curve = backend.costs[call.kind]
        fitting = curve.largest(self._limits.max_delay) // call.units_per_row
        least = 1 if backend.backend.pipelined else curve.granule
        return self._calls.take(call, min(max(least, fitting), count))

    def _end_workers(self) -> None:
        for backend in self._all():
            backend.stop()
            for worker in backend.workers:
                if not worker.hung:
                    worker.thread.join(None if backend.health is None else self._timeout_ns / 1e9)
            left = sum(worker.thread.is_alive() for worker in backend.workers)
            if left:
                _log.warning("backend %s: %d calls still hang; their threads are left behind", backend.name, left)
                continue
            try:
                backend.backend.close()
            except BaseException:  # noqa: BLE001 (foreign code; the others are to be closed, and futures ended, all the same)
                _log.exception("backend %s failed to close", backend.name)
