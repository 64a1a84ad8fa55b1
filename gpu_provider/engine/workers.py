"""Workers: the threads that call a backend, and what the batching thread knows about each backend."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from gpu_provider.client import CLASSES
from gpu_provider.engine.health import BackendState
from gpu_provider.engine.jobs import Buffers
from gpu_provider.errors import MORE_THREADS, BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_provider.backends.base import Backend
    from gpu_provider.engine.health import Health
    from gpu_provider.engine.jobs import Job
    from gpu_provider.engine.scheduler import CostCurve

__all__ = ["MODEXP", "BackendWorkers", "Worker"]

MODEXP = CLASSES
"""The kind of work after the size classes, and the cost curve. Then come, as work for the scheduler, the size classes
again: rows of calls of private operations, with the cost curves of requests from the queue."""

Finished: TypeAlias = "Callable[[Worker, Job, BaseException | int], None]"
"""Called on the worker's thread, with what ``Job.compute`` returned or raised."""


class Worker:
    """One thread that computes one job at a time. The rest belongs to the batching thread, where nothing else is
    said."""

    def __init__(self, owner: BackendWorkers, number: int, batch_size: int, finished: Finished) -> None:
        self.owner = owner
        self.job: Job | None = None
        self.hung = False
        self.deadline_ns = 0  # 0: none
        self.expected_ns = 0  # when the job should be done
        self._batch_size = batch_size
        self._spare = [Buffers(batch_size)]  # made in time: there may be no memory for them later
        self._finished = finished
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        # A daemon, because a foreign backend may never return from its call, and the interpreter must end all the same.
        self.thread = threading.Thread(target=self._run, name=f"gpu-provider-{owner.name}-{number}", daemon=True)

    def launch(self, job: Job, timeout_ns: int) -> None:
        """``timeout_ns`` 0: none."""
        now = time.monotonic_ns()
        self.expected_ns = now + int(self.owner.expected_seconds(job, now) * 1e9)
        self.job = job
        self.deadline_ns = now + timeout_ns if timeout_ns else 0
        self._inbox.put(job)

    def stop(self) -> None:
        """Ends the thread after the job it has."""
        self._inbox.put(None)

    def buffers(self) -> Buffers:
        """Arrays for the worker's next batch: a second set, if it still delivers the one before."""
        return self._spare.pop() if self._spare else Buffers(self._batch_size)

    def recycle(self, buffers: Buffers) -> None:
        """No one uses these any more. Those of a batch that is computed again have its size, and are forgotten. Any
        thread."""
        if buffers.size == self._batch_size:
            self._spare.append(buffers)

    def give_up(self) -> None:
        """The watchdog claimed the job. The call that hangs keeps the job's arrays; they are never used again."""
        self.hung = True

    def take_back(self) -> None:
        """The worker's call has returned."""
        self.job = None
        self.hung = False
        self.deadline_ns = 0

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
    """One backend with its workers, its cost curves by kind of work, and its health."""

    def __init__(self, backend: Backend, health: Health | None) -> None:
        """``health`` is None for libcrypto, which is always in use: there is nothing to put in its place."""
        self.backend = backend
        self.name = backend.name
        self.health = health
        self.costs: list[CostCurve] = []
        self.workers: list[Worker] = []
        self._last_end_ns = 0

    def start(self, batch_size: int, finished: Finished) -> None:
        """After the backend was opened. ``batch_size``: the most requests in a batch."""
        curves = self.backend.cost_curves()
        self.costs = [*curves, *curves[:CLASSES]]
        self.workers = [Worker(self, number, batch_size, finished) for number in range(self.backend.workers)]
        try:
            for worker in self.workers:
                worker.thread.start()
        except RuntimeError as error:
            raise BackendError(
                f"backend {self.name}: {len(self.workers)} threads can't be started: {error}; {MORE_THREADS}"
            ) from error

    def stop(self) -> None:
        """Ends the threads, each after the job it has."""
        for worker in self.workers:
            worker.stop()

    @property
    def in_use(self) -> bool:
        return self.health is None or self.health.state is BackendState.IN_USE

    def free_workers(self, now: float) -> list[Worker]:
        """Those that may take a job now."""
        free = [worker for worker in self.workers if worker.job is None]
        if self.health is None:
            return free
        hung = sum(worker.hung for worker in self.workers)
        usable = self.health.usable_workers(len(self.workers), hung, now)
        return free[: max(0, usable - (len(self.workers) - len(free)))]

    def busy(self, now_ns: int) -> list[float]:
        """In how many seconds each busy worker should be done. One that is late by some time is expected to take
        as long again."""
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

    def observe(self, job: Job, seconds: float) -> None:
        """Takes in that the job took ``seconds``."""
        curve = self.costs[job.kind]
        if not self.backend.pipelined:
            curve.observe(job.cost_units, seconds)
            return
        end_ns = job.started_ns + int(seconds * 1e9)
        since_last = (end_ns - max(job.started_ns, self._last_end_ns)) / 1e9
        self._last_end_ns = max(end_ns, self._last_end_ns)
        curve.observe_pipelined(job.cost_units, seconds, since_last)
