"""The real terminator as a child process, certificates for it, upstreams behind it and clients in front of it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import trustme
from admin_port import AdminPort
from ports import unused_port
from tls_peers import unverifying_client_context

from gpu_provider import tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

COMMAND = (sys.executable, "-P", "-m", "gpu_provider.commands.cli")
TIMEOUT = 20.0

Handler = "Callable[[socket.socket], None]"


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@functools.cache
def credentials(*names: str, kind: str = "RSA") -> tuple[bytes, bytes]:
    """A chain and a private key as PEM, for these server names."""
    issued = authority().issue_cert(*names, key_type=trustme.KeyType[kind])
    return b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes()


def write_credentials(directory: Path, *names: str, kind: str = "RSA", stem: str = "server") -> list[str]:
    """The flags that name the certificate's and the key's new files."""
    chain, key = credentials(*(names or ("localhost",)), kind=kind)
    cert_file, key_file = directory / f"{stem}.pem", directory / f"{stem}.key"
    cert_file.write_bytes(chain)
    key_file.write_bytes(key)
    return ["--cert", str(cert_file), "--key", str(key_file)]


def environment(**settings: str) -> dict[str, str]:
    """This process's environment, with only these settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GPU_PROVIDER_")}
    return clean | settings


def run_command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


class Terminator(AdminPort):
    """``gpu-provider terminator`` on a free port, ready when the ``with`` block begins and ended after it."""

    def __init__(
        self,
        *flags: str,
        upstream: str,
        settings: Mapping[str, str] | None = None,
        first: str = "",
        descriptors: Sequence[int] = (),
    ) -> None:
        """``first``: commands for bash, which then becomes the terminator: ``ulimit -n 64``. ``descriptors``: which it
        inherits."""
        addresses = () if "--listen" in flags or descriptors else ("--listen", "127.0.0.1:0")
        admin = () if "--admin" in flags else ("--admin", "127.0.0.1:0")
        self._command = [*COMMAND, "terminator", *addresses, *admin, "--upstream", upstream, *flags]
        self._settings = dict(settings or {})
        if first:
            self._command = ["bash", "-c", f'{first}; exec "$@"', "bash", *self._command]
        self._descriptors = descriptors
        self.events: list[dict[str, Any]] = []
        self.other_lines: list[str] = []
        self._changed = threading.Condition()
        self._log_ended = False

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command,
            env=environment(**self._settings),
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=self._descriptors,
        )
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        try:
            ready = self.wait_for("ready")
        except BaseException:
            self._end()
            raise
        self.address = parse(ready["listen"][0])
        self.admin_address = parse(ready["admin"][0])
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        assert "Traceback" not in "".join(self.other_lines), "".join(self.other_lines)
        assert not [event for event in self.events if "exception" in event], self.events

    def _end(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.end_at_once()
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def end_at_once(self) -> int:
        """Sends signals until it has ended: a signal soon after another counts as the same one."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(0.5)
        raise subprocess.TimeoutExpired(self._command, TIMEOUT)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                with self._changed:
                    try:
                        self.events.append(json.loads(line))
                    except ValueError:
                        self.other_lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._log_ended = True
            self._changed.notify_all()

    def wait_for(self, event: str, count: int = 1, **fields: object) -> dict[str, Any]:
        """The ``count``-th log line of this event with these fields."""
        wanted = {"event": event, **fields}

        def found() -> list[dict[str, Any]]:
            return [entry for entry in self.events if wanted.items() <= entry.items()]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= count or self._log_ended, TIMEOUT)
            assert len(found()) >= count, (wanted, self.events, self.other_lines)
            return found()[count - 1]

    def wait(self) -> int:
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    # ---- clients ----

    def dial(self, source: tuple[str, int] | None = None) -> socket.socket:
        return socket.create_connection(self.address[:2], timeout=TIMEOUT, source_address=source)

    def connect(self, context: ssl.SSLContext | None = None, name: str = "localhost") -> ssl.SSLSocket:
        """A client of Python's ``ssl`` after its handshake."""
        sock = self.dial()
        try:
            return (context or client_context()).wrap_socket(sock, server_hostname=name)
        except BaseException:
            sock.close()
            raise

    def library_client(self) -> tls.Connection:
        """A client that, unlike Python's ``ssl``, can end its own direction and go on reading, and distinguishes
        close_notify (ZeroReturnError) from a bare end (SysCallError)."""
        sock = self.dial()
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(TIMEOUT), 0))
        connection = tls.Connection(unverifying_client_context(), sock)
        connection.set_connect_state()
        connection.do_handshake()
        return connection

    def echo(self, data: bytes = b"are you there?", **connect: Any) -> bytes:
        """Sends bytes and receives them back from an upstream that echoes: the next handshake works."""
        with self.connect(**connect) as client:
            client.sendall(data)
            return receive(client, len(data))


def client_context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority().cert_pem.bytes().decode())
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def receive(sock: socket.socket, size: int) -> bytes:
    """``size`` bytes, or less if the peer ends."""
    received = bytearray()
    while len(received) < size and (data := sock.recv(min(65536, size - len(received)))):
        received += data
    return bytes(received)


def parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


# ---- upstreams ----


class Upstream:
    """Runs ``handler(connection)`` on a thread for each connection, and closes it afterwards."""

    def __init__(self, handler: Callable[[socket.socket], None]) -> None:
        self._handler = handler
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "an upstream's handler does not end"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(TIMEOUT)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            self._handler(connection)


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def reset(connection: socket.socket) -> None:
    """Makes the next close a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextlib.contextmanager
def echo_terminator(directory: Path, *flags: str, kind: str = "RSA", **options: Any) -> Iterator[Terminator]:
    """A terminator for localhost in front of an upstream that echoes."""
    with (
        Upstream(echo) as upstream,
        Terminator(
            *write_credentials(directory, kind=kind), *flags, upstream=upstream.address, **options
        ) as terminator,
    ):
        yield terminator


def refused_address() -> str:
    """An address where nobody listens."""
    return f"127.0.0.1:{unused_port()}"
