"""Relay throughput, TLS 1.3 with AES-128-GCM: 1 GiB to the client, over one connection and over a hundred."""

from collections.abc import Callable, Sequence
from itertools import product

from ..harness import Bench, interleave
from ..report import Result, Target

MIB = 1 << 20
GIB = 1 << 30
CONNECTIONS = (1, 100)
BASELINES = {"terminator": "asyncio", "terminator uvloop": "asyncio uvloop"}


def measure(
    bench: Bench,
    *,
    rounds: int,
    size: int,
    connections_at_once: Sequence[int] = CONNECTIONS,
    advance: Callable[[str, int], None],
) -> Result:
    """``size`` bytes in all, divided evenly among the connections of a run."""
    result = Result(
        "throughput",
        f"Relay throughput, {size / GIB:g} GiB, TLS 1.3 with AES-128-GCM",
        {"rounds": rounds, "size": size, "connections": connections_at_once},
    )
    servers = bench.relays(bench.upstream(), result.notes)
    for server in servers:
        bench.load(server, 1, 1, size // 10)
    subjects = list(product(connections_at_once, servers))
    for turn, (connections, server) in interleave(rounds, subjects):
        advance(f"{server.name}, {connections} connections", rounds * len(subjects))
        before = server.settled_cpu_seconds()
        load = bench.load(server, connections, connections, size // connections)
        cpu = server.settled_cpu_seconds() - before
        result.samples.append(
            {
                "round": turn,
                "server": server.name,
                "connections": connections,
                "mib_per_s": load.bytes / MIB / load.wall_seconds,
                "cpu_s_per_gib": cpu / (load.bytes / GIB),
                "client_busy": load.client_cpu_seconds / load.wall_seconds,
                "client_limit_mib_per_s": load.bytes / MIB / load.client_cpu_seconds,
            }
        )
    names = [server.name for server in servers]
    for connections in connections_at_once:
        case = f"{connections} connection{'s' if connections > 1 else ''}"
        for key, unit in (("mib_per_s", "MiB/s"), ("cpu_s_per_gib", "CPU s/GiB")):
            values = {name: result.values(key, server=name, connections=connections) for name in names}
            target = Target(1.0, at_most=False) if key == "mib_per_s" else None
            for name in names:
                if base := BASELINES.get(name):
                    result.add_row(case, name, unit, values[name], to=(base, values[base]), target=target)
                else:
                    result.add_row(case, name, unit, values[name])
        limit = result.values("client_limit_mib_per_s", connections=connections)
        result.add_row(case, "client: what one core can read", "MiB/s", limit)
    return result
