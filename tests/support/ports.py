"""Ports of 127.0.0.1 that nobody uses."""

from __future__ import annotations

import contextlib
import random
import socket


def unused_port() -> int:
    """A port below those that the kernel hands out: one that it had handed out once, it might hand to another test
    before the caller uses it."""
    while True:
        port = random.randrange(15000, 30000)  # noqa: S311 (no secret)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
