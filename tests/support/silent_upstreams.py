"""Upstreams that don't answer, and names with several addresses."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["fill", "listener", "resolver"]


@contextlib.contextmanager
def listener(host: str, port: int = 0) -> Iterator[socket.socket]:
    with socket.create_server((host, port), backlog=0) as sock:
        yield sock


def fill(silent: socket.socket) -> list[socket.socket]:
    """Fills the backlog, so that the kernel answers no further connects."""
    waiting = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(silent.getsockname())
        waiting.append(sock)
    return waiting


def resolver(directory: Path, *hosts: str) -> dict[str, str]:
    """The environment of a terminator for which ``several.example`` has these addresses."""
    (directory / "sitecustomize.py").write_text(
        "import socket\n"
        "real = socket.getaddrinfo\n"
        "def getaddrinfo(host, *rest, **more):\n"
        f"    hosts = {hosts!r} if host == 'several.example' else [host]\n"
        "    return [one for host in hosts for one in real(host, *rest, **more)]\n"
        "socket.getaddrinfo = getaddrinfo\n"
    )
    return {"PYTHONPATH": str(directory)}
