"""Every metric's name, here alone. Nothing is counted per request in Python: the C core and the batches count.

The time histograms are fed once per batch: with the time from submission to launch of the batch's oldest request, and
with the time its lane was busy with it. So they tell the worst of each batch, weighted by batches and not by requests.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gpu_provider.client import CLASSES, class_bytes
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from gpu_provider.client import QueueCounters

__all__ = ["KIND_NAMES", "BatchMetrics", "QueueCollector", "QueueSource"]

KIND_NAMES = (*(str(class_bytes(index) * 8) for index in range(CLASSES)), "modexp")
"""The label ``size`` by kind of work: the size class's largest modulus in bits."""

_MetricT = TypeVar("_MetricT", Counter, Gauge, Histogram)

_SECONDS = (0.0001, 0.0003, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1, 3)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536)


class BatchMetrics:
    """What is fed once per batch. Any thread. Each method gives one metric with its labels filled in; that is kept,
    because looking it up by its labels costs as much as the rest of a small batch."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "gpu_provider_requests",
            "Requests finished, by size class and result",
            ["size", "result"],
            registry=registry,
        )
        self._queue_seconds = Histogram(
            "gpu_provider_queue_seconds",
            "Time from submission to launch of each batch's oldest request",
            ["size"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._execute_seconds = Histogram(
            "gpu_provider_execute_seconds",
            "Time that a backend took for a batch, verification included",
            ["backend", "size"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_size = Histogram(
            "gpu_provider_batch_size", "Requests per batch", ["backend"], buckets=_BATCH_SIZES, registry=registry
        )
        self._fallbacks = Counter(
            "gpu_provider_fallbacks",
            "Requests computed again on libcrypto, by the backend that failed them and why",
            ["backend", "reason"],
            registry=registry,
        )
        self._backend_in_use = Gauge(
            "gpu_provider_backend_in_use",
            "1 if the backend is in use, 0 after a failure",
            ["backend"],
            registry=registry,
        )
        self._children: dict[tuple[object, ...], Any] = {}
        build = Gauge("gpu_provider_build_info", "Always 1", ["version", "openssl"], registry=registry)
        openssl = ffi.string(lib.OpenSSL_version(0))
        build.labels(
            importlib.metadata.version("gpu-provider"), openssl.decode() if isinstance(openssl, bytes) else openssl
        ).set(1)

    def requests(self, kind: int, result: str) -> Counter:
        return self._fill_in(self._requests, KIND_NAMES[kind], result)

    def queue_seconds(self, kind: int) -> Histogram:
        return self._fill_in(self._queue_seconds, KIND_NAMES[kind])

    def execute_seconds(self, backend: str, kind: int) -> Histogram:
        return self._fill_in(self._execute_seconds, backend, KIND_NAMES[kind])

    def batch_size(self, backend: str) -> Histogram:
        return self._fill_in(self._batch_size, backend)

    def fallbacks(self, backend: str, reason: str) -> Counter:
        return self._fill_in(self._fallbacks, backend, reason)

    def backend_in_use(self, backend: str) -> Gauge:
        return self._fill_in(self._backend_in_use, backend)

    def _fill_in(self, metric: _MetricT, *labels: str) -> _MetricT:
        child: _MetricT | None = self._children.get((metric, *labels))
        if child is None:
            child = self._children[metric, *labels] = metric.labels(*labels)
        return child


class QueueSource(Protocol):
    """What the collector asks at each scrape."""

    def counters(self) -> QueueCounters: ...


class QueueCollector(Collector):
    """Reads the C core's counters when the metrics are scraped."""

    def __init__(self, source: QueueSource, depth: int) -> None:
        self._source = source
        self._depth = depth

    def describe(self) -> Iterable[Metric]:
        """Empty, so that registering does not scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        now = self._source.counters()
        counters: Mapping[str, tuple[str, int]] = {
            "gpu_provider_submitted": ("Requests put into the queue", now.submitted),
            "gpu_provider_retries": ("Times that the queue was full: RETRY", now.retries),
            "gpu_provider_orphaned": ("Requests whose connection went away before the result came", now.orphaned),
            "gpu_provider_direct": ("Operations computed at once by OpenSSL, past the queue", now.direct),
        }
        gauges: Mapping[str, tuple[str, int]] = {
            "gpu_provider_queue_depth": ("Slots of the request queue", self._depth),
            "gpu_provider_queue_in_use": ("Slots in use now", now.in_use),
            "gpu_provider_queue_in_line": ("Requests waiting for a free slot now", now.in_line),
        }
        for name, (documentation, value) in counters.items():
            yield CounterMetricFamily(name, documentation, value=value)
        for name, (documentation, value) in gauges.items():
            yield GaugeMetricFamily(name, documentation, value=value)
