"""Launches: what waits goes to the workers that the scheduler names. The batching thread only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gpu_provider.client import CLASSES
from gpu_provider.engine.jobs import RsaJob
from gpu_provider.engine.scheduler import NO_PATIENCE, BackendView, Patience, Waiting, decide
from gpu_provider.kinds import REQUESTS, RequestKind
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from gpu_provider.client import Client
    from gpu_provider.engine.call_queue import CallQueue
    from gpu_provider.engine.chunk_job import ChunkJob
    from gpu_provider.engine.company import Company
    from gpu_provider.engine.jobs import Job
    from gpu_provider.engine.pool import Pool
    from gpu_provider.engine.results import Results
    from gpu_provider.engine.scheduler import Limits
    from gpu_provider.engine.watchdog import Watchdog
    from gpu_provider.engine.workers import BackendWorkers, Worker
    from gpu_provider.kinds import Kind
    from gpu_provider.observe.stats import Statistics

__all__ = ["Launcher"]


class Launcher:
    """Makes jobs of what waits, and gives them to workers."""

    def __init__(
        self,
        *,
        client: Client,
        pool: Pool,
        calls: CallQueue,
        company: Company,
        results: Results,
        watchdog: Watchdog,
        statistics: Statistics,
        limits: Limits,
    ) -> None:
        self.waiting = ffi.new("uint32_t[]", CLASSES)
        """Requests in the queue, by size class. ``gp_consumer_wait`` fills it in."""
        self.oldest_ns = ffi.new("uint64_t[]", CLASSES)
        """When the oldest of them was submitted. Filled in likewise."""
        self.computing = 0
        """Workers with a job, except those that hang."""
        self.decide_again_ns = 0
        """When the scheduler has to think again about what it left waiting; 0: not before something changes."""
        self._client = client
        self._pool = pool
        self._calls = calls
        self._company = company
        self._results = results
        self._watchdog = watchdog
        self._statistics = statistics
        self._limits = limits

    def launch_again(self) -> None:
        """Launches what failed on another backend. It is the oldest there is, so it goes first."""
        again = self._results.again
        if not again:
            return
        for worker in self._pool.last_resort.free_workers():
            while again and not again[0].wanted():
                again.popleft().finish()
            if again:
                self._launch(worker, again.popleft())

    def launch_new(self) -> bool:
        """Launches requests and rows of calls. Returns whether a worker is still free."""
        free = self._pool.free_workers()
        # A backend on trial is not compared with the others: it gets the first batch, and they the rest.
        on_trial = [entry for entry in free if not entry[0].in_use]
        if on_trial:
            self._launch_on(on_trial)
        self._launch_on([entry for entry in free if entry[0].in_use])
        return any(workers for _, workers in free)

    def _launch_on(self, free: list[tuple[BackendWorkers, list[Worker]]]) -> None:
        """Takes the workers that it uses out of ``free``."""
        self.decide_again_ns = 0
        waiting = [
            Waiting(kind, self.waiting[index], self.oldest_ns[index], patience=self._patience(kind))
            for index, kind in enumerate(REQUESTS)
            if self.waiting[index]
        ]
        waiting += self._calls.waiting()
        if not waiting or not any(workers for _, workers in free):
            return
        now_ns = time.monotonic_ns()
        views = [
            BackendView(index, len(workers), backend.costs, busy, backend.backend.pipelined)
            for index, (backend, workers) in enumerate(free)
            if (busy := backend.busy(now_ns)) or workers
        ]
        launches, until_ns = decide(waiting, views, self._limits, now_ns)
        self.decide_again_ns = until_ns or 0
        for launch in launches:
            backend, workers = free[launch.backend]
            worker, kind = workers[-1], launch.kind
            if isinstance(kind, RequestKind):
                job: Job | None = self._next_batch(kind, launch.count, worker)
                self.waiting[kind.class_index] -= launch.count
            else:
                job = self._next_chunk(backend, kind, launch.count)
            if job is not None:
                self._launch(worker, job)
                workers.pop()

    def _patience(self, kind: RequestKind) -> Patience:
        found = self._company.patience[kind]
        alone = lib.gp_consumer_is_alone(self._client.consumer, kind.class_index, int(found.seconds * 1e9))
        return NO_PATIENCE if alone else found

    def _launch(self, worker: Worker, job: Job) -> None:
        self.computing += 1
        worker.launch(job)
        if worker.owner.health is not None:
            self._watchdog.watch(worker, job)

    def _next_batch(self, kind: RequestKind, count: int, worker: Worker) -> RsaJob | None:
        buffers = worker.buffers()
        job = RsaJob.take(self._client, kind, count, buffers)
        if job is None:
            worker.recycle(buffers)
        else:
            self._statistics.launched(kind, job.oldest_submitted_ns, job.held_ns)
            self._company.launched(kind, job.count, job.newest_submitted_ns, job.held_ns, job.crowd)
        return job

    def _next_chunk(self, backend: BackendWorkers, kind: Kind, count: int) -> ChunkJob | None:
        """At most ``count`` rows of the next calls; fewer if their rows cost more than the scheduler knew."""
        call = self._calls.next(kind)
        if call is None:
            return None
        curve = backend.costs[kind]
        fitting = curve.largest(self._limits.max_delay) // call.units_per_row
        least = 1 if backend.backend.pipelined else curve.granule
        return self._calls.take(call, min(max(least, fitting), count))
