"""Server CPU per new TLS 1.3 connection: RSA-2048, one small HTTP request, every server relays to the same upstream."""

from collections.abc import Callable
from itertools import product

from ..harness import RSA_BITS, Bench, interleave
from ..report import Result, Row, Spread, Target

CONCURRENCY = (1, 16, 64)
BODY = 64
BASELINES = {
    "terminator": (("asyncio", Target(1.0)), ("haproxy", Target(1.0, goal=True))),
    "terminator uvloop": (("asyncio uvloop", Target(1.0)), ("haproxy", Target(1.0, goal=True))),
}


def measure(bench: Bench, *, rounds: int, connections: int, advance: Callable[[str, int], None]) -> Result:
    """``advance(what, total)`` is called before each of the ``total`` runs."""
    result = Result(
        "connections",
        f"Server CPU per new TLS 1.3 connection, RSA-{RSA_BITS}, one small request",
        {"rounds": rounds, "connections": connections, "concurrency": CONCURRENCY, "rsa_bits": RSA_BITS, "body": BODY},
    )
    servers = bench.relays(bench.upstream(), result.notes)
    for server in servers:
        bench.load(server, connections, CONCURRENCY[-1], BODY)  # first-time work is not what is measured
        server.settled_cpu_seconds()
    subjects = list(product(CONCURRENCY, servers))
    for turn, (concurrency, server) in interleave(rounds, subjects):
        advance(f"{server.name}, {concurrency} at a time", rounds * len(subjects))
        before = server.cpu_seconds()
        load = bench.load(server, connections, concurrency, BODY)
        cpu = server.settled_cpu_seconds() - before
        result.samples.append(
            {
                "round": turn,
                "server": server.name,
                "concurrency": concurrency,
                "cpu_us": cpu / connections * 1e6,
                "rate": connections / load.wall_seconds,
                "client_cpu_us": load.client_cpu_seconds / connections * 1e6,
                "client_busy": load.client_cpu_seconds / load.wall_seconds,
                "tickets": load.tickets / connections,
                "abrupt": load.abrupt,
                "handshake_median_us": Spread.of(load.handshake_seconds).median * 1e6,
            }
        )
    names = [server.name for server in servers]
    tickets = {name: Spread.of(result.values("tickets", server=name)).median for name in names}
    if len(set(tickets.values())) > 1:
        result.notes.append(f"session tickets sent per connection differ, at about 14 µs each: {tickets}")
    for concurrency in CONCURRENCY:
        rows(result, names, concurrency, "cpu_us", "µs of CPU")
    for concurrency in CONCURRENCY:
        rows(result, names, concurrency, "rate", "connections/s")
    return result


def rows(result: Result, names: list[str], concurrency: int, key: str, unit: str) -> None:
    def values(name: str) -> list[float]:
        return result.values(key, server=name, concurrency=concurrency)

    case = f"{concurrency} at a time"
    for name in names:
        measured = Spread.of(values(name))
        against = [(base, target) for base, target in BASELINES.get(name, ()) if base in names]
        if key != "cpu_us" or not against:
            result.rows.append(Row(case, name, unit, measured))
            continue
        for base, target in against:
            ratio = Spread.of_ratios(values(name), values(base))
            result.rows.append(Row(case, name, unit, measured, base, ratio, target))
