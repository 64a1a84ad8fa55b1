"""The threads that call a backend, and what the batching thread knows about each backend."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from gpu_provider.engine.health import BackendState
from gpu_provider.engine.jobs import Buffers
from gpu_provider.errors import MORE_THREADS, BackendError
from gpu_provider.kinds import MODEXP, PRIVATE_ROWS, REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_provider.backends.base import Backend
    from gpu_provider.costs import CostCurve
    from gpu_provider.engine.health import Health
    from gpu_provider.engine.jobs import Job
    from gpu_provider.kinds import Kind

__all__ = ["BackendWorkers", "Finished", "Worker"]

Finished: TypeAlias = "Callable[[Worker, Job, BaseException | int], None]"
"""Called on the worker's thread, with what ``Job.compute`` returned or raised."""


class Worker:
    """One thread that computes one job at a time. Its methods are the batching thread's, unless said otherwise."""

    def __init__(self, owner: BackendWorkers, number: int, batch_size: int, finished: Finished) -> None:
        self.owner = owner
        self.job: Job | None = None
        self.hung = False
        self.expected_ns = 0  # when the job should be done
        self._batch_size = batch_size
        self._spare = [Buffers(batch_size)]  # made in time: there may be no memory for them later
        self._finished = finished
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        # A daemon, because a foreign backend may never return from its call, and the interpreter must end all the same.
        self.thread = threading.Thread(target=self._run, name=f"gpu-provider-{owner.name}-{number}", daemon=True)

    def launch(self, job: Job) -> None:
        now = time.monotonic_ns()
        self.expected_ns = now + int(self.owner.expected_seconds(job, now) * 1e9)
        self.job = job
        self._inbox.put(job)

    def stop(self) -> None:
        """Ends the thread after its current job."""
        self._inbox.put(None)

    def buffers(self) -> Buffers:
        """Arrays for the worker's next batch: a second set if it is still delivering the batch before."""
        return self._spare.pop() if self._spare else Buffers(self._batch_size)

    def recycle(self, buffers: Buffers) -> None:
        """Nobody uses these any more. The arrays of a batch that was computed again have its size, and are dropped. Any
        thread."""
        if buffers.size == self._batch_size:
            self._spare.append(buffers)

    def give_up(self) -> None:
        """The watchdog claimed the job. The hanging call keeps the job's arrays; they are never used again."""
        self.hung = True

    def take_back(self) -> None:
        """The worker's call has returned."""
        self.job = None
        self.hung = False

    def _run(self) -> None:
        while (job := self._inbox.get()) is not None:
            outcome: BaseException | int
            job.started_ns = time.monotonic_ns()
            try:
                outcome = job.compute(self.owner.backend)
            except BaseException as error:  # noqa: BLE001 (a backend is foreign code and may raise anything)
                outcome = error
            self._finished(self, job, outcome)


class BackendWorkers:
    """One backend with its workers, its cost curves and its health."""

    def __init__(self, backend: Backend, health: Health | None) -> None:
        """``health`` is None for libcrypto, which is always in use: there is nothing to put in its place."""
        self.backend = backend
        self.name = backend.name
        self.health = health
        self.costs: dict[Kind, CostCurve] = {}
        self.workers: list[Worker] = []
        self._last_end_ns = 0

    def start(self, batch_size: int, finished: Finished) -> None:
        """Starts the threads, once the backend is open. ``batch_size``: the most requests in a batch. Raises
        BackendError."""
        curves = self.backend.cost_curves()
        for kinds in (REQUESTS, PRIVATE_ROWS):
            self.costs.update(zip(kinds, curves.private, strict=True))
        self.costs[MODEXP] = curves.modexp
        self.workers = [Worker(self, number, batch_size, finished) for number in range(self.backend.workers)]
        try:
            for worker in self.workers:
                worker.thread.start()
        except RuntimeError as error:
            raise BackendError(
                f"backend {self.name}: {len(self.workers)} threads can't be started: {error}; {MORE_THREADS}"
            ) from error

    def stop(self) -> None:
        """Ends the threads, each after its current job."""
        for worker in self.workers:
            worker.stop()

    @property
    def in_use(self) -> bool:
        return self.health is None or self.health.state is BackendState.IN_USE

    def end_pause(self, now: float) -> None:
        """Puts the backend on trial if it has been out of use for long enough."""
        if self.health is not None and self.health.state is BackendState.OUT:
            self.health.end_pause(now, sum(worker.hung for worker in self.workers))

    def free_workers(self) -> list[Worker]:
        """Those that may take a job now."""
        free = [worker for worker in self.workers if worker.job is None]
        if self.health is None:
            return free
        usable = self.health.usable_workers(len(self.workers))
        return free[: max(0, usable - (len(self.workers) - len(free)))]

    def busy(self, now_ns: int) -> list[float]:
        """Seconds until each busy worker should be done. One that is late is expected to take as long again as it is
        late."""
        return [
            abs(worker.expected_ns - now_ns) / 1e9
            for worker in self.workers
            if worker.job is not None and not worker.hung
        ]

    def expected_seconds(self, job: Job, now_ns: int) -> float:
        """The time that a job launched now should take."""
        curve = self.costs[job.kind]
        if self.backend.pipelined:
            return curve.seconds_pipelined(job.count, job.cost_units // job.count, max(self.busy(now_ns), default=0.0))
        return curve.seconds(job.cost_units)

    def price(self, kind: Kind, operations: int) -> float:
        """How many times as much each of so many operations should cost as in a full group; at least 1."""
        curve = self.costs[kind]
        return max(1.0, curve.seconds(operations) / operations / (curve.seconds(curve.granule) / curve.granule))

    def observe(self, job: Job, seconds: float) -> None:
        """Records in the cost curve that the job took ``seconds``."""
        curve = self.costs[job.kind]
        if not self.backend.pipelined:
            curve.observe(job.cost_units, seconds)
            return
        end_ns = job.started_ns + int(seconds * 1e9)
        since_last = (end_ns - max(job.started_ns, self._last_end_ns)) / 1e9
        self._last_end_ns = max(end_ns, self._last_end_ns)
        curve.observe_pipelined(job.cost_units, seconds, since_last)
