"""Handshake latency, one connection at a time: the same server with and without the provider."""

import sys
from collections.abc import Callable

from ..harness import RSA_BITS, Bench, Server, interleave
from ..report import Result, Row, Spread, Target


def measure(bench: Bench, *, rounds: int, connections: int, advance: Callable[[str, int], None]) -> Result:
    """Measures in many short rounds, since the two take turns from round to round."""
    result = Result(
        "latency",
        f"Handshake latency, one connection at a time, TLS 1.3, RSA-{RSA_BITS}",
        {"rounds": rounds, "connections": connections, "rsa_bits": RSA_BITS},
    )
    servers = [start(bench, "with the provider", "--provider"), start(bench, "OpenSSL alone")]
    for server in servers:
        bench.load(server, connections, 1, 0)
    for turn, server in interleave(rounds, servers):
        advance(server.name, rounds * len(servers))
        load = bench.load(server, connections, 1, 0)
        latency = [seconds * 1e6 for seconds in load.handshake_seconds]
        sample = {"round": turn, "server": server.name, "median_us": Spread.of(latency).median, "latency_us": latency}
        result.samples.append(sample)
    provider, alone = (result.values("median_us", server=server.name) for server in servers)
    ratio = Spread.of_ratios(provider, alone)
    case = "1 at a time"
    result.rows = [
        Row(case, servers[0].name, "µs", Spread.of(provider), servers[1].name, ratio, Target(1.15)),
        Row(case, servers[1].name, "µs", Spread.of(alone)),
    ]
    return result


def start(bench: Bench, name: str, *flags: str) -> Server:
    certificate = str(bench.certificate())
    module = [sys.executable, "-m", "bench.servers.handshake_server"]
    return bench.serve(name, lambda port: [*module, str(port), certificate, *flags])
