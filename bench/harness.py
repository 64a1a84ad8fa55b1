"""Starts what is measured and what drives it, all on 127.0.0.1, and reads the CPU time that each has used.

Everything ends with the ``Bench`` that started it, however that ends.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from .environment import ROOT

SOURCES = Path(__file__).resolve().parent
CPUCLOCK_SCHED = 2  # the kernel's number for "nanoseconds run" in a process's CPU clock id
START_TIMEOUT = 20.0
LOAD_TIMEOUT = 120
RSA_BITS = 2048

HAPROXY_CONFIGURATION = """
global
    {settings}
    maxconn 4096
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s
frontend tls
    bind 127.0.0.1:{port} ssl crt {certificate}
    default_backend upstream
backend upstream
    server upstream 127.0.0.1:{upstream_port}
"""

# Each worker has a listening socket of its own, so that the kernel spreads connections over all of them.
NGINX_CONFIGURATION = """
daemon off;
worker_processes {workers};
{user}
pid nginx-{port}.pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port} ssl reuseport;
        ssl_protocols TLSv1.3;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        return 200 {body};
    }}
}}
"""

# Ends a process when its parent dies, however that dies.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")

# `gpu-provider terminator` uses uvloop wherever it is installed; a name that is None in sys.modules can't be imported.
TERMINATOR = "import sys; {hide}from gpu_provider.commands.cli import main; sys.exit(main())"
HIDE_UVLOOP = "sys.modules['uvloop'] = None; "
TERMINATOR_BEFORE = "terminator before"

T = TypeVar("T")


class BenchError(Exception):
    """A measurement can't be taken; the message says why and what helps."""


@dataclass(frozen=True)
class Server:
    """A running process that listens on 127.0.0.1, and those that work with it."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path = field(repr=False)
    admin_port: int | None = None  # of our terminators
    helpers: tuple["Server", ...] = ()  # whose CPU time counts too

    def metrics(self) -> list[Sample]:
        """Of one of our terminators; none of another server."""
        if self.admin_port is None:
            return []
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return [sample for family in families for sample in family.samples]

    def cpu_seconds(self) -> float:
        """CPU time of all its threads since it started, ended ones included, in nanosecond resolution; that of its
        children, which must live as long, and of its helpers too."""
        if self.process.poll() is not None:
            raise BenchError(f"{self.name} ended with exit code {self.process.returncode}: {tail(self.log)}")
        pid = self.process.pid
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        own = sum(time.clock_gettime(~process << 3 | CPUCLOCK_SCHED) for process in (pid, *children))
        return own + sum(helper.cpu_seconds() for helper in self.helpers)

    def settled_cpu_seconds(self) -> float:
        """The same, once the server no longer works on connections that the client has closed."""
        last = self.cpu_seconds()
        for _ in range(100):
            time.sleep(0.02)
            current = self.cpu_seconds()
            if current - last < 0.0005:
                return current
            last = current
        raise BenchError(f"{self.name} keeps using CPU 2 s after the last connection ended")


@dataclass(frozen=True)
class Load:
    """The load generator's report of one run."""

    connections: int
    wall_seconds: float
    client_cpu_seconds: float
    tickets: int
    bytes: int
    abrupt: int  # connections that ended without close_notify
    handshake_seconds: list[float]


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-500:].strip() or "it printed nothing"


def free_port() -> int:
    """A port below the range of the clients' own, so that no client can take it before the server does."""
    for port in random.sample(range(15000, 30000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise BenchError("of a hundred ports on 127.0.0.1 none is free")


def have_uvloop() -> bool:
    return importlib.util.find_spec("uvloop") is not None


def find_haproxy() -> str | None:
    """The haproxy program. If it is missing, and we are root, it is installed from the distribution's packages."""
    places = os.environ.get("PATH", "") + ":/usr/sbin"
    if shutil.which("haproxy", path=places) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "-y", "--no-install-recommends", "haproxy"]
        subprocess.run(command, check=False, capture_output=True, timeout=300)
    return shutil.which("haproxy", path=places)


def interleave(rounds: int, subjects: Sequence[T]) -> Iterator[tuple[int, T]]:
    """Every subject once per round. Each round starts one further on, so that none always follows the same one."""
    for turn in range(rounds):
        start = turn % len(subjects)
        for subject in (*subjects[start:], *subjects[:start]):
            yield turn, subject


class Bench(contextlib.ExitStack):
    """Processes, programs compiled from C, and a directory for their files; a context manager that ends them all."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="gpu-provider-bench-")))

    def compile(self, name: str, *flags: str) -> Path:
        """Compiles ``bench/NAME.c``; returns the program's path. For machines without a compiler, ``gpu/archive.py``
        packs it compiled."""
        target = self.directory / Path(name).name
        source = str(SOURCES / f"{name}.c")
        for compiled in (SOURCES / "prebuilt" / name, target):
            if compiled.exists():
                return compiled
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            raise BenchError("no C compiler: apt-get install gcc libssl-dev")
        command = [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-o", str(target), source, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise BenchError(f"{name}.c does not compile (apt-get install gcc libssl-dev):\n{done.stderr}")
        return target

    def certificate(self, bits: int = RSA_BITS) -> Path:
        """A self-signed certificate and its RSA key in one PEM file, as HAProxy reads them."""
        both = self.directory / f"certificate-{bits}.pem"
        if both.exists():
            return both
        command = ["openssl", "req", "-x509", "-newkey", f"rsa:{bits}", "-nodes", "-subj", "/CN=localhost"]
        try:
            subprocess.run([*command, "-keyout", both, "-out", both], check=True, capture_output=True, timeout=60)
        except FileNotFoundError:
            raise BenchError("no openssl program: apt-get install openssl") from None
        return both

    def serve(self, name: str, command: Callable[[int], Sequence[str]]) -> Server:
        """Starts a server by its command line for a port, and waits until it listens. It ends with us. A session of its
        own keeps the terminal's Ctrl-C for the bench."""
        port = free_port()
        return self.start(name, command(port), port, lambda: socket.create_connection(("127.0.0.1", port), 1).close())

    def start(self, name: str, command: Sequence[str], port: int, connect: Callable[[], None]) -> Server:
        """Starts it, and waits until it can be connected to."""
        log = self.directory / f"{name.replace(' ', '-')}-{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*DIES_WITH_US, *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        self.callback(stop, process)
        deadline = time.monotonic() + START_TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                connect()
                return Server(name, process, port, log)
            time.sleep(0.05)
        raise BenchError(f"{name} did not start: {tail(log)}")

    def service(self, path: Path) -> Server:
        """``gpu-provider service`` on a socket that every user may connect to."""
        self.directory.chmod(0o711)  # for the users whom programs change to

        def connect() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.connect(os.fspath(path))

        command = [sys.executable, "-m", "gpu_provider.commands.cli", "service", "--admin", "off"]
        return self.start("service", [*command, "--socket", str(path), "--socket-mode", "0666"], 0, connect)

    def upstream(self) -> int:
        """Starts the upstream; returns its port."""
        program = str(self.compile("servers/upstream"))
        return self.serve("upstream", lambda port: [program, str(port)]).port

    def asyncio_relay(self, upstream_port: int, *, uvloop: bool, bits: int = RSA_BITS) -> Server:
        flags = ["--uvloop"] if uvloop else []
        return self.serve(
            "asyncio uvloop" if uvloop else "asyncio",
            lambda port: [
                sys.executable, "-m", "bench.servers.asyncio_relay",
                str(port), str(upstream_port), str(self.certificate(bits)), *flags,
            ],
        )  # fmt: skip

    def terminator(self, upstream_port: int, *, uvloop: bool, bits: int = RSA_BITS, workers: int = 1) -> Server:
        code = TERMINATOR.format(hide="" if uvloop else HIDE_UVLOOP)
        program = [sys.executable, "-c", code]
        name = "terminator uvloop" if uvloop else "terminator"
        return self.run_terminator(name, program, upstream_port, bits, "--workers", str(workers))

    def terminator_before(self, upstream_port: int, checkout: Path, bits: int) -> Server:
        """The terminator of another checkout, on uvloop."""
        if not list(checkout.glob(".venv/lib/python*/site-packages/uvloop")):
            raise BenchError(f"{checkout} has no .venv with uvloop: make -C {checkout} .venv/ready-bench")
        program = [str(checkout / ".venv/bin/gpu-provider")]
        return self.run_terminator(TERMINATOR_BEFORE, program, upstream_port, bits)

    def run_terminator(self, name: str, program: Sequence[str], upstream_port: int, bits: int, *flags: str) -> Server:
        certificate = str(self.certificate(bits))
        admin_port = free_port()
        server = self.serve(
            name,
            lambda port: [
                *program, "terminator", "--listen", f"127.0.0.1:{port}", "--upstream", f"127.0.0.1:{upstream_port}",
                "--admin", f"127.0.0.1:{admin_port}", "--cert", certificate, "--key", certificate, *flags,
            ],
        )  # fmt: skip
        return dataclasses.replace(server, admin_port=admin_port)

    def haproxy(
        self, upstream_port: int, notes: list[str], bits: int = RSA_BITS, *,
        settings: str = "nbthread 1", environment: Sequence[str] = (),
    ) -> list[Server]:  # fmt: skip
        """HAProxy, or nothing but a note if it is not installed. ``settings`` are global ones; ``environment`` is
        NAME=VALUE for each variable to set."""
        program = find_haproxy()
        if program is None:
            notes.append("haproxy is not installed and could not be: not measured (apt-get install haproxy)")
            return []
        certificate = self.certificate(bits)

        def command(port: int) -> Sequence[str]:
            configuration = self.directory / f"haproxy-{port}.cfg"
            configuration.write_text(
                HAPROXY_CONFIGURATION.format(
                    settings=settings, port=port, certificate=certificate, upstream_port=upstream_port
                )
            )
            return ["env", *environment, program, "-db", "-f", str(configuration)]

        return [self.serve("haproxy", command)]

    def nginx(
        self, notes: list[str], bits: int = RSA_BITS, *, workers: int, body: int, environment: Sequence[str] = ()
    ) -> list[Server]:
        """nginx, which answers every request with ``body`` bytes; or nothing but a note if it is not installed."""
        program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if program is None:
            notes.append("nginx is not installed: not measured (apt-get install nginx-light)")
            return []
        self.directory.chmod(0o711)  # for the user whom its workers change to
        certificate = self.certificate(bits)

        def command(port: int) -> Sequence[str]:
            configuration = self.directory / f"nginx-{port}.conf"
            configuration.write_text(
                NGINX_CONFIGURATION.format(
                    directory=self.directory,
                    port=port,
                    workers=workers,
                    user="user nobody nogroup;" if os.geteuid() == 0 else "",
                    certificate=certificate,
                    body="0" * body,
                )
            )
            prefix = ["-p", f"{self.directory}/", "-e", "stderr"]
            return ["env", *environment, program, *prefix, "-c", str(configuration)]

        return [self.serve("nginx", command)]

    def relays(
        self, upstream_port: int, notes: list[str], *, bits: int = RSA_BITS, before: Path | None = None
    ) -> list[Server]:
        """Every relay that can be measured here; ``notes`` gets the names of the others. Where keys aren't of the usual
        size, the slower event loop is left out. ``before``: another checkout, whose terminator is among them."""

        def on(*, uvloop: bool) -> list[Server]:
            ours = self.terminator(upstream_port, uvloop=uvloop, bits=bits)
            return [ours, self.asyncio_relay(upstream_port, uvloop=uvloop, bits=bits)]

        servers = [self.terminator_before(upstream_port, before, bits)] if before else []
        servers += [*on(uvloop=have_uvloop()), *self.haproxy(upstream_port, notes, bits)]
        if not have_uvloop():
            notes.append("uvloop is not installed: not measured")
        elif bits == RSA_BITS:
            servers += on(uvloop=False)
        return servers

    def load(self, server: Server, connections: int, concurrency: int, size: int) -> Load:
        """Runs the load generator against a server: every connection asks for ``size`` bytes. All must succeed."""
        program = self.compile("servers/load", "-lssl", "-lcrypto")
        command = [*DIES_WITH_US, str(program), *map(str, (server.port, connections, concurrency, size))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LOAD_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise BenchError(
                f"{connections} connections to {server.name} did not end in {LOAD_TIMEOUT} s; its log: "
                f"{tail(server.log)}"
            ) from None
        if done.returncode:
            raise BenchError(f"load on {server.name}: {done.stderr.strip()}; its log: {tail(server.log)}")
        report = json.loads(done.stdout)
        failed, failure = report.pop("failed"), report.pop("failure")
        if failed:
            raise BenchError(
                f"{failed} of {connections} connections to {server.name} failed, the first with: {failure}; its log: "
                f"{tail(server.log)}"
            )
        return Load(**report)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
