"""Upstreams that speak TLS, and terminators that verify them."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from terminator_process import (
    Terminator,
    Upstream,
    authority,
    credentials,
    write_credentials,
)

from gpu_provider import tls

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    import trustme


def ssl_context(directory: Path, name: str = "localhost") -> ssl.SSLContext:
    """Of an upstream of Python's ``ssl``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _, cert, _, key = write_credentials(directory, name, stem=f"upstream-{name}")
    context.load_cert_chain(cert, key)
    return context


def encrypted(context: ssl.SSLContext, handler: Callable[[ssl.SSLSocket], None]) -> Upstream:
    def serve(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                handler(secure)
        except ssl.SSLError:  # refused by the terminator
            connection.close()

    return Upstream(serve)


class LibraryUpstream(Upstream):
    """Unlike Python's ``ssl``, it can end one direction alone. Each test says what it does."""

    def __init__(self) -> None:
        super().__init__(self._run)
        self.handler: Callable[[tls.Connection, socket.socket], None] = lambda _, __: None
        self.alpn: tuple[str, ...] = ()

    def _run(self, connection: socket.socket) -> None:
        context = tls.Context(tls.TLS_SERVER_METHOD)
        chain, key = credentials("localhost")
        context.use_certificate(chain)
        context.use_privatekey(key)
        if self.alpn:
            context.set_alpn_server_protos(self.alpn)
        connection.setblocking(True)
        secure = tls.Connection(context, connection)
        secure.set_accept_state()
        secure.do_handshake()
        self.handler(secure, connection)


def write_authority(directory: Path, ca: trustme.CA) -> str:
    file = directory / "upstream-ca.pem"
    file.write_bytes(ca.cert_pem.bytes())
    return str(file)


def trusting(directory: Path, upstream: str, *flags: str, ca: trustme.CA | None = None) -> Terminator:
    """A terminator that verifies the upstream, whose name is localhost."""
    return Terminator(
        *write_credentials(directory), "--upstream-tls", "on", "--upstream-name", "localhost",
        "--upstream-ca", write_authority(directory, ca or authority()), *flags, upstream=upstream,
    )  # fmt: skip


def receive_all(connection: tls.Connection) -> bytes:
    received = bytearray()
    while True:
        try:
            received += connection.recv(65536)
        except tls.ZeroReturnError:
            return bytes(received)
