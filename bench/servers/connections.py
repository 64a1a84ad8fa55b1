"""New TLS 1.3 connections, each for one small HTTP request, through servers that relay to the same upstream: CPU time
and latency of each connection, connections per second, and how our terminators batch."""

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

from ..environment import first_line
from ..harness import RSA_BITS, TERMINATOR_BEFORE, Bench, Server, interleave
from ..report import Curve, Result, Spread, Target

CONCURRENCY = (1, 8, 64, 256)
BODY = 64
UNITS = {
    "cpu_us": "µs of CPU",
    "rate": "connections/s",
    "handshake_median_us": "µs, median handshake",
    "handshake_p99_us": "µs, 99th percentile",
}
BATCHING_UNITS = {
    "batch_size": "requests per batch",
    "lone_batches": "share of batches of one",
    "execute_us": "µs to execute",
}
DRAWN = {
    "cpu_us": "µs of CPU per connection",
    "handshake_median_us": "µs per handshake, median",
    "batch_size": "requests per batch",
}
BASELINES = {"terminator": "asyncio", "terminator uvloop": "asyncio uvloop"}
# By value, key size and concurrency. Before: dd649c0, the last commit whose batches never waited for company.
LIMITS_TO_BEFORE = {
    ("cpu_us", 2048, 64): 0.88,
    ("cpu_us", 2048, 256): 0.88,
    ("cpu_us", 4096, 8): 0.5,
    ("cpu_us", 4096, 64): 0.85,
    ("handshake_median_us", 2048, 1): 1.03,
    ("handshake_median_us", 4096, 1): 1.03,
    ("handshake_median_us", 4096, 8): 1.0,
    ("handshake_median_us", 4096, 64): 1.0,
    ("handshake_median_us", 4096, 256): 1.0,
}


def measure(
    bench: Bench,
    *,
    rounds: int,
    connections: Mapping[int, int],
    before: Path | None = None,
    advance: Callable[[str, int], None],
) -> Result:
    """``connections``: how many each run opens, by RSA key size; one at a time, a third of them. ``before``: another
    checkout, whose terminator is measured too. ``advance(what, total)`` is called before each of the ``total`` runs."""
    commit = before and first_line("git", "-C", str(before), "log", "-1", "--format=%h %s")
    result = Result(
        "connections",
        "New TLS 1.3 connections, one small request each",
        {
            "rounds": rounds,
            "connections": connections,
            "concurrency": CONCURRENCY,
            "rsa_bits": list(connections),
            "body": BODY,
            "before": commit,
        },
        draw_rows=False,
    )
    if before:
        result.notes.append(f"{TERMINATOR_BEFORE}: commit {commit}")
    upstream = bench.upstream()
    servers = {bits: bench.relays(upstream, result.notes, bits=bits, before=before) for bits in connections}
    result.notes = list(dict.fromkeys(result.notes))
    for bits, group in servers.items():
        for server in group:
            bench.load(server, connections[bits], 64, BODY)  # first-time work is not what is measured
    subjects = [(bits, *subject) for bits, group in servers.items() for subject in product(CONCURRENCY, group)]
    for turn, (bits, concurrency, server) in interleave(rounds, subjects):
        advance(f"{server.name}, RSA-{bits}, {concurrency} at a time", rounds * len(subjects))
        count = connections[bits] if concurrency > 1 else -(-connections[bits] // 3)
        sample = {"round": turn, "server": server.name, "bits": bits, "concurrency": concurrency}
        result.samples.append(sample | measure_run(bench, server, count, concurrency))
    names = {server.name for group in servers.values() for server in group}
    tickets = {name: Spread.of(result.values("tickets", server=name)).median for name in sorted(names)}
    if len(set(tickets.values())) > 1:
        result.notes.append(f"session tickets sent per connection differ, at about 14 µs each: {tickets}")
    for bits, group in servers.items():
        add_rows(result, bits, group)
    for key, (bits, group) in product(DRAWN, servers.items()):
        add_curves(result, key, bits, group)
    return result


def measure_run(bench: Bench, server: Server, connections: int, concurrency: int) -> dict[str, float]:
    batches_before = batches(server)
    cpu_before = server.settled_cpu_seconds()
    load = bench.load(server, connections, concurrency, BODY)
    cpu = server.settled_cpu_seconds() - cpu_before
    latencies = sorted(load.handshake_seconds)
    measured = {
        "cpu_us": cpu / connections * 1e6,
        "rate": connections / load.wall_seconds,
        "client_cpu_us": load.client_cpu_seconds / connections * 1e6,
        "client_busy": load.client_cpu_seconds / load.wall_seconds,
        "tickets": load.tickets / connections,
        "abrupt": load.abrupt,
        "handshake_median_us": Spread.of(latencies).median * 1e6,
        "handshake_p99_us": latencies[int(0.99 * len(latencies))] * 1e6,
    }
    if server.admin_port:
        done = {name: value - batches_before[name] for name, value in batches(server).items()}
        measured["batch_size"] = done["requests"] / done["batches"]
        measured["lone_batches"] = done["lone"] / done["batches"]
        measured["execute_us"] = done["seconds"] / done["requests"] * 1e6
    return measured


def batches(server: Server) -> dict[str, float]:
    """What a terminator has counted so far, whatever the backend and the key size; zeros for another server."""
    samples = server.metrics()

    def total(name: str, **labels: str) -> float:
        found = (sample for sample in samples if sample.name == name and labels.items() <= sample.labels.items())
        return sum(sample.value for sample in found)

    return {
        "batches": total("gpu_provider_batch_size_count"),
        "lone": total("gpu_provider_batch_size_bucket", le="1.0"),
        "requests": total("gpu_provider_batch_size_sum"),
        "seconds": total("gpu_provider_execute_seconds_sum"),
    }


def add_rows(result: Result, bits: int, servers: list[Server]) -> None:
    """All rows of one case together: why a server needs less time is seen beside how much it needs."""
    for concurrency, (key, unit) in product(CONCURRENCY, (UNITS | BATCHING_UNITS).items()):
        case = f"RSA-{bits}, {concurrency} at a time"
        values = {
            name: result.values(key, server=name, bits=bits, concurrency=concurrency)
            for name in measured_on(key, servers)
        }
        for name, measured in values.items():
            compared = [(base, target) for base, target in comparisons(key, bits, concurrency, name) if base in values]
            for base, target in compared:
                result.add_row(case, name, unit, measured, to=(base, values[base]), target=target)
            if not compared:
                result.add_row(case, name, unit, measured)


def add_curves(result: Result, key: str, bits: int, servers: list[Server]) -> None:
    y = f"{DRAWN[key]}, RSA-{bits}"
    for name in measured_on(key, servers):
        points = [
            (float(concurrency), Spread.of(result.values(key, server=name, bits=bits, concurrency=concurrency)))
            for concurrency in CONCURRENCY
        ]
        result.curves.append(Curve(name, "connections at a time", y, points, logarithmic=True))


def measured_on(key: str, servers: list[Server]) -> list[str]:
    return [server.name for server in servers if key in UNITS or server.admin_port]


def comparisons(key: str, bits: int, concurrency: int, name: str) -> list[tuple[str, Target | None]]:
    """The servers that this one is compared with in one value, and the target of each ratio."""
    found: list[tuple[str, Target | None]] = []
    if name == "terminator uvloop" and key in UNITS:
        limit = LIMITS_TO_BEFORE.get((key, bits, concurrency))
        found.append((TERMINATOR_BEFORE, Target(limit) if limit else None))
    if key == "cpu_us" and name in BASELINES:
        found.append((BASELINES[name], Target(1.0, goal=bits != RSA_BITS)))
        found.append(("haproxy", Target(1.0, goal=True)))
    return found
