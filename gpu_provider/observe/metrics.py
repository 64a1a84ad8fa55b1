"""The names of all metrics. Nothing is kept here: the numbers are read when they are scraped.

The time histograms count batches, not requests: the time from submission to launch of the batch's oldest request, and
the time that a worker was busy with it. So they show the worst of each batch.
"""

from __future__ import annotations

import importlib.metadata
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gpu_provider.kinds import LABELS
from gpu_provider.native import ffi, lib
from gpu_provider.observe.nvml import Nvml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.metrics_core import Metric

    from gpu_provider.client import Client, QueueCounters
    from gpu_provider.observe.nvml import GpuFigures
    from gpu_provider.observe.stats import BatchCounts, Distribution, Statistics

__all__ = ["ProviderCollector"]

_FALLBACK_REASONS = ("error", "refused", "timeout", "wrong_result")


class ProviderCollector(Collector):
    """A provider's metrics. Any thread."""

    def __init__(
        self, client: Client, statistics: Statistics, depth: int, gpus: Callable[[], Mapping[str, str]]
    ) -> None:
        """``depth``: slots of the queue. ``gpus``: returns the PCI bus ids by name of the backend."""
        self._client = client
        self._statistics = statistics
        self._depth = depth
        self._gpus = gpus
        self._nvml = Nvml()
        openssl = ffi.string(lib.OpenSSL_version(0))
        self._build = (
            importlib.metadata.version("gpu-provider"),
            openssl.decode() if isinstance(openssl, bytes) else openssl,
        )

    def describe(self) -> Iterable[Metric]:
        """Empty, so that registering does not scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        yield from _queue(self._client.counters(), self._depth)
        yield from _batches(self._statistics.counts())
        stalled, used, _ = self._statistics.processors
        yield GaugeMetricFamily(
            "gpu_provider_processor_stall_ratio",
            "Share of the time in which a thread waited for a processor, when requests last came",
            value=stalled,
        )
        yield GaugeMetricFamily(
            "gpu_provider_processor_use_ratio",
            "Share of the processors, or of the container's quota of them, in use when requests last came",
            value=used,
        )
        yield from _gpu_figures({backend: self._nvml.read(bus_id) for backend, bus_id in self._gpus().items()})
        build = GaugeMetricFamily("gpu_provider_build_info", "Always 1", labels=["version", "openssl"])
        build.add_metric(self._build, 1)
        yield build


def _queue(now: QueueCounters, depth: int) -> Iterable[Metric]:
    yield CounterMetricFamily("gpu_provider_submitted", "Requests put into the queue", value=now.submitted)
    yield CounterMetricFamily("gpu_provider_retries", "Times that the queue was full: RETRY", value=now.retries)
    yield CounterMetricFamily(
        "gpu_provider_orphaned", "Requests whose connection went away before the result came", value=now.orphaned
    )
    yield CounterMetricFamily(
        "gpu_provider_direct", "Operations computed at once by OpenSSL, past the queue", value=now.direct
    )
    yield GaugeMetricFamily("gpu_provider_queue_depth", "Slots of the request queue", value=depth)
    yield GaugeMetricFamily("gpu_provider_queue_in_use", "Slots in use now", value=now.in_use)
    yield GaugeMetricFamily("gpu_provider_queue_in_line", "Requests waiting for a free slot now", value=now.in_line)
    keys = GaugeMetricFamily(
        "gpu_provider_keys",
        "Private keys loaded: prepared for the kernels, in locked memory or not, or so far left to OpenSSL",
        labels=["prepared"],
    )
    keys.add_metric(["locked"], now.locked_keys)
    keys.add_metric(["unlocked"], now.kernel_keys - now.locked_keys)
    keys.add_metric(["no"], now.keys - now.kernel_keys)
    yield keys


def _batches(counts: BatchCounts) -> Iterable[Metric]:
    requests = CounterMetricFamily(
        "gpu_provider_requests", "Requests finished, by size class and result", labels=["size", "result"]
    )
    # All of them from the start: a rate over a counter that appears with its first event misses that event.
    results = {(label, succeeded): 0 for label in LABELS for succeeded in (True, False)}
    for (label, succeeded), count in (results | counts.results).items():
        requests.add_metric([label, "ok" if succeeded else "error"], count)
    yield requests
    yield _histogram(
        "gpu_provider_queue_seconds",
        "Time from submission to launch of each batch's oldest request",
        ["size"],
        {(label,): waited for label, waited in counts.queue_seconds.items()},
    )
    yield _histogram(
        "gpu_provider_held_seconds",
        "Time for which each batch's requests waited for company although a worker was free",
        ["size"],
        {(label,): held for label, held in counts.held_seconds.items()},
    )
    rows = CounterMetricFamily("gpu_provider_rows", "Requests that were computed", labels=["backend", "size"])
    paid = CounterMetricFamily(
        "gpu_provider_rows_paid",
        "Requests that full groups would have computed in the time that those of gpu_provider_rows should have taken",
        labels=["backend", "size"],
    )
    for (backend, label), computed in counts.rows.items():
        rows.add_metric([backend, label], computed)
        paid.add_metric([backend, label], counts.rows_paid[backend, label])
    yield from (rows, paid)
    yield _histogram(
        "gpu_provider_execute_seconds",
        "Time that a backend took for a batch, verification included",
        ["backend", "size"],
        {(backend, label): executed for (backend, label), executed in counts.execute_seconds.items()},
    )
    yield _histogram(
        "gpu_provider_batch_size",
        "Requests per batch",
        ["backend"],
        {(backend,): sizes for backend, sizes in counts.sizes.items()},
    )
    fallbacks = CounterMetricFamily(
        "gpu_provider_fallbacks",
        "Requests computed again elsewhere, by the backend that failed them and why",
        labels=["backend", "reason"],
    )
    failures = {(backend, reason): 0 for backend in counts.in_use for reason in _FALLBACK_REASONS}
    for labels, count in (failures | counts.fallbacks).items():
        fallbacks.add_metric(labels, count)
    yield fallbacks
    in_use = GaugeMetricFamily(
        "gpu_provider_backend_in_use", "1 if the backend is in use, 0 after a failure", labels=["backend"]
    )
    for backend, state in counts.in_use.items():
        in_use.add_metric([backend], state)
    yield in_use


def _gpu_figures(figures: Mapping[str, GpuFigures | None]) -> Iterable[Metric]:
    """Leaves out what a GPU doesn't report. Without GPUs the families are empty."""
    labels = ["backend"]
    power = GaugeMetricFamily("gpu_provider_gpu_power_watts", "Power that the GPU draws now", labels=labels)
    clock = GaugeMetricFamily("gpu_provider_gpu_clock_hertz", "Clocks now", labels=[*labels, "clock"])
    load = GaugeMetricFamily(
        "gpu_provider_gpu_utilization_ratio", "Share of the last second or less in which a kernel ran", labels=labels
    )
    memory = GaugeMetricFamily("gpu_provider_gpu_memory_bytes", "The GPU's memory", labels=[*labels, "memory"])
    temperature = GaugeMetricFamily("gpu_provider_gpu_temperature_celsius", "Temperature of the GPU", labels=labels)
    for backend, now in figures.items():
        if now is None:
            continue
        for family, values, value in (
            (power, (), now.power_watts),
            (clock, ("sm",), now.sm_clock_hertz),
            (clock, ("memory",), now.memory_clock_hertz),
            (load, (), now.utilization),
            (memory, ("used",), now.memory_used_bytes),
            (memory, ("total",), now.memory_total_bytes),
            (temperature, (), now.temperature_celsius),
        ):
            if value is not None:
                family.add_metric([backend, *values], value)
    yield from (power, clock, load, memory, temperature)


def _histogram(
    name: str, documentation: str, labels: list[str], distributions: Mapping[tuple[str, ...], Distribution]
) -> Metric:
    family = HistogramMetricFamily(name, documentation, labels=labels)
    for values, distribution in distributions.items():
        bounds = [*(str(float(bound)) for bound in distribution.bounds), "+Inf"]
        cumulative = accumulate(distribution.counts)
        family.add_metric(values, list(zip(bounds, cumulative, strict=True)), distribution.total)
    return family
