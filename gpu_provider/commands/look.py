"""What ``gpu-provider top`` shows: the state at a time, and what happened since the last look."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_provider.commands.scrapes import Change, Scrape

__all__ = ["Backend", "Connections", "Latency", "Look", "Program", "Programs", "look"]

_SERVICE = "gpu_provider_service_"
_TERMINATOR = "gpu_provider_terminator_"


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds; None: nothing was measured."""

    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Backend:
    name: str
    in_use: bool
    requests_per_second: float
    utilization: float | None
    """This and what follows: of a GPU, if that is known."""
    power_watts: float | None
    temperature_celsius: float | None
    memory_used_bytes: float | None
    memory_total_bytes: float | None


@dataclass(frozen=True, slots=True)
class Program:
    program: str
    user: str
    processes: int
    requests_per_second: float
    failed_per_second: float
    keys: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class Programs:
    """Of a service."""

    processes: int
    max_processes: int
    refused: int
    """Since the service was started, as is what follows."""
    protocol_errors: int
    by_program: tuple[Program, ...]
    """Those with most requests first."""


@dataclass(frozen=True, slots=True)
class Connections:
    """Of a terminator."""

    open: int
    max_connections: int
    accepted_per_second: float
    handshakes_per_second: float
    resumed_per_second: float
    """Of these handshakes."""
    failed_per_second: float
    handshake: Latency
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Look:
    seconds: float
    """Since the last look."""
    version: str
    openssl: str
    requests_per_second: float
    failed_per_second: float
    retries_per_second: float
    queue_depth: int
    queue_in_use: int
    queue_in_line: int
    batches_per_second: float
    mean_batch: float | None
    fill: float | None
    """How full the groups were: 1 if all were."""
    batch_sizes: dict[int, float]
    """Batches since the last look, by the largest number of requests in each bucket; all buckets up to the largest
    batch since the start."""
    queued: Latency
    """From submission to launch, of each batch's oldest request."""
    computed: Latency
    """For which a batch was computed."""
    backends: tuple[Backend, ...]
    programs: Programs | None
    """None: it is no service."""
    connections: Connections | None
    """None: it is no terminator."""


def look(now: Scrape, change: Change) -> Look:
    rows, paid = change.sum("gpu_provider_rows_total"), change.sum("gpu_provider_rows_paid_total")
    batches = change.sum("gpu_provider_batch_size_count")
    return Look(
        seconds=change.seconds,
        version=now.label("gpu_provider_build_info", "version"),
        openssl=now.label("gpu_provider_build_info", "openssl"),
        requests_per_second=change.rate("gpu_provider_requests_total"),
        failed_per_second=change.rate("gpu_provider_requests_total", result="error"),
        retries_per_second=change.rate("gpu_provider_retries_total"),
        queue_depth=int(now.sum("gpu_provider_queue_depth")),
        queue_in_use=int(now.sum("gpu_provider_queue_in_use")),
        queue_in_line=int(now.sum("gpu_provider_queue_in_line")),
        batches_per_second=batches / change.seconds,
        mean_batch=change.sum("gpu_provider_batch_size_sum") / batches if batches else None,
        fill=min(1.0, rows / paid) if paid else None,
        batch_sizes=_batch_sizes(now, change),
        queued=_latency(change, "gpu_provider_queue_seconds"),
        computed=_latency(change, "gpu_provider_execute_seconds"),
        backends=_backends(now, change),
        programs=_programs(now, change) if f"{_SERVICE}max_processes" in now.series else None,
        connections=_connections(now, change) if f"{_TERMINATOR}open_connections" in now.series else None,
    )


def _latency(change: Change, name: str, **labels: str) -> Latency:
    buckets = change.buckets(name, **labels)
    return Latency(buckets.quantile(0.5), buckets.quantile(0.99))


def _batch_sizes(now: Scrape, change: Change) -> dict[int, float]:
    sizes = change.buckets("gpu_provider_batch_size").counts
    ever = {float(bound): count for (bound,), count in now.by("gpu_provider_batch_size_bucket", "le").items()}
    largest = min((bound for bound, count in ever.items() if count == ever.get(math.inf)), default=0.0)
    return {int(bound): count for bound, count in sizes.items() if bound <= largest and not math.isinf(bound)}


def _backends(now: Scrape, change: Change) -> tuple[Backend, ...]:
    rates = change.rates("gpu_provider_rows_total", "backend")

    def figure(metric: str, backend: str, **labels: str) -> float | None:
        return next(iter(now.by(f"gpu_provider_gpu_{metric}", backend=backend, **labels).values()), None)

    return tuple(
        Backend(
            name=name,
            in_use=bool(in_use),
            requests_per_second=rates.get((name,), 0.0),
            utilization=figure("utilization_ratio", name),
            power_watts=figure("power_watts", name),
            temperature_celsius=figure("temperature_celsius", name),
            memory_used_bytes=figure("memory_bytes", name, memory="used"),
            memory_total_bytes=figure("memory_bytes", name, memory="total"),
        )
        for (name,), in_use in now.by("gpu_provider_backend_in_use", "backend").items()
    )


def _programs(now: Scrape, change: Change) -> Programs:
    def by_program(metric: str) -> dict[tuple[str, ...], float]:
        return now.by(f"{_SERVICE}{metric}", "program", "user")

    processes, keys, descriptors = (by_program(metric) for metric in ("processes", "keys", "descriptors"))
    requests, failed = (
        change.rates(f"{_SERVICE}{metric}_total", "program", "user") for metric in ("requests", "failed_requests")
    )
    found = (
        Program(
            program=program,
            user=user,
            processes=int(count),
            requests_per_second=requests.get((program, user), 0.0),
            failed_per_second=failed.get((program, user), 0.0),
            keys=int(keys.get((program, user), 0)),
            descriptors=int(descriptors.get((program, user), 0)),
        )
        for (program, user), count in processes.items()
    )
    return Programs(
        processes=int(sum(processes.values())),
        max_processes=int(now.sum(f"{_SERVICE}max_processes")),
        refused=int(now.sum(f"{_SERVICE}refused_total")),
        protocol_errors=int(now.sum(f"{_SERVICE}ended_total", reason="protocol_error")),
        by_program=tuple(sorted(found, key=lambda one: (-one.requests_per_second, -one.processes, one.program))),
    )


def _connections(now: Scrape, change: Change) -> Connections:
    def rate(metric: str, **labels: str) -> float:
        return change.rate(f"{_TERMINATOR}{metric}_total", **labels)

    return Connections(
        open=int(now.sum(f"{_TERMINATOR}open_connections")),
        max_connections=int(now.sum(f"{_TERMINATOR}max_connections")),
        accepted_per_second=rate("accepted"),
        handshakes_per_second=rate("handshakes", result="ok"),
        resumed_per_second=rate("handshakes", result="ok", resumed="yes"),
        failed_per_second=rate("handshake_failures"),
        handshake=_latency(change, f"{_TERMINATOR}handshake_seconds", result="ok"),
        bytes_per_second=rate("relayed_bytes"),
    )
