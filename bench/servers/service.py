"""HAProxy and nginx with ``gpu-provider service``, each against the same program without it, and our terminator against
HAProxy: CPU time, the service's counted in, and latency of new TLS 1.3 connections, one small request each."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gpu_provider import kernels

from ..harness import Bench, BenchError, Server, have_uvloop, interleave, tail
from ..report import Bars, Result, Spread, Target
from .connections import BODY, UNITS, measure_run
from .module import MODULE, OPENSSL_CONFIGURATION, counted, has_ifma, since

HAPROXY, HAPROXY_1, NGINX, TERMINATOR = "HAProxy", "HAProxy, 1 thread", "nginx, 8 workers", "terminator"
WITHOUT, ALONE, SERVED = "without", "with the module alone", "with the module and the service"
TERMINATORS = {1: "1 worker", 2: "2 workers and their service"}
HAPROXIES = {1: HAPROXY_1, 2: HAPROXY}  # with as many threads
CLIENTS = {HAPROXY: (1, 8, 64, 200), HAPROXY_1: (64,), NGINX: (1, 64), TERMINATOR: (64,)}
WORKERS = 8
DRAWN_CLIENTS = 64
# By title: what is drawn under which label.
CHARTS: dict[str, dict[str, tuple[str, str]]] = {
    HAPROXY: {name: (HAPROXY, name) for name in (WITHOUT, ALONE, SERVED)},
    NGINX: {name: (NGINX, name) for name in (WITHOUT, SERVED)},
    "HAProxy without the module, and our terminator": {
        HAPROXY_1: (HAPROXY_1, WITHOUT),
        f"terminator, {TERMINATORS[1]}": (TERMINATOR, TERMINATORS[1]),
        "HAProxy, 2 threads": (HAPROXY, WITHOUT),
        f"terminator, {TERMINATORS[2]}": (TERMINATOR, TERMINATORS[2]),
    },
}
SERVED_UNITS = {"service_cpu_us": "µs of CPU, the service's part", "served": "share computed by the service"}

# With AVX-512 IFMA, by key size: at most so much of the CPU time without, and of that with the module alone.
CPU_LIMITS = {
    (HAPROXY, 64): {2048: 0.85, 3072: 0.40, 4096: 0.30},
    (HAPROXY, 200): {2048: 0.85, 3072: 0.40, 4096: 0.30},
    (NGINX, 64): {2048: 0.95, 3072: 0.6, 4096: 0.5},
}
CPU_LIMIT_TO_MODULE = 1.08
# Of one client at a time, which can't gain.
CPU_LIMIT_OF_ONE, LATENCY_LIMIT_OF_ONE = 1.2, 1.15


@dataclass(frozen=True)
class Subject:
    program: str
    bits: int
    clients: int
    name: str  # WITHOUT, ALONE or SERVED; a terminator's, of TERMINATORS
    server: Server

    @property
    def case(self) -> dict[str, Any]:
        return {"program": self.program, "bits": self.bits, "clients": self.clients}

    def __str__(self) -> str:
        return f"{self.program}, RSA-{self.bits}, {self.clients} client{'s' if self.clients > 1 else ''}"


def measure(
    bench: Bench,
    *,
    rounds: int,
    connections: Mapping[int, int],
    clients: Mapping[str, Sequence[int]] = CLIENTS,
    settings: str = "",
    advance: Callable[[str, int], None],
) -> Result:
    """``connections``: how many each run opens, by RSA key size; one at a time, a third of them. ``settings``: more
    lines for the module's section of openssl.cnf. ``advance(what, total)`` is called before each of the ``total``
    runs."""
    result = Result(
        "service",
        "With gpu-provider service and without: CPU time of new TLS 1.3 connections, one small request each",
        {
            "rounds": rounds,
            "connections": connections,
            "clients": clients,
            "rsa_bits": list(connections),
            "body": BODY,
            "settings": settings,
            "isa": kernels.isa().name,
        },
        draw_rows=False,
    )
    if not has_ifma():
        result.notes.append("this processor has no AVX-512 IFMA: OpenSSL computes everything, so nothing can be gained")
    counts = bench.directory / "counts"
    counts.mkdir()
    counts.chmod(0o1777)
    socket = bench.directory / "service-socket"
    service = bench.service(socket)
    configurations = {WITHOUT: Path("/dev/null")}
    for name, more in {ALONE: settings, SERVED: f"{settings}\nservice = {socket}"}.items():
        configurations[name] = bench.directory / f"{name.replace(' ', '-')}.cnf"
        configurations[name].write_text(OPENSSL_CONFIGURATION.format(module=MODULE, counts=counts, settings=more))
    subjects = [
        Subject(program, bits, number, name, server)
        for program, bits, name, server in servers(bench, result.notes, connections, configurations, service)
        for number in clients.get(program, ())
    ]
    for turn, subject in interleave(rounds, subjects):
        advance(f"{subject}, {subject.name}", rounds * len(subjects))
        count = connections[subject.bits] if subject.clients > 1 else -(-connections[subject.bits] // 3)
        before = counted(counts)
        service_cpu = service.cpu_seconds()
        sample = {"round": turn, "subject": subject.name, **subject.case}
        sample |= measure_run(bench, subject.server, count, subject.clients)
        if subject.name == SERVED:
            sample["service_cpu_us"] = (service.cpu_seconds() - service_cpu) / count * 1e6
            sample["served"] = share_served(subject, since(before, counted(counts)))
        result.samples.append(sample)
    for subject in subjects:
        add_rows(result, subject)
    add_bars(result, connections)
    return result


def servers(
    bench: Bench,
    notes: list[str],
    connections: Mapping[int, int],
    configurations: Mapping[str, Path],
    service: Server,
) -> list[tuple[str, int, str, Server]]:
    """Each program with its key size and name, warmed up; ``notes`` gets those that are not installed."""
    upstream = bench.upstream()
    found = []
    for (bits, count), (name, configuration) in product(connections.items(), configurations.items()):
        environment = [f"OPENSSL_CONF={configuration}"]
        settings = "nbthread 2" + ("\n    ssl-mode-async" if name != WITHOUT else "")
        programs = {HAPROXY: bench.haproxy(upstream, notes, bits, settings=settings, environment=environment)}
        if name != ALONE:  # it computes one operation at a time, so the module alone changes nothing
            programs[NGINX] = bench.nginx(notes, bits, workers=WORKERS, body=BODY, environment=environment)
        for program, started in programs.items():
            for one in started:
                server = dataclasses.replace(one, helpers=(service,)) if name == SERVED else one
                bench.load(server, count, 64, BODY)  # first-time work is not what is measured
                found.append((program, bits, name, server))
    for bits, count in connections.items():
        beside = [(HAPROXY_1, bits, WITHOUT, one) for one in bench.haproxy(upstream, notes, bits)]
        for workers, name in TERMINATORS.items():
            ours = bench.terminator(upstream, uvloop=have_uvloop(), bits=bits, workers=workers)
            # Its batches are no matter here, and too few for a quick run to have a mean.
            beside.append((TERMINATOR, bits, name, dataclasses.replace(ours, admin_port=None)))
        for *_, server in beside:
            bench.load(server, count, 64, BODY)
        found += beside
    notes[:] = dict.fromkeys(notes)
    return found


def share_served(subject: Subject, done: Counter[str]) -> float:
    operations = done["singles"] + done["grouped"] + done["served"]
    if done["served"] == 0:
        log = tail(subject.server.log)
        raise BenchError(f"{subject}: the service computed none of {operations} operations; the program's log: {log}")
    return done["served"] / operations


def add_rows(result: Result, subject: Subject) -> None:
    for key, unit in UNITS.items():
        values = result.values(key, subject=subject.name, **subject.case)
        baselines = {
            name: baseline
            for name, match in compared_with(subject).items()
            if (baseline := result.values(key, bits=subject.bits, clients=subject.clients, **match))
        }
        for name, baseline in baselines.items():
            result.add_row(
                str(subject), subject.name, unit, values, to=(name, baseline), target=target(subject, key, name)
            )
        if not baselines:
            result.add_row(str(subject), subject.name, unit, values)
    if subject.name == SERVED:
        for key, unit in SERVED_UNITS.items():
            result.add_row(str(subject), SERVED, unit, result.values(key, subject=SERVED, **subject.case))


def compared_with(subject: Subject) -> dict[str, dict[str, str]]:
    """By what it is called, which samples."""
    if subject.program == TERMINATOR:
        workers = next(count for count, name in TERMINATORS.items() if name == subject.name)
        name = f"HAProxy, {workers} thread{'s' if workers > 1 else ''}"
        return {name: {"program": HAPROXIES[workers], "subject": WITHOUT}}
    names = {SERVED: (WITHOUT, ALONE), ALONE: (WITHOUT,), WITHOUT: ()}[subject.name]
    return {name: {"program": subject.program, "subject": name} for name in names}


def target(subject: Subject, key: str, baseline: str) -> Target | None:
    if subject.name != SERVED:
        return None
    if subject.clients == 1 and baseline == WITHOUT:
        limit = {"cpu_us": CPU_LIMIT_OF_ONE, "handshake_median_us": LATENCY_LIMIT_OF_ONE}.get(key)
        return Target(limit) if limit else None
    limits = CPU_LIMITS.get((subject.program, subject.clients))
    if key != "cpu_us" or limits is None:
        return None
    limit = CPU_LIMIT_TO_MODULE if baseline == ALONE else limits[subject.bits]
    return Target(limit, goal=not has_ifma())


def add_bars(result: Result, rsa_bits: Iterable[int]) -> None:
    """What a connection costs by key size."""
    for title, drawn in CHARTS.items():
        heights: dict[str, dict[str, Spread]] = {}
        for (label, (program, name)), bits in product(drawn.items(), rsa_bits):
            if cpu := result.values("cpu_us", program=program, subject=name, bits=bits, clients=DRAWN_CLIENTS):
                heights.setdefault(label, {})[f"RSA-{bits}"] = Spread.of(cpu)
        if heights:
            result.bars.append(Bars(f"{title}, {DRAWN_CLIENTS} clients at a time", "µs of CPU per connection", heights))
