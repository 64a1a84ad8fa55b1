"""Programs that compute in groups, on any processor, and what they have counted."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from openssl_program import NATIVE
from rsa_keys import private_key, private_pem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

SIZES: Final = (2048, 2560, 3072, 3584, 4096)
TIMEOUT: Final = 30

_CONFIGURATION: Final = """\
openssl_conf = openssl_init

[openssl_init]
providers = provider_section
alg_section = algorithm_section

[provider_section]
default = default_section
gpu_provider = gpu_provider_section

[default_section]
activate = 1

[gpu_provider_section]
activate = 1
kernels = portable
counts_directory = {counts}
{settings}

[algorithm_section]
default_properties = ?gpu_provider.batched=yes
"""


@dataclass(frozen=True)
class Counts:
    """Of one key size; see native/queue/counts.h."""

    singles: int = 0
    groups: int = 0
    grouped: int = 0
    waits: int = 0
    in_vain: int = 0
    served: int = 0

    @property
    def operations(self) -> int:
        """Of the program itself."""
        return self.singles + self.grouped

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) - getattr(other, name) for name in self.__dataclass_fields__))


class Directory:
    """Where a program runs: readable by every user, with an openssl.cnf by which the program computes in groups."""

    def __init__(self, path: Path, settings: str = "") -> None:
        """``settings``: more lines for the module's section, in which ``{path}`` is the directory."""
        self.path = path
        path.chmod(0o755)
        self._counts = path / "counts"
        self._counts.mkdir()
        self._counts.chmod(0o1777)
        configuration = path / "openssl.cnf"
        configuration.write_text(_CONFIGURATION.format(counts=self._counts, settings=settings.format(path=path)))
        self.environment = os.environ | {"OPENSSL_MODULES": str(NATIVE), "OPENSSL_CONF": str(configuration)}

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.write_text(text)
        return path

    def certificate(self, bits: int) -> Path:
        """The PEM of a certificate for ``rsa<bits>.test`` and its key."""
        path = self.path / f"rsa{bits}.pem"
        path.write_bytes(certificate(bits) + private_pem(private_key(bits)))
        path.chmod(0o600)
        return path

    def counts(self, bits: int = 2048) -> Counts:
        """Of all programs that ran here."""
        return sum((_read(file, SIZES.index(bits)) for file in self._counts.iterdir()), Counts())


def _read(file: Path, size: int) -> Counts:
    header, counts = "=QIIQQ", "=6Q"
    data = file.read_bytes()
    magic, version, classes, _, _ = struct.unpack_from(header, data)
    assert (magic.to_bytes(8, "little"), version, classes) == (b"gpCounts", 2, len(SIZES))
    return Counts(*struct.unpack_from(counts, data, struct.calcsize(header) + size * struct.calcsize(counts)))


@contextlib.contextmanager
def public_directory(settings: str = "") -> Iterator[Directory]:
    """pytest's own directories are closed to other users, such as those that servers change to."""
    with tempfile.TemporaryDirectory(prefix="gpu-provider-test-") as path:
        yield Directory(Path(path), settings)


def find_program(name: str, *places: str) -> str:
    path = ":".join([os.environ.get("PATH", os.defpath), "/usr/sbin", *places])
    program = shutil.which(name, path=path)
    if program is None:
        pytest.skip(f"{name} is not installed")
    return program


# ---- servers ----


class Server:
    """A program that serves a port of 127.0.0.1 until the ``with`` block ends. It must live until then."""

    def __init__(self, command: Sequence[str], directory: Directory, port: int) -> None:
        self.command, self.directory, self.port = command, directory, port
        self._log = directory.path / f"output-{port}"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.directory.path,
                env=self.directory.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + TIMEOUT
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            time.sleep(0.02)
        self._end()
        pytest.fail(f"{self.command[0]} did not start: {self.output}")

    def __exit__(self, *exception: object) -> None:
        status = self.process.poll()
        self._end()
        assert status is None, f"{self.command[0]} ended with status {status}: {self.output}"

    def signal(self, number: signal.Signals) -> None:
        """To all of its processes."""
        os.killpg(self.process.pid, number)

    def _end(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait(10)

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")


# ---- clients ----


@functools.cache
def certificate(bits: int) -> bytes:
    """PEM of a certificate for ``rsa<bits>.test`` that has signed itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"rsa{bits}.test")])
    key, now = private_key(bits), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(f"rsa{bits}.test")]), critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


@dataclass(frozen=True)
class Client:
    """Opens connections of one kind to a server, each with a whole handshake. Python's ssl verifies the certificate and
    the server's signature, without our module."""

    bits: int = 2048
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    cipher: str | None = None

    @functools.cached_property
    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=certificate(self.bits).decode())
        context.minimum_version = context.maximum_version = self.version
        if self.cipher is not None:
            context.set_ciphers(self.cipher)
        return context

    def secure(self, plain: socket.socket, *, at_once: bool = True) -> ssl.SSLSocket:
        name = f"rsa{self.bits}.test"
        return self.context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=at_once)

    def get(self, port: int) -> bytes:
        """The status line of an answer over HTTP."""
        with self.secure(socket.create_connection(("127.0.0.1", port), TIMEOUT)) as connection:
            return _get(connection)

    def hello(self) -> bytes:
        """What it sends first."""
        outgoing = ssl.MemoryBIO()
        connection = self.context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=f"rsa{self.bits}.test")
        with contextlib.suppress(ssl.SSLWantReadError):
            connection.do_handshake()
        return outgoing.read()


def _get(connection: ssl.SSLSocket) -> bytes:
    """The status line of the answer."""
    connection.sendall(f"GET / HTTP/1.0\r\nHost: {connection.server_hostname}\r\n\r\n".encode())
    answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return answer.partition(b"\r\n")[0]


def get_many(port: int, clients: Iterable[Client], concurrency: int = 32) -> Counter[bytes]:
    """The answers' status lines. A connection that fails raises here."""
    with ThreadPoolExecutor(concurrency) as threads:
        return Counter(threads.map(lambda client: client.get(port), clients))


def get_together(server: Server, clients: Iterable[Client]) -> Counter[bytes]:
    """The same, but whatever the clients send reaches the server all at once, however slow they are: it is stopped
    meanwhile."""
    with contextlib.ExitStack() as stack:
        left = []
        for client in clients:
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), TIMEOUT))
            left.append(stack.enter_context(client.secure(plain, at_once=False)))
        connections = list(left)
        while left:
            server.signal(signal.SIGSTOP)
            try:
                left = [connection for connection in left if not _advance(connection)]
            finally:
                server.signal(signal.SIGCONT)
            for connection in left:
                assert select.select([connection], [], [], TIMEOUT)[0], "a client gets no answer"
        for connection in connections:
            connection.settimeout(TIMEOUT)
        return Counter(map(_get, connections))


def _advance(connection: ssl.SSLSocket) -> bool:
    """Continues a handshake as far as it gets. True: it is finished."""
    connection.setblocking(False)
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def abort_many(port: int, client: Client, count: int) -> None:
    """Clients that are gone when their handshake is computed: half of them close the connection, half reset it."""
    hello = client.hello()
    connections = [socket.create_connection(("127.0.0.1", port), TIMEOUT) for _ in range(count)]
    for connection in connections:
        connection.sendall(hello)
    for connection in connections[::2]:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for connection in connections:
        connection.close()


def wait_until(is_true: Callable[[], bool], otherwise: str, seconds: float = TIMEOUT) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.01)
