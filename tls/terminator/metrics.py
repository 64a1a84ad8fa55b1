"""The terminator's metrics. The batching provider's are in ``gpu_provider.observe.metrics``.

Only the event loop's thread counts, so plain numbers will do; they become metrics when somebody asks. Series whose
labels are known beforehand exist from the start, at zero: a rate over a counter that appears with its first event would
miss that event.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gpu_provider.status import AsyncStatus
from gpu_provider.tls.terminator.failures import HANDSHAKE_FAILURES, UPSTREAM_FAILURES
from gpu_provider.tls.terminator.shortage import SHORTAGE_REASONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from gpu_provider.observe.logs import BackgroundWriter
    from gpu_provider.tls.terminator.certificates import Certificate

__all__ = ["TerminatorMetrics"]

LabelsT = TypeVar("LabelsT")

_PREFIX = "gpu_provider_terminator_"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_FAILED = ("failed", "client_gone", "timeout", "out_of_memory", "forced")
_ENDS = (
    "closed",
    "client_eof",
    "client_reset",
    "client_flood",
    "tls_error",
    "upstream_reset",
    "upstream_unreachable",
    "idle_timeout",
    "out_of_memory",
    "forced",
)
_VERSIONS = ("TLSv1.2", "TLSv1.3")
_LABELS_OF_OK = tuple(
    ("ok", version, status, resumed)
    for version in _VERSIONS
    for status, resumed in (*((status.name, "no") for status in AsyncStatus), ("", "yes"))
)


class TerminatorMetrics(Collector):
    """Counts from the start on. Register it with a prometheus_client registry; scrape on the event loop's thread."""

    def __init__(self, log: BackgroundWriter | None = None) -> None:
        self.accepted = 0
        self.open = 0
        self.max_connections = 0
        self.limit_reached = 0
        self.overloads = 0
        self.refused = _zeros(("overload", "address"))
        """Connections that were closed as soon as they were accepted, by why."""
        self.in_handshake = 0
        self.accept_queue = _Times()
        """How long clients' first bytes had waited before their connections were accepted."""
        self.handshakes: Counter[tuple[str, str, str, str]] = _zeros(
            (*_LABELS_OF_OK, *((result, "", "", "") for result in _FAILED))
        )
        """Counts by result, TLS version, async status and whether a session was resumed, which has no async status;
        failures by result alone."""
        self.handshake_failures = _zeros(HANDSHAKE_FAILURES)
        self.sessions = _zeros(_ENDS)
        """Connections that ended after a successful handshake, by how they ended."""
        self.upstream_failures = _zeros(UPSTREAM_FAILURES)
        self.upstreams: Callable[[], Mapping[str, bool]] = dict
        """Whether each address of the upstream is passed over, because it has failed a moment ago."""
        self.bytes_to_upstream = 0
        self.bytes_to_client = 0
        self.shortages = _zeros(SHORTAGE_REASONS)
        self.reloads = _zeros(("ok", "failed"))
        self.certificates: tuple[Certificate, ...] = ()
        self.client_crl_end = math.inf
        self._handshake_times = {
            labels: _Times()
            for labels in (
                *(("ok", version, resumed) for version in _VERSIONS for resumed in ("no", "yes")),
                *((result, "", "") for result in _FAILED),
            )
        }
        """By result, TLS version and whether a session was resumed."""
        self._log = log

    def handshake_done(self, seconds: float, version: str, async_status: AsyncStatus | None) -> None:
        """``seconds``: since the client's first byte. ``async_status``: None if a session was resumed."""
        status, resumed = ("", "yes") if async_status is None else (async_status.name, "no")
        self.handshakes["ok", version, status, resumed] += 1
        self._handshake_times["ok", version, resumed].observe(seconds)

    def handshake_failed(self, result: str, reason: str, seconds: float | None) -> None:
        """``seconds``: None if the client has sent nothing."""
        self.handshakes[result, "", "", ""] += 1
        self.handshake_failures[reason] += 1
        if seconds is not None:
            self._handshake_times[result, "", ""].observe(seconds)

    def describe(self) -> Iterator[Metric]:
        """The names without values, so that registering needs no scrape."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(_PREFIX + "accepted", "TCP connections accepted", value=self.accepted)
        yield GaugeMetricFamily(_PREFIX + "open_connections", "Connections open now", value=self.open)
        yield GaugeMetricFamily(
            _PREFIX + "max_connections", "Connections that may be open at a time", value=self.max_connections
        )
        yield CounterMetricFamily(
            _PREFIX + "connection_limit_reached",
            "Times that accepting stopped because max_connections were open",
            value=self.limit_reached,
        )
        yield CounterMetricFamily(
            _PREFIX + "overloads",
            "Times that accepting paused because handshakes came faster than their RSA operations can be computed",
            value=self.overloads,
        )
        yield _counter(
            "refused",
            "Connections closed as soon as they were accepted: in an overload, or for too many from an address",
            ("reason",),
            self.refused,
        )
        yield GaugeMetricFamily(
            _PREFIX + "handshakes_in_progress", "Connections whose handshake is not done", value=self.in_handshake
        )
        yield _histogram(
            "accept_queue_seconds",
            "Time that a client's first bytes, or a silent client, had waited here before the connection was accepted",
            (),
            [((), self.accept_queue)],
        )
        yield _counter(
            "handshakes",
            "TLS handshakes, by result, TLS version, the status of their last asynchronous operation, and whether they "
            "resumed a session, which needs no such operation and so has no status",
            ("result", "version", "async_status", "resumed"),
            self.handshakes,
        )
        yield _counter(
            "handshake_failures", "TLS handshakes that failed, by reason", ("reason",), self.handshake_failures
        )
        yield _histogram(
            "handshake_seconds",
            "Time from a client's first byte to the end of its handshake, by result, TLS version and whether it "
            "resumed a session; it includes accept_queue_seconds. Clients that sent nothing are left out",
            ("result", "version", "resumed"),
            self._handshake_times.items(),
        )
        yield _counter("sessions", "Connections ended after their handshake, by how", ("end",), self.sessions)
        yield _counter(
            "upstream_failures",
            "Connections to the upstream that failed, by reason",
            ("reason",),
            self.upstream_failures,
        )
        paused = GaugeMetricFamily(
            _PREFIX + "upstream_paused",
            "Processes that pass over this address of the upstream, because it has failed a moment ago",
            labels=("upstream",),
        )
        for upstream, is_paused in self.upstreams().items():
            paused.add_metric((upstream,), float(is_paused))
        yield paused
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
        yield GaugeMetricFamily(
            _PREFIX + "client_crl_expiry_timestamp_seconds",
            "When the first revocation list of client_crl is out of date, in Unix time; infinity without one",
            value=self.client_crl_end,
        )


class _Times:
    """How many seconds things took."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        """By bucket; the last is for what took longer."""
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.sum += seconds


def _zeros(labels: Iterable[LabelsT]) -> Counter[LabelsT]:
    return Counter(dict.fromkeys(labels, 0))


def _histogram(
    name: str, documentation: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], _Times]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(_PREFIX + name, documentation, labels=labels)
    bounds = (*map(str, _SECONDS), "+Inf")
    for key, times in values:
        family.add_metric(key, list(zip(bounds, accumulate(times.counts), strict=True)), times.sum)
    return family


def _counter(
    name: str,
    documentation: str,
    labels: tuple[str, ...],
    values: dict[str, int] | Counter[str] | Counter[tuple[str, str, str, str]],
) -> CounterMetricFamily:
    family = CounterMetricFamily(_PREFIX + name, documentation, labels=labels)
    for key, value in values.items():
        family.add_metric((key,) if isinstance(key, str) else key, value)
    return family
