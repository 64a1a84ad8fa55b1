"""HAProxy and nginx with ``gpu-provider service``, each against the same program without it: CPU time, the service's
counted in, and latency of new TLS 1.3 connections, one small request each."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gpu_provider import kernels

from ..harness import Bench, BenchError, Server, interleave, tail
from ..report import Bars, Result, Spread, Target
from .connections import BODY, UNITS, measure_run
from .module import MODULE, OPENSSL_CONFIGURATION, counted, has_ifma, since

HAPROXY, NGINX = "HAProxy", "nginx, 8 workers"
WITHOUT, ALONE, SERVED = "without", "with the module alone", "with the module and the service"
CLIENTS = {HAPROXY: (1, 8, 64, 200), NGINX: (1, 64)}
WORKERS = 8
DRAWN_CLIENTS = 64
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
    name: str  # WITHOUT, ALONE or SERVED
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
        for number in clients[program]
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
    add_bars(result, subjects)
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
        compared = {SERVED: (WITHOUT, ALONE), ALONE: (WITHOUT,), WITHOUT: ()}[subject.name]
        baselines = {name: result.values(key, subject=name, **subject.case) for name in compared}
        for name, baseline in baselines.items():
            if baseline:
                result.add_row(
                    str(subject), subject.name, unit, values, to=(name, baseline), target=target(subject, key, name)
                )
        if not baselines:
            result.add_row(str(subject), subject.name, unit, values)
    if subject.name == SERVED:
        for key, unit in SERVED_UNITS.items():
            result.add_row(str(subject), SERVED, unit, result.values(key, subject=SERVED, **subject.case))


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


def add_bars(result: Result, subjects: Sequence[Subject]) -> None:
    """For each program, what a connection costs by key size."""
    drawn = [subject for subject in subjects if subject.clients == DRAWN_CLIENTS]
    for program in dict.fromkeys(subject.program for subject in drawn):
        heights: dict[str, dict[str, Spread]] = {}
        for subject in drawn:
            if subject.program == program:
                cpu = Spread.of(result.values("cpu_us", subject=subject.name, **subject.case))
                heights.setdefault(subject.name, {})[f"RSA-{subject.bits}"] = cpu
        title = f"{program}, {DRAWN_CLIENTS} clients at a time"
        result.bars.append(Bars(title, "µs of CPU per connection", heights))
