"""A process that the first one of a terminator with workers has started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING

import msgspec

from gpu_provider.supervised import Message, Task

if TYPE_CHECKING:
    import signal

__all__ = ["Child"]

_LINE_LIMIT = 1 << 24


class Child:
    """On the event loop's thread, which is asyncio's own."""

    def __init__(
        self,
        name: str,
        started_at: float,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.name = name
        self.started_at = started_at
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()
        """It is about to end, or has ended."""
        self.report = Message()
        """Its last."""
        self._process = process
        self._writer = writer
        self._answered = asyncio.Event()
        self._reading = asyncio.get_running_loop().create_task(self._read(reader))

    @classmethod
    async def start(cls, name: str, module: str, task: Task) -> Child:
        """``module`` runs in the new process. Raises OSError."""
        started_at = asyncio.get_running_loop().time()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", module, str(theirs.fileno())),
                    pass_fds=[theirs.fileno(), *(one for several in task.descriptors.values() for one in several)],
                    # The terminal's Ctrl-C is for the first process, which tells the others.
                    process_group=0,
                )
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_LINE_LIMIT)
        except BaseException:
            ours.close()  # a process that has nobody to tell it what to do ends
            raise
        writer.write(msgspec.json.encode(task) + b"\n")
        return cls(name, started_at, process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                message = msgspec.json.decode(line, type=Message)
                if message.state is None:
                    self.report = message
                    self._answered.set()
                else:
                    (self.ready if message.state == "ready" else self.stopping).set()
        self.stopping.set()
        self._answered.set()

    async def ask(self) -> None:
        """Renews :attr:`report`."""
        if self._reading.done():
            return
        self._answered.clear()
        self._writer.write(b"\n")
        await self._answered.wait()

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def wait(self) -> int:
        """Its exit code; negative: the signal that ended it. Its last report is here then."""
        code = await self._process.wait()
        await self._reading
        self._writer.close()
        return code
