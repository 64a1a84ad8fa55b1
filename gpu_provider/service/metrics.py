"""The service's metrics, by the program and the user of the processes that it serves. The batching provider's are in
``gpu_provider.observe.metrics``.

A process counts its own requests, in C, and leaves what it has counted to its program when it ends. Programs choose
their names themselves, so these are cleaned, and bounded in number: all in all, and of each user.
"""

from __future__ import annotations

import functools
import pwd
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _cffi_backend import FFI
    from prometheus_client.metrics_core import Metric

    from gpu_provider.observe.logs import BackgroundWriter

__all__ = ["ProgramCounts", "ServiceMetrics"]

_PREFIX = "gpu_provider_service_"
_REFUSALS = ("not_allowed", "max_processes", "no_memory", "no_descriptors")
_ENDS = ("closed", "protocol_error", "unread_answers", "error")
_MOST_PROGRAMS = 64
_MOST_OF_A_USER = 16
_OTHER = "other"


@dataclass(eq=False, slots=True)
class ProgramCounts:
    """The processes of one program that run under one user."""

    connections: int = 0
    requests: int = 0
    """Of the processes that have ended."""
    failed: int = 0
    """Likewise."""
    ends: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(_ENDS, 0)))
    remotes: set[FFI.CData] = field(default_factory=set)
    """The processes that are connected."""

    def forget(self, remote: FFI.CData) -> None:
        """It is closed now."""
        self.remotes.discard(remote)

    def end(self, remote: FFI.CData, reason: str) -> Any:
        """The process leaves what it has counted. Returns that, a ``struct gp_remote_stats``."""
        self.forget(remote)
        self.ends[reason] += 1
        stats = _stats(remote)
        self.requests += stats.requests
        self.failed += stats.failed
        return stats


class ServiceMetrics(Collector):
    """Counts from the start on. The event loop's thread only."""

    def __init__(self, max_processes: int, log: BackgroundWriter) -> None:
        self.refused = Counter(dict.fromkeys(_REFUSALS, 0))
        self.accept_failures = 0
        self._max_processes = max_processes
        self._log = log
        self._programs: dict[tuple[str, str], ProgramCounts] = {}

    def connected(self, remote: FFI.CData, pid: int, uid: int) -> ProgramCounts:
        """Returns the counts of the process's program, for the process's end."""
        counts = self._program(_program_name(pid), _user_name(uid))
        counts.connections += 1
        counts.remotes.add(remote)
        return counts

    def _program(self, program: str, user: str) -> ProgramCounts:
        if (program, user) not in self._programs:
            if sum(known == user for _, known in self._programs) >= _MOST_OF_A_USER:
                program = _OTHER
            if (program, user) not in self._programs and len(self._programs) >= _MOST_PROGRAMS:
                program = user = _OTHER
        return self._programs.setdefault((program, user), ProgramCounts())

    def describe(self) -> Iterator[Metric]:
        """The names without values, so that registering needs no scrape."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            _PREFIX + "max_processes", "Processes that may be connected at a time", value=self._max_processes
        )
        refused = CounterMetricFamily(
            _PREFIX + "refused", "Processes that were refused, and compute by themselves, by reason", labels=["reason"]
        )
        for reason, count in self.refused.items():
            refused.add_metric([reason], count)
        yield refused
        yield CounterMetricFamily(
            _PREFIX + "accept_failures",
            "Times that a process could not be accepted for want of descriptors or memory, and had to wait",
            value=self.accept_failures,
        )
        yield CounterMetricFamily(
            _PREFIX + "log_lines_dropped",
            "Log lines that could not be written, or not in time",
            value=self._log.dropped,
        )
        yield from self._by_program()

    def _by_program(self) -> Iterator[Metric]:
        labels = ["program", "user"]
        processes = GaugeMetricFamily(_PREFIX + "processes", "Processes connected now", labels=labels)
        connections = CounterMetricFamily(_PREFIX + "connections", "Processes that have connected", labels=labels)
        requests = CounterMetricFamily(_PREFIX + "requests", "Requests taken from processes", labels=labels)
        failed = CounterMetricFamily(
            _PREFIX + "failed_requests", "Of those, the ones that were not valid or failed", labels=labels
        )
        keys = GaugeMetricFamily(_PREFIX + "keys", "Keys that processes have brought", labels=labels)
        descriptors = GaugeMetricFamily(
            _PREFIX + "descriptors", "Wait descriptors that processes have been given", labels=labels
        )
        ended = CounterMetricFamily(
            _PREFIX + "ended",
            "Processes whose connection has ended, by reason: it closed the connection, did not keep to the protocol, "
            "did not read its answers, or could not be served",
            labels=[*labels, "reason"],
        )
        for names, counts in self._programs.items():
            live = [_stats(remote) for remote in counts.remotes]
            processes.add_metric(names, len(live))
            connections.add_metric(names, counts.connections)
            requests.add_metric(names, counts.requests + sum(stats.requests for stats in live))
            failed.add_metric(names, counts.failed + sum(stats.failed for stats in live))
            keys.add_metric(names, sum(stats.keys for stats in live))
            descriptors.add_metric(names, sum(stats.descriptors for stats in live))
            for reason, count in counts.ends.items():
                ended.add_metric([*names, reason], count)
        yield from (processes, connections, requests, failed, keys, descriptors, ended)


def _stats(remote: FFI.CData) -> Any:
    stats = ffi.new("struct gp_remote_stats *")
    lib.gp_remote_get_stats(remote, stats)
    return stats


def _program_name(pid: int) -> str:
    try:
        return _printable(Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n"))
    except OSError:  # it has ended, or is in a namespace of processes that can't be seen from here
        return "unknown"


@functools.lru_cache(256)
def _user_name(uid: int) -> str:
    try:
        return _printable(pwd.getpwuid(uid).pw_name.encode())
    except KeyError:
        return str(uid)


def _printable(name: bytes) -> str:
    return re.sub(rb"[^ -~]", b"?", name).decode() or "unknown"
