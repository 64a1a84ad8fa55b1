"""Certificates, contexts and connections for the TLS tests: real keys, real handshakes, over memory BIOs or sockets."""

from __future__ import annotations

import contextlib
import functools
import select
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trustme

from gpu_provider import tls

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_provider import BatchingProvider


class Credentials(NamedTuple):
    chain: bytes
    key: bytes


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


def credentials(name: str = "localhost", kind: str = "RSA") -> Credentials:
    """A certificate for ``name`` with an RSA-2048 or ECDSA P-256 key; the same each time."""
    return _issue(name, kind)


@functools.cache
def _issue(name: str, kind: str) -> Credentials:
    issued = authority().issue_cert(name, key_type=trustme.KeyType[kind])
    return Credentials(b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes())


def server_context(
    provider: BatchingProvider | None = None,
    *,
    name: str = "localhost",
    kind: str = "RSA",
    asynchronous: bool = True,
    version: int = 0,
) -> tls.Context:
    """``version``: the only TLS version allowed; 0: any."""
    context = tls.Context(tls.TLS_SERVER_METHOD, provider)
    chain, key = credentials(name, kind)
    context.use_certificate(chain)
    context.use_privatekey(key)
    context.check_privatekey()
    if asynchronous:
        context.set_mode(tls.SSL_MODE_ASYNC)
    if version:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    return context


def unverifying_client_context(provider: BatchingProvider | None = None) -> tls.Context:
    """A client of ours that accepts any certificate, for tests that are not about verification."""
    context = tls.Context(tls.TLS_CLIENT_METHOD, provider)
    context.set_verify(tls.VERIFY_NONE)
    context.load_verify_locations(None, Path(__file__).parent)  # none: reading the system's is slow
    return context


def client_ssl_context(*, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Python's own TLS as the client: an independent peer that verifies the server."""
    context = ssl.create_default_context(cadata=authority().cert_pem.bytes().decode())
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


class Peer:
    """A client of Python's ``ssl`` in memory, opposite a Connection over memory BIOs."""

    def __init__(
        self,
        connection: tls.Connection,
        context: ssl.SSLContext | None = None,
        *,
        name: str = "localhost",
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.connection = connection
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = (context or client_ssl_context()).wrap_bio(
            self._in, self._out, server_hostname=name, session=session
        )
        self.finished = False

    def exchange(self) -> None:
        """Carries bytes both ways, and continues the client's handshake."""
        self._carry()
        if not self.finished:
            try:
                self.ssl.do_handshake()
                self.finished = True
            except ssl.SSLWantReadError:
                pass
        self._carry()

    def _carry(self) -> None:
        if data := self._out.read():
            self.connection.bio_write(data)
        while count := self.connection.bio_pending():
            self._in.write(self.connection.bio_read(count))

    def read(self, count: int = 65536) -> bytes:
        self._carry()
        return self.ssl.read(count)

    def write(self, data: bytes) -> None:
        self.ssl.write(data)
        self._carry()


def named_hello(name: str) -> bytes:
    """A ClientHello that asks for this server name, which need not be one."""
    outgoing, stand_in = ssl.MemoryBIO(), "x" * len(name)
    client = client_ssl_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=stand_in)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read().replace(stand_in.encode(), name.encode())


def accept(context: tls.Context) -> tls.Connection:
    connection = tls.Connection(context)
    connection.set_accept_state()
    return connection


def pause(context: tls.Context) -> tuple[tls.Connection, Peer]:
    """A server's connection whose handshake is paused on its RSA operation. The backend must be holding."""
    connection = accept(context)
    return connection, pause_connection(connection)


def pause_connection(connection: tls.Connection) -> Peer:
    """The same for a connection made before. The backend must be holding, or there may be no pause to see."""
    peer = Peer(connection)
    while True:
        peer.exchange()
        try:
            connection.do_handshake()
        except tls.WantReadError:
            continue
        except tls.WantAsyncError:
            return peer


def finish(connection: tls.Connection, peer: Peer, wait: Callable[[], object] | None = None) -> None:
    """Completes the handshake, and has both sides exchange a message. Pauses end when ``wait`` returns: by default when
    a wait descriptor is readable."""
    done = False
    while not (done and peer.finished):
        try:
            connection.do_handshake()
            done = True
        except tls.WantReadError:
            pass
        except tls.WantAsyncError:
            wait_for_descriptor(connection) if wait is None else wait()
        peer.exchange()
    converse(connection, peer)


def wait_for_descriptor(connection: tls.Connection) -> None:
    if not select.select(connection.get_all_async_fds(), [], [], 30)[0]:
        raise TimeoutError("no wait descriptor became readable")


def converse(connection: tls.Connection, peer: Peer) -> None:
    connection.clear_mode(tls.SSL_MODE_ASYNC)
    peer.write(b"ping")
    assert connection.recv(100) == b"ping"
    connection.sendall(b"pong")
    assert peer.read() == b"pong"


def handshake(context: tls.Context, client: ssl.SSLContext | None = None, *, name: str = "localhost") -> tls.Connection:
    """A whole handshake that does not pause; returns the server's connection."""
    connection = accept(context)
    finish(connection, Peer(connection, client, name=name))
    return connection
