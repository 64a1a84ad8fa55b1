"""What the terminator counts, and under which names. The batching provider's metrics are in ``gpu_provider.metrics``.

The event loop's thread alone counts, so that plain numbers will do; they become metrics when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from gpu_provider.tls.terminator.certificates import Certificate
    from gpu_provider.tls.terminator.logs import BackgroundWriter

__all__ = ["TerminatorMetrics"]

_PREFIX = "gpu_provider_terminator_"
_HANDSHAKE_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class TerminatorMetrics(Collector):
    """Counts since the start. Register it with a prometheus_client registry; scrape on the event loop's thread."""

    def __init__(self, log: BackgroundWriter | None = None) -> None:
        self.accepted = 0
        self.open = 0
        self.handshakes: Counter[tuple[str, str, str]] = Counter()
        """By result, TLS version and async status. Failed ones have neither of the last two."""
        self.sessions: Counter[str] = Counter()
        """Ended connections whose handshake had succeeded, by how they ended."""
        self.upstream_failures: Counter[str] = Counter()
        self.bytes_to_upstream = 0
        self.bytes_to_client = 0
        self.shortages: Counter[str] = Counter()
        self.reloads: Counter[str] = Counter()
        self.certificates: tuple[Certificate, ...] = ()
        self._handshake_buckets = [0] * (len(_HANDSHAKE_BOUNDS) + 1)
        self._handshake_seconds = 0.0
        self._log = log

    def handshake_done(self, seconds: float, version: str, async_status: str) -> None:
        self.handshakes["ok", version, async_status] += 1
        self._handshake_buckets[bisect_left(_HANDSHAKE_BOUNDS, seconds)] += 1
        self._handshake_seconds += seconds

    def handshake_failed(self, result: str) -> None:
        self.handshakes[result, "", ""] += 1

    def describe(self) -> Iterator[Metric]:
        """The names without values, so that registering does not need a scrape."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(_PREFIX + "accepted", "TCP connections accepted", value=self.accepted)
        yield GaugeMetricFamily(_PREFIX + "open_connections", "Connections open now", value=self.open)
        yield _counter(
            "handshakes",
            "TLS handshakes, by result, TLS version and the status of their last asynchronous operation",
            ("result", "version", "async_status"),
            self.handshakes,
        )
        yield self._handshake_histogram()
        yield _counter("sessions", "Connections ended after their handshake, by how", ("end",), self.sessions)
        yield _counter(
            "upstream_failures",
            "Connections to the upstream that failed, by reason",
            ("reason",),
            self.upstream_failures,
        )
        yield _counter(
            "relayed_bytes",
            "Decrypted bytes relayed",
            ("direction",),
            {"to_upstream": self.bytes_to_upstream, "to_client": self.bytes_to_client},
        )
        yield _counter(
            "shortages",
            "Connections that could not be accepted or served for want of resources",
            ("reason",),
            self.shortages,
        )
        yield _counter("reloads", "Reloads of the certificates, by result", ("result",), self.reloads)
        yield CounterMetricFamily(
            _PREFIX + "log_lines_dropped",
            "Log lines that could not be written, or not in time",
            value=self._log.dropped if self._log is not None else 0,
        )
        expiry = GaugeMetricFamily(
            _PREFIX + "certificate_expiry_timestamp_seconds",
            "When the certificate in use expires, in Unix time",
            labels=("certificate", "key_type"),
        )
        for certificate in {one.path: one for one in self.certificates}.values():
            expiry.add_metric((str(certificate.path), certificate.key_type), certificate.not_after)
        yield expiry

    def _handshake_histogram(self) -> HistogramMetricFamily:
        total, buckets = 0, []
        for bound, count in zip((*map(str, _HANDSHAKE_BOUNDS), "+Inf"), self._handshake_buckets, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(
            _PREFIX + "handshake_seconds",
            "Time from accepting a connection to the end of its handshake, of those that succeeded",
            buckets=buckets,
            sum_value=self._handshake_seconds,
        )


def _counter(
    name: str,
    documentation: str,
    labels: tuple[str, ...],
    values: dict[str, int] | Counter[str] | Counter[tuple[str, str, str]],
) -> CounterMetricFamily:
    family = CounterMetricFamily(_PREFIX + name, documentation, labels=labels)
    for key, value in values.items():
        family.add_metric((key,) if isinstance(key, str) else key, value)
    return family
