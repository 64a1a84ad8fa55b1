"""Handshake latency, one connection at a time: the same server with and without the provider."""

import sys
from collections.abc import Callable

from .. import environment
from ..harness import RSA_BITS, Bench, Server, interleave
from ..report import Result, Spread, Target


def measure(bench: Bench, *, rounds: int, connections: int, advance: Callable[[str, int], None]) -> Result:
    """Measures in many short rounds, since the two take turns from round to round."""
    result = Result(
        "latency",
        f"Handshake latency, one connection at a time, TLS 1.3, RSA-{RSA_BITS}",
        {"rounds": rounds, "connections": connections, "rsa_bits": RSA_BITS},
    )
    servers = [start(bench, "with the provider", "--provider"), start(bench, f"{environment.openssl_linked()} alone")]
    for server in servers:
        bench.load(server, connections, 1, 0)
    for turn, server in interleave(rounds, servers):
        advance(server.name, rounds * len(servers))
        load = bench.load(server, connections, 1, 0)
        latency = [seconds * 1e6 for seconds in load.handshake_seconds]
        sample = {"round": turn, "server": server.name, "median_us": Spread.of(latency).median, "latency_us": latency}
        result.samples.append(sample)
    provider, alone = (result.values("median_us", server=server.name) for server in servers)
    to = (servers[1].name, alone)
    result.add_row("1 at a time", servers[0].name, "µs", provider, to=to, target=Target(1.15))
    result.add_row("1 at a time", servers[1].name, "µs", alone)
    return result


def start(bench: Bench, name: str, *flags: str) -> Server:
    certificate = str(bench.certificate())
    module = [sys.executable, "-m", "bench.servers.handshake_server"]
    return bench.serve(name, lambda port: [*module, str(port), certificate, *flags])
