"""What becomes of a job when its backend has returned: delivered, or computed again. On the worker's thread."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from gpu_provider.client import Client
    from gpu_provider.engine.jobs import Job
    from gpu_provider.engine.workers import BackendWorkers, Worker
    from gpu_provider.observe.stats import Statistics

__all__ = ["Futures", "Results", "Return"]


class Futures(Protocol):
    """The library's requests in the queue, for the engine to end. Any thread."""

    def deliver(self) -> None:
        """Ends those that are finished."""
        ...

    def fail_all(self) -> None:
        """Ends all that are left, when the provider is closed."""
        ...


class Return(NamedTuple):
    """A worker that can take another job. What is left to do for ``job`` is done on its thread before that, unless the
    watchdog has claimed the job (``late``)."""

    worker: Worker
    job: Job
    seconds: float
    broken: str | None = None
    """Why the backend must go out of use."""
    late: bool = False


class Results:
    """Where workers leave what the batching thread has to do."""

    def __init__(
        self, client: Client, futures: Futures, statistics: Statistics, last_resort: BackendWorkers, max_delay: float
    ) -> None:
        self.returned: deque[Return] = deque()
        """Appended to by workers."""
        self.again: deque[Job] = deque()
        """What failed elsewhere, for the last resort. Appended to by any thread of the engine."""
        self._client = client
        self._futures = futures
        self._statistics = statistics
        self._last_resort = last_resort
        self._max_delay = max_delay

    def finished(self, worker: Worker, job: Job, outcome: BaseException | int) -> None:
        """Delivers the results. No lock is held: completing runs the applications' callbacks."""
        seconds = (time.monotonic_ns() - job.started_ns) / 1e9
        if not job.claim():
            self._return(Return(worker, job, seconds, late=True))
            return
        buffers, succeeded = job.buffers, job.succeeded()
        last_resort = worker.owner is self._last_resort
        price = worker.owner.price(job.kind, job.cost_units)
        self._statistics.batch(
            worker.owner.name, job.kind, job.count, succeeded, seconds, price=price, last_resort=last_resort
        )
        if succeeded == job.count:
            # First, so that the batching thread takes the next batch while this thread delivers.
            self._return(Return(worker, job, seconds))
            job.finish()
        else:
            try:
                self._deliver_failed(worker.owner, job, succeeded, outcome)
            except MemoryError:  # for the arrays of a second attempt
                job.finish()
            self._return(Return(worker, job, seconds, broken=_describe(outcome)))
        with contextlib.suppress(MemoryError):  # then the next batch's thread delivers them
            self._futures.deliver()
        if buffers is not None:
            worker.recycle(buffers)

    def compute_again(self, job: Job, whole: bool) -> None:
        """Has the last resort compute what failed of a claimed job, or the whole of it. Any thread of the engine."""
        bound = self._last_resort.costs[job.kind].largest(self._max_delay)
        self.again.extend(job.split_off_failed(bound, whole))

    def _deliver_failed(self, owner: BackendWorkers, job: Job, succeeded: int, outcome: BaseException | int) -> None:
        if owner is self._last_resort:
            job.finish()
            return
        reason = "error" if isinstance(outcome, BaseException) else "wrong_result" if outcome else "refused"
        self._statistics.fallback(owner.name, reason, job.count - succeeded)
        self.compute_again(job, whole=False)

    def _return(self, done: Return) -> None:
        self.returned.append(done)
        self._client.wake()


def _describe(outcome: BaseException | int) -> str | None:
    if isinstance(outcome, BaseException):
        return f"{type(outcome).__name__}: {outcome}"
    return f"{outcome} wrong results" if outcome else None
