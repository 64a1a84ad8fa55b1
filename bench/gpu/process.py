"""Runs a section of the GPU suite as a process that can't outlive its time, whatever it does."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import environment
from ..harness import DIES_WITH_US

LONGEST_LINE = 4 << 20
TAIL_LINES = 40
ENDING_SECONDS = 3.0
"""How long to wait for a killed process. One that the kernel can't end, because a driver hangs, is left behind."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """None if it was killed because its time was over."""
    tail: Sequence[str]
    """The last lines of its standard error, and of its standard output where that is no report."""
    garbled: bool
    """Whether a line of its standard output was no report."""


class _Section(asyncio.SubprocessProtocol):
    """Gives each line of standard output to ``read``, which says whether it is a report, and all others to ``log``."""

    def __init__(self, read: Callable[[bytes], bool], log: Callable[[str], None]) -> None:
        self.exited = asyncio.get_running_loop().create_future()
        self.drained = asyncio.get_running_loop().create_future()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.garbled = False
        self._read = read
        self._log = log
        self._rest = {1: b"", 2: b""}
        self._open = {1, 2}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, rest = (self._rest[fd] + data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        self._rest[fd] = rest
        for line in lines:
            self._take(fd, line)

    def pipe_connection_lost(self, fd: int, _error: Exception | None) -> None:
        if self._rest[fd]:
            self._take(fd, self._rest[fd])
        self._open.discard(fd)
        if not self._open and not self.drained.done():
            self.drained.set_result(None)

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)

    def _take(self, fd: int, line: bytes) -> None:
        if not line.strip() or (fd == 1 and self._read(line)):
            return
        self.garbled |= fd == 1
        text = line[:LONGEST_LINE].decode(errors="replace").rstrip()
        self.tail.append(text[:500])
        self._log(text)


async def run_process(
    command: Sequence[str], seconds: float, read: Callable[[bytes], bool], log: Callable[[str], None]
) -> Ended:
    """Runs a command in a process group of its own, which is killed when the command has ended, when its time is over
    and when this task is cancelled. Raises OSError if it can't be started."""
    loop = asyncio.get_running_loop()
    if shutil.which(DIES_WITH_US[0]):
        command = [*DIES_WITH_US, *command]
    starting = loop.create_task(
        loop.subprocess_exec(
            lambda: _Section(read, log),
            *command,
            cwd=environment.ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    )
    late = False
    try:
        _, section = await asyncio.shield(starting)  # if it were cancelled, it would leave a process behind
        async with asyncio.timeout(seconds):
            await asyncio.shield(section.exited)
    except TimeoutError:
        late = True
    finally:
        transport, section = await starting
        with contextlib.suppress(ProcessLookupError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
        # A process that has left the group may keep the pipes open for ever.
        await asyncio.wait({section.exited, section.drained}, timeout=ENDING_SECONDS)
        code = transport.get_returncode()
        transport.close()
    return Ended(None if late else code, list(section.tail), section.garbled)
