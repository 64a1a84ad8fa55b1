"""Runs a section of the GPU suite as a process that can't outlive its time, whatever it does."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import environment
from ..harness import DIES_WITH_US

LONGEST_LINE = 4 << 20
TAIL_LINES = 20
ENDING_SECONDS = 3.0
"""How long to wait for a killed process. One that the kernel can't end, because a driver hangs, is left behind."""


@dataclass(frozen=True)
class Outcome:
    """How a section ended."""

    status: str
    """"done", "failed", "out of time", "skipped" for lack of time, "stopped" by a signal, or "not run" because this
    machine can't or the smoke test failed."""
    seconds: float = 0.0
    reason: str | None = None
    output: str | None = None
    """The end of what a failed section printed besides its reports."""
    code: int | None = None
    """The exit status of a failed section's process; if a signal ended it, the signal's number, negated."""


class _Section(asyncio.SubprocessProtocol):
    """Gives each line of standard output to ``read``, which says whether it is a report, and all others to ``log``."""

    def __init__(self, read: Callable[[bytes], bool], log: Callable[[str], None]) -> None:
        self.exited = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.garbled = False  # whether a line of standard output was no report
        self._read = read
        self._log = log
        self._rest = {1: b"", 2: b""}

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

    def process_exited(self) -> None:
        self.exited.set_result(None)

    def connection_lost(self, _error: Exception | None) -> None:
        """The process has ended, and both pipes are closed."""
        self.lost.set_result(None)

    def _take(self, fd: int, line: bytes) -> None:
        if not line.strip() or (fd == 1 and self._read(line)):
            return
        self.garbled |= fd == 1
        text = line[:LONGEST_LINE].decode(errors="replace").rstrip()
        self.tail.append(text[:500])
        self._log(text)


async def run_process(
    command: Sequence[str],
    seconds: float,
    read: Callable[[bytes], bool],
    log: Callable[[str], None],
    *,
    reports_only: bool = True,
) -> Outcome:
    """Runs a command in a process group of its own, which is killed when the command has ended, when its time is over
    and when this task is cancelled. ``reports_only``: it has failed if a line of its standard output is no report.
    Raises OSError if it can't be started."""
    loop, started = asyncio.get_running_loop(), time.monotonic()
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
        await asyncio.wait({section.lost}, timeout=ENDING_SECONDS)
        code = transport.get_returncode()
        transport.close()
    taken, output = time.monotonic() - started, "\n".join(section.tail) or None
    if late:
        reason = f"killed after {seconds:.0f} s: what it had found by then counts"
        return Outcome("out of time", taken, reason, output)
    if code:
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return Outcome("failed", taken, f"{how}: {section.tail[-1]}" if section.tail else how, output, code)
    if section.garbled and reports_only:
        return Outcome("failed", taken, "it printed something that is not a result", output)
    return Outcome("done", taken)
