"""The watchdog: takes jobs away from backends that hang. The batching thread only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpu_provider.engine.jobs import Job
    from gpu_provider.engine.workers import Worker

__all__ = ["Watchdog"]


class Watchdog:
    """Workers that compute, each with a deadline."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        """Seconds that a job may take."""
        self._watched: dict[Worker, tuple[int, Job]] = {}  # with their deadlines, the earliest first

    def watch(self, worker: Worker, job: Job) -> None:
        """The worker has just got ``job``."""
        self._watched[worker] = (time.monotonic_ns() + int(self.timeout * 1e9), job)

    def forget(self, worker: Worker) -> None:
        """The worker has returned."""
        self._watched.pop(worker, None)

    @property
    def next_deadline_ns(self) -> int | None:
        """On the monotonic clock."""
        return next((deadline_ns for deadline_ns, _ in self._watched.values()), None)

    def claim_from_hung(self) -> Iterator[tuple[Worker, Job]]:
        """Each job that is overdue, and the worker that hangs. The job is the caller's to have computed elsewhere."""
        now_ns = time.monotonic_ns()
        while self._watched:
            worker, (deadline_ns, job) = next(iter(self._watched.items()))
            if now_ns < deadline_ns:
                return
            del self._watched[worker]
            if job.claim():  # else it has just returned
                worker.give_up()
                yield worker, job
