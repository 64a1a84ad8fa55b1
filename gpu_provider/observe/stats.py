"""What a provider counts about its batches, for ``BatchingProvider.stats()`` and for the metrics.

Plain numbers, because they are counted once per batch, and a batch may be a single request. metrics.py names them when
they are scraped. The C core keeps a record of each batch that it computes itself until it is counted here.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gpu_provider.kinds import LABELS, REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpu_provider.client import Client, SmallBatch
    from gpu_provider.kinds import Kind

__all__ = ["BatchCounts", "Distribution", "ProviderStats", "Statistics"]

_TIME_BOUNDS = (0.0001, 0.0003, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536)


@dataclass(frozen=True, slots=True)
class ProviderStats:
    """A snapshot. Everything counts from the making of the provider, except ``in_use``, ``in_line`` and ``backend``."""

    submitted: int
    """Requests put into the queue, by TLS connections and by the library."""
    completed: int
    """Requests whose result or failure was delivered."""
    failed: int
    """Completed requests that failed."""
    retries: int
    """Times that a request found the queue full."""
    orphaned: int
    """Requests whose connection went away before the result came."""
    direct: int
    """Operations that OpenSSL computed at once, past the queue: the provider was closed, or the process had forked."""
    in_use: int
    """Slots of the queue in use now."""
    in_line: int
    """Requests in the wait queue for a free slot now."""
    batches: int
    """Batches computed, including second attempts of failed ones."""
    mean_batch: float
    """Requests per batch."""
    largest_batch: int
    fallbacks: int
    """Requests that a backend failed and another computed again."""
    by_backend: dict[str, int]
    """Requests that each backend computed, rows of modexp() included."""
    backend: str
    """The name of the backend in use now."""


class Distribution:
    """How many observations fell into each bucket, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Distribution:
        twin = Distribution(self.bounds)
        twin.counts = self.counts.copy()
        twin.total = self.total
        return twin


def _times() -> Distribution:
    return Distribution(_TIME_BOUNDS)


def _sizes() -> Distribution:
    return Distribution(_BATCH_SIZES)


@dataclass(slots=True)
class BatchCounts:
    """Everything that is counted per batch. Kinds of work go by their labels."""

    batches: int = 0
    requests: int = 0
    largest: int = 0
    results: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """Requests, by kind and by whether they succeeded."""
    by_backend: Counter[str] = field(default_factory=Counter)
    """Requests that succeeded."""
    fallbacks: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests, by the backend that failed them and why."""
    in_use: dict[str, bool] = field(default_factory=dict)
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests computed, by backend and kind."""
    rows_paid: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """How many full groups would have computed in the time that these should have taken."""
    queue_seconds: defaultdict[str, Distribution] = field(default_factory=lambda: defaultdict(_times))
    """Time from submission to launch, by kind."""
    held_seconds: defaultdict[str, Distribution] = field(default_factory=lambda: defaultdict(_times))
    """Of that, waiting for company though a worker was free, by kind."""
    execute_seconds: defaultdict[tuple[str, str], Distribution] = field(default_factory=lambda: defaultdict(_times))
    """Time that a batch took, by backend and kind."""
    sizes: defaultdict[str, Distribution] = field(default_factory=lambda: defaultdict(_sizes))
    """Requests in a batch, by backend."""

    def batch(
        self,
        backend: str,
        label: str,
        requests: int,
        succeeded: int,
        seconds: float,
        *,
        price: float,
        last_resort: bool,
    ) -> None:
        self.rows[backend, label] += requests
        self.rows_paid[backend, label] += requests * price
        self.batches += 1
        self.requests += requests
        self.largest = max(self.largest, requests)
        self.by_backend[backend] += succeeded
        self.execute_seconds[backend, label].observe(seconds)
        self.sizes[backend].observe(requests)
        if succeeded:
            self.results[label, True] += succeeded
        if last_resort and succeeded < requests:
            self.results[label, False] += requests - succeeded

    def launched(self, label: str, waited_ns: int, held_ns: int) -> None:
        self.queue_seconds[label].observe(waited_ns / 1e9)
        self.held_seconds[label].observe(held_ns / 1e9)

    def small_batch(self, backend: str, batch: SmallBatch, price: float) -> None:
        label = LABELS[batch.class_index]
        self.launched(label, batch.waited_ns, batch.held_ns)
        succeeded, seconds = batch.requests - batch.failed, batch.executed_ns / 1e9
        self.batch(backend, label, batch.requests, succeeded, seconds, price=price, last_resort=True)
        if batch.again:
            self.fallbacks[backend, "wrong_result"] += batch.again

    def copy(self) -> BatchCounts:
        counts = replace(
            self,
            results=self.results.copy(),
            by_backend=self.by_backend.copy(),
            fallbacks=self.fallbacks.copy(),
            rows=self.rows.copy(),
            rows_paid=self.rows_paid.copy(),
            in_use=self.in_use.copy(),
            queue_seconds=defaultdict(_times),
            held_seconds=defaultdict(_times),
            execute_seconds=defaultdict(_times),
            sizes=defaultdict(_sizes),
        )
        for label, waited in self.queue_seconds.items():
            counts.queue_seconds[label] = waited.copy()
        for label, held in self.held_seconds.items():
            counts.held_seconds[label] = held.copy()
        for key, executed in self.execute_seconds.items():
            counts.execute_seconds[key] = executed.copy()
        for backend, sizes in self.sizes.items():
            counts.sizes[backend] = sizes.copy()
        return counts


class Statistics:
    """Written by workers and the batching thread, read by anyone."""

    def __init__(self, client: Client, inline: str) -> None:
        """``inline``: the name of the backend that small batches of the C core count for."""
        self._client = client
        self._inline = inline
        self._lock = threading.Lock()
        self._counts = BatchCounts()
        self.processors = (0.0, 0.0, 1.0)
        """The scheduler's ``Shortage``, when requests last came. The batching thread sets it."""
        self.price: Callable[[Kind, int], float] = lambda _kind, _requests: 1.0
        """``BackendWorkers.price`` of the inline backend."""

    def launched(self, kind: Kind, oldest_submitted_ns: int, held_ns: int) -> None:
        waited_ns = time.monotonic_ns() - oldest_submitted_ns
        with self._lock:
            self._counts.launched(kind.label, waited_ns, held_ns)

    def batch(
        self,
        backend: str,
        kind: Kind,
        requests: int,
        succeeded: int,
        seconds: float,
        *,
        price: float = 1.0,
        last_resort: bool = False,
    ) -> None:
        """Counts a batch that a backend has returned. Called before the results are delivered, so that whoever gets a
        result sees it counted. ``price``: of each request, relative to a full group's. ``last_resort``: what has not
        succeeded has failed for good."""
        with self._lock:
            self._counts.batch(backend, kind.label, requests, succeeded, seconds, price=price, last_resort=last_resort)

    def take_small_batches(self) -> list[SmallBatch]:
        """Counts those that the C core has computed since the last time. The batching thread only: no signal handler
        interrupts it between taking and counting."""
        with self._lock:
            batches = self._client.small_batches(take=True)
            for batch in batches:
                self._counts.small_batch(self._inline, batch, self._price(batch))
        return batches

    def fallback(self, backend: str, reason: str, count: int) -> None:
        with self._lock:
            self._counts.fallbacks[backend, reason] += count

    def backend_state(self, backend: str, in_use: bool) -> None:
        with self._lock:
            self._counts.in_use[backend] = in_use

    def counts(self) -> BatchCounts:
        """A copy, with the small batches in it that the batching thread has not taken yet."""
        with self._lock:
            counts = self._counts.copy()
            for batch in self._client.small_batches(take=False):
                counts.small_batch(self._inline, batch, self._price(batch))
        return counts

    def _price(self, batch: SmallBatch) -> float:
        return self.price(REQUESTS[batch.class_index], batch.requests)

    def snapshot(self, backend: str) -> ProviderStats:
        """``backend``: the name of the one in use."""
        counts, queue = self.counts(), self._client.counters()
        return ProviderStats(
            submitted=queue.submitted,
            completed=queue.completed,
            failed=queue.failed,
            retries=queue.retries,
            orphaned=queue.orphaned,
            direct=queue.direct,
            in_use=queue.in_use,
            in_line=queue.in_line,
            batches=counts.batches,
            mean_batch=counts.requests / counts.batches if counts.batches else 0.0,
            largest_batch=counts.largest,
            fallbacks=counts.fallbacks.total(),
            by_backend=dict(counts.by_backend),
            backend=backend,
        )
