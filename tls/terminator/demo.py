"""``gpu-provider demo``: everything together once, with real parts.

It creates a certificate, starts the terminator as a child process by its own command line, with a small HTTP server
behind it, and has some hundreds of TLS 1.2 and 1.3 clients (Python's ``ssl``) send one request each. The clients check
the certificate. Everything ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import signal
import ssl
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gpu_provider.errors import ConfigError, GpuProviderError
from gpu_provider.tls.terminator.demo_report import Report, Summary

if TYPE_CHECKING:
    import argparse

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
Start a terminator with a certificate made on the spot and a small HTTP server behind it, drive concurrent TLS 1.2 and
1.3 clients through it, print what happened, and end."""

_VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
_BODY = b"Hello from behind the terminator.\n"
_START_SECONDS = 20.0
_CLIENT_SECONDS = 20.0
_END_SECONDS = 15.0


class DemoError(GpuProviderError):
    """Something that should always work did not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=600, metavar="N", help="clients in all (default: 600)")
    parser.add_argument("--concurrency", type=int, default=150, metavar="N", help="clients at a time (default: 150)")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="what computes: auto, cpu or libcrypto")
    parser.add_argument(
        "--output",
        choices=("auto", "table", "json"),
        default="auto",
        help="a table, or one JSON object per line (default: a table on a terminal, JSON into a pipe)",
    )


def run(args: argparse.Namespace) -> int:
    """Returns 0 only if every client got its answer and nothing is left running. Raises ConfigError."""
    for flag in ("connections", "concurrency"):
        if not 1 <= getattr(args, flag) <= 100_000:
            raise ConfigError(f"{flag} = {getattr(args, flag)}: it must be a number from 1 to 100000")
    with tempfile.TemporaryDirectory(prefix="gpu-provider-demo-") as directory:
        summary = asyncio.run(_demo(args, Path(directory)))
    return 0 if summary.succeeded else 1


async def _demo(args: argparse.Namespace, directory: Path) -> Summary:
    certificate, key = _write_development_certificate(directory)
    clients = _Clients()
    with Report(args.connections, args.output) as report:
        async with await asyncio.start_server(_answer, "127.0.0.1", 0, backlog=1024) as upstream:
            upstream_port = upstream.sockets[0].getsockname()[1]
            terminator = await _Terminator.start(certificate, key, upstream_port, args.backend)
            try:
                port = await terminator.listening_port()
                await clients.run(port, certificate, args.connections, args.concurrency, report)
            finally:
                code = await terminator.end()
        summary = Summary(
            handshakes=len(clients.latencies),
            errors=len(clients.errors),
            first_error=clients.errors[0] if clients.errors else None,
            by_version={version: clients.versions.count(version) for version in sorted(set(clients.versions))},
            seconds=clients.seconds,
            latencies=tuple(sorted(clients.latencies)),
            batches=terminator.stopped.get("batches", 0),
            mean_batch=terminator.stopped.get("mean_batch", 0.0),
            largest_batch=terminator.stopped.get("largest_batch", 0),
            retries=terminator.stopped.get("retries", 0),
            backend=terminator.stopped.get("backend", "unknown"),
            terminator_exit_code=code,
        )
        report.finish(summary)
    return summary


def _write_development_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed RSA-2048 certificate for localhost, valid for a day."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gpu-provider demo")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "certificate.pem", directory / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.touch(0o600)
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The upstream, which gives the same answer to every request."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_BODY), _BODY))
        await writer.drain()
    writer.close()


class _Terminator:
    """The child process. Its log, one JSON object per line, says where it listens and, at the end, what it did."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        self._process = process
        self._listening: asyncio.Future[str] = loop.create_future()
        self._last_line = "it logged nothing"
        self._log = loop.create_task(self._read_log())
        self.stopped: dict[str, Any] = {}

    @classmethod
    async def start(cls, certificate: Path, key: Path, upstream_port: int, backend: str) -> _Terminator:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "gpu_provider.commands.cli", "terminator"),
            *("--listen", "127.0.0.1:0", "--admin", "off", "--upstream", f"127.0.0.1:{upstream_port}"),
            *("--cert", str(certificate), "--key", str(key), "--backend", backend),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("GPU_PROVIDER_")},
            start_new_session=True,  # Ctrl-C is for this process, which then ends the terminator
        )
        return cls(process)

    async def _read_log(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - it is a pipe
        async for raw in self._process.stderr:
            line = self._last_line = raw.decode(errors="replace").strip()
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry["event"] == "ready" and not self._listening.done():
                    self._listening.set_result(entry["listen"][0])
                elif entry["event"] == "stopped":
                    self.stopped = entry
        if not self._listening.done():
            self._listening.set_exception(DemoError(f"the terminator did not start: {self._last_line}"))

    async def listening_port(self) -> int:
        try:
            async with asyncio.timeout(_START_SECONDS):
                return int((await self._listening).rpartition(":")[2])
        except TimeoutError:
            raise DemoError(f"the terminator is not ready after {_START_SECONDS:g} s: {self._last_line}") from None

    async def end(self) -> int:
        """Ends it, by force if necessary, and returns its exit code."""
        self._listening.cancel()
        # Not if it has ended: Popen polls before it sends a signal, and would take the exit code away from asyncio.
        if not self._log.done():
            self._process.send_signal(signal.SIGTERM)
        _, running = await asyncio.wait({self._log}, timeout=_END_SECONDS)
        if running:
            self._process.kill()
            await self._log
        return await self._process.wait()


@dataclass
class _Clients:
    """What the clients saw."""

    latencies: list[float] = field(default_factory=list)
    """Seconds from the beginning of the TCP connection to the end of the handshake."""
    versions: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    async def run(self, port: int, certificate: Path, connections: int, concurrency: int, report: Report) -> None:
        contexts = [_client_context(certificate, version) for version in _VERSIONS]
        numbers = iter(range(connections))
        started = time.perf_counter()

        async def one_after_the_other() -> None:
            for number in numbers:
                await self._request(port, contexts[number % len(contexts)])
                report.progress(len(self.latencies), len(self.errors))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, connections)):
                group.create_task(one_after_the_other())
        self.seconds = time.perf_counter() - started

    async def _request(self, port: int, context: ssl.SSLContext) -> None:
        try:
            async with asyncio.timeout(_CLIENT_SECONDS):
                started = time.perf_counter()
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=context, server_hostname="localhost"
                )
                latency = time.perf_counter() - started
                version = writer.get_extra_info("ssl_object").version()
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = await reader.read()
                writer.close()
        except (OSError, TimeoutError) as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            return
        if answer.endswith(_BODY):
            self.latencies.append(latency)
            self.versions.append(version)
        else:
            self.errors.append(f"a wrong answer: {answer[:100]!r}")


def _client_context(certificate: Path, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate))
    context.minimum_version = context.maximum_version = version
    return context
