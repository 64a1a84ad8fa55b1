"""Descriptors or memory run out in the service, or another takes its place: one program at most is affected, and it
computes by itself."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from groups import TIMEOUT, public_directory, wait_until
from program_servers import HAProxy
from service_load import load, wait_for_more, wait_until_served
from service_process import HELLO, Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groups import Directory

ENDING = "ending, because this process can't go on"
SHORTAGES = ("can't accept a program now", "program refused")


@pytest.fixture
def directory() -> Iterator[Directory]:
    with public_directory("service = {path}/socket\nservice_timeout = 500") as directory:
        yield directory


def service_with(directory: Directory, patch: str, *flags: str) -> Service:
    """``patch``: Python code that runs in the process before anything else; in it, ``failing()`` says whether the
    file ``fail`` exists."""
    first = f"import os\ndef failing():\n    return os.path.exists({str(directory.path / 'fail')!r})\n"
    directory.write("sitecustomize.py", first + patch)
    return Service(directory.path / "socket", *flags, settings={"PYTHONPATH": str(directory.path)})


def is_admitted(directory: Directory) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection, contextlib.suppress(ConnectionError):
        connection.settimeout(TIMEOUT)
        connection.connect(str(directory.path / "socket"))
        connection.send(HELLO)
        return connection.recv(100) != b""
    return False


@pytest.mark.parametrize("error", ["MemoryError", "OSError(errno.ENOMEM, 'no memory')"])
@pytest.mark.parametrize(
    "patch",
    [
        """
def of(connection):
    fail()
    return original(connection)
original, processes.Peer.of = processes.Peer.of, of
""",
        """
class Process(processes._Process):
    __slots__ = ()
    def __init__(self, *arguments):
        fail()
        super().__init__(*arguments)
processes._Process = Process
""",
        """
class Lib:
    def gp_remote_serve(self, remote):
        fail()
        return lib.gp_remote_serve(remote)
    def __getattr__(self, name):
        return getattr(lib, name)
lib, processes.lib = processes.lib, Lib()
""",
        """
class Log:
    def info(self, *arguments, **details):
        if failing():
            raise MemoryError
        log.info(*arguments, **details)
log, processes._log = processes._log, Log()
class Process(processes._Process):
    __slots__ = ()
    def __init__(self, *arguments):
        fail()
        super().__init__(*arguments)
processes._Process = Process
""",
    ],
    ids=["who it is", "its record", "its message", "the log too"],
)
def test_a_program_for_which_there_is_no_memory_is_cut_off_alone(directory, patch, error):
    patch = f"""
import errno
from gpu_provider.service import processes
def fail():
    if failing():
        raise {error}
{patch}"""
    with service_with(directory, patch) as service, HAProxy(directory) as server, load(server) as answers:
        wait_until_served(directory, answers)
        (directory.path / "fail").touch()
        assert not is_admitted(directory)
        (directory.path / "fail").unlink()
        assert is_admitted(directory)
        wait_until_served(directory, answers)
        assert service.process.poll() is None


def test_descriptors_that_run_out_are_logged_sparingly_and_it_passes(directory):
    with Service(directory.path / "socket") as service, HAProxy(directory) as server, load(server) as answers:
        wait_until_served(directory, answers)
        limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
        in_use = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (in_use + 1, limits[1]))
        for _ in range(100):
            assert not is_admitted_at_once(directory)
        wait_until(lambda: any(event["event"] in SHORTAGES for event in service.events), "nothing is logged")
        wait_for_more(answers, 50)
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, limits)
        assert is_admitted(directory)
        wait_until_served(directory, answers)
        assert sum(event["event"] in SHORTAGES for event in service.events) <= 4


def is_admitted_at_once(directory: Directory) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(0.01)
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.connect(str(directory.path / "socket"))
            connection.send(HELLO)
            return connection.recv(100) != b""
    return False


@pytest.mark.parametrize(
    "patch",
    [
        """
from gpu_provider.service.processes import Processes
original = Processes.set_room
def set_room(self, room):
    if failing():
        raise MemoryError
    original(self, room)
Processes.set_room = set_room
""",
        """
import asyncio
from gpu_provider.service.processes import Processes
original = Processes.start
def again(loop):
    if failing():
        raise MemoryError
    loop.call_later(0.01, again, loop)
def start(self, listener):
    again(asyncio.get_running_loop())
    original(self, listener)
Processes.start = start
""",
    ],
    ids=["the service's own", "the event loop's"],
)
def test_without_memory_for_what_belongs_to_no_program_it_ends_and_says_why(directory, patch):
    with service_with(directory, patch) as service, HAProxy(directory) as server, load(server) as answers:
        wait_until_served(directory, answers)
        (directory.path / "fail").touch()
        assert service.wait_for(ENDING)["reason"] == "out of memory"
        assert service.process.wait(TIMEOUT) == 4
        wait_for_more(answers, 50)


def test_without_its_batching_thread_it_ends_and_says_why(directory):
    patch = """
from gpu_provider.engine.engine import Engine
original = Engine._timeout_until_ns
def broken(self):
    if failing():
        raise RuntimeError("made to fail by a test")
    return original(self)
Engine._timeout_until_ns = broken
"""
    with service_with(directory, patch) as service, HAProxy(directory) as server, load(server) as answers:
        wait_until_served(directory, answers)
        (directory.path / "fail").touch()
        assert "made to fail by a test" in service.wait_for(ENDING)["reason"]
        assert service.process.wait(TIMEOUT) == 4
        wait_for_more(answers, 50)
        service.events = []  # the fault's traceback


def test_another_service_takes_over_while_the_first_still_ends(directory):
    """As in an upgrade by hand. The first removes neither the socket of the other, nor holds on to programs."""
    patch = """
import time
from gpu_provider.provider import BatchingProvider
original = BatchingProvider.__exit__
def slowly(self, *exception):
    while failing():
        time.sleep(0.01)
    original(self, *exception)
BatchingProvider.__exit__ = slowly
"""
    path = directory.path / "socket"
    with service_with(directory, patch) as first, HAProxy(directory) as server, load(server) as answers:
        wait_until_served(directory, answers)
        (directory.path / "fail").touch()
        first.process.send_signal(signal.SIGTERM)
        first.wait_for("stopped")
        wait_until(lambda: not path.exists(), "the first service leaves its socket behind")
        with Service(path) as second:
            wait_until_served(directory, answers)
            assert first.process.poll() is None
            (directory.path / "fail").unlink()
            assert first.process.wait(TIMEOUT) == 0
            assert path.exists()
            wait_until_served(directory, answers)
            second.stop()
            assert second.requests > 0


def test_sighup_changes_nothing(directory):
    with Service(directory.path / "socket") as service, HAProxy(directory) as server, load(server) as answers:
        wait_until_served(directory, answers)
        os.kill(service.process.pid, signal.SIGHUP)
        wait_until_served(directory, answers)
        service.stop()
