"""The service under systemd: it says how it is, takes the socket that systemd has opened, and its unit files are valid.

No systemd runs here. Its protocols are plain, and its programs for unit files and for sockets need no running one.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from groups import TIMEOUT, Client, find_program, get_many, public_directory, wait_until
from program_servers import HAProxy
from service_process import Service
from terminator_process import echo_terminator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groups import Directory

UNITS = Path(__file__).resolve().parents[2] / "systemd"
PROGRAM = Path(sys.executable).with_name("gpu-provider")
STARTS = "ExecStart=/opt/gpu-provider/bin/gpu-provider "
HANG = """
import os, threading
from gpu_provider.engine.engine import Engine
original = Engine._timeout_until_ns
def hanging(self):
    if os.path.exists({file!r}):
        threading.Event().wait()
    return original(self)
Engine._timeout_until_ns = hanging
"""


@pytest.fixture
def directory() -> Iterator[Directory]:
    with public_directory("service = {path}/socket") as directory:
        yield directory


# ---- what it tells ----


@contextlib.contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """Where systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0"))
        receiver.settimeout(TIMEOUT)
        yield receiver


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_when_it_is_ready_and_when_it_stops(directory, abstract):
    address = f"@{directory.path}" if abstract else str(directory.path / "notify")
    with manager(address) as receiver:
        with Service(directory.path / "socket", settings={"NOTIFY_SOCKET": address}) as service:
            assert receiver.recv(1000) == b"READY=1"
            service.stop()
        assert receiver.recv(1000) == b"STOPPING=1"


def test_the_terminator_tells_too(tmp_path):
    address = str(tmp_path / "notify")
    settings = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}
    with manager(address) as receiver:
        with echo_terminator(tmp_path, settings=settings) as terminator:
            assert [receiver.recv(1000) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            terminator.end_at_once()
        assert b"STOPPING=1" in iter(lambda: receiver.recv(1000), b"")


def test_a_batching_thread_that_hangs_is_not_alive(directory):
    """Programs would wait for the service again and again; systemd starts it anew."""
    address, file = str(directory.path / "notify"), directory.path / "hang"
    directory.write("sitecustomize.py", HANG.format(file=str(file)))
    settings = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000", "PYTHONPATH": str(directory.path)}
    with manager(address) as receiver, Service(directory.path / "socket", settings=settings) as service:
        assert [receiver.recv(1000) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
        file.touch()
        receiver.settimeout(2)
        with pytest.raises(TimeoutError):
            receive_while_alive(receiver)
        assert service.process.poll() is None
        service.process.kill()


def receive_while_alive(receiver: socket.socket) -> None:
    for _ in range(100):
        assert receiver.recv(1000) == b"WATCHDOG=1"


def test_a_watchdog_for_another_process_is_not_fed(directory):
    address = str(directory.path / "notify")
    settings = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    with manager(address) as receiver:
        with Service(directory.path / "socket", settings=settings) as service:
            service.stop()
        assert [receiver.recv(1000) for _ in range(2)] == [b"READY=1", b"STOPPING=1"]


# ---- the socket that it is given ----


class ActivatedService(Service):
    """Started by systemd's own program for trying this, at the first connection."""

    def __init__(self, path: Path, *flags: str, stream: bool = False) -> None:
        super().__init__(path)
        self._path, self._kind = path, socket.SOCK_STREAM if stream else socket.SOCK_SEQPACKET
        activate = [
            find_program("systemd-socket-activate"),
            *([] if stream else ["--seqpacket"]),
            "--listen",
            str(path),
        ]
        self._command = [*activate, str(PROGRAM), "service", "--admin", "off", *flags]

    def __enter__(self) -> Self:
        self._start()
        try:
            wait_until(self._can_connect, "systemd-socket-activate does not listen")
            self.wait_for("ready")
        except BaseException:
            self._end()
            raise
        return self

    def _can_connect(self) -> bool:
        with socket.socket(socket.AF_UNIX, self._kind) as first, contextlib.suppress(OSError):
            first.connect(str(self._path))
            return True
        return False

    def __exit__(self, *exception: object) -> None:
        of_activate = ("Listening on", "Communication attempt", "Execing")
        self.events = [event for event in self.events if not event["event"].startswith(of_activate)]
        super().__exit__(*exception)


def test_it_is_started_by_the_first_connection_and_leaves_the_socket_to_systemd(directory):
    path = directory.path / "socket"
    with ActivatedService(path) as service, HAProxy(directory) as server:
        assert service.wait_for("ready")["socket"] == str(path)
        for _ in range(200):
            before = directory.counts().served
            get_many(server.port, [Client()])
            if directory.counts().served > before:
                break
        service.stop()
        assert get_many(server.port, [Client()] * 5) == {b"HTTP/1.1 200 OK": 5}
    assert service.requests > 0
    assert path.exists()


@pytest.mark.parametrize(
    ("flags", "stream", "words"),
    [
        (["--socket", "/run/elsewhere"], False, "leave the setting out"),
        ([], True, "is not ListenSequentialPacket="),
    ],
    ids=["another path", "a stream"],
)
def test_a_socket_that_is_not_what_programs_use_is_a_mistake(directory, flags, stream, words):
    service = ActivatedService(directory.path / "socket", *flags, stream=stream)
    with pytest.raises(AssertionError), service:
        pass
    assert service.process.returncode == 2
    (line,) = (event["event"] for event in service.events if "error:" in event["event"])
    assert words in line


# ---- unit files ----


def test_the_units_are_valid(tmp_path):
    units = sorted(path.name for path in UNITS.iterdir() if path.suffix in {".service", ".socket"})
    assert len(units) == 4
    for name in units:
        text = (UNITS / name).read_text()
        assert (STARTS in text) == name.endswith(".service")
        (tmp_path / name).write_text(text.replace(STARTS, f"ExecStart={PROGRAM} "))
    dropins = tmp_path / "gpu-provider.service.d"
    dropins.mkdir()
    shutil.copy(UNITS / "gpu.conf", dropins)
    analyze = [find_program("systemd-analyze"), "verify", "--man=no"]
    for name in units:
        run = subprocess.run([*analyze, tmp_path / name], capture_output=True, text=True, timeout=TIMEOUT, check=False)
        assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("unit", ["gpu-provider.service", "gpu-provider-terminator.service"])
def test_the_service_can_do_little_but_compute(unit):
    analyze = [find_program("systemd-analyze"), "security", "--offline=true", "--threshold=20", "--no-pager"]
    run = subprocess.run([*analyze, UNITS / unit], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert run.returncode == 0, run.stdout
