"""A client of a TLS server in a container, and the server's certificate. Uses the standard library alone."""

from __future__ import annotations

import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_certificate(directory: Path) -> None:
    what = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=container.test -addext subjectAltName=DNS:container.test"
    )
    subprocess.run(
        ["openssl", *what.split(), "-keyout", "key.pem", "-out", "chain.pem"],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    (directory / "key.pem").chmod(0o644)  # the container's user doesn't exist here


def request(port: int, authority: Path, version: ssl.TLSVersion, path: str) -> bytes:
    """One verified handshake of this version and one HTTP request."""
    context = ssl.create_default_context(cafile=str(authority))
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname="container.test") as tls,
    ):
        tls.sendall(f"GET {path} HTTP/1.1\r\nHost: container.test\r\nConnection: close\r\n\r\n".encode())
        answer = bytearray()
        while received := tls.recv(65536):
            answer += received
    return bytes(answer)
