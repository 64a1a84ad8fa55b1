"""``openssl speed``, HAProxy and Apache with the provider module, each against the same program without it."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gpu_provider import kernels
from gpu_provider.commands.counts import read_counts
from gpu_provider.native import MODULE_DIRECTORY

from ..harness import DIES_WITH_US, LOAD_TIMEOUT, Bench, BenchError, Server, interleave
from ..report import Curve, Result, Spread, Target
from .connections import BODY, UNITS, measure_run

SPEED, HAPROXY, APACHE = "openssl speed", "HAProxy", "Apache"
WITH, WITHOUT = "with the module", "without"
JOBS = (1, 64)
CLIENTS = (1, 8, 64, 200)
APACHE_CLIENTS = 64

# With AVX-512 IFMA, by key size: at least so many times the operations, and at most so much of the CPU time.
SPEED_LIMITS = {2048: 3.4, 3072: 6.3, 4096: 6.3}
CPU_LIMITS = {
    (HAPROXY, 8): {2048: 0.80, 3072: 0.42, 4096: 0.30},
    (HAPROXY, 64): {2048: 0.78, 3072: 0.35, 4096: 0.25},
    (HAPROXY, 200): {2048: 0.78, 3072: 0.35, 4096: 0.25},
    (APACHE, APACHE_CLIENTS): {2048: 0.90, 3072: 0.50, 4096: 0.40},
}
# What the module may cost where it can't win.
NO_LOSS = 1.03
NO_LOSS_OF_SPEED = 0.97

MODULE = MODULE_DIRECTORY / "gpu_provider.so"
OPENSSL_CONFIGURATION = """\
openssl_conf = openssl_init
[openssl_init]
providers = providers
alg_section = algorithms
[providers]
default = default_provider
gpu_provider = gpu_provider_module
[default_provider]
activate = 1
[gpu_provider_module]
module = {module}
activate = 1
counts_directory = {counts}
{settings}
[algorithms]
default_properties = ?gpu_provider.batched=yes
"""

APACHE_MODULES = Path("/usr/lib/apache2/modules")  # of Debian
# The user and the group are for root, as whom Apache serves nothing.
APACHE_CONFIGURATION = """\
ServerName localhost
ServerRoot {directory}
DefaultRuntimeDir {directory}
PidFile {directory}/apache-{port}.pid
ErrorLog /dev/stderr
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule ssl_module {modules}/mod_ssl.so
LoadModule authz_core_module {modules}/mod_authz_core.so
User #65534
Group #65534
ServerLimit 1
StartServers 1
ThreadsPerChild 25
MaxRequestWorkers 25
DocumentRoot {site}
SSLEngine on
SSLCertificateFile {certificate}
"""


@dataclass(frozen=True)
class Subject:
    program: str
    bits: int
    at_once: int  # jobs or clients
    name: str  # WITH or WITHOUT
    server: Server | None = None  # openssl speed is none

    @property
    def case(self) -> dict[str, Any]:
        return {"program": self.program, "bits": self.bits, "at_once": self.at_once}

    def __str__(self) -> str:
        what = "jobs" if self.program == SPEED else "clients"
        return f"{self.program}, RSA-{self.bits}, {self.at_once} {what if self.at_once > 1 else what[:-1]}"


def measure(
    bench: Bench,
    *,
    rounds: int,
    connections: Mapping[int, int],
    jobs: Sequence[int] = JOBS,
    clients: Sequence[int] = CLIENTS,
    settings: str = "",
    advance: Callable[[str, int], None],
) -> Result:
    """``connections``: how many each run opens, by RSA key size; one at a time, a third of them. ``settings``: more
    lines for the module's section of openssl.cnf. ``advance(what, total)`` is called before each of the ``total``
    runs."""
    result = Result(
        "module",
        "With the provider module and without: openssl speed, and new TLS 1.3 connections, one small request each",
        {
            "rounds": rounds,
            "connections": connections,
            "jobs": jobs,
            "clients": clients,
            "rsa_bits": list(connections),
            "body": BODY,
            "settings": settings,
            "isa": kernels.isa().name,
        },
    )
    if not has_ifma():
        result.notes.append(
            "this processor has no AVX-512 IFMA: the module leaves every operation to OpenSSL, and this only shows "
            "whether it costs anything; the targets for groups of eight do not apply"
        )
    counts = bench.directory / "counts"
    counts.mkdir()
    configurations = {WITHOUT: Path("/dev/null"), WITH: bench.directory / "openssl.cnf"}
    configurations[WITH].write_text(OPENSSL_CONFIGURATION.format(module=MODULE, counts=counts, settings=settings))
    subjects = [Subject(SPEED, *subject) for subject in product(connections, jobs, configurations)]
    subjects += servers(bench, result.notes, connections, clients, configurations)
    for turn, subject in interleave(rounds, subjects):
        advance(f"{subject}, {subject.name}", rounds * len(subjects))
        sample = {"round": turn, "subject": subject.name, **subject.case}
        before = counted(counts)
        if subject.server is None:
            sample |= speed(subject, configurations[subject.name])
        else:
            count = connections[subject.bits] if subject.at_once > 1 else -(-connections[subject.bits] // 3)
            sample |= measure_run(bench, subject.server, count, subject.at_once)
        if subject.name == WITH:
            sample |= shares(subject, since(before, counted(counts)))
        result.samples.append(sample)
    for subject in subjects:
        if subject.name == WITH:
            add_rows(result, subject)
    if any(subject.program == HAPROXY for subject in subjects):
        for name, bits in product(configurations, connections):
            add_curve(result, bits, name, clients)
        result.draw_rows = False
    return result


def has_ifma() -> bool:
    return kernels.isa() is kernels.Isa.IFMA


def servers(
    bench: Bench,
    notes: list[str],
    connections: Mapping[int, int],
    clients: Sequence[int],
    configurations: Mapping[str, Path],
) -> list[Subject]:
    """HAProxy and Apache, warmed up; ``notes`` gets the names of those that are not installed."""
    upstream = bench.upstream()
    subjects: dict[str, list[Subject]] = {HAPROXY: [], APACHE: []}
    for (bits, count), (name, configuration) in product(connections.items(), configurations.items()):
        environment = [f"OPENSSL_CONF={configuration}"]
        settings = "nbthread 2" + ("\n    ssl-mode-async" if name == WITH else "")
        for program, started in {
            HAPROXY: bench.haproxy(upstream, notes, bits, settings=settings, environment=environment),
            APACHE: apache(bench, notes, bits, environment),
        }.items():
            for server in started:
                bench.load(server, count, 64, BODY)  # first-time work is not what is measured
                at_once = clients if program == HAPROXY else [APACHE_CLIENTS]
                subjects[program] += [Subject(program, bits, number, name, server) for number in at_once]
    notes[:] = dict.fromkeys(notes)
    return [subject for group in subjects.values() for subject in group]


def apache(bench: Bench, notes: list[str], bits: int, environment: Sequence[str]) -> list[Server]:
    """Apache, in one process, which ends with us; or nothing but a note if it is not installed."""
    program = shutil.which("apache2", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None or not APACHE_MODULES.exists():
        notes.append("apache2 is not installed: not measured (apt-get install apache2-bin)")
        return []
    site = bench.directory / "site"
    site.mkdir(exist_ok=True)
    (site / str(BODY)).write_bytes(bytes(BODY))
    bench.directory.chmod(0o711)  # for the user whom it serves as

    def command(port: int) -> Sequence[str]:
        configuration = bench.directory / f"apache-{port}.conf"
        configuration.write_text(
            APACHE_CONFIGURATION.format(
                directory=bench.directory,
                port=port,
                modules=APACHE_MODULES,
                site=site,
                certificate=bench.certificate(bits),
            )
        )
        return ["env", *environment, program, "-X", "-f", str(configuration)]

    return [bench.serve("apache", command)]


def speed(subject: Subject, configuration: Path) -> dict[str, float]:
    """Per second of wall time: in user mode's time alone, waiting would cost nothing."""
    command = [
        *DIES_WITH_US, "env", f"OPENSSL_CONF={configuration}", "openssl", "speed", "-mr", "-elapsed", "-seconds", "1",
        "-async_jobs", str(subject.at_once), f"rsa{subject.bits}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LOAD_TIMEOUT)
    for line in done.stdout.splitlines():
        if line.startswith("+F2:"):
            _, _, _, signatures, *_ = line.split(":")
            return {"operations": float(signatures)}
    raise BenchError(f"{subject} {subject.name}: openssl ended with {done.returncode}: {done.stderr[-500:].strip()}")


def counted(directory: Path) -> dict[Path, Counter[str]]:
    """What the module has counted so far, whatever the key size, by file: each program that begins removes the files of
    those that have ended."""
    totals: dict[Path, Counter[str]] = {}
    for program in read_counts(directory, ended=True):
        total = totals[program.file] = Counter[str]()
        for counts in program.counts.values():
            total.update(singles=counts.singles, groups=counts.groups, grouped=counts.grouped, served=counts.served)
    return totals


def since(before: Mapping[Path, Counter[str]], after: Mapping[Path, Counter[str]]) -> Counter[str]:
    return sum((total - before.get(file, Counter()) for file, total in after.items()), Counter())


def shares(subject: Subject, done: Counter[str]) -> dict[str, float | None]:
    if not done:
        raise BenchError(
            f"{subject}: nothing was computed in {MODULE}. Does this program read OPENSSL_CONF, and have the same "
            "libcrypto? `openssl list -providers -verbose` says so of the openssl program"
        )
    return {
        "singles": done["singles"] / (done["singles"] + done["grouped"]),
        "group_size": done["grouped"] / done["groups"] if done["groups"] else None,
    }


def add_rows(result: Result, subject: Subject) -> None:
    case = str(subject)
    for key, unit in ({"operations": "operations/s"} if subject.program == SPEED else UNITS).items():
        values, alone = (result.values(key, subject=name, **subject.case) for name in (WITH, WITHOUT))
        result.add_row(case, WITH, unit, values, to=(WITHOUT, alone), target=target(subject, key))
        result.add_row(case, WITHOUT, unit, alone)
    result.add_row(case, WITH, "share computed alone", result.values("singles", subject=WITH, **subject.case))
    sizes = result.values("group_size", subject=WITH, **subject.case)
    if grouped := [size for size in sizes if size is not None]:
        result.add_row(case, WITH, "requests per group", grouped)


def target(subject: Subject, key: str) -> Target | None:
    """Of the ratio to the program without the module."""
    groups = has_ifma() and subject.at_once > 1
    if key == "operations":
        return Target(SPEED_LIMITS[subject.bits] if groups else NO_LOSS_OF_SPEED, at_most=False, goal=not groups)
    if key == "rate":
        return None
    if not groups:
        return Target(NO_LOSS, goal=not has_ifma())
    return Target(CPU_LIMITS[subject.program, subject.at_once][subject.bits] if key == "cpu_us" else 1.0)


def add_curve(result: Result, bits: int, name: str, clients: Sequence[int]) -> None:
    points = [
        (float(count), Spread.of(result.values("cpu_us", program=HAPROXY, bits=bits, at_once=count, subject=name)))
        for count in clients
    ]
    subject, y = f"RSA-{bits}, {name}", "µs of HAProxy's CPU per connection"
    result.curves.append(Curve(subject, "clients at a time", y, points, logarithmic=True))
