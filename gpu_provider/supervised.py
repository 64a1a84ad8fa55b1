"""A child process's connection with the parent that started it, and looks after it: over a socket pair.

The child says what it is doing, as lines of JSON, and answers the parent's every line with what its metrics are. When
the parent is gone, the child reads the end of the connection, and ends as on SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence  # noqa: TC003 - the fields' types are read at run time
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from prometheus_client import generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

__all__ = ["Message", "State", "Supervised", "Task", "receive_task"]

State = Literal["ready", "stopping"]


class Task(msgspec.Struct, frozen=True):
    """What a new process is told before all else."""

    config: dict[str, Any]
    """Its settings, of :func:`gpu_provider.settings.to_builtins`."""
    number: int = 0
    """Among those that do the same."""
    descriptors: dict[str, Sequence[int]] = {}
    """Which it has inherited, by what they are for."""


def receive_task() -> tuple[socket.socket, Task]:
    """In the new process, whose first argument is the descriptor: its connection with the parent, and its task."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise SystemExit(0)  # the parent has ended before it said anything
        line += byte
    return connection, msgspec.json.decode(line, type=Task)


class Message(msgspec.Struct, frozen=True):
    """What a child says: its new state; or, when it is asked and at its end, how it is."""

    state: State | None = None
    metrics: str | None = None
    """In Prometheus' text format."""
    is_ready: bool = False
    readiness: str = ""
    """Why it is not ready or, if it is, how it is, in one line."""
    failures: list[dict[str, Any]] = []
    """The log's lines about the last connections that failed."""


class Supervised:
    """The child's end. On the event loop's thread."""

    def __init__(
        self,
        connection: socket.socket,
        registry: CollectorRegistry,
        is_ready: Callable[[], tuple[bool, str]],
        failures: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._is_ready = is_ready
        self._failures = failures
        self._task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._connection)
        self._task = asyncio.get_running_loop().create_task(self._answer(reader))

    async def _answer(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await reader.readline():
                self._report()
        os.kill(os.getpid(), signal.SIGTERM)

    def tell(self, state: State) -> None:
        self._send(Message(state=state))

    def _report(self) -> None:
        is_ready, readiness = self._is_ready()
        metrics = generate_latest(self._registry).decode()
        message = Message(metrics=metrics, is_ready=is_ready, readiness=readiness, failures=self._failures())
        self._send(message)

    def _send(self, message: Message) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")

    async def close(self) -> None:
        """Leaves the parent what was counted."""
        if self._task is None or self._writer is None:
            return
        self._task.cancel()
        self._report()
        with contextlib.suppress(OSError):
            await self._writer.drain()
            self._writer.close()
            await self._writer.wait_closed()
