"""Server CPU per new TLS 1.3 connection by RSA key size: our kernels, libcrypto in the same terminator, and HAProxy."""

from collections.abc import Callable, Sequence
from itertools import product

from ..harness import Bench, Server, have_uvloop, interleave
from ..report import Result, Spread, Target

SIZES = (2048, 3072, 4096)
CONCURRENCY = (16, 64)
BODY = 64
SUBJECT = "terminator cpu"
BASELINES = ("terminator libcrypto", "haproxy")


def measure(
    bench: Bench,
    *,
    rounds: int,
    connections: int,
    sizes: Sequence[int] = SIZES,
    advance: Callable[[str, int], None],
) -> Result:
    """``connections`` per run with 2048 bits; half and a third of them with 3072 and 4096, which cost more."""
    counts = {2048: connections, 3072: connections // 2, 4096: connections // 3}
    result = Result(
        "key-sizes",
        "Server CPU per new TLS 1.3 connection by RSA key size, one small request",
        {"rounds": rounds, "connections": counts, "concurrency": CONCURRENCY, "body": BODY},
    )
    upstream = bench.upstream()
    servers: list[tuple[int, Server]] = []
    for bits in sizes:
        for backend in ("cpu", "libcrypto"):
            server = bench.terminator(upstream, uvloop=have_uvloop(), backend=backend, bits=bits)
            servers.append((bits, server))
        servers += [(bits, server) for server in bench.haproxy(upstream, result.notes, bits)]
    result.notes = list(dict.fromkeys(result.notes))
    for bits, server in servers:
        bench.load(server, counts[bits], CONCURRENCY[-1], BODY)  # first-time work is not what is measured
    subjects = list(product(CONCURRENCY, servers))
    for turn, (concurrency, (bits, server)) in interleave(rounds, subjects):
        advance(f"{server.name}, RSA-{bits}, {concurrency} at a time", rounds * len(subjects))
        before = server.settled_cpu_seconds()
        load = bench.load(server, counts[bits], concurrency, BODY)
        sample = {"round": turn, "server": server.name, "bits": bits, "concurrency": concurrency}
        sample["cpu_us"] = (server.settled_cpu_seconds() - before) / counts[bits] * 1e6
        sample["rate"] = counts[bits] / load.wall_seconds
        sample["handshake_median_us"] = Spread.of(load.handshake_seconds).median * 1e6
        result.samples.append(sample)
    names = list(dict.fromkeys(server.name for _bits, server in servers))
    cases = list(product(sizes, CONCURRENCY))
    for bits, concurrency in cases:
        case, unit = f"RSA-{bits}, {concurrency} at a time", "µs of CPU"
        values = {name: result.values("cpu_us", server=name, bits=bits, concurrency=concurrency) for name in names}
        for base in BASELINES:
            if base in names:
                to, target = (base, values[base]), Target(1.0, goal=True)
                result.add_row(case, SUBJECT, unit, values[SUBJECT], to=to, target=target)
        for name in names:
            if name != SUBJECT:
                result.add_row(case, name, unit, values[name])
    for (bits, concurrency), name in product(cases, names):
        rates = result.values("rate", server=name, bits=bits, concurrency=concurrency)
        result.add_row(f"RSA-{bits}, {concurrency} at a time", name, "connections/s", rates)
    return result
