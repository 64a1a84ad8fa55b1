"""What a provider counts about its batches, for ``BatchingProvider.stats()`` and for the metrics."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_provider.client import QueueCounters
    from gpu_provider.jobs import Job
    from gpu_provider.metrics import BatchMetrics

__all__ = ["ProviderStats", "Statistics"]


@dataclass(frozen=True, slots=True)
class ProviderStats:
    """A snapshot. Everything counts from when the provider was made, but for ``in_use``, ``in_line`` and
    ``backend``."""

    submitted: int
    """Requests put into the queue, by TLS connections and by the library."""
    completed: int
    """Requests whose result, or failure, was delivered."""
    failed: int
    """Of those, the ones that failed."""
    retries: int
    """Times that a request found the queue full."""
    orphaned: int
    """Requests whose connection went away before the result came."""
    direct: int
    """Operations that OpenSSL computed at once, past the queue: the provider was closed, or the process had forked."""
    in_use: int
    """Slots of the queue in use now."""
    in_line: int
    """Requests that wait for a free slot now."""
    batches: int
    """Batches computed, including the second attempt of failed ones."""
    mean_batch: float
    """Requests per batch."""
    largest_batch: int
    fallbacks: int
    """Requests computed again on libcrypto."""
    by_backend: dict[str, int]
    """Requests that each backend computed, modexp() rows included."""
    backend: str
    """The name of the backend in use now."""


class Statistics:
    """Written by lanes and the batching thread, read by anyone."""

    def __init__(self, metrics: BatchMetrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._batches = 0
        self._requests = 0
        self._largest = 0
        self._fallbacks = 0
        self._by_backend: Counter[str] = Counter()

    def launched(self, kind: int, oldest_submitted_ns: int) -> None:
        waited = time.monotonic_ns() - oldest_submitted_ns
        self._metrics.queue_seconds(kind).observe(waited / 1e9)

    def batch(self, backend: str, job: Job, succeeded: int, seconds: float, last_resort: bool) -> None:
        """A lane is done with a batch. Called before the results are delivered, so that who gets a result sees it
        counted."""
        with self._lock:
            self._batches += 1
            self._requests += job.count
            self._largest = max(self._largest, job.count)
            self._by_backend[backend] += succeeded
        self._metrics.execute_seconds(backend, job.kind).observe(seconds)
        self._metrics.batch_size(backend).observe(job.count)
        if succeeded:
            self._metrics.requests(job.kind, "ok").inc(succeeded)
        if last_resort and succeeded < job.count:
            self._metrics.requests(job.kind, "error").inc(job.count - succeeded)

    def fallback(self, backend: str, reason: str, count: int) -> None:
        with self._lock:
            self._fallbacks += count
        self._metrics.fallbacks(backend, reason).inc(count)

    def backend_state(self, backend: str, in_use: bool) -> None:
        self._metrics.backend_in_use(backend).set(in_use)

    def snapshot(self, queue: QueueCounters, backend: str) -> ProviderStats:
        with self._lock:
            return ProviderStats(
                submitted=queue.submitted,
                completed=queue.completed,
                failed=queue.failed,
                retries=queue.retries,
                orphaned=queue.orphaned,
                direct=queue.direct,
                in_use=queue.in_use,
                in_line=queue.in_line,
                batches=self._batches,
                mean_batch=self._requests / self._batches if self._batches else 0.0,
                largest_batch=self._largest,
                fallbacks=self._fallbacks,
                by_backend=dict(self._by_backend),
                backend=backend,
            )
